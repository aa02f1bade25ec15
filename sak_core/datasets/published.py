"""What datasets of one use share: the published views of unlabelled stage-1 images, and of stage-2 benchmarks."""

from __future__ import annotations

from collections.abc import Mapping

from sak_core.tasks import Task
from sak_core.views.view import EVALUATION, STAGE1, STAGE2, ViewPolicy


class FilesAlone:
    """A dataset whose pixels and labels follow from its files."""

    @property
    def info(self) -> Mapping[str, object]:
        """Nothing beyond the files."""
        return {}


class Stage1Images(FilesAlone):
    """Images without labels, for distillation."""

    split: str
    tasks: tuple[Task, ...] = ()
    default_size = (384, 384)  # as published for stage 1

    @property
    def policy(self) -> ViewPolicy:
        """Stage 1's random resized crops for "train", the whole image for others."""
        return STAGE1 if self.split == "train" else EVALUATION


class Stage2Benchmark(FilesAlone):
    """A labelled benchmark of the field."""

    split: str

    @property
    def policy(self) -> ViewPolicy:
        """Published views: stage 2's for training, centred padding for evaluation."""
        return STAGE2 if self.split == "train" else EVALUATION
