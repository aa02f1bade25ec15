"""What each miniature teacher is taught, and for how long: one row a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.miniature.clip import ClipObjective
from pipeline.miniature.dino import DinoObjective
from pipeline.miniature.pixels import PixelNet
from pipeline.miniature.sam import SamObjective
from pipeline.miniature.scenes import SceneAttribute, SceneBatch


class Objective(Protocol):
    """A module with the heads an objective needs; calling it gives named loss terms, to be summed."""

    def __call__(self, net: PixelNet, batch: SceneBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute the loss terms of a batch, drawing all randomness from `generator`."""
        ...


@dataclass(frozen=True)
class Lesson:
    """An objective and the number of steps that makes its training as long as the others'."""

    build: Callable[[tuple[SceneAttribute, ...]], nn.Module]
    num_steps: int


LESSONS: dict[str, Lesson] = {
    "mini-dino": Lesson(lambda attributes: DinoObjective(), 1540),
    "mini-clip": Lesson(ClipObjective, 1500),
    "mini-sam": Lesson(lambda attributes: SamObjective(), 1310),
}
