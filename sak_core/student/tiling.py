"""Images of any size through a student: whole, or in overlapping tiles whose outputs are blended."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sak_core.student.network import StudentNetwork
from sak_core.student.stem import normalize

OVERLAP = 0.25
"""Share of a tile that the next one covers again, at least."""


@dataclass(frozen=True)
class Tile:
    """A window of one image.

    Attributes:
        image: its index.
        top, left, height, width: px, within the image.
    """

    image: int
    top: int
    left: int
    height: int
    width: int


def tile_starts(length: int, tile: int) -> list[int]:
    """Where tiles of `tile` px begin along a side of `length` px: evenly spread, the last one ends with the side.

    >>> tile_starts(100, 128), tile_starts(250, 100)
    ([0], [0, 75, 150])
    """
    if length <= tile:
        return [0]
    count = math.ceil((length - tile) / (tile * (1 - OVERLAP))) + 1
    return [round(k * (length - tile) / (count - 1)) for k in range(count)]


def tiles(image: int, size: tuple[int, int], tile: tuple[int, int]) -> Iterator[Tile]:
    """The windows of image number `image` of `size` (H, W): itself where no side is longer than that of `tile`, px."""
    height, width = min(size[0], tile[0]), min(size[1], tile[1])
    for top in tile_starts(size[0], tile[0]):
        for left in tile_starts(size[1], tile[1]):
            yield Tile(image, top, left, height, width)


def predict_raw(
    student: StudentNetwork, images: Sequence[Tensor], tile: int, batch_size: int
) -> list[dict[str, Tensor]]:
    """Raw outputs of every task for each image, (channels, H, W) float32 on the student's device.

    A student that decodes one size of images alone has tiles of it. Windows are padded to the patch, or to that size,
    by repeating their border. Where several cover a pixel, their raw outputs are averaged with weights that fall
    towards a window's border.

    Args:
        images: uint8 (H, W, 3) each, of any sizes.
        tile: longest side in px that goes through in one piece; a multiple of the stem's patch.
        batch_size: windows of equal size that go through together.
    """
    parameter = next(student.parameters())
    device = parameter.device
    sums: list[dict[str, Tensor]] = [{} for _ in images]
    totals = [torch.zeros(image.shape[:2], device=device) for image in images]
    by_size: dict[tuple[int, int], list[Tile]] = defaultdict(list)
    fixed = student.fixed_size
    for index, image in enumerate(images):
        for window in tiles(index, (image.shape[0], image.shape[1]), fixed or (tile, tile)):
            by_size[window.height, window.width].append(window)
    for (height, width), windows in by_size.items():
        weight = _window_weight(height, width).to(device)
        for start in range(0, len(windows), batch_size):
            chosen = windows[start : start + batch_size]
            pixels = torch.stack([_cut(images[w.image], w) for w in chosen]).to(device)
            outputs = student(_padded(normalize(pixels), student.stem.multiple, fixed).to(parameter.dtype)).outputs
            for row, w in enumerate(chosen):
                region = (..., slice(w.top, w.top + height), slice(w.left, w.left + width))
                totals[w.image][region] += weight
                for name, maps in outputs.items():
                    if name not in sums[w.image]:
                        sums[w.image][name] = torch.zeros(maps.shape[1], *images[w.image].shape[:2], device=device)
                    sums[w.image][name][region] += maps[row, :, :height, :width].float() * weight
    return [
        {name: maps.div_(total) for name, maps in by_task.items()} for by_task, total in zip(sums, totals, strict=True)
    ]


def _cut(image: Tensor, window: Tile) -> Tensor:
    return image[window.top : window.top + window.height, window.left : window.left + window.width]


def _padded(images: Tensor, patch: int, size: tuple[int, int] | None = None) -> Tensor:
    """(B, 3, H, W) with the last row and column repeated up to `size`, or else to multiples of `patch`."""
    height, width = images.shape[2:]
    wanted = size or (height + -height % patch, width + -width % patch)
    return F.pad(images, (0, wanted[1] - width, 0, wanted[0] - height), mode="replicate")


def _window_weight(height: int, width: int) -> Tensor:
    """(height, width): 1 in the middle, falling linearly to the border over the overlap, nowhere 0."""

    def ramp(length: int) -> Tensor:
        position = torch.arange(length) + 0.5
        return (torch.minimum(position, length - position) / max(length * OVERLAP, 1)).clamp(max=1)

    return ramp(height)[:, None] * ramp(width)
