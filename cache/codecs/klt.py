"""klt: a rotation to uncorrelated components (Karhunen-Loève), one uniform step for all, integers entropy coded.

With one step for all components each gets the bits that its variance is worth (reverse water-filling), and those
below the step cost next to nothing. The basis is that of the covariance, not of the correlation: what counts is
error in the features' own units. Where it takes fewer bytes, the map of each component is transformed over its cells,
too (`cache.codecs.grid`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from cache.codecs.base import Array, Codec, Encoded, Float32, Sample, Target
from cache.codecs.coders import get_coder
from cache.codecs.fidelity import standardized
from cache.codecs.grid import cosines, frequency_order, from_frequencies, to_frequencies
from cache.errors import CacheError

if TYPE_CHECKING:
    import torch

LARGEST = 32767
"""Integer that can be stored."""
_BISECTIONS = 16
_COSINE_MARGIN = 1e-6  # what float32 may take away again
# A value goes to the smaller integer where the bits saved are worth the error (Sullivan, "Efficient scalar quantization
# of exponential and Laplacian random variables", 1996). At rates where a bit quarters the error, it is worth
# ln(2)/6 step^2; the first integer of a Gaussian of s steps costs log2(e)/(2 s^2) bits more than zero. So the
# threshold between them moves up from 1/2 by half their product.
_DEAD_ZONE = math.log(2) / 6 * math.log2(math.e) / 2 / 2
_LARGEST_DEAD_ZONE = 0.3
_MAPS_WEIGHED = 32
_LEAST_SAVING = 0.03
"""Share of the bytes that a transform over the grid must save: it takes time, and other rows may gain less."""
_MOST_COSINES = 0.5
"""How much the tables of a transform over the grid may hold, as a share of the basis: with long rows of tokens they
would be larger than all the rest of a level's calibration."""


