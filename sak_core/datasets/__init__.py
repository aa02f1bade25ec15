"""Datasets by name: one row each, imported when opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name

from sak_common.names import UnknownName, find, unknown
from sak_core.errors import DatasetError, FolderNeeded
from sak_core.interfaces.dataset import Dataset, FirstSamples
from sak_core.tasks import Task

Size = tuple[int, int]
Opener = Callable[[str, Path | None, Size | None, str | None], Dataset]


@dataclass(frozen=True)
class DatasetRow:
    """How to open one dataset.

    Attributes:
        open: (split, root, size, images) to Dataset; size is (H, W) or None for the dataset's own; images says which of
            a sample's images is the input, None where the dataset finds it by itself.
        splits: their names; empty where the folder says.
        needs_root: whether a folder must be given.
        about: one line for lists.
        needs_all_splits: whether a copy that lacks one of its splits is damaged.
        tasks: of its labelled splits, where every copy has the same; None where the folder says, or it has no labels.
        several_images: whether a sample may hold more images than the input, so that `images` means something.
        licence: of its images and labels, as they are handed out; "unknown" where nobody said, or the folder decides.
        may_share: whether it lets images and labels be handed on to anyone; None where that is not known.
    """

    open: Opener
    splits: tuple[str, ...]
    needs_root: bool
    about: str
    needs_all_splits: bool = False
    tasks: Callable[[], tuple[Task, ...]] | None = None
    several_images: bool = False
    licence: str = "unknown"
    may_share: bool | None = None


def _rooms(split: str, root: Path | None, size: Size | None, images: str | None) -> Dataset:
    from sak_core.miniature.rooms import Rooms

    if size is None:
        return Rooms(split)
    if min(size) < 8:
        raise DatasetError(f"rooms are rendered at 8 pixels a side or more, not at {size[0]}x{size[1]}")
    return Rooms(split, size=size)


def _in_folder(target: str) -> Opener:
    """Opens a data set that lies in a folder, `target` being "module:class", imported when one is opened."""

    def open_split(split: str, root: Path | None, size: Size | None, images: str | None) -> Dataset:
        chosen = {} if images is None else {"images": images}
        dataset: Dataset = resolve_name(f"sak_core.datasets.{target}")(root, split, **chosen)
        return dataset

    return open_split


def _tasks(module: str) -> Callable[[], tuple[Task, ...]]:
    """The tasks that a module names, imported when they are asked for."""
    return lambda: tuple(resolve_name(f"{module}:TASKS"))


DATASETS: dict[str, DatasetRow] = {
    "rooms": DatasetRow(
        _rooms,
        ("train", "val", "test", "unlabelled"),
        False,
        "rendered indoor scenes, six exact labels",
        tasks=_tasks("sak_core.miniature.rooms.dataset"),
        licence="Apache-2.0",
        may_share=True,
    ),
    "folder": DatasetRow(
        _in_folder("folder:ImageFolder"), ("train", "val", "test"), True, "any folder of images, no labels"
    ),
    "labelled": DatasetRow(
        _in_folder("labelled:open_labelled"), (), True, "a folder with labels, described by its dataset.toml"
    ),
    "imagenet": DatasetRow(
        _in_folder("imagenet:open_imagenet"),
        ("train", "val"),
        True,
        "ImageNet-1k as class folders, no labels",
        licence="ImageNet's terms of access: non-commercial research and education",
        may_share=False,
    ),
    "webdataset": DatasetRow(
        _in_folder("webdataset:TarFolder"),
        ("train", "val", "test"),
        True,
        "images in WebDataset tars, no labels",
        several_images=True,
    ),
    "hugging_face": DatasetRow(
        _in_folder("hugging_face:HuggingFaceFolder"),
        ("train", "val", "test"),
        True,
        "a Hugging Face dataset on disk, no labels",
        several_images=True,
    ),
    "nyud": DatasetRow(
        _in_folder("nyud:Nyud"),
        ("train", "val"),
        True,
        "NYUD-v2: semseg 40, depth, normals, boundaries (papers' layout)",
        True,
        tasks=_tasks("sak_core.datasets.nyud"),
    ),
    "pascal_context": DatasetRow(
        _in_folder("pascal_context:PascalContext"),
        ("train", "val"),
        True,
        "PASCAL-Context: semseg 21, human parts 7, saliency, normals, boundaries (papers' layout)",
        True,
        tasks=_tasks("sak_core.datasets.pascal_context"),
        licence="unknown (photographs from flickr, under its terms of use)",
    ),
}
"""All datasets, one row each."""


def open_dataset(
    name: str,
    split: str,
    root: Path | None = None,
    size: Size | None = None,
    limit: int | None = None,
    images: str | None = None,
) -> Dataset:
    """Open one split of a dataset.

    Args:
        name: a key of `DATASETS`. split: one of the row's.
        root: the dataset's folder, for those that live in one.
        size: (H, W) of the views asked for; rendered datasets render at it, others ignore it.
        limit: keep only the first so many samples.
        images: which of a sample's images is the input: endings in tars, a column in tables.

    Raises:
        UnknownName: no dataset or split of this name; the message offers the nearest.
        DatasetError: root missing, not a folder, empty, or not laid out as the dataset is; `images` where samples
            have one image.
    """
    row = find("dataset", name, DATASETS)
    if row.splits and split not in row.splits:
        raise UnknownName(unknown(f"split of {name}", split, row.splits))
    if row.needs_root and root is None:
        raise FolderNeeded(f"dataset {name!r} lies in a folder")
    if images is not None and not row.several_images:
        raise DatasetError(f"dataset {name!r} has one image a sample: there is none to choose")
    dataset = row.open(split, root, size, images)
    return dataset if limit is None else FirstSamples(dataset, limit)
