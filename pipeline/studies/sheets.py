"""Pictures of a study: a contact sheet, PCA of teachers beside the student's paths, router weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache.loading.batch import Batch
from cache.loading.loader import Loader
from pipeline import pictures, runs
from pipeline.recipes.config import Data
from pipeline.recipes.stores import find_store
from pipeline.training.evaluate import load_model, without_padding
from sak_core.interfaces.dataset import Dataset
from sak_core.student import Student
from sak_core.student.network import StudentNetwork
from sak_core.student.stem import normalize
from sak_core.tasks import Task

Picture = npt.NDArray[np.uint8]
SHEET_ROWS = 6


def contact_sheet(student: Student, dataset: Dataset, out: Path) -> Path:
    """Image, then truth and prediction of every task, for the first samples of a labelled data set, at its size."""
    rows = []
    for i in range(SHEET_ROWS):
        sample = dataset.load(i)
        found = student(sample.image)
        row = [sample.image]
        for task in student.tasks:
            row += pictures.truth_and_prediction(task, sample.labels[task.name], found[task.name])
        rows.append(row)
    pictures.sheet(rows, pictures.prediction_captions(student.tasks), cell_px=rows[0][0].shape[0]).save(out)
    return out


def pca_sheet(run: Path, data: Data, places: runs.Places, out: Path) -> Path:
    """Each teacher's deepest level beside the student's path for it, as RGB of the teacher's three first components.

    Both maps are projected on the same basis, fitted on the teacher's, so equal colours mean equal features.
    """
    model, _ = load_model(run, places)
    assert isinstance(model, StudentNetwork)
    recipe = runs.read_recipe(run)
    store = find_store(places.features, data, recipe.teachers)
    batch = _first(Loader(store, recipe.teachers, batch_size=SHEET_ROWS, num_views=1, shuffle=False))
    with torch.inference_mode():
        output = model(normalize(batch.pixels), tasks=False)
    columns: list[list[Picture]] = [[image.numpy() for image in batch.pixels]]
    captions = ["image"]
    for teacher in recipe.teachers:
        theirs, ours = batch.features[teacher][-1], output.aligned[teacher][-1]
        for caption, colours in zip((teacher, "student"), shared_pca(theirs, ours), strict=True):
            columns.append(_enlarge(colours, (batch.pixels.shape[1], batch.pixels.shape[2])))
            captions.append(caption)
    return pictures.save_sheet([list(row) for row in zip(*columns, strict=True)], captions, out)


def shared_pca(teacher: Tensor, *others: Tensor) -> list[Tensor]:
    """Maps (B, C, h, w) to colours (B, 3, h, w) in [0, 1] by the teacher's first three principal components: the
    teacher's own, then those of the others, which may have other grids."""
    tokens = teacher.flatten(2).transpose(1, 2).flatten(0, 1)
    mean = tokens.mean(0)
    basis = torch.linalg.svd(tokens - mean, full_matrices=False).Vh[:3]
    scores = (tokens - mean) @ basis.T
    low, high = scores.quantile(0.02, dim=0), scores.quantile(0.98, dim=0)

    def colour(maps: Tensor) -> Tensor:
        projected = (maps.permute(0, 2, 3, 1) - mean) @ basis.T
        scaled: Tensor = ((projected - low) / (high - low)).clamp(0, 1)
        return scaled.permute(0, 3, 1, 2)

    return [colour(maps) for maps in (teacher, *others)]


def _enlarge(colours: Tensor, size: tuple[int, int]) -> list[Picture]:
    large = F.interpolate(colours, size=size, mode="nearest")
    return list((large * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())


def router_sheet(run: Path, data: Data, places: runs.Places, out: Path) -> Path:
    """Heatmaps, one a task: how much of the stem and of each path its router takes at each level."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    model, tasks = load_model(run, places)
    recipe = runs.read_recipe(run)
    weights = mean_router_weights(model, find_store(places.features, data), tasks)
    figure, axes = plt.subplots(1, len(tasks), figsize=(2.3 * len(tasks), 3.2), sharey=True, layout="constrained")
    for axis, task in zip(np.atleast_1d(axes), tasks, strict=True):
        drawn = axis.imshow(weights[task.name], vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axis.set_title(task.name)
        axis.set_xticks(range(1 + len(recipe.teachers)), ["stem", *recipe.teachers], rotation=60, ha="right")
        axis.set_yticks(range(len(weights[task.name])))
        for (y, x), value in np.ndenumerate(weights[task.name]):
            axis.text(x, y, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black", size=7)
    np.atleast_1d(axes)[0].set_ylabel("level")
    figure.colorbar(drawn, ax=axes, label="mean weight", shrink=0.8)
    figure.savefig(out, dpi=130)
    plt.close(figure)
    return out


def mean_router_weights(model: nn.Module, store: Any, tasks: Sequence[Task]) -> dict[str, npt.NDArray[np.float32]]:
    """Router weights averaged over the first samples of a store: {task: (levels, experts)}, rows sum to 1."""
    batch = _first(Loader(store, batch_size=64, num_views=1, shuffle=False))
    with torch.inference_mode():
        weights = model(normalize(batch.pixels)).router_weights
    return {t.name: torch.stack([level.mean(0) for level in weights[t.name]]).numpy() for t in tasks}


def _first(loader: Loader) -> Batch:
    """The first batch, in memory of its own, without padding."""
    return without_padding(next(iter(loader)).to("cpu"))
