"""What each miniature teacher, and the stem, is taught, and for how long: one row each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from pipeline.miniature.clip import ClipObjective
from pipeline.miniature.dino import DinoObjective
from pipeline.miniature.sam import SamObjective
from pipeline.miniature.scenes import SceneAttribute
from pipeline.miniature.vit import VitObjective, build_vit
from sak_core.miniature.network import MiniatureNet


@dataclass(frozen=True)
class Lesson:
    """An objective, the number of steps that makes its training as long as the others', and what is trained."""

    build: Callable[[tuple[SceneAttribute, ...]], nn.Module]
    num_steps: int
    network: Callable[[], nn.Module] = MiniatureNet


LESSONS: dict[str, Lesson] = {
    "mini-dino": Lesson(lambda attributes: DinoObjective(), 1540),
    "mini-clip": Lesson(ClipObjective, 1500),
    "mini-sam": Lesson(lambda attributes: SamObjective(), 1310),
    "mini-vit": Lesson(lambda attributes: VitObjective(), 3000, build_vit),
}