class Klt(Codec):
    """Rows are (C, h*w), the component of greatest variance first; within it cells, or frequencies over the grid.

    An integer q is stored as 2q, or as -2q-1 where it is negative, so that small ones have few bits set, whatever their
    sign. Its value is ``q * step * gain[component]``; the basis takes it back to channels.
    """

    stored_dtype = "uint16"
    fill_value = 0
    needs: tuple[str, ...] = ("offset", "basis", "step", "gain", "rounding")
    may_need = ("dct_y", "dct_x")
    promised_cosine = 0.995
    is_fitted = True
    has_rate = True
    clips = True
    dims = ("component", "cell")

    def __init__(self, name: str, coder: str) -> None:
        self.name, self.coder, self._coder = name, coder, coder

    def row_shape(self, grid: tuple[int, int], width: int) -> tuple[int, ...]:
        """(C, h*w)."""
        return (width, grid[0] * grid[1])

    def table_shape(self, name: str, grid: tuple[int, int], width: int) -> tuple[int, ...]:
        own = {"basis": (width, width), "step": (1,), "dct_y": (grid[0],) * 2, "dct_x": (grid[1],) * 2}
        return own.get(name, (width,))

    def fit(self, sample: Sample, target: Target) -> dict[str, Array]:
        """The basis, the largest step that reaches the target, and whether a transform over the grid is worth it.

        Returns:
            ``offset`` float32 (C,): the mean. ``basis`` float32 (C, C): orthonormal, a component a row. ``step``
            float32 (1,). ``gain`` float32 (C,): what a component's integers stand for, in steps, by least squares
            on the sample's tokens. ``rounding`` float32 (C,): 0.5 less the dead zone; added before rounding down.
            ``dct_y`` (h, h) and ``dct_x`` (w, w), float32, frequencies by cells: where held-out maps, each way with the
            step that reaches the target, take fewer bytes transformed.
        """
        plain = self._fit(sample, target, {})
        if sample.grid == (1, 1) or np.square(sample.grid).sum() > _MOST_COSINES * plain["basis"].size:
            return plain
        transformed = self._fit(sample, target, {"dct_y": cosines(sample.grid[0]), "dct_x": cosines(sample.grid[1])})
        saves = self.weigh(sample, transformed) < (1 - _LEAST_SAVING) * self.weigh(sample, plain)
        return transformed if saves else plain

    def _fit(self, sample: Sample, target: Target, grid: dict[str, Array]) -> dict[str, Array]:
        """`fit` with the tables `grid`, or none of them."""
        trial = Trial(sample, target, grid)

        def tables(step: float) -> tuple[Float32, Float32]:
            """(rounding, gain) at a step."""
            rounding = thresholds(trial.spread / np.float32(step))
            scaled = trial.fitted / np.float32(step)
            return rounding, least_squares(round_to_zero(scaled, rounding), scaled)

        def reaches(step: float) -> bool:
            rounding, gain = tables(step)
            decoded = round_to_zero(trial.held_out / np.float32(step), rounding)
            decoded *= gain * np.float32(step)
            return trial.is_reached(decoded)

        # a single token to fit on has no spread; the others have
        scale = _root_mean_square(trial.spread) or _root_mean_square(trial.held_out)
        step = _largest(reaches, scale, target.cosine)
        rounding, gain = tables(step)
        return {**trial.tables, "step": np.array([step], np.float32), "gain": gain, "rounding": rounding}

    def weigh(self, sample: Sample, tables: Mapping[str, Array]) -> float:
        """Bytes of some held-out maps; infinite where integers come near the largest that can be stored."""
        maps = sample.held_out.reshape(-1, *sample.grid, sample.held_out.shape[-1])
        stored = self.encode(maps[:: -(-len(maps) // _MAPS_WEIGHED)], tables).stored
        if "dct_y" in tables and stored.max() > LARGEST:  # 2q: half the range
            return math.inf
        coder = get_coder(self._coder)
        return sum(len(coder.encode(row)) for row in stored)

    def constants(self, calibration: Mapping[str, Array]) -> dict[str, Array]:
        """The tables of `fit`, and where among the frequencies each of the grid's cells finds its own."""
        tables = dict(calibration)
        if "dct_y" in tables:
            tables["place"] = np.argsort(frequency_order(len(tables["dct_y"]), len(tables["dct_x"])))
        return tables

    def encode(self, features: Float32, constants: Mapping[str, Array]) -> Encoded:
        num_rows, width = len(features), features.shape[-1]
        values = (features.reshape(-1, width) - constants["offset"]) @ (constants["basis"].T / constants["step"])
        if "dct_y" in constants:
            values = to_frequencies(values, constants["dct_y"], constants["dct_x"])
        numbers, num_clipped = self._to_integers(values.reshape(num_rows, -1, width), constants)
        stored = ((numbers << 1) ^ (numbers >> 15)).view(np.uint16)
        return Encoded(np.ascontiguousarray(stored.transpose(0, 2, 1)), num_clipped)

    def _to_integers(self, values: Array, constants: Mapping[str, Array]) -> tuple[Array, int]:
        """Values (n, h*w, C) in steps, in memory that may be written to -> int16, and how many were clipped."""
        whole = round_to_zero(values, constants["rounding"])
        num_clipped = int(np.count_nonzero(np.abs(whole) > LARGEST))
        return whole.clip(-LARGEST, LARGEST, out=whole).astype(np.int16), num_clipped

    def _to_values(self, numbers: Array, constants: Mapping[str, Array]) -> Float32:
        """int16 (..., C, h*w) -> float32, what they stand for, in steps."""
        return numbers.astype(np.float32)

    def _to_values_torch(self, numbers: torch.Tensor, constants: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """As `_to_values`."""
        return numbers.float()

    def decode_numpy(self, stored: Array, constants: Mapping[str, Array]) -> Float32:
        """See `Codec`; gives (..., h*w, C)."""
        bits = stored.view(np.int16)
        numbers = ((bits >> 1) & LARGEST) ^ -(bits & 1)
        inverse = (constants["step"] * constants["gain"])[:, None] * constants["basis"]
        values: Float32 = np.swapaxes(self._to_values(numbers, constants), -1, -2) @ inverse
        if "dct_y" in constants:
            values = from_frequencies(values, constants["dct_y"], constants["dct_x"]).reshape(values.shape)
        values += constants["offset"]
        return values

    def decode(self, stored: torch.Tensor, constants: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See `Codec`; gives (..., h*w, C), by one matmul, and two small ones where the grid is transformed."""
        import torch

        bits = stored.view(torch.int16)
        signs = (bits & 1).neg_()
        numbers = (bits >> 1).bitwise_and_(LARGEST).bitwise_xor_(signs)
        inverse = (constants["step"] * constants["gain"])[:, None] * constants["basis"]
        values = self._to_values_torch(numbers, constants).transpose(-1, -2) @ inverse
        if "dct_y" in constants:
            y, x, (cells, width) = constants["dct_y"], constants["dct_x"], values.shape[-2:]
            maps = values.index_select(-2, constants["place"])
            maps = x.T @ maps.reshape(-1, len(x), width)
            values = (y.T @ maps.reshape(-1, len(y), len(x) * width)).reshape(*values.shape[:-2], cells, width)
        return values.add_(constants["offset"])


class Trial:
    """The components of a sample's tokens, for trying steps on.

    Attributes:
        tables: ``offset`` and ``basis``, and those of a transform over the grid where there is one.
        spread: float32 (C,), standard deviations, falling.
        fitted: float32 (n, C), of the tokens that are fitted on.
        held_out: float32 (m, C), of those that the target must be reached on.
    """

    def __init__(self, sample: Sample, target: Target, grid: Mapping[str, Array]) -> None:
        variances, vectors = np.linalg.eigh(sample.covariance)
        basis, offset = vectors.T[::-1].astype(np.float32), sample.mean.astype(np.float32)
        self.tables, self._target = {"offset": offset, "basis": basis, **grid}, target
        self.spread = np.sqrt(variances[::-1].clip(min=0)).astype(np.float32)
        self._grid = list(grid.values())
        self._cells = math.prod(sample.grid)
        self.fitted, self.held_out = ((tokens - offset) @ basis.T for tokens in (sample.tokens, sample.held_out))
        if self._grid:
            self.fitted, self.held_out = (
                to_frequencies(tokens, *self._grid) for tokens in (self.fitted, self.held_out)
            )
        features = sample.held_out if sample.predicted is None else sample.held_out + sample.predicted
        features_mean = offset if sample.features_mean is None else sample.features_mean.astype(np.float32)
        self._centred = features - features_mean
        self._true = [features @ basis.T, self._centred @ basis.T][: 1 + target.centred]
        self._lengths = [np.linalg.norm(vector, axis=1) for vector in self._true]

    def is_reached(self, decoded: Float32) -> bool:
        """Whether the target is, where `held_out` comes back as `decoded`, whose memory is used."""
        error = decoded
        error -= self.held_out
        if self._grid:
            error = from_frequencies(error, *self._grid)
        for vector, length in zip(self._true, self._lengths, strict=True):
            # A token that is the mean has no direction that could be lost.
            if not self._is_enough(vector, length, error, length <= 1e-6 * self._lengths[0]):
                return False
        return self._target.variance is None or self._is_enough_standardized(error, self._target.variance)

    def _is_enough_standardized(self, error: Float32, variance: Array) -> bool:
        """As for the others, of standardized channels."""
        vector, scaled_error = (standardized(v, variance) for v in (self._centred, error @ self.tables["basis"]))
        is_mean = np.linalg.norm(self._centred, axis=1) <= 1e-6 * self._lengths[0]
        return self._is_enough(vector, np.linalg.norm(vector, axis=1), scaled_error, is_mean)

    def _is_enough(self, vector: Array, length: Array, error: Array, is_mean: Array) -> bool:
        """Whether vectors (m, C) of these lengths (m,) come back near enough with the errors (m, C)."""
        whole = vector + error
        product = length * np.linalg.norm(whole, axis=1)
        cosine = np.einsum("nc,nc->n", vector, whole) / np.maximum(product, 1e-30)
        maps = np.where(is_mean, 1, cosine).reshape(-1, self._cells).mean(1, dtype=np.float64)
        error_of_mean = maps.std(ddof=1) / math.sqrt(len(maps)) if len(maps) > 1 else 0
        least = self._target.cosine + self._target.standard_errors * error_of_mean + _COSINE_MARGIN
        return bool(maps.mean() >= least)


def least_squares(values: Array, true: Array) -> Float32:
    """float32 (C,): what takes values (n, C) nearest to the true ones, each component's by itself."""
    power = np.einsum("nc,nc->c", values, values)
    gain = np.where(power > 0, np.einsum("nc,nc->c", values, true) / np.maximum(power, 1), 1)
    return gain.astype(np.float32)


def thresholds(steps: Float32) -> Float32:
    """float32 (C,): what is added before rounding down, 0.5 less the dead zone, where components spread by `steps`."""
    rounding = 0.5 - np.minimum(_DEAD_ZONE / np.square(np.maximum(steps, np.float32(1e-6))), _LARGEST_DEAD_ZONE)
    return rounding.astype(np.float32)


def round_to_zero(values: Array, rounding: Float32) -> Array:
    """To integers (as floats), towards zero by the dead zone."""
    whole = np.abs(values)
    whole += rounding
    np.floor(whole, out=whole)
    return np.copysign(whole, values, out=whole)


def _root_mean_square(values: Array) -> float:
    return float(np.sqrt(np.square(values).mean(dtype=np.float64)))


def _largest(reaches: Callable[[float], bool], scale: float, cosine: float) -> float:
    """The largest step, by bisection of its logarithm, that still reaches the target."""
    if scale == 0:  # features that do not vary: any step keeps them
        return 1.0
    low, high = math.log(scale * 2**-10), math.log(scale * 2**6)
    if not reaches(math.exp(low)):
        raise CacheError(f"klt cannot reach a cosine of {cosine} on held-out rows; use fp16, or more calibration rows")
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if reaches(math.exp(middle)) else (low, middle)
    return math.exp(low)
