"""The names of what can be seen in a room: classes, their parts, colours and places.

Every pixel has a class and a part, and every part belongs to exactly one class (`PART_CLASS`).
"""

import numpy as np

from sak_core.miniature.rooms.arrays import UInt8

_PARTS_OF: dict[str, tuple[str, ...]] = {
    "wall": ("wall",),
    "floor": ("floor",),
    "ceiling": ("ceiling",),
    "window": ("window frame", "window pane"),
    "picture": ("picture frame", "picture canvas"),
    "rug": ("rug border", "rug field"),
    "chair": ("chair seat", "chair back", "chair leg"),
    "stool": ("stool seat", "stool leg"),
    "table": ("table top", "table leg"),
    "sofa": ("sofa seat", "sofa back", "sofa arm"),
    "bed": ("bed mattress", "bed pillow", "bed frame"),
    "cabinet": ("cabinet body", "cabinet door"),
    "shelf": ("shelf board", "shelf book"),
    "lamp": ("lamp shade", "lamp pole", "lamp foot"),
    "plant": ("plant leaves", "plant pot"),
    "person": ("person head", "person torso", "person arm", "person leg"),
    "screen": ("screen panel", "screen case", "screen stand"),
    "vase": ("vase body", "vase neck"),
    "ball": ("ball",),
}

CLASSES: tuple[str, ...] = tuple(_PARTS_OF)
"""Class names; a semseg label is an index into this tuple.

With renderer 1 the ceiling lies above the picture: pictures that are not higher than wide hardly show it.
"""

PARTS: tuple[str, ...] = tuple(part for parts in _PARTS_OF.values() for part in parts)
"""Part names; a parts label is an index into this tuple."""

CLASS_INDEX: dict[str, int] = {name: index for index, name in enumerate(CLASSES)}
PART_INDEX: dict[str, int] = {name: index for index, name in enumerate(PARTS)}

PART_CLASS: tuple[int, ...] = tuple(CLASS_INDEX[name] for name, parts in _PARTS_OF.items() for _ in parts)
"""The class index that each part belongs to."""

BACKGROUND: frozenset[str] = frozenset({"wall", "floor", "ceiling", "window", "rug"})
"""Classes that are never the salient object."""

COLORS: tuple[str, ...] = (
    "red",
    "orange",
    "yellow",
    "green",
    "teal",
    "blue",
    "purple",
    "pink",
    "brown",
    "white",
    "grey",
    "black",
)
"""Colour names of objects. Objects of every class take every colour."""

PLACES: tuple[str, ...] = (
    "front left",
    "front middle",
    "front right",
    "back left",
    "back middle",
    "back right",
)
"""Where an object is: thirds of the canonical picture, and nearer or farther than `FRONT_M`."""

FRONT_M = 3.3
"""Objects whose mean depth is less than this are in front, in metres."""


def boundary(semseg: UInt8, instances: UInt8) -> UInt8:
    """Mark where the class or the instance changes, as a thin map.

    A pixel is 1 where its class or its instance differs from that of its right or its lower neighbour,
    so that each change is marked once, on its left or upper side. Corners between two walls and edges
    between parts of one object are not marked.

    Args:
        semseg: (H, W) class indices.
        instances: (H, W) instance numbers, 0 for the shell of the room.

    Returns:
        (H, W) uint8, 0 or 1.
    """
    key = semseg.astype(np.int32) * 256 + instances
    marks = np.zeros(key.shape, dtype=np.uint8)
    marks[:, :-1] |= key[:, :-1] != key[:, 1:]
    marks[:-1] |= key[:-1] != key[1:]
    return marks
