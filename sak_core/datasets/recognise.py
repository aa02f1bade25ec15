"""Which dataset a folder is, by what lies in it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from sak_core.datasets.folder import check_root, files_below
from sak_core.datasets.labelled import DESCRIPTION
from sak_core.errors import DatasetError
from sak_core.images import EXTENSIONS

_LAYOUTS: dict[str, Callable[[Path], bool]] = {
    "labelled": lambda root: (root / DESCRIPTION).is_file(),
    "nyud": lambda root: (root / "gt_sets").is_dir(),
    "pascal_context": lambda root: (root / "ImageSets" / "Context").is_dir(),
    "imagenet": lambda root: (root / "ILSVRC").is_dir(),
}
"""Data sets that something in their folder tells."""
_FILES: dict[str, tuple[str, ...]] = {
    "hugging_face": (".parquet", ".arrow"),
    "webdataset": (".tar",),
    "folder": EXTENSIONS,
}
"""Data sets that files of some kind tell, by the endings of their names: the first of which there are any."""


def recognise(root: Path) -> str:
    """The name in `DATASETS` of what lies in `root`.

    Raises:
        DatasetError: nothing fits; the error names what would.
    """
    check_root(root)
    for name, fits in _LAYOUTS.items():
        if fits(root):
            return name
    names, first = list(_FILES), len(_FILES)
    for path in files_below(root):  # once: it may hold millions
        first = next((i for i in range(first) if path.lower().endswith(_FILES[names[i]])), first)
        if not first:
            break
    if first < len(names):
        return names[first]
    raise DatasetError(
        f"{root} is no data set that is known: expected gt_sets/ (nyud), ImageSets/Context/ (pascal_context), "
        f"{DESCRIPTION} (labelled), ILSVRC/ (imagenet), .parquet or .arrow files (hugging_face), .tar files "
        f"(webdataset) or images (folder)"
    )


def nearby(root: Path, name: str) -> Path | None:
    """A folder directly in or above `root` that is laid out as the dataset `name`, for a root that is off by one.

    None where `root` itself is laid out so, and for data sets that any files would make.
    """
    fits = _LAYOUTS.get(name)
    if fits is None or fits(root):
        return None
    inside = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return next((path for path in [*islice(inside, 100), root.parent] if path != root and fits(path)), None)
