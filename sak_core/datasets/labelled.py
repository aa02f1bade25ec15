"""A folder of images with labels that a small TOML file describes: a dataset of one's own without code.

`<root>/dataset.toml`:

    name = "kitchens"                    # of its caches; "labelled" unless said
    size = [448, 576]                    # (H, W) of views, px; [384, 384] unless said
    images = "images/{id}.jpg"
    labels_as = "shown"                  # or "stored": where EXIF turns an image, labels lie on its pixels so

    [splits]                             # lists of ids, one a line; without them, "train" is all images
    train = "lists/train.txt"

    [tasks.semseg]
    kind = "classes"                     # classes, saliency, normals, depth, boundary
    classes = ["wall", "floor"]
    files = "semseg/{id}.png"            # a picture, or .npy
    ignore = [0]                         # stored values that are no label; they decide alone. Unless said, 255
    offset = -1                          # added to the others (here 1, 2 are classes 0, 1)

    [tasks.depth]
    kind = "depth"
    files = "depth/{id}.png"             # 16 bits; also float TIFF
    scale = 0.001                        # stored numbers times this are metres
    ignore = [0]                         # [nan] in arrays and float TIFF
    optional = true                      # a sample may lack the file: it then has no label of this task
    weight = 2.0                         # of its loss; unless said, that of its kind (`sak_core.tasks.KINDS`)

    [views]                              # changes to the published training views
    scale = [0.75, 1.5]

Normals are (h, w, 3): pictures hold 2 v / 255 − 1 a channel, arrays the values themselves. Saliency and
boundaries are 1 where the stored value is at least `threshold` (1 unless said).
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sak_common.names import UnknownName, find, unknown
from sak_core.datasets.folder import as_text, check_root, files_below
from sak_core.datasets.label_files import LabelFiles
from sak_core.datasets.labels import check_unique, read_ids
from sak_core.datasets.published import SizesOfFiles
from sak_core.errors import DatasetError, UnreadableSample
from sak_core.images import read_image, read_turned
from sak_core.interfaces.dataset import Label, Sample, check_labels
from sak_core.labels import IGNORE
from sak_core.tasks import KINDS, TAKEN_NAMES, TASK_NAME, Task, check_class_names
from sak_core.views.view import EVALUATION, STAGE2, ViewPolicy

DESCRIPTION = "dataset.toml"


@dataclass(frozen=True)
class Description:
    """What `dataset.toml` says."""

    images: str
    name: str = "labelled"
    size: tuple[int, int] = (384, 384)
    splits: Mapping[str, str] = field(default_factory=dict)
    tasks: Mapping[str, LabelFiles] = field(default_factory=dict)
    views: Mapping[str, Any] = field(default_factory=dict)
    labels_as: str | None = None


LABELS_AS = ("shown", "stored")
"""Where labels lie of an image that EXIF turns: on the picture as people see it, or on the pixels as the file has them,
which are then the image."""


@dataclass(frozen=True)
class LabelledFolder(SizesOfFiles):
    """One split of a described folder.

    Attributes:
        names: of its samples, as they stand in the names of files.
    """

    root: Path
    split: str
    description: Description
    names: Sequence[str] = field(repr=False)

    @cached_property
    def ids(self) -> Sequence[str]:
        """The names; bytes that are no UTF-8 are written as \\xNN."""
        return [as_text(name) for name in self.names]

    @property
    def name(self) -> str:
        """As the description says."""
        return self.description.name

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """As described, with the weights of their kinds unless weights are given."""
        return tuple(
            Task(name, row.kind, row.classes, KINDS[row.kind].weight if row.weight is None else row.weight)
            for name, row in self.description.tasks.items()
        )

    @property
    def default_size(self) -> tuple[int, int]:
        """As the description says."""
        return self.description.size

    @property
    def policy(self) -> ViewPolicy:
        """Published views with the description's changes for "train", centred padding for other splits."""
        if self.split != "train":
            return EVALUATION
        return ViewPolicy.from_dict({**STAGE2.to_dict(), **self.description.views})

    @property
    def info(self) -> Mapping[str, object]:
        """How labels are coded: another coding is another store."""
        coding = {"coding": {name: row.coding for name, row in self.description.tasks.items()}}
        return {**coding, "labels_as": "stored"} if self.description.labels_as == "stored" else coding

    @property
    def assumes_ignored(self) -> frozenset[str]:
        """Tasks of classes whose 255 is taken for no label, since the description says nothing of it."""
        rows = self.description.tasks.items()
        return frozenset(name for name, row in rows if row.kind == "classes" and row.ignore is None)

    @cached_property
    def unlabelled(self) -> Mapping[str, Mapping[int, Path]]:
        """The samples that have no file of an optional task, and the path where it would be."""
        optional = [name for name, row in self.description.tasks.items() if row.optional]
        paths = {
            name: [self._path(self.description.tasks[name].files, i) for i in range(len(self.names))]
            for name in optional
        }
        return {name: {i: p for i, p in enumerate(paths[name]) if not _is_there(p)} for name in optional}

    def load(self, index: int) -> Sample:
        """Read one image and its labels.

        Raises:
            UnreadableSample: one cannot be read; names the file.
        """
        files = self.files(index)
        if self.description.labels_as == "stored":
            image, orientation = read_image(files["image"], as_stored=True), 1
        else:
            image, orientation = read_turned(files["image"])
        labels: dict[str, Label] = {}
        for task in self.tasks:
            row = self.description.tasks[task.name]
            if task.name not in files:
                labels[task.name] = _no_label(task, image.shape[0], image.shape[1])
                continue
            labels[task.name] = _read(row, files[task.name], task.name)
            if orientation != 1 and self.description.labels_as is None:
                _check_turned(files[task.name], labels[task.name].shape[:2], image.shape[:2], orientation)
            check_labels(Sample(image, labels), (task,), files[task.name])
        return Sample(image, labels)

    def files(self, index: int) -> dict[str, Path]:
        """The image, and a file a task; none of an optional task where there is none."""
        files = {"image": self._path(self.description.images, index)}
        for task, row in self.description.tasks.items():
            path = self._path(row.files, index)
            if not row.optional or _is_there(path):
                files[task] = path
        return files

    def _path(self, pattern: str, index: int) -> Path:
        return self.root / pattern.replace("{id}", self.names[index])


