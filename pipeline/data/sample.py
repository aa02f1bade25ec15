"""One sample of a data set, read and looked at: its size, its labels' ranges, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sak_core.errors import UnreadableSample
from sak_core.interfaces.dataset import Dataset, Described, check_labels, sample_files
from sak_core.labels import IGNORE
from sak_core.tasks import Task

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class LabelSeen:
    """One label: its least and largest valid value, valid and all pixels; pixels a class (kind "classes")."""

    low: float
    high: float
    valid: int
    pixels: int
    classes: tuple[int, ...] = ()


@dataclass(frozen=True)
class SampleSeen:
    """One sample: its size (h, w) px and labels, or its problems."""

    size: tuple[int, int] | None = None
    labels: Mapping[str, LabelSeen] = field(default_factory=dict)
    problems: tuple[tuple[str, str], ...] = ()


def look(dataset: Dataset, index: int) -> SampleSeen:
    """Read one sample: its files must be there, and labels have the image's size and values in range."""
    files = sample_files(dataset, index)
    missing = tuple(
        (str(path), f"is missing: expected the sample's {what}{_advice(dataset, what)}")
        for what, path in files.items()
        if not path.exists()
    )
    if missing:
        return SampleSeen(problems=missing)
    try:
        sample = check_labels(dataset.load(index), dataset.tasks, dataset.ids[index])
    except UnreadableSample as error:
        return SampleSeen(problems=((error.path, error.reason),))
    labels = {task.name: _label(task, sample.labels[task.name]) for task in dataset.tasks}
    problems = []
    for task in dataset.tasks:
        if wrong := _beyond(task, labels[task.name]):
            problems.append((str(files.get(task.name, dataset.ids[index])), wrong))
    height, width = sample.image.shape[:2]
    return SampleSeen((height, width), labels, tuple(problems))


def _advice(dataset: Dataset, what: str) -> str:
    is_optional = isinstance(dataset, Described) and what != "image"
    return f" (optional = true in [tasks.{what}] keeps samples without it)" if is_optional else ""


def _label(task: Task, label: Array) -> LabelSeen:
    ignored = (label == IGNORE).all(axis=-1) if label.ndim == 3 else label == IGNORE
    valid = label[~ignored]
    counts: tuple[int, ...] = ()
    if task.kind == "classes":
        counts = tuple(int(n) for n in np.bincount(valid.ravel(), minlength=len(task.classes)))
    low, high = (float(valid.min()), float(valid.max())) if valid.size else (float("nan"), float("nan"))
    return LabelSeen(low, high, int((~ignored).sum()), ignored.size, counts)


RANGES: dict[str, tuple[float, float, str]] = {
    "depth": (1e-4, float(IGNORE), "metres above 0 and below 255 (255: no label)"),
    "normals": (-1.0, 1.0, "components in [-1, 1] (255 in all three: no label)"),
}
"""Valid values of labels that are no classes, and the words for them, by kind."""


def _beyond(task: Task, seen: LabelSeen) -> str | None:
    if task.kind not in RANGES or not seen.valid:
        return None
    low, high, words = RANGES[task.kind]
    rounding = 1e-5
    if seen.low < low - rounding or seen.high > high + rounding:
        return f"label {task.name!r} holds {seen.low:g} to {seen.high:g}: expected {words}"
    return None
