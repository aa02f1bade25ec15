"""`rooms` as a dataset: splits are disjoint ranges of scene numbers under one seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from sak_core.interfaces.dataset import Sample
from sak_core.miniature.rooms.labels import CLASSES, PARTS
from sak_core.miniature.rooms.scene import RENDERER_VERSION, render_scene
from sak_core.tasks import Task
from sak_core.views.view import EVALUATION, ROOMS_TRAIN, ROOMS_UNLABELLED, ViewPolicy

SEED = 0
"""Of all splits' scenes; the miniature teachers are trained on scenes of another seed."""

SPLITS: dict[str, range] = {
    "train": range(0, 4_000),
    "val": range(100_000, 100_500),
    "test": range(200_000, 201_000),
    "unlabelled": range(1_000_000, 1_020_000),
}
"""Scene numbers of every split."""

TASKS = (
    Task("semseg", kind="classes", classes=CLASSES),
    Task("parts", kind="classes", classes=PARTS),
    Task("saliency", kind="saliency"),
    Task("depth", kind="depth"),
    Task("normals", kind="normals"),
    Task("boundary", kind="boundary"),
)
"""The six tasks of the labelled splits."""


@dataclass(frozen=True)
class Rooms:
    """One split of `rooms`. Loading sample i renders scene `SPLITS[split][i]`; nothing is read from disk.

    Attributes:
        size: (H, W) of the rendered pictures, px.
    """

    name = "rooms"
    split: str
    size: tuple[int, int] = (96, 96)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Six tasks, or none for the unlabelled split."""
        return () if self.split == "unlabelled" else TASKS

    @property
    def default_size(self) -> tuple[int, int]:
        """Views are as large as the pictures."""
        return self.size

    @property
    def policy(self) -> ViewPolicy:
        """Crops, flips and mild colour for training splits, the whole picture for val and test."""
        return {"train": ROOMS_TRAIN, "unlabelled": ROOMS_UNLABELLED}.get(self.split, EVALUATION)

    @property
    def info(self) -> Mapping[str, object]:
        """What fixes the pixels."""
        return {"renderer_version": RENDERER_VERSION, "seed": SEED}

    @cached_property
    def ids(self) -> Sequence[str]:
        """Scene numbers as seven digits."""
        return [f"{number:07d}" for number in SPLITS[self.split]]

    @property
    def fingerprints(self) -> Sequence[int]:
        """The renderer's version for every scene, so that another renderer's pixels are another store."""
        return [RENDERER_VERSION] * len(SPLITS[self.split])

    def load(self, index: int) -> Sample:
        """Render one scene and, in labelled splits, its labels."""
        scene = render_scene(SEED, SPLITS[self.split][index], self.size)
        return Sample(scene.image, {task.name: getattr(scene, task.name) for task in self.tasks})
