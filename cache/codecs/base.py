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
    """Stored numbers, (n, *row_shape), and how many values had to be clipped to fit."""

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


@dataclass(frozen=True)
class Sample:
    """What a codec is fitted on: a level's statistics and two sets of tokens.

    Attributes:
        mean: float64 (C,).
        covariance: float64 (C, C).
        tokens: float32 (n, C), of the rows that the statistics come from.
        held_out: float32 (m, C), of other rows: what is promised must hold on them.
        predicted: float32 (m, C): what the level below tells of them. Features are `held_out` + `predicted`; None: 0.
        features_mean: float64 (C,): the features' channel mean; None: `mean`.
        grid: (h, w): tokens are whole maps, one after the other; (1, 1) where they are no neighbours.
    """

    mean: Array
    covariance: Array
    tokens: Float32
    held_out: Float32
    predicted: Float32 | None = None
    features_mean: Array | None = None
    grid: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Target:
    """What a codec with a rate must reach on held-out tokens.

    Attributes:
        cosine: least mean token cosine.
        centred: whether the cosine with the channel mean removed must reach it too.
        standard_errors: how far above it a mean over held-out maps must lie, in standard errors of that mean: what
            just reaches it on some maps falls short on every other choice of them.
        variance: float64 (C,), of the features' channels: the cosine with these standardized, see
            `cache.codecs.fidelity`, must reach it, too; None: it need not.
    """

    cosine: float
    centred: bool = True
    standard_errors: float = 0.0
    variance: Array | None = None


class Codec(ABC):
    """How float32 features become stored numbers and come back.

    Attributes:
        name: as in specs.
        stored_dtype: numpy's name of the stored type.
        fill_value: what plain readers see where nothing is committed.
        needs: names of the level's calibration arrays that `constants` reads.
        may_need: names of those that it reads where calibration settled on them.
        promised_cosine: least mean token cosine on calibration rows, plain and with the channel mean removed, where
            nothing else is asked for.
        is_fitted: whether it has tables of its own to be fitted on many tokens.
        has_rate: whether `fit` finds the fewest bits that keep the promise.
        clips: whether values can be clipped.
        dims: names of a row's dimensions.
        coder: name of the entropy coder of its rows (`cache.codecs.coders`), or None.
    """

    name: str
    stored_dtype: str
    fill_value: int | str
    needs: tuple[str, ...] = ()
    may_need: tuple[str, ...] = ()
    promised_cosine: float
    is_fitted: bool = False
    has_rate: bool = False
    clips: bool = False
    dims: tuple[str, ...] = ("y", "x", "channel")
    coder: str | None = None

    def row_shape(self, grid: tuple[int, int], width: int) -> tuple[int, ...]:
        """Shape of a stored row of features (h, w, C); the same unless a codec says otherwise."""
        return (*grid, width)

    def table_shape(self, name: str, grid: tuple[int, int], width: int) -> tuple[int, ...]:
        """Shape of the calibration array `name`, of `needs` or `may_need`; (C,) unless a codec says otherwise."""
        return (width,)

    def find_unstorable(self, features: Float32) -> Unstorable | None:
        """The first value of features (n, h, w, C) that is not finite, or would not be when stored."""
        return first_non_finite(features)

    def fit(self, sample: Sample, target: Target) -> dict[str, Array]:
        """Calibration arrays of the codec's own, made once before the first shard; none by default.

        Raises:
            CacheError: a codec with a rate cannot reach the target.
        """
        return {}

    def constants(self, calibration: Mapping[str, Array]) -> dict[str, Float32]:
        """What encoding and decoding read, made from a level's calibration arrays once; none by default."""
        return {}

    @abstractmethod
    def encode(self, features: Float32, constants: Mapping[str, Array]) -> Encoded:
        """Features float32 (n, h, w, C) -> stored (n, *row_shape)."""

    @abstractmethod
    def decode_numpy(self, stored: Array, constants: Mapping[str, Array]) -> Float32:
        """Stored (..., *row_shape) -> float32, in new memory.

        All of the row's h·w·C values, (..., h, w, C) or (..., h*w, C): a row's stored shape need not tell h from w.
        """

    @abstractmethod
    def decode(self, stored: torch.Tensor, constants: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """As `decode_numpy`, on the device of `stored`; fp32 may give `stored` itself."""


def first_non_finite(features: Float32) -> Unstorable | None:
    """The first NaN or infinity in features (n, h, w, C), if there is one."""
    if np.isfinite(features.max()) and np.isfinite(features.min()):  # NaN spreads to both
        return None
    index = tuple(int(i) for i in np.argwhere(~np.isfinite(features))[0])
    return Unstorable(
        index, float(features[index]), "features must be finite: look at the teacher's input and precision"
    )
