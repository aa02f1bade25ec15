"""Contact sheets of data sets: each label drawn over its image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter

from pipeline.pictures import Picture, label_picture, letterbox, save_sheet
from sak_core.datasets import open_dataset
from sak_core.interfaces.dataset import Dataset
from sak_core.labels import IGNORE
from sak_core.tasks import Task

SHEET_ROWS = 8
TINT = 0.6
"""How much of a pixel is the label's colour, the rest being the image's grey."""
RED = (230, 30, 40)


def sheet_rows(dataset: Dataset, samples: Sequence[int], count: int) -> list[list[Picture]]:
    """`count` of the samples, evenly spaced: the image, then every label over it, on canvases of one shape."""
    chosen = [samples[i * len(samples) // count] for i in range(count)] if len(samples) > count else samples
    rows = []
    for index in chosen:
        sample = dataset.load(index)
        drawn = [over(task, sample.image, sample.labels[task.name]) for task in dataset.tasks]
        rows.append([letterbox(picture) for picture in (sample.image, *drawn)])
    return rows


def over(task: Task, image: Picture, label: npt.NDArray[Any]) -> Picture:
    """A label (H, W) or (H, W, 3) over its grey image (H, W, 3); the image alone shows where there is no label.

    Masks are red: saliency where it is 1, boundaries widened to three pixels so that they survive scaling down.
    """
    grey = np.repeat(image.astype(np.float32).mean(axis=-1, keepdims=True), 3, axis=-1)
    if task.kind in ("saliency", "boundary"):
        shown = label == 1
        shown = maximum_filter(shown, 3) if task.kind == "boundary" else shown
        colours: npt.NDArray[Any] = np.broadcast_to(np.array(RED, np.float32), grey.shape)
    else:
        shown = (label != IGNORE).any(axis=-1) if label.ndim == 3 else label != IGNORE
        colours = label_picture(task, label)
    tint = TINT * shown[..., None]
    mixed: Picture = (grey * (1 - tint) + colours * tint).round().astype(np.uint8)
    return mixed


def preview_sheet(
    dataset: str, split: str, root: Path | None, count: int, out: Path, images: str | None = None
) -> Path:
    """Draw `count` samples of a data set with every label beside them into the PNG `out`.

    Args:
        images: see `open_dataset`.
    """
    opened = open_dataset(dataset, split, root=root, limit=count, images=images)
    rows = []
    for index in range(min(count, len(opened.ids))):
        sample = opened.load(index)
        labels = [label_picture(task, sample.labels[task.name]) for task in opened.tasks]
        rows.append([sample.image, *labels])
    return save_sheet(rows, ["image", *(task.name for task in opened.tasks)], out)
