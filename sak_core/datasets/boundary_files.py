"""Boundary maps from files: predicted strengths, and annotations as PNGs or as BSDS keeps them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sak_common.names import listed
from sak_core.datasets.folder import check_root
from sak_core.datasets.labels import read_levels, read_mat
from sak_core.errors import DatasetError, UnreadableSample

_NUMBERED = re.compile(r"(?P<name>.+)[-_.](?P<number>\d+)")


def pair_files(predictions: Path, truths: Path) -> dict[str, tuple[Path, tuple[Path, ...]]]:
    """Each prediction `NAME.png` of one folder with its annotations in the other, by name, sorted.

    An image's annotations are `NAME.png`, or `NAME.mat` as BSDS has them, or several numbered PNGs: `NAME-1.png`,
    `NAME_1.png` or `NAME.1.png`, or `NAME/1.png` in a folder of its own. Hidden files and other endings are left out.

    Raises:
        DatasetError: no such folder, no PNGs in it, a prediction without annotations, annotations without a
        prediction, or two kinds of annotations for one.
    """
    check_root(predictions)
    check_root(truths)
    names = {path.stem: path for path in _files(predictions, (".png",))}
    if not names:
        raise DatasetError(f"{predictions} holds no PNGs; predictions are 8-bit grey PNGs, NAME.png")
    found: dict[str, list[Path]] = {name: [] for name in names}
    unknown: list[str] = []
    for path, name in _annotations(truths, names):
        if name in found:
            found[name].append(path)
        else:
            unknown.append(path.relative_to(truths).as_posix())
    missing = [name for name, paths in found.items() if not paths]
    if missing:
        raise DatasetError(
            f"{listed([f'{name}.png' for name in missing], 5)} of {predictions} {_have(missing)} no annotation in "
            f"{truths}: NAME.png, NAME.mat or numbered ones (NAME-1.png, NAME/1.png) are looked for"
        )
    if unknown:
        raise DatasetError(
            f"{listed(unknown, 5)} of {truths} {_have(unknown)} no prediction in {predictions}; "
            "scores of a part of the images would not compare"
        )
    for name, paths in found.items():
        whole = [path.name for path in paths if path.parent == truths and path.stem == name]
        if whole and len(paths) > 1:
            raise DatasetError(f"{truths} has {listed([p.name for p in paths], 5)} for {name}: keep one kind")
    return {name: (names[name], tuple(paths)) for name, paths in sorted(found.items())}


def _annotations(truths: Path, names: Mapping[str, Path]) -> Iterator[tuple[Path, str]]:
    """Annotation files and the prediction's name that each belongs to, numbered ones in the order of their numbers."""
    for path in sorted(_files(truths, (".png", ".mat")), key=_number):
        numbered = _NUMBERED.fullmatch(path.stem) if path.suffix.lower() == ".png" else None
        # a number may be a part of the name itself
        own = path.stem in names or numbered is None
        yield path, path.stem if own or numbered is None else numbered["name"]
    for folder in sorted(path for path in truths.iterdir() if path.is_dir() and not path.name.startswith(".")):
        yield from ((path, folder.name) for path in sorted(_files(folder, (".png",)), key=_number))


def _number(path: Path) -> tuple[int, str]:
    digits = re.search(r"\d+$", path.stem)
    return int(digits[0]) if digits else -1, path.name


def _files(folder: Path, endings: Sequence[str]) -> list[Path]:
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix.lower() in endings and not path.name.startswith(".")
    ]


def _have(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"


def read_strengths(path: Path) -> npt.NDArray[np.uint8]:
    """A predicted map (h, w) uint8 from an 8-bit grey PNG.

    Raises:
        UnreadableSample: it cannot be read, or has colours or 16 bits.
    """
    grey = read_levels(path)
    if grey.dtype != np.uint8:
        raise UnreadableSample(path, f"has {8 * grey.dtype.itemsize} bits; strengths are 8-bit grey, 255 being 1")
    return grey.astype(np.uint8)


def read_annotations(path: Path) -> list[npt.NDArray[np.bool_]]:
    """The boundaries (h, w) that a file holds: one in a PNG (where it is not 0), one an annotator in BSDS's `.mat`.

    Raises:
        UnreadableSample: it cannot be read.
    """
    if path.suffix.lower() != ".mat":
        return [read_levels(path) > 0]
    annotators = read_mat(path, "groundTruth")
    maps = []
    try:
        for annotator in annotators.ravel():
            boundary = np.asarray(annotator["Boundaries"][0, 0])
            if boundary.ndim != 2 or boundary.dtype.kind not in "buif":
                raise ValueError(f"Boundaries is {boundary.dtype} {boundary.shape}")
            maps.append(boundary > 0)
    except (IndexError, KeyError, ValueError, TypeError) as error:
        raise UnreadableSample(path, f"groundTruth is not laid out as BSDS's: {error}") from error
    if not maps:
        raise UnreadableSample(path, "groundTruth holds no annotation")
    return maps
