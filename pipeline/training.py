"""The training loop of both stages: AdamW, a schedule, accumulation, averaged weights, checkpoints, resumption.

The stages differ in what a batch holds and in `step_loss`; arms differ in the model. Nothing here knows which is which.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from cache.batch import Batch
from pipeline import checkpoint
from pipeline.config import Recipe, Schedule, differences
from pipeline.console import progress, say
from pipeline.ema import Ema
from pipeline.errors import UserError
from pipeline.interrupts import Interrupted, stop_requests
from pipeline.sync_norm import synchronise_norms
from pipeline.watch import StepResult, Watch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

StepLoss = Callable[[nn.Module, Batch, int], StepResult]
"""(model, batch on the device, step) to the loss, its named terms and the model's output."""

BY_PROCESS = ("rank", "world_size", "batch_size")
"""What a loader's state says of its process alone; a run may go on with another number of processes."""


class Batches(Protocol):
    """What the loop asks of a loader (`cache.loader.Loader`, or one that runs teachers): epochs of batches."""

    @property
    def epoch(self) -> int: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Batch]: ...
    def set_epoch(self, epoch: int) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Trained:
    """What training came to: seconds of all its sessions together, and the folder of the last checkpoint."""

    seconds: float
    checkpoint: Path


def learning_rate(schedule: Schedule, peak: float, step: int, steps: int) -> float:
    """The learning rate of step `step` of `steps`: linear warm-up, then what `schedule.kind` says."""
    if step < schedule.warmup_steps:
        return schedule.warmup_lr + (peak - schedule.warmup_lr) * step / schedule.warmup_steps
    share = (step - schedule.warmup_steps) / max(steps - schedule.warmup_steps, 1)
    if schedule.kind == "cosine":
        return schedule.final_lr + (peak - schedule.final_lr) * 0.5 * (1 + math.cos(math.pi * share))
    if schedule.kind == "polynomial":
        return float(peak * (1 - share) ** schedule.power)
    return peak


def train(
    fabric: Fabric,
    recipe: Recipe,
    run: Path,
    model: nn.Module,
    loader: Batches,
    step_loss: StepLoss,
    made_from: Mapping[str, Any],
) -> Trained:
    """Train `model` for `recipe.steps` steps, going on from the run's last checkpoint where there is one.

    loader: this process's share; `recipe.accumulate` of its batches make a step. made_from: the caches and the code
    that the numbers depend on; a checkpoint belongs to them. `model` ends with the weights to be scored: averaged
    ones where the recipe has them.

    Raises `UserError` for a loss that is not finite (naming step, term and rows, the last checkpoint kept) and where
    the checkpoint was made from something else, naming it; `Interrupted`, after saving, where a signal asks to stop.
    """
    if fabric.world_size > 1:
        model = synchronise_norms(model, fabric.device)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=recipe.optimizer.lr,
        betas=recipe.optimizer.betas,
        weight_decay=recipe.optimizer.weight_decay,
    )
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
    average = Ema(model, recipe.ema) if recipe.ema else None
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    trained = checkpoint.Trainable(model, optimizer, average.model if average else None, scaler)
    belongs_to = {"recipe": recipe.model_dump(mode="json"), **made_from}
    step, seconds = 0, 0.0
    if found := checkpoint.find(run / checkpoint.LAST):
        _check_origin(run, checkpoint.read_state(found), belongs_to)
        state = checkpoint.restore(found, trained)
        step, seconds = state["step"], state["seconds"]
        _restore_position(loader, state["loader"])
        if step < recipe.steps:
            say(f"{run.name}: going on at step {step}")
    parts = recipe.accumulate
    if len(loader) < parts:
        raise UserError(f"a step of {recipe.batch_size} rows is more than the cache holds; lower batch_size")
    processes = f", {fabric.world_size} processes" if fabric.world_size > 1 else ""
    threads = torch.get_num_threads()
    say(f"{run.name}: device {fabric.device}, precision {recipe.precision}, {threads} threads{processes}")

    resumed_at, began = seconds, time.monotonic()
    saved_at = step
    batches = _endless(loader, parts)
    model.train()
    with (
        progress(run.name, recipe.steps, "steps", step) as advance,
        Watch(fabric, run, parts) as watch,
        stop_requests() as request,
    ):
        while step < recipe.steps:
            lr = learning_rate(recipe.schedule, recipe.optimizer.lr, step, recipe.steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            for part in range(parts):
                batch = next(batches).to(fabric.device)
                with fabric.no_backward_sync(wrapped, enabled=part + 1 < parts):
                    result = step_loss(wrapped, batch, step)
                    fabric.backward(result.loss / parts)
                watch.add(result, batch)
            if recipe.clip:
                fabric.clip_gradients(wrapped, wrapped_optimizer, max_norm=recipe.clip, error_if_nonfinite=False)
            wrapped_optimizer.step()
            wrapped_optimizer.zero_grad(set_to_none=True)
            if average:
                average.update(model)
            step += 1
            saves = step == recipe.steps or step % recipe.checkpoint_every == 0
            logs = saves or step % recipe.log_every == 0
            stop = watch.agree(request.number, at=logs)
            if logs or stop:
                watch.log(step, lr, advance)
            if saves or stop:
                seconds, saved_at = resumed_at + time.monotonic() - began, step
                if fabric.is_global_zero:
                    position = {"step": step, "seconds": seconds, "loader": loader.state_dict()}
                    checkpoint.save(run / checkpoint.LAST, trained, {**position, **belongs_to})
            advance(1)
            if stop and step < recipe.steps:
                say(f"{run.name}: stopped after step {step}, saved")
                raise Interrupted(stop)
    assert saved_at == recipe.steps
    if average:
        model.load_state_dict(average.model.state_dict())
    return Trained(seconds, run / checkpoint.LAST)


def _endless(loader: Batches, parts: int) -> Iterator[Batch]:
    """Batches of one epoch after another, from the loader's position on; an epoch is cut to whole steps."""
    whole = len(loader) // parts * parts
    while True:
        yield from islice(iter(loader), whole - loader.state_dict()["batch"])
        loader.set_epoch(loader.epoch + 1)


def _check_origin(run: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises `UserError` naming where a checkpoint was made from something else than what there is `now`."""
    if changed := differences({key: saved.get(key) for key in now}, now):
        raise UserError(
            f"{run} was trained from something else: {'; '.join(changed)}. Choose another --run, or go on with what "
            "it was begun with"
        )


def _restore_position(loader: Batches, saved: Mapping[str, Any]) -> None:
    """Go on at a saved position, which another number of processes may have reached."""
    own = loader.state_dict()
    sampler = {**saved["config"]["sampler"], **{key: own["config"]["sampler"][key] for key in BY_PROCESS}}
    loader.load_state_dict({**saved, "config": {**saved["config"], "sampler": sampler}})
