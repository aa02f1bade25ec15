"""Raw outputs of a network in the form of the tasks' labels."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sak_core.tasks import Task


def readable(task: Task, output: Tensor) -> npt.NDArray[Any]:
    """A network's raw output (C, H, W) of one image in the form of the task's labels, (H, W) or (H, W, 3).

    Classes are uint8 numbers. Saliency and boundary become probabilities in [0, 1]; normals have unit length;
    depth is at least 0: float32 all three.
    """
    output = output.detach().float()
    if task.kind == "classes":
        return output.argmax(0).to(torch.uint8).cpu().numpy()
    if task.kind == "saliency":
        return output.softmax(0)[1].cpu().numpy()
    if task.kind == "boundary":
        return output[0].sigmoid().cpu().numpy()
    if task.kind == "normals":
        return F.normalize(output, dim=0).permute(1, 2, 0).contiguous().cpu().numpy()
    return output[0].clamp_min(0).cpu().numpy()
