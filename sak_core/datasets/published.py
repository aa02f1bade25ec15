"""What datasets share: sizes of files; the published views of stage-1 images and of stage-2 benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Protocol

from sak_core.images import file_size
from sak_core.interfaces.dataset import HasFiles
from sak_core.tasks import Task
from sak_core.views.view import EVALUATION, STAGE1, STAGE2, ViewPolicy


class _Samples(HasFiles, Protocol):
    @property
    def ids(self) -> Sequence[str]: ...


class SizesOfFiles:
    """A dataset whose samples each lie in files of their own."""

    @cached_property
    def fingerprints(self: _Samples) -> Sequence[int]:
        """Bytes of each sample's files together; those that are missing count 0."""
        return [sum(map(file_size, self.files(index).values())) for index in range(len(self.ids))]


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


class ChosenImages(Stage1Images):
    """Stage-1 images out of files that may hold several kinds of them; `images` says which, where it was asked."""

    images: str | None

    @property
    def info(self) -> Mapping[str, object]:
        """Which images were asked for, where they were."""
        return {"images": self.images} if self.images else {}


class Stage2Benchmark(SizesOfFiles, FilesAlone):
    """A labelled benchmark of the field."""

    split: str

    @property
    def policy(self) -> ViewPolicy:
        """Published views: stage 2's for training, centred padding for evaluation."""
        return STAGE2 if self.split == "train" else EVALUATION
