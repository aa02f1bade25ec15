"""int8: 256 even steps a channel, between the least and the greatest value that calibration saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cache.codecs.base import Array, Codec, Encoded, Float32

if TYPE_CHECKING:
    import torch

_LOWEST, _HIGHEST = -128, 127


def _affine(calibration: Mapping[str, Array]) -> tuple[Float32, Float32]:
    """Step and offset (C,) with value = stored * step + offset; a channel without range gets step 1."""
    low = calibration["min"].astype(np.float64)
    span = calibration["max"].astype(np.float64) - low
    step = np.where(span > 0, span / (_HIGHEST - _LOWEST), 1.0)
    return step.astype(np.float32), (low - _LOWEST * step).astype(np.float32)


class Int8(Codec):
    """Per-channel affine integers; values outside of the calibrated range are clipped and counted."""

    name = "int8"
    stored_dtype = "int8"
    fill_value = 0
    needs = ("min", "max")
    promised_cosine = 0.999
    clips = True

    def encode(self, features: Float32, calibration: Mapping[str, Array]) -> Encoded:
        """See `Codec`."""
        step, offset = _affine(calibration)
        steps = np.rint((features - offset) / step)
        outside = (steps < _LOWEST) | (steps > _HIGHEST)
        return Encoded(np.clip(steps, _LOWEST, _HIGHEST).astype(np.int8), int(np.count_nonzero(outside)))

    def decode_numpy(self, stored: Array, calibration: Mapping[str, Array]) -> Float32:
        """See `Codec`."""
        step, offset = _affine(calibration)
        return np.asarray(stored.astype(np.float32) * step + offset)

    def decode(self, stored: torch.Tensor, calibration: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See `Codec`."""
        low = calibration["min"].double()
        span = calibration["max"].double() - low
        step = (span / (_HIGHEST - _LOWEST)).where(span > 0, span.new_ones(()))
        offset = low - _LOWEST * step
        return stored.float() * step.float() + offset.float()
