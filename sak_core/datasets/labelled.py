"""A folder of images with labels that a small TOML file describes: a dataset of one's own without code.

`<root>/dataset.toml`:

    name = "kitchens"                    # of its caches; "labelled" unless said
    size = [448, 576]                    # (H, W) of views, px; [384, 384] unless said
    images = "images/{id}.jpg"

    [splits]                             # lists of ids, one a line; without them, "train" is all images
    train = "lists/train.txt"

    [tasks.semseg]
    kind = "classes"                     # classes, saliency, normals, depth, boundary
    classes = ["wall", "floor"]
    files = "semseg/{id}.png"            # a picture, or .npy
    ignore = [0]                         # stored values that are no label
    offset = -1                          # added to the others (here 1, 2 are classes 0, 1)

    [tasks.depth]
    kind = "depth"
    files = "depth/{id}.png"             # 16 bits
    scale = 0.001                        # stored numbers times this are metres
    ignore = [0]
    weight = 2.0                         # of its loss; unless said, that of its kind (`sak_core.tasks.KINDS`)

    [views]                              # changes to the published training views
    scale = [0.75, 1.5]

Normals are (h, w, 3): pictures hold 2 v / 255 − 1 a channel, arrays the values themselves. Saliency and
boundaries are 1 where the stored value is at least `threshold` (1 unless said).
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sak_common.names import UnknownName, unknown
from sak_core.datasets.folder import as_text, check_root, files_below
from sak_core.datasets.labels import (
    check_unique,
    normals_of,
    read_array,
    read_colours,
    read_grey,
    read_ids,
    total_size,
)
from sak_core.errors import DatasetError, UnreadableSample
from sak_core.images import read_image
from sak_core.interfaces.dataset import Label, Sample, check_labels
from sak_core.labels import IGNORE
from sak_core.tasks import KINDS, TAKEN_NAMES, TASK_NAME, Task
from sak_core.views.view import EVALUATION, STAGE2, ViewPolicy

DESCRIPTION = "dataset.toml"


@dataclass(frozen=True)
class LabelFiles:
    """How one task's labels are stored; the module's text says what the settings mean."""

    kind: str
    files: str
    classes: tuple[str, ...] = ()
    ignore: tuple[float, ...] = ()
    offset: int = 0
    scale: float = 1.0
    threshold: float = 1.0
    weight: float | None = None

    def read(self, path: Path) -> Label:
        """One label in this project's coding; raises UnreadableSample."""
        stored = self._stored(path)
        if self.kind == "normals":
            if stored.ndim != 3 or stored.shape[2] != 3:
                raise UnreadableSample(path, f"has shape {stored.shape}, normals are (h, w, 3)")
            normals = stored.astype(np.float32) if _is_array(path) else normals_of(stored)
            missing = np.all(np.isin(stored, self.ignore), axis=-1) if self.ignore else None
            return normals if missing is None else _ignore(normals, missing)
        missing = np.isin(stored, self.ignore)
        if self.kind == "depth":
            return _ignore(stored.astype(np.float32) * np.float32(self.scale), missing)
        if self.kind == "classes":
            return _ignore(self._indices(path, stored, missing), missing)
        return _ignore((stored >= self.threshold).astype(np.uint8), missing)

    def _stored(self, path: Path) -> NDArray[Any]:
        if _is_array(path):
            return read_array(path)
        return read_colours(path) if self.kind == "normals" else read_grey(path)

    def _indices(self, path: Path, stored: NDArray[Any], missing: NDArray[np.bool_]) -> NDArray[np.uint8]:
        if stored.dtype.kind not in "ui":
            raise UnreadableSample(path, f"is {stored.dtype}, class labels are whole numbers")
        indices = stored.astype(np.int64) + self.offset
        wrong = ~missing & ((indices < 0) | (indices >= len(self.classes))) & (stored != IGNORE)
        if wrong.any():
            raise UnreadableSample(
                path, f"holds {stored[wrong][0]}, beyond the {len(self.classes)} classes (offset {self.offset})"
            )
        return np.where(stored == IGNORE, IGNORE, indices).astype(np.uint8)


def _is_array(path: Path) -> bool:
    return path.suffix.lower() == ".npy"


def _ignore(label: Label, missing: NDArray[np.bool_]) -> Label:
    label[missing] = IGNORE
    return label


@dataclass(frozen=True)
class Description:
    """What `dataset.toml` says."""

    images: str
    name: str = "labelled"
    size: tuple[int, int] = (384, 384)
    splits: Mapping[str, str] = field(default_factory=dict)
    tasks: Mapping[str, LabelFiles] = field(default_factory=dict)
    views: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelledFolder:
    """One split of a described folder; names: of its samples, as they stand in the names of files."""

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
        rows = self.description.tasks.items()
        return {"coding": {name: {f.name: _plain(getattr(row, f.name)) for f in fields(row)} for name, row in rows}}

    @cached_property
    def fingerprints(self) -> Sequence[int]:
        """Bytes of each sample's files together."""
        return [total_size(list(self.files(i).values())) for i in range(len(self.names))]

    def load(self, index: int) -> Sample:
        """Read one image and its labels; raises UnreadableSample naming the file."""
        files = self.files(index)
        image = read_image(files["image"])
        labels: dict[str, Label] = {}
        for task in self.tasks:
            path = files[task.name]
            labels[task.name] = self.description.tasks[task.name].read(path)
            check_labels(Sample(image, labels), (task,), path)
        return Sample(image, labels)

    def files(self, index: int) -> dict[str, Path]:
        """The image, and a file a task."""
        patterns = {"image": self.description.images}
        patterns |= {task: row.files for task, row in self.description.tasks.items()}
        return {what: self.root / pattern.replace("{id}", self.names[index]) for what, pattern in patterns.items()}


def open_labelled(root: Path, split: str) -> LabelledFolder:
    """One split of the folder that `<root>/dataset.toml` describes.

    Raises:
        DatasetError: no description, or one that does not fit; no images.
        UnknownName: a setting, kind or split that does not exist.
    """
    check_root(root)
    description = read_description(root / DESCRIPTION)
    if description.splits:
        if split not in description.splits:
            raise UnknownName(unknown(f"split of {root / DESCRIPTION}", split, description.splits))
        names: Sequence[str] = read_ids(root / description.splits[split])
    elif split == "train":
        names = _find_names(root, description.images)
    else:
        raise DatasetError(f"{root / DESCRIPTION} has no [splits]: all images are 'train', there is no {split!r}")
    return LabelledFolder(root, split, description, names)


def read_description(path: Path) -> Description:
    """Read and check a description. Raises DatasetError or UnknownName, naming file and setting."""
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
    )
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
    ignore = table.get("ignore", [])
    try:
        row = LabelFiles(
            **{
                **table,
                "classes": tuple(table.get("classes", ())),
                "ignore": tuple(ignore) if isinstance(ignore, list) else (ignore,),
            }
        )
        Task(name, row.kind, row.classes)
        row = replace(row, offset=int(row.offset), scale=float(row.scale))
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{where}: {error}") from error
    if not 0 < row.scale < math.inf:
        raise DatasetError(f"{where}: scale must be above 0, metres for each stored 1, not {row.scale}")
    return row


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


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
