"""What each miniature teacher is taught, and for how long: one row a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from pipeline.miniature.clip import ClipObjective
from pipeline.miniature.dino import DinoObjective
from pipeline.miniature.sam import SamObjective
from pipeline.miniature.scenes import SceneAttribute


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
