"""int4: 16 even steps a channel, after a rotation where that helps; two values a byte."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cache.codecs.base import Array, Codec, Encoded, Float32, Sample, Target
from cache.codecs.fidelity import FidelityMeter

if TYPE_CHECKING:
    import torch

_HIGHEST = 15
_HALF_RANGES = np.arange(1.5, 6.01, 0.25, dtype=np.float32)
"""Of the 16 steps, in standard deviations: what is tried for each channel."""


class Int4(Codec):
    """Per-channel affine integers, 0..15; values outside of the range that costs least error are clipped and counted.

    Channels 2i and 2i+1 share byte i, the even one in its low half. A rotation (random, orthonormal) spreads massive
    channels and outliers over all; it is kept where held-out tokens come back with the better centred cosine.
    """

    name = "int4"
    stored_dtype = "uint8"
    fill_value = 0
    needs = ("centre", "rotation", "low", "step")
    promised_cosine = 0.98
    is_fitted = True
    clips = True
    dims = ("y", "x", "channel_pair")

    def row_shape(self, grid: tuple[int, int], width: int) -> tuple[int, ...]:
        """(h, w, C/2), rounded up."""
        return (*grid, -(-width // 2))

    def table_shape(self, name: str, grid: tuple[int, int], width: int) -> tuple[int, ...]:
        return (width, width) if name == "rotation" else (width,)

    def fit(self, sample: Sample, target: Target) -> dict[str, Array]:
        """``centre`` float32 (C,): the mean; ``rotation`` float32 (C, C), orthonormal; ``low`` and ``step`` float32
        (C,), of the rotated channels: value = (stored * step + low) @ rotation + centre."""
        width = len(sample.mean)
        random = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))[0].astype(np.float32)
        best: tuple[float, dict[str, Array]] | None = None
        for rotation in (np.eye(width, dtype=np.float32), random):
            tables = self._fit_rotated(sample, rotation)
            encoded = self.encode(sample.held_out[:, None, None], tables)
            meter = FidelityMeter(sample.mean)
            meter.update(sample.held_out, self.decode_numpy(encoded.stored, tables))
            cosine = meter.compute().centred_cosine
            if best is None or cosine > best[0]:
                best = cosine, tables
        assert best is not None
        return best[1]

    def _fit_rotated(self, sample: Sample, rotation: Float32) -> dict[str, Array]:
        centre = sample.mean.astype(np.float32)
        rotated = (sample.tokens - centre) @ rotation.T
        spread = np.maximum(rotated.std(0), np.float32(1e-30))
        least = np.full(len(centre), np.inf)
        step = np.ones(len(centre), np.float32)
        for half_range in _HALF_RANGES:
            tried = 2 * half_range * spread / _HIGHEST
            whole = np.rint((rotated + half_range * spread) / tried).clip(0, _HIGHEST)
            error = np.square(whole * tried - half_range * spread - rotated).mean(0)
            better = error < least
            least[better], step[better] = error[better], tried[better]
        return {"centre": centre, "rotation": rotation, "low": -step * np.float32(_HIGHEST / 2), "step": step}

    def constants(self, calibration: Mapping[str, Array]) -> dict[str, Float32]:
        """The tables of `fit`, as they are."""
        return {name: calibration[name] for name in self.needs}

    def encode(self, features: Float32, constants: Mapping[str, Array]) -> Encoded:
        steps = (features - constants["centre"]) @ constants["rotation"].T
        steps -= constants["low"]
        steps /= constants["step"]
        np.rint(steps, out=steps)
        num_clipped = int(np.count_nonzero((steps < 0) | (steps > _HIGHEST)))
        numbers = steps.clip(0, _HIGHEST, out=steps).astype(np.uint8)
        if numbers.shape[-1] % 2:
            numbers = np.concatenate([numbers, np.zeros_like(numbers[..., :1])], axis=-1)
        return Encoded(numbers[..., ::2] | (numbers[..., 1::2] << 4), num_clipped)

    def decode_numpy(self, stored: Array, constants: Mapping[str, Array]) -> Float32:
        pairs = np.stack([stored & _HIGHEST, stored >> 4], axis=-1)
        values = pairs.reshape(*stored.shape[:-1], -1)[..., : len(constants["centre"])].astype(np.float32)
        values *= constants["step"]
        values += constants["low"]
        decoded: Float32 = values @ constants["rotation"]
        decoded += constants["centre"]
        return decoded

    def decode(self, stored: torch.Tensor, constants: Mapping[str, torch.Tensor]) -> torch.Tensor:
        import torch

        pairs = torch.stack([stored & _HIGHEST, stored >> 4], dim=-1)
        numbers = pairs.flatten(-2)[..., : len(constants["centre"])].float()
        values = numbers * constants["step"] + constants["low"]
        return (values @ constants["rotation"]).add_(constants["centre"])
