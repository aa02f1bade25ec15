"""The constant predictor: the best prediction that does not look at the image. Every trained model must beat it."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sak_core.tasks import IGNORE, Task


class ConstantPredictor:
    """Learns one output vector a task from label batches.

    classes: the most frequent class. normals: the mean direction. depth: the mean depth. saliency and boundary:
    probability 0.5 everywhere, since a constant below every threshold finds nothing and one above finds all.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        """tasks: to be predicted."""
        self.tasks = list(tasks)
        self._sums = {task.name: torch.zeros(task.channels, dtype=torch.float64) for task in tasks}
        self._pixels = {task.name: 0 for task in tasks}

    def update(self, labels: Mapping[str, Tensor]) -> None:
        """Count a batch of labels: task to (B, H, W) or (B, H, W, 3)."""
        for task in self.tasks:
            label = labels[task.name]
            if task.kind == "classes":
                valid = label[label != IGNORE].long()
                self._sums[task.name] += torch.bincount(valid, minlength=task.channels)
            elif task.kind == "normals":
                valid = label[(label != IGNORE).any(-1)]
                self._sums[task.name] += F.normalize(valid.double(), dim=-1).sum(0)
            elif task.kind == "depth":
                valid = label[label != IGNORE]
                self._sums[task.name] += valid.double().sum()
                self._pixels[task.name] += valid.numel()

    def outputs(self, batch: int, size: tuple[int, int]) -> dict[str, Tensor]:
        """Raw outputs as a network would give them: task to (batch, channels, H, W)."""
        return {
            task.name: self._vector(task)[None, :, None, None].expand(batch, -1, *size) for task in self.tasks
        }

    def _vector(self, task: Task) -> Tensor:
        sums = self._sums[task.name]
        if task.kind == "classes":
            return F.one_hot(sums.argmax(), task.channels).float()
        if task.kind == "depth":
            return (sums / max(self._pixels[task.name], 1)).float()
        return F.normalize(sums, dim=0).float() if task.kind == "normals" else sums.float()
