"""How a run is carried out: processes, devices and precision. Nothing here changes what a recipe computes.

A run on N processes takes the same rows in a step as a run on one, so it follows that run to rounding (but for block
order, in which each process has blocks of its own).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline import console
from pipeline.errors import UserError
from pipeline.recipes.config import Recipe
from pipeline.runs.holder import alone_in
from pipeline.training.boards import require_wandb

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from sak_core.tasks.losses import OverRanks


@dataclass(frozen=True)
class Execution:
    """devices: processes side by side, a GPU each where there are GPUs, else on the CPU.
    wandb: whether Weights & Biases is told, too.
    share: what a run passes its loader through; pipeline.training.shared_reads gives it shared batches.
    """

    devices: int = 1
    wandb: bool = False
    share: Callable[[Any], Any] = lambda loader: loader


ALONE = Execution()
"""One process."""


def start(recipe: Recipe, execution: Execution, unused: bool = False) -> Fabric:
    """Start the processes (each runs the same command from its beginning to here) and return the Fabric.

    unused: whether some parameters get no gradient, beside those that the recipe's own keys leave out.

    Raises `UserError` where the rows of a step cannot be shared evenly, or GPUs are fewer than processes.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    if execution.wandb:
        require_wandb()
    share = execution.devices * recipe.accumulate
    if recipe.batch_size % share:
        raise UserError(
            f"batch_size = {recipe.batch_size} rows cannot be shared evenly by {execution.devices} processes x "
            f"accumulate = {recipe.accumulate} parts; make it a multiple of {share}"
        )
    if torch.cuda.is_available() and torch.cuda.device_count() < execution.devices:
        raise UserError(f"--devices {execution.devices}: torch sees {torch.cuda.device_count()} GPUs")
    # aligners at alpha = 0 and blocks above the last tapped one get no gradient: they must not be waited for
    unused = unused or recipe.loss.alpha == 0 or recipe.student.levels is not None
    strategy = DDPStrategy(find_unused_parameters=unused) if execution.devices > 1 else "auto"
    fabric = Fabric(accelerator="auto", devices=execution.devices, strategy=strategy, precision=recipe.precision)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
        os.environ.setdefault("OMP_NUM_THREADS", str(recipe.threads))
    if is_follower():
        console.follow()
    fabric.launch()
    return fabric


def is_follower() -> bool:
    """Whether another process leads this one: it alone speaks and writes, and says how the run ended."""
    return os.environ.get("LOCAL_RANK", "0") != "0" or os.environ.get("RANK", "0") != "0"


def sole_writer(run: Path) -> AbstractContextManager[None]:
    """As `alone_in`, held by the leading one of several processes for all of them."""
    return nullcontext() if is_follower() else alone_in(run)


def gather(fabric: Fabric, own: Tensor) -> Tensor:
    """A tensor (...) of each process, equally shaped, to (processes, ...) on all of them."""
    if fabric.world_size == 1:
        return own[None]
    found = [torch.empty_like(own) for _ in range(fabric.world_size)]
    torch.distributed.all_gather(found, own.contiguous())
    return torch.stack(found)


def over_ranks(fabric: Fabric, recipe: Recipe) -> OverRanks | None:
    """What averages the losses' normalisers over the processes; None where each process keeps its own."""
    if fabric.world_size == 1 or recipe.loss.normalizers == "process":
        return None

    def average(value: Tensor) -> Tensor:
        total = value.detach().clone()
        torch.distributed.all_reduce(total)
        return total / fabric.world_size

    return average
