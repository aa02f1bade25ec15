"""What a dataset is to this project: named samples of one split, each an image with exact labels.

Everything here runs in light worker processes: numpy and PIL, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sak_core.errors import DatasetError, UnreadableSample
from sak_core.labels import IGNORE
from sak_core.tasks import Task
from sak_core.views.view import ViewPolicy

Label = NDArray[np.uint8] | NDArray[np.float32]
"""A dense label (H, W) or (H, W, 3); see sak_core.tasks for dtypes; 255 where there is none."""


@dataclass(frozen=True)
class Sample:
    """One image and its labels, before any view.

    Attributes:
        image: (h, w, 3) uint8 RGB.
        labels: task name to label of the image's size.
    """

    image: NDArray[np.uint8]
    labels: Mapping[str, Label] = field(default_factory=dict)


@runtime_checkable
class Dataset(Protocol):
    """One split of a dataset. Instances pickle, so that workers can load samples by index.

    Attributes:
        name, split: as on the command line.
        tasks: empty when unlabelled.
        default_size: (H, W) of views unless asked otherwise, px.
        policy: the split's view policy.
        info: versions and options that fix the pixels, JSON-able.
        ids: unique, stable, in order.
        fingerprints: one integer a sample (a file's size), an input of the store's digest.
    """

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def tasks(self) -> tuple[Task, ...]: ...
    @property
    def default_size(self) -> tuple[int, int]: ...
    @property
    def policy(self) -> ViewPolicy: ...
    @property
    def info(self) -> Mapping[str, object]: ...
    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def fingerprints(self) -> Sequence[int]: ...

    def load(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            UnreadableSample: its files do not allow it.
        """
        ...


@runtime_checkable
class HasFiles(Protocol):
    """A dataset whose samples each lie in files of their own."""

    def files(self, index: int) -> Mapping[str, Path]:
        """One sample's files: "image", and others by what they hold."""
        ...


@runtime_checkable
class Described(Protocol):
    """A dataset whose coding of labels somebody described.

    Attributes:
        assumes_ignored: tasks of classes whose 255 is taken for no label, though the description does not say so.
        unlabelled: the samples that may do without a label of a task, and do, by task: where its file would be.
    """

    @property
    def assumes_ignored(self) -> frozenset[str]: ...
    @property
    def unlabelled(self) -> Mapping[str, Mapping[int, Path]]: ...


@runtime_checkable
class LeavesImages(Protocol):
    """A dataset that takes some of the images that lie there, and leaves others.

    Attributes:
        left_alone: how many of those, by ending.
    """

    @property
    def left_alone(self) -> Mapping[str, int]: ...


@runtime_checkable
class HasArchives(Protocol):
    """A dataset whose samples lie many in a file."""

    @property
    def archives(self) -> Sequence[Path]:
        """The files."""
        ...


@dataclass(frozen=True)
class FirstSamples:
    """The first `limit` samples of another dataset, for a trial."""

    dataset: Dataset
    limit: int

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise DatasetError(f"limit {self.limit}: at least one sample is needed")

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.dataset.name

    @property
    def split(self) -> str:
        """The dataset's split."""
        return self.dataset.split

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The dataset's tasks."""
        return self.dataset.tasks

    @property
    def default_size(self) -> tuple[int, int]:
        """The dataset's view size (H, W), px."""
        return self.dataset.default_size

    @property
    def policy(self) -> ViewPolicy:
        """The dataset's view policy."""
        return self.dataset.policy

    @property
    def info(self) -> Mapping[str, object]:
        """The dataset's versions and options."""
        return self.dataset.info

    @cached_property
    def ids(self) -> Sequence[str]:
        """The first `limit` ids."""
        return self.dataset.ids[: self.limit]

    @cached_property
    def fingerprints(self) -> Sequence[int]:
        """The first `limit` fingerprints."""
        return self.dataset.fingerprints[: self.limit]

    def load(self, index: int) -> Sample:
        """Read one of the first `limit` samples."""
        if not 0 <= index < len(self.ids):
            raise IndexError(f"sample {index} of {len(self.ids)}")
        return self.dataset.load(index)


def sample_files(dataset: Dataset, index: int) -> Mapping[str, Path]:
    """A sample's files by what they hold, as `HasFiles.files`; none where the dataset has no files a sample."""
    whole = dataset.dataset if isinstance(dataset, FirstSamples) else dataset
    return whole.files(index) if isinstance(whole, HasFiles) else {}


def unlabelled(dataset: Dataset) -> dict[str, dict[int, Path]]:
    """`Described.unlabelled` of any dataset; tasks that every sample has a label of are left out."""
    whole = dataset.dataset if isinstance(dataset, FirstSamples) else dataset
    found = whole.unlabelled if isinstance(whole, Described) else {}
    count = len(dataset.ids)
    here = {task: {i: path for i, path in samples.items() if i < count} for task, samples in found.items()}
    return {task: samples for task, samples in here.items() if samples}


def check_labels(sample: Sample, tasks: Sequence[Task], where: Path | str | Mapping[str, Path]) -> Sample:
    """`sample`, if it has exactly the tasks' labels, in their dtypes and ranges and at the image's size.

    Args:
        where: what errors name: one place, or the file of every task.

    Raises:
        UnreadableSample: naming the file, the label, and what it is against what was expected.
    """
    height, width = sample.image.shape[:2]
    for task in tasks:
        place = where[task.name] if isinstance(where, Mapping) else where
        label = sample.labels.get(task.name)
        if label is None:
            raise UnreadableSample(place, f"has no label {task.name!r}")
        channels = task.spec.label_channels
        expected = (height, width) if channels == 0 else (height, width, channels)
        if label.shape != expected:
            turned = " (the image's transposed)" if label.shape[:2] == (width, height) != (height, width) else ""
            raise UnreadableSample(
                place,
                f"label {task.name!r} has shape {label.shape}{turned}, but the image is {height}x{width} px: "
                f"expected {expected}",
            )
        if label.dtype != task.spec.label_dtype:
            raise UnreadableSample(place, f"label {task.name!r} is {label.dtype}, expected {task.spec.label_dtype}")
        if task.spec.label_dtype == np.uint8:
            _check_classes(place, task, label)
        elif not np.isfinite(label).all():
            raise UnreadableSample(place, f"label {task.name!r} holds NaN or infinite values: expected finite numbers")
    return sample


def _check_classes(where: Path | str, task: Task, label: Label) -> None:
    """Class labels lie in 0..classes − 1, saliency and boundaries in 0..1; 255 is no label anywhere."""
    count = len(task.classes) or 2
    found = np.flatnonzero(np.bincount(label.ravel(), minlength=256))
    wrong = [int(value) for value in found if count <= value < IGNORE]
    if wrong:
        raise UnreadableSample(
            where,
            f"label {task.name!r} holds {', '.join(map(str, wrong[:5]))}: expected 0..{count - 1}, or {IGNORE}",
        )
