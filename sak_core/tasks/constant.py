"""The best prediction that looks at no pixel: the row of a table that every trained model must beat."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sak_core.labels import FARTHEST_M, IGNORE
from sak_core.tasks import Task

LOWEST = {"saliency": 0.06, "boundary": 0.02}
"""Just above the lowest threshold of the kind's score: below every threshold a constant finds nothing at all."""


class ConstantPredictor:
    """Fits one output a task on training labels, the same for every pixel of every image.

    - classes: log of the class shares, so the most frequent class wins: the constant of the best mIoU.
    - saliency, boundary: the share of positive pixels, above the score's lowest threshold, where all pixels then
      count as found; a constant cannot tell more.
    - normals: the mean direction.
    - depth: the mean of what is scored (below 80 m), the constant of the lowest RMSE.

    Args:
        tasks: what to predict.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tuple(tasks)
        self.sums = {task.name: torch.zeros(_num_sums(task), dtype=torch.float64) for task in self.tasks}

    def update(self, labels: Mapping[str, Tensor]) -> None:
        """Adds a batch of labels, (B, H, W) or (B, H, W, 3) by task name, in the images' own units."""
        for task in self.tasks:
            self.sums[task.name] += _summed(task, labels[task.name]).cpu()

    def is_fitted(self, task: Task) -> bool:
        """Whether a valid label of `task` was seen."""
        return bool(self.sums[task.name].any())

    def outputs(self, batch: int, size: tuple[int, int]) -> dict[str, Tensor]:
        """Raw outputs (batch, channels, *size), float32, by task name, in the images' own units: expanded views, not to
        be written to.

        Raises:
            ValueError: a task has not seen a valid label; it is named.
        """
        return {task.name: self.constant(task)[None, :, None, None].expand(batch, -1, *size) for task in self.tasks}

    def constant(self, task: Task) -> Tensor:
        """The task's raw output at every pixel, (channels,) float32.

        Raises:
            ValueError: no label was seen.
        """
        sums = self.sums[task.name]
        if not self.is_fitted(task):
            raise ValueError(f"no valid label of {task.name} was seen, so there is no constant prediction")
        return _output(task, sums).float()


def _num_sums(task: Task) -> int:
    return {"classes": task.channels, "saliency": 2, "boundary": 2, "normals": 3, "depth": 2}[task.kind]


def _summed(task: Task, label: Tensor) -> Tensor:
    """What a kind accumulates: counts of classes; summed unit normals; depths' sum and number."""
    if task.kind == "normals":
        valid = (label != IGNORE).any(-1)
        return F.normalize(label[valid].double(), dim=-1).sum(0)
    if task.kind == "depth":
        valid = (label > 0) & (label < FARTHEST_M)
        return torch.stack([label[valid].double().sum(), valid.sum().double()])
    return torch.bincount(label[label != IGNORE].long(), minlength=_num_sums(task)).double()


def _output(task: Task, sums: Tensor) -> Tensor:
    if task.kind == "normals":
        return F.normalize(sums, dim=0)
    if task.kind == "depth":
        return sums[:1] / sums[1]
    shares = (sums / sums.sum()).clamp(1e-6, 1 - 1e-6)
    if task.kind == "classes":
        return shares.log()
    positive = shares[1:].clamp_min(LOWEST[task.kind])
    return torch.logit(positive) if task.kind == "boundary" else torch.cat([1 - positive, positive]).log()
