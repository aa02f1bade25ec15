"""Checkpoints: safetensors for every tensor, JSON for the rest, a folder renamed into place; nothing is unpickled."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.errors import UserError

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
    """Load model, optimizer and random state from a checkpoint, and return its `state.json`."""
    model.load_state_dict(load_tensors(folder / "model.safetensors"))
    _load_optimizer(optimizer, load_tensors(folder / "optimizer.safetensors"))
    torch.set_rng_state(load_tensors(folder / "rng.safetensors")["torch"])
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return state


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises `UserError` for a missing or damaged one."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"no checkpoint file {path}") from None
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from None


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """AdamW's state as `<parameter number>.<name>`; what is not a tensor becomes one."""
    return {
        f"{number}.{name}": torch.as_tensor(value).detach().cpu().contiguous()
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def _load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
