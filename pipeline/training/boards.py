"""Where a run's numbers and pictures go: metrics.jsonl, TensorBoard, and Weights & Biases where it is asked for."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import UserError
from pipeline.runs import write_atomically

METRICS = "metrics.jsonl"
"""A run's log: a line a step, and one more for what was measured beside training at that step."""


class Boards:
    """Writes numbers by step; a resumed run goes on in the same files and in the same Weights & Biases run.

    Args:
        run: its folder.
        recipe: as JSON has it.
        wandb: whether Weights & Biases is told, too.
        step: that the run goes on from; what a killed process has written of later steps is left out, as they are
            trained again.

    Raises:
        UserError: `wandb` is asked for and not installed.
    """

    def __init__(self, run: Path, recipe: Mapping[str, Any], wandb: bool = False, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._run = run
        self._wandb = _start_wandb(run, recipe) if wandb else None
        self._tensorboard = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        _leave_out_after(step, run / METRICS)

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """A line of metrics.jsonl (nine digits), and a point of every curve; what is no number is null and no point."""
        numbers = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
        line = {name: float(f"{numbers[name]:.9g}") if name in numbers else None for name in values}
        with (self._run / METRICS).open("a") as file:
            file.write(json.dumps({"step": step, **line}) + "\n")
        for name, value in numbers.items():
            self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def picture(self, step: int, name: str, picture: npt.NDArray[np.uint8]) -> None:
        """An RGB picture (H, W, 3)."""
        self._tensorboard.add_image(name, picture, step, dataformats="HWC")
        if self._wandb is not None:
            import wandb

            self._wandb.log({name: wandb.Image(picture)}, step=step)

    def close(self) -> None:
        """Make all that was written durable."""
        self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """What a run has logged, a dictionary a step, in order; a line that a kill cut short is left out."""
    by_step: dict[int, dict[str, Any]] = {}
    try:
        lines = (run / METRICS).read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        if values := _parsed(line):
            by_step.setdefault(values["step"], {}).update(values)
    return [by_step[step] for step in sorted(by_step)]


def _leave_out_after(step: int, path: Path) -> None:
    """Leave out of a log the lines of later steps, and what a kill cut short."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith("\n") and (values := _parsed(line)) and values["step"] <= step]
    if kept != lines:
        write_atomically(path, "".join(kept))


def _parsed(line: str) -> dict[str, Any] | None:
    """A line's values; None of one that was cut short."""
    try:
        values = json.loads(line)
        return {**values, "step": int(values["step"])}
    except (ValueError, KeyError, TypeError):
        return None


def require_wandb() -> None:
    """Check that Weights & Biases is installed, before a run begins.

    Raises:
        UserError: it is not.
    """
    from importlib.util import find_spec

    if find_spec("wandb") is None:
        raise UserError("--wandb: Weights & Biases is not installed: pip install wandb; or leave --wandb out")


def _start_wandb(run: Path, recipe: Mapping[str, Any]) -> Any:
    require_wandb()
    import wandb

    # the same folder is the same run there, also after a resume
    identity = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]
    return wandb.init(
        project="sak", name=run.name, id=identity, resume="allow", dir=str(run), config=dict(recipe), reinit=True
    )
