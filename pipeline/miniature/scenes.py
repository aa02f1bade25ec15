"""Scenes for the miniature teachers' lessons: rendered once, kept as plain .npy files, read by memory map.

The scenes come from a seed stream of their own (`TRAINING_SEED`), so none of them is in any split of `rooms`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sak_core.miniature.rooms import CLASSES, COLORS, PLACES, RENDERER_VERSION, Scene, render_scene
from sak_core.miniature.rooms.scene import CANONICAL_SIZE as SIZE

TRAINING_SEED = 20_260_417
"""Seed of the lessons' scenes; `rooms` uses another for its splits, and a test holds the two apart."""

MAX_OBJECTS = 12
"""Objects kept a scene, most salient first; what lies beyond is not spoken of."""

_MAPS = ("image", "semseg", "parts", "instances", "facets")


@dataclass(frozen=True)
class SceneAttribute:
    """Something said of a whole scene: its key in `Scene.attributes` and the values seen, sorted."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class SceneBatch:
    """A batch of scenes, with B scenes and K object slots.

    image (B, H, W, 3) uint8; semseg, parts, instances, facets (B, H, W) int64; objects (B, K, 3) int64,
    indices into CLASSES, COLORS and PLACES, most salient first, −1 in empty slots; boxes (B, K, 4) float32,
    top, left, bottom, right as fractions of the image; attributes (B, A) int64, indices into the values of
    `SceneStore.attributes`.
    """

    image: Tensor
    semseg: Tensor
    parts: Tensor
    instances: Tensor
    facets: Tensor
    objects: Tensor
    boxes: Tensor
    attributes: Tensor


class SceneStore:
    """Rendered scenes in a folder.

    Args:
        folder: what `render_scenes` wrote.
    """

    def __init__(self, folder: Path) -> None:
        self.header: dict[str, Any] = json.loads((folder / "scenes.json").read_text())
        self.attributes = tuple(SceneAttribute(k, tuple(v)) for k, v in self.header.pop("attributes").items())
        names = (*_MAPS, "objects", "boxes", "attributes")
        self._arrays = {k: np.load(folder / f"{k}.npy", mmap_mode="r") for k in names}

    def __len__(self) -> int:
        return len(self._arrays["image"])

    def batch(self, indices: NDArray[np.int64]) -> SceneBatch:
        """Read the scenes at `indices` (B,) as tensors."""
        rows = {k: torch.from_numpy(a[indices]) for k, a in self._arrays.items()}
        return SceneBatch(**{k: v if k in ("image", "boxes") else v.long() for k, v in rows.items()})


def render_scenes(
    folder: Path,
    num_scenes: int,
    *,
    report: Callable[[int], None] = lambda done: None,
) -> SceneStore:
    """Render scenes 0 ... num_scenes − 1 of the lessons' stream into `folder`, or open those it holds.

    Args:
        folder: where they are kept.
        num_scenes: how many.
        report: called with the number of scenes done.

    Raises:
        ValueError: the folder holds scenes of another renderer version or number.
    """
    wanted = {
        "renderer_version": RENDERER_VERSION,
        "num_scenes": num_scenes,
        "size": list(SIZE),
        "seed": TRAINING_SEED,
    }
    if (folder / "scenes.json").exists():
        header = json.loads((folder / "scenes.json").read_text())
        for key, value in wanted.items():
            if header[key] != value:
                raise ValueError(f"{folder} holds scenes with {key} {header[key]}, wanted {value}: name another folder")
        return SceneStore(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, NDArray[Any]] = {
        "image": np.zeros((num_scenes, *SIZE, 3), np.uint8),
        "semseg": np.zeros((num_scenes, *SIZE), np.uint8),
        "parts": np.zeros((num_scenes, *SIZE), np.uint8),
        "instances": np.zeros((num_scenes, *SIZE), np.uint8),
        "facets": np.zeros((num_scenes, *SIZE), np.uint16),
        "objects": np.full((num_scenes, MAX_OBJECTS, 3), -1, np.int16),
        "boxes": np.zeros((num_scenes, MAX_OBJECTS, 4), np.float32),
    }
    said: list[dict[str, str]] = []
    for i in range(num_scenes):
        scene = render_scene(TRAINING_SEED, i, SIZE)
        for k in _MAPS:
            arrays[k][i] = getattr(scene, k)
        _describe(scene, arrays["objects"][i], arrays["boxes"][i])
        said.append(scene.attributes)
        report(i + 1)
    attributes = {key: sorted({a[key] for a in said}) for key in sorted(said[0])}
    arrays["attributes"] = np.array(
        [[values.index(a[key]) for key, values in attributes.items()] for a in said], np.int16
    )
    for k, array in arrays.items():
        np.save(folder / f"{k}.npy", array)
    # Written last: a folder without it is not finished.
    (folder / "scenes.json").write_text(json.dumps(wanted | {"attributes": attributes}))
    return SceneStore(folder)


def mirrored_places() -> tuple[int, ...]:
    """For every place the index of the place it becomes when the image is mirrored."""
    swap = {"left": "right", "right": "left"}
    return tuple(PLACES.index(" ".join(swap.get(w, w) for w in place.split(" "))) for place in PLACES)


def _describe(scene: Scene, objects: NDArray[Any], boxes: NDArray[Any]) -> None:
    """Write a scene's objects, most salient first, into objects (K, 3) and boxes (K, 4)."""
    seen = sorted(scene.objects, key=lambda thing: -thing.salience)[:MAX_OBJECTS]
    for j, thing in enumerate(seen):
        objects[j] = CLASSES.index(thing.name), COLORS.index(thing.color), PLACES.index(thing.place)
        boxes[j] = np.array(thing.box) / (*SIZE, *SIZE)
