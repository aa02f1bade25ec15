"""Checkpoints: safetensors for every tensor, JSON for the rest, a folder renamed into place; nothing is unpickled."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.errors import UserError
from sak_core.tensor_files import RefusedFile, read_tensors
from sak_core.weights import check_state

LAST = "last"


def save(folder: Path, model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Write the checkpoint `folder`, in place of an older one, so that a whole one is there at every moment."""
    fresh, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file(_contiguous(model.state_dict()), fresh / "model.safetensors")
    save_file(_optimizer_tensors(optimizer), fresh / "optimizer.safetensors")
    save_file({"torch": torch.get_rng_state()}, fresh / "rng.safetensors")
    (fresh / "state.json").write_text(json.dumps(state, indent=1))
    for path in fresh.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def find(folder: Path) -> Path | None:
    """The newest whole checkpoint at `folder`; a kill between two renames leaves it under its second name."""
    for candidate in (folder, folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")):
        if (candidate / "state.json").is_file():
            return candidate
    return None


def restore(folder: Path, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Load model, optimizer and random state from a checkpoint, and return its `state.json`.

    Raises `UserError` naming the file that is damaged, hostile or does not fit, before anything is loaded.
    """
    state = _read_state(folder / "state.json")
    weights = load_tensors(folder / "model.safetensors")
    moments = _optimizer_state(folder / "optimizer.safetensors", optimizer)
    rng = load_tensors(folder / "rng.safetensors")
    try:
        check_state(model.state_dict(), weights, f"{folder / 'model.safetensors'} does not fit the model")
        check_state({"torch": torch.get_rng_state()}, rng, f"{folder / 'rng.safetensors'} holds no random state")
        torch.set_rng_state(rng["torch"])
    except (ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"{error}. Delete {folder} to start anew") from None
    model.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    return state


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's file. Raises `UserError` for a missing, damaged or hostile one."""
    try:
        return read_tensors(path)
    except (FileNotFoundError, RefusedFile) as error:
        raise UserError(str(error)) from None


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    wanted: dict[str, tuple[type, ...]] = {
        "step": (int,),
        "seconds": (int, float),
        "recipe": (dict,),
        "loader": (dict,),
    }
    wrong = [key for key, kind in wanted.items() if not isinstance(state, dict) or not isinstance(state.get(key), kind)]
    if wrong:
        raise UserError(f"{path} is damaged: no usable {', '.join(wrong)}")
    found: dict[str, Any] = state
    return found


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """AdamW's state as `<parameter number>.<name>`; what is not a tensor becomes one."""
    return {
        f"{number}.{name}": torch.as_tensor(value).detach().cpu().contiguous()
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def _optimizer_state(path: Path, optimizer: Optimizer) -> dict[str, Any]:
    """What `optimizer.load_state_dict` takes, each moment of its parameter's shape."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in load_tensors(path).items():
        number, _, name = key.partition(".")
        if not number.isdecimal() or int(number) >= len(parameters):
            raise UserError(f"{path} does not fit the model: {key!r} is of none of its {len(parameters)} parameters")
        shape = parameters[int(number)].shape
        if tensor.ndim and tensor.shape != shape:
            raise UserError(f"{path} does not fit the model: {key} is {tuple(tensor.shape)}, expected {tuple(shape)}")
        state.setdefault(int(number), {})[name] = tensor
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
