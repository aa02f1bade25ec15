"""Label files: PNG indices and colours, NumPy arrays, MATLAB structs; what cannot be read is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sak_common.errors import out_of_resources
from sak_core.errors import DatasetError, UnreadableSample
from sak_core.images import check_file, open_image

LOSSY = ("JPEG", "JPEG2000", "MPO")
"""Pillow's names of formats of grey pictures whose numbers are not those that were saved."""


def read_grey(path: Path, *, exact: bool = False) -> NDArray[Any]:
    """A picture's stored numbers (h, w): palette indices, grey of 8 bits (uint8) or 16 (uint16), or floats of a TIFF.

    Args:
        exact: whether only the numbers that were saved will do.

    Raises:
        UnreadableSample: it cannot be read, or has colour channels.
    """
    with open_image(path) as image:
        if exact and image.format in LOSSY:
            raise UnreadableSample(path, f"is {image.format}, which changes the numbers of labels: save them as PNG")
        if image.mode not in ("P", "L", "1", "F") and not image.mode.startswith("I"):
            raise UnreadableSample(path, f"is {image.mode}: indices or grey levels are expected")
        if image.mode == "1":
            return np.asarray(image, np.uint8)
        return np.asarray(image)


def read_levels(path: Path) -> NDArray[Any]:
    """A picture's grey levels (h, w): uint8, 0 and 255 where it has one bit, or integers of more bits.

    Palettes are looked up.

    Raises:
        UnreadableSample: it cannot be read, or has colours.
    """
    with open_image(path) as image:
        if image.mode.startswith("I"):
            return np.asarray(image)
        if image.mode in ("L", "1"):
            return np.asarray(image.convert("L"))
        if image.mode in ("P", "RGB") and "transparency" not in image.info:
            colours = np.asarray(image.convert("RGB"))
            if (colours == colours[..., :1]).all():
                return colours[..., 0]
        raise UnreadableSample(path, f"is {_what(image)}: grey levels are expected")


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Where a grey picture of black and white is white, (h, w) uint8, 0 or 1; other levels go to the nearer one.

    Raises:
        UnreadableSample: it cannot be read; or something is not black but nothing is white, as where white was stored
            as 1.
    """
    levels = read_levels(path)
    white = 255 if levels.dtype == np.uint8 else 65535
    mask = 2 * levels.astype(np.int64) > white
    if levels.any() and not mask.any():
        raise UnreadableSample(path, f"holds at most {levels.max()}: 0 and {white} are expected")
    return mask.astype(np.uint8)


def read_colours(path: Path) -> NDArray[np.uint8]:
    """A PNG's three channels (h, w, 3) uint8, as stored.

    Raises:
        UnreadableSample: it cannot be read, or has another mode.
    """
    with open_image(path) as image:
        if image.mode != "RGB":
            raise UnreadableSample(path, f"is {image.mode}: RGB is expected")
        return np.asarray(image)


def read_array(path: Path) -> NDArray[Any]:
    """A `.npy` file's array, without pickles; a last axis of length one (of three) is dropped.

    Raises:
        UnreadableSample: it cannot be read, or holds anything but one array of numbers.
    """
    check_file(path)
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        if out_of_resources(error):
            raise
        raise UnreadableSample(path, f"is no readable array: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
        raise UnreadableSample(path, "does not hold one array of numbers")
    return array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array


def read_mat(path: Path, name: str) -> NDArray[Any]:
    """One variable of a MATLAB file (to version 7.2), nothing squeezed.

    Raises:
        UnreadableSample: it cannot be read, or has no such variable.
    """
    from scipy.io import loadmat

    check_file(path)
    try:
        found = loadmat(str(path), variable_names=[name])
    except Exception as error:  # scipy raises many kinds for damaged files
        if out_of_resources(error):
            raise
        raise UnreadableSample(path, f"is no readable MATLAB file: {error}") from error
    if name not in found:
        raise UnreadableSample(path, f"has no variable {name!r}")
    value: NDArray[Any] = found[name]
    return value


def normals_of(colours: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Normals as pictures hold them: 2 v / 255 − 1 a channel, (h, w, 3) float32."""
    return (colours.astype(np.float32) * np.float32(2 / 255) - 1).astype(np.float32)


def read_ids(path: Path) -> tuple[str, ...]:
    """Ids, one a line, in the file's order; blank lines, spaces around ids and a byte order mark are skipped.

    Raises:
        DatasetError: no such file, no ids, or one twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read the list of ids {path}: {error}") from error
    ids = tuple(line.strip() for line in lines if line.strip())
    if not ids:
        raise DatasetError(f"{path} lists no ids")
    check_unique(ids, path)
    return ids


def check_unique(ids: Sequence[str], where: Path) -> None:
    """Check that no id comes twice.

    Raises:
        DatasetError: one does; it names `where` and the id.
    """
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise DatasetError(f"{where}: {name!r} comes twice")
        seen.add(name)


def _what(image: Image.Image) -> str:
    return "transparent" if "A" in image.getbands() or "transparency" in image.info else "coloured"
