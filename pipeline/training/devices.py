"""How a run is carried out: processes, devices and precision. Nothing here changes what a recipe computes.

A run on N processes takes the same rows in a step as a run on one, so it follows that run to rounding (but for block
order, in which each process has blocks of its own).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
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
    from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment

    from sak_core.tasks.losses import OverRanks


@dataclass(frozen=True)
class Execution:
    """Where a run computes.

    Attributes:
        devices: processes side by side on a machine, a GPU each where there are GPUs, else on the CPU.
        nodes: machines. Where torchrun or srun has started the processes, it says both, and these may stay 1.
        wandb: whether Weights & Biases is told, too.
        share: what a run passes its loader through; pipeline.training.shared_reads gives it shared batches.
    """

    devices: int = 1
    nodes: int = 1
    wandb: bool = False
    share: Callable[[Any], Any] = lambda loader: loader


ALONE = Execution()
"""One process."""


@dataclass(frozen=True)
class Started:
    """Processes that something else has started together.

    Attributes:
        by: "torchrun" or "srun".
        devices: processes a node.
        rank: this one among all.
    """

    by: str
    devices: int
    nodes: int
    rank: int


def started_together() -> Started | None:
    """What the environment says of processes that were started together; None for a process of its own.

    A script of sbatch, and a task that srun started alone, are processes of their own.

    Raises:
        UserError: whatever started them says too little.
    """
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        devices, total = int(env["LOCAL_WORLD_SIZE"]), int(env["WORLD_SIZE"])
        if total % devices:
            raise UserError(f"torchrun: {total} processes, {devices} of them on this node; start equally many on each")
        return Started("torchrun", devices, total // devices, int(env["RANK"]))
    total = int(env.get("SLURM_STEP_NUM_TASKS", 1))
    if total == 1:
        return None
    if not env.get("SLURM_NTASKS_PER_NODE", "").isdigit():
        raise UserError(f"srun started {total} tasks: say how many a node with --ntasks-per-node, in place of --ntasks")
    nodes = int(env["SLURM_NNODES"])
    return Started("srun", int(env["SLURM_NTASKS_PER_NODE"]), nodes, int(env["SLURM_PROCID"]))


def placed(execution: Execution) -> Execution:
    """`execution` with the devices and nodes that it comes to.

    Raises:
        UserError: they are not those that the processes were started on, or nodes cannot find each other.
    """
    started = started_together()
    if started is None:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
        if execution.nodes > 1 and missing:
            raise UserError(
                f"--nodes {execution.nodes}: run this command on every node with MASTER_ADDR=ADDRESS of the first one, "
                f"MASTER_PORT=a free port there and NODE_RANK=0, 1, ... set; here {', '.join(missing)} is not. Or let "
                "torchrun or srun start it"
            )
        rank = os.environ.get("NODE_RANK", "0")
        if rank not in map(str, range(execution.nodes)):
            raise UserError(
                f"NODE_RANK={rank} is none of {execution.nodes} nodes, counted from 0: say --nodes, or unset it"
            )
        return execution
    for option in ("devices", "nodes"):
        asked, is_ = getattr(execution, option), getattr(started, option)
        if asked not in (1, is_):
            raise UserError(f"{started.by} has started {is_} {option}, not {asked}: leave --{option} out")
    return replace(execution, devices=started.devices, nodes=started.nodes)


def start(recipe: Recipe, execution: Execution, unused: bool = False) -> Fabric:
    """Start the processes (each runs the same command from its beginning to here) and return the Fabric.

    Args:
        unused: whether some parameters get no gradient, beside those that the recipe's own keys leave out.

    Raises:
        UserError: the rows of a step cannot be shared evenly, or GPUs are fewer than processes.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    if execution.wandb:
        require_wandb()
    execution = placed(execution)
    processes = execution.devices * execution.nodes
    share = processes * recipe.accumulate
    if recipe.batch_size % share:
        raise UserError(
            f"batch_size = {recipe.batch_size} rows cannot be shared evenly by {processes} processes x "
            f"accumulate = {recipe.accumulate} parts; make it a multiple of {share}"
        )
    if torch.cuda.is_available() and torch.cuda.device_count() < execution.devices:
        raise UserError(f"--devices {execution.devices}: torch sees {torch.cuda.device_count()} GPUs")
    # aligners at alpha = 0 and blocks above the last tapped one get no gradient: they must not be waited for
    unused = unused or recipe.loss.alpha == 0 or recipe.student.levels is not None
    strategy = DDPStrategy(find_unused_parameters=unused) if processes > 1 else "auto"
    fabric = Fabric(
        accelerator="auto",
        devices=execution.devices,
        num_nodes=execution.nodes,
        strategy=strategy,
        precision=recipe.precision,
        plugins=[_environment()],
    )
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
        os.environ.setdefault("OMP_NUM_THREADS", str(recipe.threads))
    follow_others()
    fabric.launch()
    return fabric


def _environment() -> ClusterEnvironment:
    """Fabric's own of what started the processes. Left to itself, it takes a script of sbatch for a task of srun."""
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    started = started_together()
    if started is None:
        return LightningEnvironment()
    if started.by == "srun":
        return SLURMEnvironment()
    return TorchElasticEnvironment()


def is_follower() -> bool:
    """Whether another process leads this one: it alone speaks and writes, and says how the run ended."""
    if started := started_together():
        return started.rank > 0
    return _is_child() or os.environ.get("NODE_RANK", "0") != "0"


def _is_child() -> bool:
    """Whether a process of this machine started this one, and ends before it."""
    started = started_together()
    return started.by == "torchrun" if started else os.environ.get("LOCAL_RANK", "0") != "0"


def follow_others() -> None:
    """Let a process that others lead be silent from here on, and end with the one that started it."""
    if is_follower() and not console.is_silent():
        console.follow(ends_with_parent=_is_child())


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


def check_same(fabric: Fabric, facts: Mapping[str, object]) -> None:
    """Check that facts, JSON-able by name, are the same in all processes.

    Raises:
        UserError: one is not, in all processes; the first is named.
    """
    texts = [json.dumps(value, sort_keys=True).encode() for value in facts.values()]
    own = [int.from_bytes(hashlib.sha256(text).digest()[:7], "big") for text in texts]
    every = gather(fabric, torch.tensor(own, device=fabric.device))
    for name, values in zip(facts, every.unbind(1), strict=True):
        if bool((values != values[0]).any()):
            other = int((values != values[0]).nonzero()[0])
            raise UserError(
                f"process {other} has another {name} than process 0: all nodes must see the same caches, the same "
                "folder of the run, and the same version of this package"
            )


def over_ranks(fabric: Fabric, recipe: Recipe) -> OverRanks | None:
    """What averages the losses' normalisers over the processes; None where each process keeps its own."""
    if fabric.world_size == 1 or recipe.loss.normalizers == "process":
        return None

    def average(value: Tensor) -> Tensor:
        total = value.detach().clone()
        torch.distributed.all_reduce(total)
        return total / fabric.world_size

    return average
