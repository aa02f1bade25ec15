"""int8: 256 even steps a channel, between the least and the greatest value that calibration saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cache.codecs.base import Array, Codec, Encoded, Float32

if TYPE_CHECKING:
    import torch

_LOWEST, _HIGHEST = -128, 127


class Int8(Codec):
    """Per-channel affine integers; values outside of the calibrated range are clipped and counted."""

    name = "int8"
    stored_dtype = "int8"
    fill_value = 0
    needs = ("min", "max")
    promised_cosine = 0.999
    clips = True

    def constants(self, calibration: Mapping[str, Array]) -> dict[str, Float32]:
        """``step`` and ``offset``, (C,): value = stored * step + offset.

        A channel without range gets step 1 around its only value, so that this value is exact.
        """
        low = calibration["min"].astype(np.float64)
        span = calibration["max"] - low
        step = (span / (_HIGHEST - _LOWEST)).astype(np.float32)
        # a subnormal step has few digits: one that was rounded down would not span the range
        coarse = (span > 0) & (step < np.finfo(np.float32).smallest_normal)
        step = np.where(coarse, np.nextafter(step, np.float32(1)), step)
        offset = np.where(step > 0, low - _LOWEST * step.astype(np.float64), low)
        return {"step": np.where(step > 0, step, np.float32(1)), "offset": offset.astype(np.float32)}

    def encode(self, features: Float32, constants: Mapping[str, Array]) -> Encoded:
        steps = features - constants["offset"]
        steps /= constants["step"]
        np.rint(steps, out=steps)
        outside = (steps < _LOWEST) | (steps > _HIGHEST)
        return Encoded(steps.clip(_LOWEST, _HIGHEST, out=steps).astype(np.int8), int(np.count_nonzero(outside)))

    def decode_numpy(self, stored: Array, constants: Mapping[str, Array]) -> Float32:
        values = stored.astype(np.float32)
        values *= constants["step"]
        values += constants["offset"]
        return values

    def decode(self, stored: torch.Tensor, constants: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return stored.float() * constants["step"] + constants["offset"]
