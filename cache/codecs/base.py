"""What a codec is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Encoded:
    """Stored numbers, same shape as the features, and how many values had to be clipped to fit."""

    stored: Array
    num_clipped: int = 0


@dataclass(frozen=True)
class Unstorable:
    """The first value that a codec refuses.

    Attributes:
        index: its position in the features, (row, y, x, channel).
        value: what it is.
        why: what is wrong with it and what to do, as the end of a sentence.
    """

    index: tuple[int, ...]
    value: float
    why: str


class Codec(ABC):
    """How float32 features become stored numbers and come back.

    Attributes:
        name: as in specs.
        stored_dtype: numpy's name of the stored type.
        fill_value: what plain readers see where nothing is committed.
        needs: names of the level's calibration arrays, each (C,), that `constants` reads.
        promised_cosine: least mean token cosine on calibration rows, plain and with the channel mean removed.
        clips: whether values can be clipped.
    """

    name: str
    stored_dtype: str
    fill_value: int | str
    needs: tuple[str, ...] = ()
    promised_cosine: float
    clips: bool = False

    def find_unstorable(self, features: Float32) -> Unstorable | None:
        """The first value of features (n, h, w, C) that is not finite, or would not be when stored."""
        return first_non_finite(features)

    def constants(self, calibration: Mapping[str, Array]) -> dict[str, Float32]:
        """What encoding and decoding read, made from a level's calibration arrays once; none by default."""
        return {}

    @abstractmethod
    def encode(self, features: Float32, constants: Mapping[str, Array]) -> Encoded:
        """Features float32 (n, h, w, C) -> stored (n, h, w, C)."""

    @abstractmethod
    def decode_numpy(self, stored: Array, constants: Mapping[str, Array]) -> Float32:
        """Stored (..., C) -> float32 (..., C), in new memory."""

    @abstractmethod
    def decode(self, stored: torch.Tensor, constants: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Stored (..., C) on any device -> float32 (..., C) there; fp32 may give `stored` itself."""


def first_non_finite(features: Float32) -> Unstorable | None:
    """The first NaN or infinity, if there is one."""
    if np.isfinite(features.max()) and np.isfinite(features.min()):  # NaN spreads to both
        return None
    index = tuple(int(i) for i in np.argwhere(~np.isfinite(features))[0])
    return Unstorable(
        index, float(features[index]), "features must be finite: look at the teacher's input and precision"
    )
