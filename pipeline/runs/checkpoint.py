"""Checkpoints: safetensors for every tensor, JSON for the rest, a folder renamed into place; nothing is unpickled."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cache.places.files import fsync_directory
from pipeline.errors import UserError
from sak_core.weights.tensor_files import RefusedFile, check_state, read_tensors, write_tensors

LAST, BEST, BEST_BY_PROBE = "last", "best", "best-by-probe"
"""Names of the two checkpoints of a run: of its last saved step, and of the best validation where a recipe asks."""


@dataclass(frozen=True)
class Trainable:
    """What a checkpoint holds beside `state.json`: model and optimizer, averaged weights and the loss scaler where
    a recipe has them."""

    model: nn.Module
    optimizer: Optimizer
    average: nn.Module | None = None
    scaler: torch.amp.GradScaler | None = None


def save(folder: Path, trained: Trainable, state: Mapping[str, Any]) -> None:
    """Write the checkpoint `folder`, in place of an older one, so that a whole one is there at every moment.

    Raises:
        UserError: a weight, or what the optimizer keeps of it, is not finite (which `restore` would refuse); the older
            one is then kept.
    """
    fresh, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    files = {
        "model": _on_cpu(trained.model.state_dict()),
        "optimizer": _optimizer_tensors(trained.optimizer),
        "random": random_state(),
    }
    if trained.average is not None:
        files["average"] = _on_cpu(trained.average.state_dict())
    every = [(f"{file}: {name}", value) for file, values in files.items() for name, value in values.items()]
    if bad := [name for name, value in every if not bool(torch.isfinite(value).all())]:
        raise UserError(
            f"step {state['step']}: {bad[0]} is not finite{f' (and {len(bad) - 1} more)' if len(bad) > 1 else ''}. "
            "The last good checkpoint is kept; try a lower optimizer.lr, optimizer.clip = 10, or precision = '32-true'"
        )
    whole = {**state, "scaler": trained.scaler.state_dict() if trained.scaler else None}
    if not folder.exists() and (found := find(folder)):  # of a save that was killed between its two renames
        found.rename(folder)
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name, tensors in files.items():
        write_tensors(fresh / f"{name}.safetensors", tensors)
        _sync(fresh / f"{name}.safetensors")
    # last, and whole or not at all: it is what says that a checkpoint is there
    unnamed = fresh / "state.json.tmp"
    unnamed.write_text(json.dumps(whole, indent=1))
    _sync(unnamed)
    unnamed.rename(fresh / "state.json")
    fsync_directory(fresh)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    fsync_directory(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def find(folder: Path) -> Path | None:
    """The newest whole checkpoint at `folder`; a kill between two renames leaves it under its second name."""
    for candidate in (folder, folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")):
        if (candidate / "state.json").is_file():
            return candidate
    return None


def restore(folder: Path, trained: Trainable) -> dict[str, Any]:
    """Load all of `trained` and the random state from a checkpoint, and return its `state.json`.

    Raises:
        UserError: a file is damaged, hostile or does not fit; it is named before anything is loaded.
    """
    state = read_state(folder)
    moments = _optimizer_state(folder / "optimizer.safetensors", trained.optimizer)
    models = {"model": trained.model} | ({"average": trained.average} if trained.average is not None else {})
    weights = {name: load_tensors(folder / f"{name}.safetensors") for name in models}
    random = load_tensors(folder / "random.safetensors")
    own = random_state()
    try:
        for name, model in models.items():
            check_state(model.state_dict(), weights[name], f"{folder / name}.safetensors does not fit the model")
        # a run may go on with other GPUs: only generators that are there are set
        known = {name: value for name, value in random.items() if name in own}
        check_state(
            {"cpu": own["cpu"]},
            {k: v for k, v in known.items() if k == "cpu"},
            f"{folder / 'random.safetensors'} holds no random state",
        )
        set_random_state(known)
        if trained.scaler and state["scaler"]:
            trained.scaler.load_state_dict(state["scaler"])
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        raise UserError(f"{error}. Delete {folder} to start anew") from None
    for name, model in models.items():
        model.load_state_dict(weights[name])
    trained.optimizer.load_state_dict(moments)
    return state


def scored_file(folder: Path) -> Path:
    """The file of the weights that a checkpoint's model is scored with: averaged ones where there are some."""
    averaged = folder / "average.safetensors"
    return averaged if averaged.is_file() else folder / "model.safetensors"


def scored_weights(run: Path) -> Path:
    """The file of the weights that a run is scored with: of its best checkpoint where it chose one, else of the last.

    Raises:
        UserError: it has none.
    """
    found = find(run / BEST) or find(run / LAST)
    if found is None:
        raise UserError(f"{run} has no checkpoint; train it first")
    return scored_file(found)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's file.

    Raises:
        UserError: it is missing, damaged or hostile.
    """
    try:
        return read_tensors(path)
    except (FileNotFoundError, RefusedFile) as error:
        raise UserError(str(error)) from None


def read_state(folder: Path) -> dict[str, Any]:
    """A checkpoint's `state.json`.

    Raises:
        UserError: it is damaged.
    """
    path = folder / "state.json"
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


def random_state() -> dict[str, Tensor]:
    """torch's generators, of the CPU and of every GPU in use; Python's and numpy's global ones are used nowhere."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), **{f"cuda{i}": state for i, state in enumerate(devices)}}


def set_random_state(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    for name, state in states.items():
        if name.startswith("cuda"):
            torch.cuda.set_rng_state(state, int(name.removeprefix("cuda")))


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
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
