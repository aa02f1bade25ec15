"""Human parts of PASCAL-Context: six parts from the 24 names of the PASCAL-Part annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sak_core.errors import UnreadableSample
from sak_core.labels import IGNORE

PERSON = 15
"""VOC's class index of persons."""

PART_CLASSES = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")

_NAMES: dict[str, tuple[str, ...]] = {
    "head": ("head", "hair", "leye", "reye", "lear", "rear", "lebrow", "rebrow", "nose", "mouth"),
    "torso": ("torso", "neck"),
    "upper arm": ("luarm", "ruarm"),
    "lower arm": ("llarm", "rlarm", "lhand", "rhand"),
    "upper leg": ("luleg", "ruleg"),
    "lower leg": ("llleg", "rlleg", "lfoot", "rfoot"),
}
PART_INDEX = {name: PART_CLASSES.index(part) for part, names in _NAMES.items() for name in names}
"""Part name in the annotations to class; left and right alike."""


def draw_parts(path: Path, anno: NDArray[Any], size: tuple[int, int], *, has_person: bool) -> NDArray[np.uint8]:
    """The part labels of one image.

    Persons' parts are drawn in the file's order, later ones over earlier ones, not clipped to the person's
    mask; everything else is background. An image without any part counts for nothing: all 255.

    Args:
        path: the file, for errors.
        anno: its 1×1 struct (imname, objects).
        size: (h, w) of the image.
        has_person: whether the list of the split knows of a person; its word goes over the file's.

    Returns:
        (h, w) uint8, 0..6, or 255 everywhere.

    Raises:
        UnreadableSample: another structure, an unknown part, or a mask of another size.
    """
    parts = np.zeros(size, np.uint8)
    try:
        objects = anno[0, 0]["objects"] if has_person else np.empty((1, 0))
        for i in range(objects.shape[1]):
            person = objects[0, i]
            if int(person["class_ind"][0, 0]) != PERSON or not person["parts"].size:
                continue
            for j in range(person["parts"].shape[1]):
                part = person["parts"][0, j]
                _draw(path, parts, str(part["part_name"][0]), part["mask"])
    except (IndexError, KeyError, ValueError, TypeError) as error:
        raise UnreadableSample(path, f"anno is not laid out as PASCAL-Part's: {error}") from error
    if not parts.any():
        parts[:] = IGNORE
    return parts


def _draw(path: Path, parts: NDArray[np.uint8], name: str, mask: NDArray[Any]) -> None:
    if name not in PART_INDEX:
        raise UnreadableSample(path, f"has a part of unknown name {name!r}")
    if mask.shape != parts.shape:
        raise UnreadableSample(path, f"part {name!r} is {mask.shape}, the image {parts.shape}")
    parts[mask != 0] = PART_INDEX[name]
