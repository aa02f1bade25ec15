"""The training loop of both stages: AdamW, a schedule, accumulation, averaged weights, checkpoints, resumption.

The stages differ in what a batch holds and in `step_loss`; arms differ in the model. Nothing here knows which is which.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from cache.loading.batch import Batch
from pipeline.console import progress, say, warn
from pipeline.errors import UserError
from pipeline.interrupts import Interrupted, stop_requests
from pipeline.recipes.config import Recipe, recipe_differences
from pipeline.recipes.tables import Schedule
from pipeline.runs import checkpoint
from pipeline.runs.origin import changes
from pipeline.training.clock import StepClock
from pipeline.training.devices import check_same
from pipeline.training.ema import Ema
from pipeline.training.linear_probe import Probing
from pipeline.training.sync_norm import synchronise_norms
from pipeline.training.validation import Validation
from pipeline.training.watch import StepLoss, Watch
from sak_core.tasks import Task

if TYPE_CHECKING:
    from lightning_fabric import Fabric

BY_PROCESS = ("rank", "world_size", "batch_size")
"""What a loader's state says of its process alone; a run may go on with another number of processes."""


class Batches(Protocol):
    """What the loop asks of a loader (`cache.loading.loader.Loader`, or one that runs teachers): epochs of batches."""

    @property
    def epoch(self) -> int: ...
    @property
    def idle_s(self) -> float: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Batch]: ...
    def set_epoch(self, epoch: int) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
"""By a recipe's `optimizer.kind`."""


@dataclass
class Reached:
    """How far a run has come, as its checkpoints say.

    Attributes:
        step: the last that was done, counted from 1.
        seconds: of training, all sessions together.
        seconds_by_part: of them by part of a step (`clock.PARTS`).
        best: step and values of the best validation so far.
        probed: step and value of the best probe so far.
    """

    step: int = 0
    seconds: float = 0.0
    seconds_by_part: Mapping[str, float] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    probed: dict[str, Any] | None = None


