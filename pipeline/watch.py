"""Watching a training run: means of the loss and its terms, on stderr, in metrics.jsonl and in TensorBoard.

Values stay on the device until they are logged; between two logs the host waits for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cache.batch import Batch
from pipeline.devices import gather
from pipeline.errors import UserError
from sak_core.student import StudentOutput

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class StepResult:
    """What a step's loss function gives: the loss to descend, its named terms (scalars), and the model's output."""

    loss: Tensor
    terms: dict[str, Tensor]
    output: StudentOutput


class Watch:
    """Collects what a run's steps give and logs it when asked. All processes of a run take part; the first writes."""

    def __init__(self, fabric: Fabric, run: Path, parts: int) -> None:
        """parts: calls of `add` that make a step."""
        self._fabric, self._run, self._parts = fabric, run, parts
        self._history: list[dict[str, Tensor]] = []
        self._rows: list[Tensor] = []

    def __enter__(self) -> Watch:
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(self._run / "tensorboard")) if self._fabric.is_global_zero else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()

    def add(self, result: StepResult, batch: Batch) -> None:
        """Take in one part of a step."""
        terms = {name: term.detach() for name, term in result.terms.items()}
        self._history.append({"loss": result.loss.detach(), **terms})
        self._rows.append(torch.stack([batch.samples, batch.views]))

    def agree(self, number: int, at: bool) -> int:
        """A signal's number that some process has received, 0 for none; several processes ask each other where `at`
        says so, and a single one always."""
        if self._fabric.world_size == 1:
            return number
        if not at:
            return 0
        return int(gather(self._fabric, torch.tensor(number, device=self._fabric.device)).max())

    def log(self, step: int, lr: float, advance: Callable[..., None]) -> None:
        """Write the means since the last log. Raises `UserError` where a loss is not finite."""
        values = {**self._means(step), "lr": lr}
        self._history.clear()
        self._rows.clear()
        advance(0, note=f"loss {values['loss']:.4f}")
        if self._board is None:
            return
        with (self._run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **{name: float(f"{v:.9g}") for name, v in values.items()}}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def _means(self, step: int) -> dict[str, float]:
        """Means of the terms over steps and processes: the one place where the host waits for the device."""
        names = list(self._history[0])
        own = torch.stack([torch.stack([entry[name].float() for name in names]) for entry in self._history])
        values = gather(self._fabric, own).cpu()
        if not bool(torch.isfinite(values).all()):
            raise UserError(self._not_finite(values, gather(self._fabric, torch.stack(self._rows)).cpu(), names, step))
        return dict(zip(names, values.mean((0, 1)).tolist(), strict=True))

    def _not_finite(self, values: Tensor, rows: Tensor, names: list[str], step: int) -> str:
        """What to say of values (processes, entries, terms) of which one is not finite, for rows (processes, entries,
        2, B): the first entry's first bad term, the total only where no term is bad."""
        bad = (~torch.isfinite(values)).nonzero()
        process, entry = bad[bad[:, 1].argmin()][:2].tolist()
        terms = (~torch.isfinite(values[process, entry])).nonzero().flatten().tolist()
        term = terms[1] if terms[0] == 0 and len(terms) > 1 else terms[0]
        samples, views = rows[process, entry].tolist()
        first = ", ".join(f"{s}/{v}" for s, v in list(zip(samples, views, strict=True))[:8])
        number = step - len(self._history) // self._parts + entry // self._parts + 1
        return (
            f"step {number}: {names[term]} is {values[process, entry, term]:g}; "
            f"rows (sample/view) {first}{', ...' if len(samples) > 8 else ''}. The last good checkpoint is kept; "
            "try a lower optimizer.lr, clip = 10, or precision = '32-true'"
        )
