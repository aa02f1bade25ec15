"""Training on cached frozen parts beside the full step: distillation on the stem's tokens, heads on experts' maps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Result, Row, checksum, installed
from benchmarks.training import DEVICE, wait
from sak_core.losses.step import distillation_loss, task_losses
from sak_core.student.config import StudentConfig
from sak_core.student.heads import HEADS
from sak_core.student.network import Experts, StemTokens, StudentNetwork
from sak_core.student.parts import freeze
from sak_core.student.stem import StemConfig
from sak_core.tasks import Task

GOAL = (
    "on cached parts, a distillation step takes at most 0.25 of the full one; a fine-tuning step at most 1.1 x the "
    "share of FLOPs of what still runs, and with head linear, where next to nothing runs, at most 0.35"
)
DISTILLATION, LINEAR, OF_FLOPS = 0.25, 0.35, 1.1
TASK = Task("depth", "depth")


@dataclass(frozen=True)
class Case:
    """What is timed.

    Attributes:
        size: side of the square views, px.
        stem: the student's.
        widths: of its teachers.
        rounds: of every side.
    """

    size: int
    stem: StemConfig
    widths: dict[str, int]
    rounds: int


def run(quick: bool) -> Result:
    """The sides of a pair in turns. Checksums are over what a pair's sides compute: the full side's own frozen parts
    are what the other reads, so both must agree to rounding, which is asserted."""
    small = StemConfig("custom", (160, 160), 16, 384, 12, 6)
    case = Case(160, small, {"a": 384, "b": 384, "c": 384}, 3)
    if not quick:
        widths = {"dinov2": 768, "clip": 768, "sam": 768}
        case = Case(384, StemConfig("vit_base_patch16_384", (384, 384)), widths, 5)
    torch.manual_seed(0)
    images = torch.randn(2, 3, case.size, case.size, device=DEVICE)
    rows: list[Row] = []
    value: dict[str, float] = {}
    full, part = _distillation(case, images)
    seconds, flops = _pair("distillation", full, part, case.rounds, rows)
    value["distillation"], value["distillation_flops"] = seconds, flops
    holds = [seconds <= DISTILLATION]
    for head in HEADS:
        full, part = _fine_tuning(case, images, head)
        seconds, flops = _pair(f"fine-tuning, head {head}", full, part, case.rounds, rows)
        value[f"{head}"], value[f"{head}_flops"] = seconds, flops
        holds.append(seconds <= (LINEAR if head == "linear" else OF_FLOPS * flops))
    return Result("frozen", GOAL, value, all(holds), rows)


Step = Callable[[], Tensor]
"""One step of training; gives its loss."""


def _student(case: Case, head: str = "sak", tasks: tuple[Task, ...] = ()) -> StudentNetwork:
    torch.manual_seed(0)
    return StudentNetwork(StudentConfig(case.stem, case.widths, head=head, tasks=tasks)).to(DEVICE).train()


def _step(student: StudentNetwork, loss: Callable[[], Tensor]) -> Step:
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=0.0)

    def step() -> Tensor:
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    return step


def _distillation(case: Case, images: Tensor) -> tuple[Step, Step]:
    whole, frozen = _student(case), _student(case)
    freeze(frozen, "adapters")
    with torch.no_grad():
        tokens = StemTokens(frozen.stem(images), (case.size, case.size))
        targets = {name: [torch.randn_like(m) for m in maps] for name, maps in whole(images).aligned.items()}
    return (
        _step(whole, lambda: distillation_loss(whole(images).aligned, targets)[0]),
        _step(frozen, lambda: distillation_loss(frozen(tokens).aligned, targets)[0]),
    )


def _fine_tuning(case: Case, images: Tensor, head: str) -> tuple[Step, Step]:
    whole, frozen = (_student(case, head, (TASK,)) for _ in range(2))
    freeze(frozen, "routers")
    label = {TASK.name: torch.rand(len(images), case.size, case.size, device=DEVICE)}
    with torch.no_grad():
        tokens = frozen.stem(images)
        stem = [level.contiguous() for level in frozen.stem_features(tokens)]
        experts = Experts([stem, *frozen.path_features(tokens).values()], (case.size, case.size))

    def loss(student: StudentNetwork, given: Tensor | Experts) -> Tensor:
        noise = torch.Generator(DEVICE).manual_seed(0)
        return task_losses([TASK], student(given, generator=noise).outputs, label)[0]

    return _step(whole, lambda: loss(whole, images)), _step(frozen, lambda: loss(frozen, experts))


def _pair(name: str, full: Step, part: Step, rounds: int, rows: list[Row]) -> tuple[float, float]:
    """Adds a row a side; gives seconds and FLOPs of `part` as shares of `full`'s."""
    pair = [Row(f"{name}: {side}", installed("torch"), DEVICE.type, unit="steps/s", amount=1) for side in SIDES]
    flops, losses = [], []
    for step in (full, part):
        with FlopCounterMode(display=False) as counter:
            losses.append(step())
        flops.append(counter.get_total_flops())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    for row in pair:
        # of the loss in four digits: sums in another order may differ in the last bits
        row.checksum, row.num_bytes = checksum([losses[0].cpu().reshape(1, 1).numpy().round(4)])
    for _ in range(rounds):
        for row, step in zip(pair, (full, part), strict=True):
            wait()
            start = time.perf_counter()
            step()
            wait()
            row.seconds.append(time.perf_counter() - start)
    rows += pair
    seconds = [statistics.median(row.seconds) for row in pair]
    return seconds[1] / seconds[0], flops[1] / flops[0]


SIDES = ("full step", "cached parts")