@dataclass(frozen=True)
class Trained:
    """What training came to: seconds of all its sessions together, and of them by part of a step (`clock.PARTS`), the
    chosen checkpoint's folder, and its step."""

    seconds: float
    seconds_by_part: Mapping[str, float]
    checkpoint: Path
    step: int


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
    *,
    tasks: Sequence[Task] = (),
    validation: Validation | None = None,
    probing: Probing | None = None,
    wandb: bool = False,
) -> Trained:
    """Train `model` for `recipe.steps` steps, going on from the run's last checkpoint where there is one.

    `model` ends with the weights to be scored: the best or the last, averaged ones where the recipe has them.

    Args:
        loader: this process's share; `recipe.accumulate` of its batches make a step.
        made_from: the caches and the code that the numbers depend on; a checkpoint belongs to them.
        tasks: whose predictions are shown.
        validation: what chooses the best checkpoint.
        probing: what is watched besides, and changes nothing.
        wandb: whether Weights & Biases is told.

    Raises:
        UserError: a loss is not finite (step, term and rows are named, the last checkpoint is kept); or the checkpoint
            was made from something else, which is named.
        Interrupted: a signal asks to stop; what was reached is saved.
    """
    if fabric.world_size > 1:
        model = synchronise_norms(model, fabric.device)
    optimizer = _optimizer(recipe, model)
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
    average = Ema(model, recipe.ema) if recipe.ema else None
    scored = average.model if average else model
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    trained = checkpoint.Trainable(model, optimizer, average.model if average else None, scaler)
    reached = _resume(fabric, run, recipe, made_from, trained, loader)
    parts = recipe.accumulate
    if len(loader) < parts:
        raise UserError(f"a step of {recipe.batch_size} rows is more than the cache holds; lower batch_size")
    processes = f", {fabric.world_size} processes" if fabric.world_size > 1 else ""
    threads = torch.get_num_threads()
    say(f"{run.name}: device {fabric.device}, precision {recipe.precision}, {threads} threads{processes}")

    clock = StepClock(fabric.device, reached.seconds_by_part)
    resumed_at, began = reached.seconds, time.monotonic()

    belongs_to = {"recipe": recipe.model_dump(mode="json"), **made_from}

    def save(name: str) -> None:
        """Write a checkpoint; all processes wait until it is there."""
        reached.seconds_by_part = clock.seconds()
        if fabric.is_global_zero:
            checkpoint.save(run / name, trained, {**asdict(reached), "loader": loader.state_dict(), **belongs_to})
        fabric.barrier()

    batches = endless(loader, parts)
    model.train()
    with (
        closing(loader),
        progress(run.name, recipe.steps, "steps", reached.step) as advance,
        Watch(fabric, run, recipe, tasks, wandb, reached.step) as watch,
        stop_requests() as request,
    ):
        clock.lap(None)
        while reached.step < recipe.steps:
            step, number = reached.step, reached.step + 1
            is_last = number == recipe.steps
            validates = validation is not None and _is_due(number, recipe.validate_every, is_last)
            saves = validates or _is_due(number, recipe.checkpoint_every, is_last)
            logs = saves or _is_due(number, recipe.log_every, is_last)
            lr = learning_rate(recipe.schedule, recipe.optimizer.lr, step, recipe.steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            for part in range(parts):
                idle = loader.idle_s
                batch = next(batches).to(fabric.device)
                clock.lap("data" if loader.idle_s == idle else None)
                with fabric.no_backward_sync(wrapped, enabled=part + 1 < parts):
                    result = step_loss(wrapped, batch, step)
                    clock.lap("forward")
                    fabric.backward(result.loss / parts)
                    clock.lap("backward")
                watch.add(result, batch, probes=logs, shows=saves)
                del result, batch  # or they would live beside the next ones
                clock.lap("logging")
            if clip := recipe.optimizer.clip:
                fabric.clip_gradients(wrapped, wrapped_optimizer, max_norm=clip, error_if_nonfinite=False)
            wrapped_optimizer.step()
            wrapped_optimizer.zero_grad(set_to_none=True)
            if average:
                average.update(model)
            clock.lap("optimizer")
            reached.step = number
            stop = watch.agree(request.number, at=logs)
            if logs or stop:
                watch.log(number, lr, advance)
            clock.lap("logging")
            if probing and _is_due(number, probing.every, is_last):
                paused = time.monotonic()
                values = probing.measure(scored.eval())
                model.train()
                watch.scores(number, values, of="probe")
                value = values[probing.chooses] if probing.chooses else None
                if probing.is_better(value, reached.probed["value"] if reached.probed else None):
                    reached.probed = {"step": number, "value": value}
                    save(checkpoint.BEST_BY_PROBE)
                began += time.monotonic() - paused  # a run's seconds are of its training
                clock.lap(None)
            if saves or stop:
                reached.seconds = resumed_at + time.monotonic() - began - loader.idle_s
                if validation and validates:
                    values = validation.measure(scored.eval())
                    model.train()
                    watch.scores(number, values)
                    best = reached.best[validation.chooses] if reached.best else None
                    if validation.is_better(values[validation.chooses], best):
                        reached.best = {"step": number, **values}
                        save(checkpoint.BEST)
                save(checkpoint.LAST)
                clock.lap("saving")
            advance(1)
            if stop and not is_last:
                say(f"{run.name}: stopped after step {number}, saved")
                raise Interrupted(stop)
    if validation and reached.best is None:
        warn(f"{run.name}: {validation.chooses} was a number in no validation: the last checkpoint is taken")
    chosen = checkpoint.find(run / (checkpoint.BEST if reached.best else checkpoint.LAST))
    assert chosen
    model.load_state_dict(checkpoint.load_tensors(checkpoint.scored_file(chosen)))
    return Trained(
        reached.seconds, clock.seconds(), chosen, int(reached.best["step"]) if reached.best else recipe.steps
    )


def _is_due(number: int, every: int | None, is_last: bool) -> bool:
    return every is not None and (is_last or number % every == 0)


def _optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    return OPTIMIZERS[recipe.optimizer.kind](
        [p for p in model.parameters() if p.requires_grad],
        lr=recipe.optimizer.lr,
        betas=recipe.optimizer.betas,
        weight_decay=recipe.optimizer.weight_decay,
    )


def endless(loader: Batches, parts: int) -> Iterator[Batch]:
    """Batches of one epoch after another, from the loader's position on; an epoch is cut to whole steps."""
    whole = len(loader) // parts * parts
    while True:
        yield from islice(iter(loader), whole - loader.state_dict()["batch"])
        loader.set_epoch(loader.epoch + 1)


def _resume(
    fabric: Fabric,
    run: Path,
    recipe: Recipe,
    made_from: Mapping[str, Any],
    trained: checkpoint.Trainable,
    loader: Batches,
) -> Reached:
    """Load the run's last checkpoint, where there is one, and go to its place in the data; how far the run had come.

    Refuses where processes find others, or where it was made from something else.
    """
    found = checkpoint.find(run / checkpoint.LAST)
    state = checkpoint.read_state(found) if found else {}
    check_same(fabric, {"recipe": recipe.model_dump(mode="json"), "origin": made_from, "checkpoint": state.get("step")})
    if found is None:
        return Reached()
    _check_origin(run, state, recipe, made_from)
    checkpoint.restore(found, trained)
    _restore_position(loader, state["loader"])
    reached = Reached(**{field.name: state[field.name] for field in fields(Reached) if field.name in state})
    if reached.step < recipe.steps:
        say(f"{run.name}: going on at step {reached.step}")
    return reached


def _check_origin(run: Path, saved: Mapping[str, Any], recipe: Recipe, made_from: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that was made from something else than what there is now, which is named."""
    changed = recipe_differences(saved["recipe"], recipe.model_dump(mode="json")) + changes(saved, made_from, code=True)
    if changed:
        raise UserError(
            f"{run} was trained from something else: {'; '.join(changed)}. Choose another --run, or go on with what "
            "it was begun with"
        )


def _restore_position(loader: Batches, saved: Mapping[str, Any]) -> None:
    """Go on at a saved position, which another number of processes may have reached.

    Warns where these had other rows: in block order each process has blocks of its own.
    """
    own = loader.state_dict()
    before, now = (state["config"]["sampler"] for state in (saved, own))
    if now["shuffle"] == "block" and before["world_size"] != now["world_size"] and saved["batch"]:
        warn(
            f"going on with {now['world_size']} processes in place of {before['world_size']}, which had other blocks: "
            "to the end of this epoch some rows come a second time, and others not at all"
        )
    sampler = {**saved["config"]["sampler"], **{key: own["config"]["sampler"][key] for key in BY_PROCESS}}
    loader.load_state_dict({**saved, "config": {**saved["config"], "sampler": sampler}})
