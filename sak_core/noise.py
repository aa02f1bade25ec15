"""Noise that depends on (seed, step, row) and a name, and on nothing else.

A `RowNoise` gives the same numbers for a row whatever batch, process or order it comes in, so a resumed or a
distributed run draws what the uninterrupted single process would have drawn. It is a counter-based generator:
SplitMix64's finaliser (Steele, Lea, Flood 2014, doi 10.1145/2660193.2660195) over a key a row and a counter
an element, then Box-Muller.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass  # not frozen: where precision is mixed, Fabric takes apart and copies what a model is given
class RowNoise:
    """Noise of one training step.

    Attributes:
        seed: the run's.
        step: the optimiser step.
        rows: (B,) int64 that name the batch's rows, e.g. view · samples + sample.
    """

    seed: int
    step: int
    rows: Tensor

    def normal(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """(B, *shape) standard normal float32 on like's device, independent for different names."""
        first, second = self._uniform(name, 2, math.prod(shape), like.device)
        normal = torch.sqrt(-2 * torch.log(1 - first)) * torch.cos(2 * math.pi * second)
        return normal.to(torch.float32).reshape(-1, *shape)

    def uniform(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """(B, *shape) uniform in [0, 1), float64 on like's device, independent for different names."""
        return self._uniform(name, 1, math.prod(shape), like.device)[0].reshape(-1, *shape)

    def _uniform(self, name: str, number: int, count: int, device: torch.device) -> list[Tensor]:
        """`number` tensors (B, count) uniform in [0, 1), float64."""
        digest = hashlib.sha256(f"{self.seed}/{self.step}/{name}".encode()).digest()
        stream = int.from_bytes(digest[:8], "little", signed=True)
        keys = _mix(self.rows.to(device=device, dtype=torch.int64) ^ stream)
        counters = torch.arange(number * count, device=device, dtype=torch.int64).reshape(number, 1, count)
        return list(_to_uniform(_mix(keys[:, None] + counters * _GOLDEN)))


NoiseSource = torch.Generator | RowNoise | None
"""Where noise is drawn from: a torch generator, `RowNoise`, or None for torch's global generator."""


def draw_normal(source: NoiseSource, name: str, like: Tensor) -> Tensor:
    """Standard normal numbers shaped (B, ...) as `like`, on its device and of its dtype, from `source`."""
    if isinstance(source, RowNoise):
        _check_rows(source, like)
        return source.normal(name, like.shape[1:], like).to(like.dtype)
    return torch.randn(like.shape, generator=source, device=like.device, dtype=like.dtype)


def draw_uniform(source: NoiseSource, name: str, like: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) shaped (B, ...) as `like`, on its device, in float64, from `source`."""
    if isinstance(source, RowNoise):
        _check_rows(source, like)
        return source.uniform(name, like.shape[1:], like)
    return torch.rand(like.shape, generator=source, device=like.device, dtype=torch.float64)


def _check_rows(source: RowNoise, like: Tensor) -> None:
    if len(source.rows) != len(like):
        raise ValueError(f"noise for {len(source.rows)} rows was given to a batch of {len(like)}")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int64 bit patterns."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 bit patterns; multiplication wraps."""
    x = (x ^ _shift_right(x, 30)) * _FIRST
    x = (x ^ _shift_right(x, 27)) * _SECOND
    return x ^ _shift_right(x, 31)


def _to_uniform(x: Tensor) -> Tensor:
    """[0, 1) in float64, from the upper 53 bits."""
    return _shift_right(x, 11).to(torch.float64) * 2.0**-53