def _is_there(path: Path) -> bool:
    """Whether a path leads to something, be it a broken link or nothing that can be read: those are faults."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _no_label(task: Task, height: int, width: int) -> Label:
    kind = task.spec
    return np.full(
        (height, width, kind.label_channels) if kind.label_channels else (height, width), IGNORE, kind.label_dtype
    )


def _read(row: LabelFiles, path: Path, task: str) -> Label:
    try:
        return row.read(path)
    except UnreadableSample as error:
        if _is_there(path):
            raise
        advice = f"optional = true in [tasks.{task}] keeps samples without it"
        raise UnreadableSample(path, f"{error.reason}; {advice}") from error


def _check_turned(path: Path, label: tuple[int, ...], image: tuple[int, ...], orientation: int) -> None:
    """Refuse a label (h, w) of an image (h, w) that EXIF turned where it may lie on the pixels as stored.

    A quarter turn of an image that is no square shows in the label's shape.
    """
    is_quarter_turn = orientation >= 5
    if is_quarter_turn and image[0] != image[1] and label == image:
        return
    found = (
        "has the shape that the image has as stored: its"
        if label == image[::-1] != image
        else "belongs to an image whose"
    )
    raise UnreadableSample(
        path,
        f"{found} EXIF orientation is {orientation}; say in dataset.toml whether labels lie on images as shown or on "
        'their pixels as stored: labels_as = "shown" or labels_as = "stored"',
    )


def open_labelled(root: Path, split: str) -> LabelledFolder:
    """One split of the folder that `<root>/dataset.toml` describes.

    Raises:
        DatasetError: no description, or one that does not fit; no images.
        UnknownName: a setting, kind or split that does not exist.
    """
    check_root(root)
    description = read_description(root / DESCRIPTION)
    if description.splits:
        listed = find(f"split of {root / DESCRIPTION}", split, description.splits)
        names: Sequence[str] = read_ids(root / listed)
    elif split == "train":
        names = _find_names(root, description.images)
    else:
        raise DatasetError(f"{root / DESCRIPTION} has no [splits]: all images are 'train', there is no {split!r}")
    return LabelledFolder(root, split, description, names)


def read_description(path: Path) -> Description:
    """Read and check a description.

    Raises:
        DatasetError, UnknownName: a setting is wrong; file and setting are named.
    """
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DatasetError(f"no {path}: write one that says where images and labels are") from error
    except (OSError, ValueError) as error:
        raise DatasetError(f"cannot read {path}: {error}") from error
    _check_keys(str(path), told, Description)
    if "images" not in told:
        raise DatasetError(f'{path}: images = "..." is missing, for example "images/{{id}}.jpg"')
    _check_pattern(path, "images", told["images"])
    tasks = {name: _label_files(path, name, table) for name, table in _table(path, "tasks", told).items()}
    for task in tasks:
        if not TASK_NAME.fullmatch(task):
            raise DatasetError(f"{path}: a task's name is of letters, digits, '_' and '-', at most 64, not {task!r}")
        if task == "image" or task in TAKEN_NAMES:
            raise DatasetError(f"{path}: a task cannot be called {task!r}; choose another name for [tasks.{task}]")
    name = told.get("name", "labelled")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise DatasetError(f"{path}: name {name!r} must be letters, digits, '_', '.' and '-'")
    size = told.get("size", [384, 384])
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(s, int) and s > 0 for s in size)):
        raise DatasetError(f"{path}: size {size!r} must be [H, W] in px")
    described = Description(
        images=told["images"],
        name=name,
        size=(size[0], size[1]),
        splits=_table(path, "splits", told),
        tasks=tasks,
        views=_table(path, "views", told),
        labels_as=told.get("labels_as"),
    )
    if described.labels_as not in (None, *LABELS_AS):
        raise DatasetError(f"{path}: labels_as {described.labels_as!r} must be one of {', '.join(LABELS_AS)}")
    try:
        ViewPolicy.from_dict({**STAGE2.to_dict(), **described.views})
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{path}, [views]: {error}") from error
    return described


def _label_files(path: Path, name: str, table: Any) -> LabelFiles:
    where = f"{path}, [tasks.{name}]"
    if not isinstance(table, dict):
        raise DatasetError(f"{where} must be a table")
    _check_keys(where, table, LabelFiles)
    for key in ("kind", "files"):
        if key not in table:
            raise DatasetError(f"{where}: {key} is missing")
    if table["kind"] not in KINDS:
        raise UnknownName(f"{where}: {unknown('kind of task', str(table['kind']), KINDS)}")
    _check_pattern(path, f"tasks.{name}.files", table["files"])
    try:
        row = LabelFiles(
            **{**table, "classes": tuple(table.get("classes", ())), "ignore": _ignored(table.get("ignore"))}
        )
        Task(name, row.kind, row.classes)
        check_class_names(row.classes)
        row = replace(row, offset=int(row.offset), scale=float(row.scale))
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{where}: {error}") from error
    if not 0 < row.scale < math.inf:
        raise DatasetError(f"{where}: scale must be above 0, metres for each stored 1, not {row.scale}")
    if not isinstance(row.optional, bool):
        raise DatasetError(f"{where}: optional must be true or false, not {row.optional!r}")
    return row


def _ignored(told: Any) -> tuple[float, ...] | None:
    """The values of a setting `ignore`, one or a list; None where there is none. TypeError where one is no number."""
    values = told if isinstance(told, list) else [] if told is None else [told]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"ignore holds {value!r}: stored values are numbers")
    return None if told is None else tuple(values)


def _check_pattern(path: Path, what: str, pattern: Any) -> None:
    if not isinstance(pattern, str) or pattern.count("{id}") != 1:
        raise DatasetError(f"{path}: {what} = {pattern!r} must be a path with one {{id}} in it")


def _check_keys(where: str, table: Mapping[str, Any], kind: Any) -> None:
    known = [setting.name for setting in fields(kind)]
    for key in table:
        if key not in known:
            raise UnknownName(f"{where}: {unknown('setting', key, known)}")


def _table(path: Path, name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    table = told.get(name, {})
    if not isinstance(table, dict):
        raise DatasetError(f"{path}: {name} must be a table ([{name}])")
    return table


def _find_names(root: Path, pattern: str) -> tuple[str, ...]:
    """What stands for {id} in all files that fit a pattern, sorted; it may hold "/"."""
    before, after = pattern.split("{id}")
    folder, _, stem = before.rpartition("/")
    fitting = (path for path in files_below(root / folder) if path.startswith(stem) and path.endswith(after))
    ids = sorted(name for path in fitting if (name := path[len(stem) : len(path) - len(after)]))
    if not ids:
        raise DatasetError(f"no file below {root} fits images = {pattern!r}")
    check_unique(ids, root)
    return tuple(ids)
