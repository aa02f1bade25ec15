"""The training loop of both stages: Lightning Fabric, AdamW, a schedule, logs, checkpoints, resumption.

The stages differ in what a batch holds and in `step_loss`; arms differ in the model. Nothing here knows which is which.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cache.batch import Batch
from cache.loader import Loader
from pipeline import checkpoint
from pipeline.config import Recipe, Schedule, differences
from pipeline.console import progress, say
from pipeline.errors import UserError

StepLoss = Callable[[nn.Module, Batch, int], tuple[Tensor, dict[str, Tensor]]]
"""(model, batch on the device, step) to the loss and its named terms, all scalars."""


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
    recipe: Recipe, run: Path, model: nn.Module, loader_for: Callable[..., Loader], step_loss: StepLoss
) -> Trained:
    """Train `model` for `recipe.steps` steps, going on from the run's last checkpoint where there is one.

    `loader_for(rank=, world_size=)` opens the batches. Raises `UserError` for a loss that is not finite (naming
    step, term and rows, the last checkpoint kept) and where the checkpoint belongs to another recipe.
    """
    from lightning_fabric import Fabric
    from torch.utils.tensorboard import SummaryWriter

    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    fabric = Fabric(accelerator="auto", devices=1, precision=recipe.precision)
    fabric.launch()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.optimizer.lr,
        betas=recipe.optimizer.betas,
        weight_decay=recipe.optimizer.weight_decay,
    )
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
    loader = loader_for(rank=fabric.global_rank, world_size=fabric.world_size)
    step, seconds = 0, 0.0
    if found := checkpoint.find(run / checkpoint.LAST):
        state = checkpoint.restore(found, model, optimizer)
        if changed := differences(state["recipe"], recipe.model_dump(mode="json")):
            raise UserError(f"{run} was trained with another recipe ({'; '.join(changed)}); choose another --run")
        step, seconds = state["step"], state["seconds"]
        loader.load_state_dict(state["loader"])
        if step < recipe.steps:
            say(f"{run.name}: going on at step {step}")
    if len(loader) == 0:
        raise UserError(f"a batch of {recipe.batch_size} rows is more than the cache holds; lower batch_size")
    say(f"{run.name}: device {fabric.device}, precision {recipe.precision}, {torch.get_num_threads()} threads")

    history: list[dict[str, Tensor]] = []
    rows: list[tuple[Tensor, Tensor]] = []
    resumed_at, began = seconds, time.monotonic()
    model.train()
    with progress(run.name, recipe.steps, "steps", step) as advance, SummaryWriter(str(run / "tensorboard")) as board:
        while step < recipe.steps:
            for batch in loader:
                lr = learning_rate(recipe.schedule, recipe.optimizer.lr, step, recipe.steps)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                on_device = batch.to(fabric.device)
                loss, terms = step_loss(wrapped, on_device, step)
                fabric.backward(loss)
                if recipe.clip:
                    fabric.clip_gradients(wrapped, wrapped_optimizer, max_norm=recipe.clip, error_if_nonfinite=False)
                wrapped_optimizer.step()
                wrapped_optimizer.zero_grad(set_to_none=True)
                step += 1
                history.append({"loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}})
                rows.append((on_device.samples, on_device.views))
                at_end = step == recipe.steps
                saves = at_end or step % recipe.checkpoint_every == 0
                if saves or step % recipe.log_every == 0:
                    means = _means(history, rows, step)
                    history.clear()
                    rows.clear()
                    _log(run, board, step, {**means, "lr": lr})
                    advance(0, note=f"loss {means['loss']:.4f}")
                if saves:
                    seconds = resumed_at + time.monotonic() - began
                    state = {"step": step, "seconds": seconds, "loader": loader.state_dict()}
                    if fabric.is_global_zero:
                        everything = {**state, "recipe": recipe.model_dump(mode="json"), "torch": torch.__version__}
                        checkpoint.save(run / checkpoint.LAST, model, optimizer, everything)
                advance(1)
                if at_end:
                    break
            else:
                loader.set_epoch(loader.epoch + 1)
    return Trained(seconds, run / checkpoint.LAST)


def _means(history: list[dict[str, Tensor]], rows: list[tuple[Tensor, Tensor]], step: int) -> dict[str, float]:
    """Means of the terms since the last log: the one place where the host waits for the device."""
    names = list(history[0])
    values = torch.stack([torch.stack([entry[name].float() for name in names]) for entry in history]).cpu()
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        index, term = int(bad[0, 0]), names[int(bad[:, 1][bad[:, 0] == bad[0, 0]].max())]
        samples, views = (t.tolist() for t in rows[index])
        first = ", ".join(f"{s}/{v}" for s, v in list(zip(samples, views, strict=True))[:8])
        raise UserError(
            f"step {step - len(history) + index + 1}: {term} is {values[index, names.index(term)]:g}; "
            f"rows (sample/view) {first}{', ...' if len(samples) > 8 else ''}. The last good checkpoint is kept; "
            "try a lower optimizer.lr, clip = 10, or precision = '32-true'"
        )
    return dict(zip(names, values.mean(0).tolist(), strict=True))


def _log(run: Path, board: Any, step: int, values: dict[str, float]) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, **{k: round(v, 6) for k, v in values.items()}}) + "\n")
    for name, value in values.items():
        board.add_scalar(name, value, step)
