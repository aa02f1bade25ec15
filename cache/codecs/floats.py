"""Floats as they are, or rounded: fp32, fp16, bf16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cache.codecs.base import Array, Codec, Encoded, Float32, Unstorable, first_non_finite

if TYPE_CHECKING:
    import torch

_BF16_NAN = 0x7FC0
# The first float32 magnitudes that round (to nearest even) to infinity.
_FP16_OVERFLOW = np.float32(65520.0)
_BF16_OVERFLOW = np.uint32(0x7F7F8000).view(np.float32)


def _first_overflow(features: Float32, limit: np.float32, why: str) -> Unstorable | None:
    if max(float(features.max()), -float(features.min())) < limit:  # false where one of them is NaN
        return None
    if unstorable := first_non_finite(features):
        return unstorable
    index = tuple(int(i) for i in np.argwhere(np.abs(features) >= limit)[0])
    return Unstorable(index, float(features[index]), why)


class Fp32(Codec):
    """float32, exact."""

    name = "fp32"
    stored_dtype = "float32"
    fill_value = "NaN"
    promised_cosine = 1 - 1e-6

    def encode(self, features: Float32, constants: Mapping[str, Array]) -> Encoded:
        return Encoded(features)

    def decode_numpy(self, stored: Array, constants: Mapping[str, Array]) -> Float32:
        return stored.astype(np.float32)

    def decode(self, stored: torch.Tensor, constants: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return stored


class Fp16(Codec):
    """IEEE half precision, rounded to nearest even; 11 bits of mantissa, magnitudes below 65520."""

    name = "fp16"
    stored_dtype = "float16"
    fill_value = "NaN"
    promised_cosine = 0.9999

    def find_unstorable(self, features: Float32) -> Unstorable | None:
        return _first_overflow(features, _FP16_OVERFLOW, "fp16 ends at 65504: use the codec bf16 for this teacher")

    def encode(self, features: Float32, constants: Mapping[str, Array]) -> Encoded:
        return Encoded(features.astype(np.float16))

    def decode_numpy(self, stored: Array, constants: Mapping[str, Array]) -> Float32:
        return stored.astype(np.float32)

    def decode(self, stored: torch.Tensor, constants: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return stored.float()


class Bf16(Codec):
    """bfloat16, rounded to nearest even, its bits stored as uint16; float32's range, 8 bits of mantissa."""

    name = "bf16"
    stored_dtype = "uint16"
    fill_value = _BF16_NAN
    promised_cosine = 0.999

    def find_unstorable(self, features: Float32) -> Unstorable | None:
        return _first_overflow(features, _BF16_OVERFLOW, "bf16 would round it to infinity: use the codec fp32")

    def encode(self, features: Float32, constants: Mapping[str, Array]) -> Encoded:
        bits = np.ascontiguousarray(features).view(np.uint32)
        # Half of the last kept bit, less one unless that bit is odd: ties go to even.
        rounded = bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))
        return Encoded((rounded >> np.uint32(16)).astype(np.uint16))

    def decode_numpy(self, stored: Array, constants: Mapping[str, Array]) -> Float32:
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)

    def decode(self, stored: torch.Tensor, constants: Mapping[str, torch.Tensor]) -> torch.Tensor:
        import torch

        return stored.view(torch.bfloat16).float()
