"""Photometric distortion: brightness, contrast, saturation and hue, in the order published for dense tasks.

Brightness is added; contrast and saturation are factors; each step clips to 0..255, and the last rounds.
Unlike OpenCV-based pipelines the steps keep fractions (there, hue moves in steps of 2 degrees of uint8).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
_Float = NDArray[np.float32]


class ColourChange(NamedTuple):
    """Five numbers, each exactly a float32, in the order a store keeps them.

    Attributes:
        brightness: grey levels of 255, added.
        contrast, saturation: factors.
        contrast_first: whether contrast comes before saturation and hue (1), or after them (0).
        hue: degrees of 360.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    contrast_first: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0

    def rounded(self) -> ColourChange:
        """The change with every number rounded to the nearest float32."""
        return ColourChange(*(float(np.float32(value)) for value in self))


NEUTRAL = ColourChange()
"""Changes nothing."""


def change_colour(image: Pixels, change: ColourChange) -> Pixels:
    """Apply a change to an image (h, w, 3) uint8 RGB; returns the same shape and dtype."""
    if change == NEUTRAL._replace(contrast_first=change.contrast_first):
        return image
    x = image.astype(np.float32)
    if change.brightness:
        x = _clip(x + np.float32(change.brightness))
    if change.contrast_first and change.contrast != 1:
        x = _clip(x * np.float32(change.contrast))
    if change.saturation != 1:
        x = _saturate(x, np.float32(change.saturation))
    if change.hue:
        x = _turn_hue(x, np.float32(change.hue))
    if not change.contrast_first and change.contrast != 1:
        x = _clip(x * np.float32(change.contrast))
    return np.rint(x).astype(np.uint8)


def _clip(x: _Float) -> _Float:
    return np.clip(x, np.float32(0), np.float32(255))


def _saturate(x: _Float, factor: np.float32) -> _Float:
    """HSV saturation times `factor`, at most 1. At fixed hue and value v a channel is v − s · (its own
    constant), so scaling s scales every channel's distance to v.
    """
    value = x.max(axis=-1, keepdims=True)
    chroma = value - x.min(axis=-1, keepdims=True)
    limit = np.divide(value, chroma, out=np.full_like(value, np.inf), where=chroma > 0)
    return _clip(value - (value - x) * np.minimum(factor, limit))


def _turn_hue(x: _Float, degrees: np.float32) -> _Float:
    """HSV hue turned by `degrees`; value and saturation stay."""
    red, green, blue = x[..., 0], x[..., 1], x[..., 2]
    value = x.max(axis=-1)
    chroma = value - x.min(axis=-1)
    safe = np.where(chroma > 0, chroma, np.float32(1))
    sector = np.where(
        value == red,
        (green - blue) / safe,
        np.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    sector = sector + degrees / np.float32(60)
    turned = np.empty_like(x)
    for channel, offset in enumerate((5, 3, 1)):
        k = np.mod(sector + np.float32(offset), np.float32(6))
        turned[..., channel] = value - chroma * np.clip(np.minimum(k, 4 - k), np.float32(0), np.float32(1))
    return _clip(turned)
