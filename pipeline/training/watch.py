"""Watching a training run: means of the loss and its terms, nearness to teachers, router weights, predictions.

Values stay on the device until they are logged; between two logs the host waits for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from cache.loading.batch import Batch
from pipeline.errors import UserError
from pipeline.recipes.config import Recipe
from pipeline.training.boards import Boards
from pipeline.training.devices import gather
from sak_core.student.network import StudentOutput
from sak_core.tasks import Task

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PICTURED_ROWS = 4
"""Rows of a batch whose predictions are shown."""


@dataclass(frozen=True)
class StepResult:
    """What a step's loss function gives.

    Attributes:
        loss: to descend.
        terms: named scalars that it is made of.
        output: the model's.
        probe: computes further scalars to be watched, where a step is logged.
        labelled: by tasks' names, whether the batch has a label of it, () bool; its term counts in means only where it
            has.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    output: StudentOutput
    probe: Callable[[], dict[str, Tensor]] = dict
    labelled: Mapping[str, Tensor] = field(default_factory=dict)


StepLoss = Callable[[nn.Module, Batch, int], StepResult]
"""(model, batch on its device, step) to what the step gives."""


class Watch:
    """Collects what a run's steps give and logs it when asked. All processes of a run take part; the first writes.

    Args:
        tasks: whose predictions are shown.
        wandb: whether Weights & Biases is told, too.
        step: that the run goes on from.
    """

    def __init__(
        self, fabric: Fabric, run: Path, recipe: Recipe, tasks: Sequence[Task], wandb: bool = False, step: int = 0
    ) -> None:
        self._fabric, self._tasks, self._parts = fabric, tasks, recipe.accumulate
        self._boards = Boards(run, recipe.model_dump(mode="json"), wandb, step) if fabric.is_global_zero else None
        self._history: list[dict[str, Tensor]] = []
        self._counts: list[dict[str, Tensor]] = []
        self._rows: list[Tensor] = []
        self._probed: dict[str, Tensor] = {}
        self._shown: tuple[Batch, dict[str, Tensor]] | None = None

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._boards is not None:
            self._boards.close()

    def add(self, result: StepResult, batch: Batch, *, probes: bool, shows: bool) -> None:
        """Take in one part of a step.

        Args:
            probes, shows: whether the step ends in a log, and with pictures.
        """
        self._history.append({"loss": result.loss.detach(), **{k: term.detach() for k, term in result.terms.items()}})
        always = torch.ones((), device=result.loss.device)
        self._counts.append({name: result.labelled.get(name, always) for name in self._history[-1]})
        self._rows.append(torch.stack([batch.samples, batch.views]))
        if probes:
            self._probed = result.probe()
        if shows and self._boards is not None and result.output.outputs:
            self._shown = _first_rows(batch, result.output.outputs)

    def agree(self, number: int, at: bool) -> int:
        """A signal's number that some process has received, 0 for none; several processes ask each other where `at`
        says so, and a single one always."""
        if self._fabric.world_size == 1:
            return number
        if not at:
            return 0
        return int(gather(self._fabric, torch.tensor(number, device=self._fabric.device)).max())

    def log(self, step: int, lr: float, advance: Callable[..., None]) -> None:
        """Write the means since the last log, the probes and the pictures of the last part.

        Raises:
            UserError: a loss is not finite.
        """
        values = {**self._means(step), **self._probes(), "lr": lr}
        self._history.clear()
        self._counts.clear()
        self._rows.clear()
        advance(0, note=f"loss {values['loss']:.4f}")
        if self._boards is None:
            return
        self._boards.scalars(step, values)
        if self._shown is not None:
            from pipeline.pictures import prediction_rows, sheet

            batch, outputs = self._shown
            self._boards.picture(step, "predictions", np.asarray(sheet(*prediction_rows(self._tasks, batch, outputs))))
            self._shown = None

    def scores(self, step: int, values: Mapping[str, float | None], of: str = "validation") -> None:
        """Write scores of a validation, or of a probe."""
        if self._boards is not None:
            self._boards.scalars(step, {f"{of}/{name}": value for name, value in values.items()})

    def _probes(self) -> dict[str, float]:
        if not self._probed:
            return {}
        values = gather(self._fabric, torch.stack([value.float() for value in self._probed.values()]))
        return dict(zip(self._probed, values.mean(0).tolist(), strict=True))

    def _means(self, step: int) -> dict[str, float]:
        """Means of the terms over steps and processes, of tasks over those with a label: the one place where the host
        waits for the device. A task that had no label has none."""
        names = list(self._history[0])
        own = [
            torch.stack([torch.stack([entry[name].float() for name in names]) for entry in entries])
            for entries in (self._history, self._counts)
        ]
        values, counts = gather(self._fabric, torch.stack(own)).cpu().unbind(1)
        if not bool(torch.isfinite(values).all()):
            raise UserError(self._not_finite(values, gather(self._fabric, torch.stack(self._rows)).cpu(), names, step))
        means = (values * counts).sum((0, 1)) / counts.sum((0, 1))
        return {name: mean for name, mean in zip(names, means.tolist(), strict=True) if not math.isnan(mean)}

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
            "try a lower optimizer.lr, optimizer.clip = 10, or precision = '32-true'"
        )


def _first_rows(batch: Batch, outputs: Mapping[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
    """The first `PICTURED_ROWS` of a batch without its features, and of its outputs, in memory of their own."""

    def first(tensor: Tensor) -> Tensor:
        return tensor[:PICTURED_ROWS].detach().clone()

    return replace(batch, features={}, prefixes={}).each(first), {
        task: first(output) for task, output in outputs.items()
    }
