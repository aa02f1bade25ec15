"""Calibration: channel statistics of a teacher's levels, made before the first shard is written.

They come from rows of view 0 that the seed draws. They serve codecs (ranges, bases), PHI-S standardisation
(covariance) and plots, and settle whether a codec keeps its promise: statistics come from the first half of
the rows, what is promised is settled and measured on the other half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cache.codecs import Sample, Target, get_codec
from cache.codecs.fidelity import Fidelity, FidelityMeter, standardized, token_cosines
from cache.draws import CALIBRATION, raw_draws
from cache.errors import BadInput, CacheError
from cache.format.groups import PREDICTOR, fit_predictor
from cache.format.spec import LevelSpec

Array = npt.NDArray[Any]

TOKENS_PER_ROW = 128
"""On average, that codecs are fitted on and measured with: what bounds the memory of a calibration. Maps are kept
whole or not at all, of large ones (more than 16 times as many cells) every 16th."""
STANDARD_ERRORS = 3.0
"""By which a codec with a rate stays above what it promises on held-out maps, so that it holds for all rows."""
Int64 = npt.NDArray[np.int64]


class Validity(Protocol):
    """Which samples are valid: a bool array (N,), or what answers like one as samples come to be known."""

    def __len__(self) -> int: ...
    def __getitem__(self, sample: int, /) -> bool | np.bool_: ...


def calibration_order(num_samples: int, seed: int) -> Int64:
    """int64 (N,): the samples in the order in which they are drawn for calibration."""
    return np.argsort(raw_draws(seed, 0, CALIBRATION, num_samples), kind="stable")


def calibration_rows(valid: Validity, seed: int, num_rows: int) -> tuple[Int64, Int64]:
    """The samples whose view 0 calibrates: (rows to fit, rows to measure), each in ascending order.

    Args:
        valid: asked in `calibration_order`, for no more samples than it takes.
        seed: the store's.
        num_rows: of both together; fewer where there are fewer valid ones. A single one serves for both.

    Returns:
        int64 (n,) and (m,), sample numbers.

    Raises:
        BadInput: no sample is valid.
    """
    found: list[int] = []
    for sample in calibration_order(len(valid), seed).tolist():
        if valid[sample]:
            found.append(sample)
        if len(found) == max(2, num_rows):
            break
    if not found:
        raise BadInput("no valid sample to calibrate on: every image was unreadable")
    drawn = np.array(found)
    half = max(1, len(drawn) // 2)
    return np.sort(drawn[:half]), np.sort(drawn[half:] if len(drawn) > 1 else drawn)


def needed_tables(level: LevelSpec) -> tuple[str, ...]:
    """Names of the calibration arrays that a level is encoded and decoded with, where they are."""
    codec = get_codec(level.codec)
    return (*codec.needs, *codec.may_need, *([] if level.predicts_from is None else [PREDICTOR]))


def level_constants(
    level: LevelSpec, calibration: Mapping[str, Array], lower_width: int | None = None
) -> dict[str, npt.NDArray[np.float32]]:
    """What a level's codec encodes and decodes with, name -> float32 array of the shape that `Codec.fit` gave it.

    Args:
        calibration: of the teacher, ``level_<i>/<name>`` -> array; at least `needed_tables` of it.
        lower_width: channels of the level that this one is predicted from; None: not known here.

    Raises:
        BadInput: one of these is missing, of another shape or type, or not finite.
    """
    codec = get_codec(level.codec)
    may_be = [name for name in codec.may_need if f"{level.array}/{name}" in calibration]
    tables = {
        name: _table(calibration, f"{level.array}/{name}", codec.table_shape(name, level.grid, level.width))
        for name in (*codec.needs, *(codec.may_need if may_be else ()))
    }
    constants = codec.constants(tables)
    if level.predicts_from is not None:
        name = f"{level.array}/{PREDICTOR}"
        constants[PREDICTOR] = _table(calibration, name, (lower_width, level.width), np.float16).astype(np.float32)
    return constants


def _table(calibration: Mapping[str, Array], name: str, shape: Sequence[int | None], kind: type = np.float32) -> Array:
    """A table, if it is of that type and shape (None: any length)."""
    table = calibration.get(name)
    lengths = () if table is None else table.shape
    fits = len(lengths) == len(shape) and all(n in (m, None) for n, m in zip(shape, lengths, strict=True))
    if table is None or not fits or table.dtype != kind:
        have = "missing" if table is None else f"{table.dtype} of shape {table.shape}"
        raise BadInput(f"calibration {name} is {have}; {tuple(shape)} is needed, of {np.dtype(kind)}")
    return table


class Calibrator:
    """Collects statistics of all levels, then measures fidelity, one batch in memory at a time.

    Call `fit` with the batches of the first rows, then `measure` with those of the others, then `arrays`. Evenly spread
    maps, `TOKENS_PER_ROW` tokens a row on average, are kept for codecs to be fitted on and measured with.
    """

    def __init__(self, levels: Sequence[LevelSpec]) -> None:
        self.levels = list(levels)
        self._counts = [0 for _ in levels]
        self._shift: list[Array | None] = [None for _ in levels]
        self._sum = [np.zeros(level.width) for level in levels]
        self._outer = [np.zeros((level.width, level.width)) for level in levels]
        self._min = [np.full(level.width, np.inf, np.float32) for level in levels]
        self._max = [np.full(level.width, -np.inf, np.float32) for level in levels]
        self._tokens_fit = [_KeptMaps() for _ in levels]
        self._tokens_measured = [_KeptMaps() for _ in levels]

    def fit(self, features: Sequence[Array]) -> None:
        """Add a batch to the statistics: float32 (n, h, w, C) a level.

        Raises:
            BadInput: shapes differ from the levels', or a value is not finite.
        """
        for place, (level, batch) in enumerate(zip(self.levels, features, strict=True)):
            tokens = self._tokens(level, batch)
            self._tokens_fit[place].add(batch)
            shift = self._shift[place]
            if shift is None:  # any point near the mean keeps the squares small; the first batch's mean is one
                shift = self._shift[place] = tokens.mean(0)
            centred = tokens - shift
            self._counts[place] += len(tokens)
            self._sum[place] += centred.sum(0)
            self._outer[place] += centred.T @ centred
            np.minimum(self._min[place], batch.min((0, 1, 2)), out=self._min[place])
            np.maximum(self._max[place], batch.max((0, 1, 2)), out=self._max[place])

    def measure(self, features: Sequence[Array]) -> None:
        """Add a batch to the fidelity: float32 (n, h, w, C) a level; errors as `fit`."""
        for level, batch, kept in zip(self.levels, features, self._tokens_measured, strict=True):
            self._tokens(level, batch)
            if unstorable := get_codec(level.codec).find_unstorable(batch):
                where = f"level {level.level}, channel {unstorable.index[-1]}"
                raise BadInput(f"calibration, {where}: {unstorable.value}; {unstorable.why}")
            kept.add(batch)

    def arrays(self) -> dict[str, Array]:
        """What `TeacherWriter.write_calibration` takes, ``level_<i>/<name>`` -> array.

        ``mean``, ``std``, ``min``, ``max`` float32 (C,); ``covariance`` float64 (C, C), over all tokens;
        ``fidelity`` float64 (4,), see `Fidelity`; ``error`` float32 (C,), the channels' mean squared errors on the
        measured rows; and what the level's codec needs (`Codec.fit`).

        Raises:
            BadInput: nothing was measured.
            CacheError: a codec misses its promise on the measured rows.
        """
        arrays = self._statistics()
        if not all(kept.num_seen for kept in self._tokens_measured):
            raise BadInput("measure() was given no rows")
        decoded: dict[int, FittedTokens] = {}
        for level, fit, measured in zip(self.levels, self._tokens_fit, self._tokens_measured, strict=True):
            tokens = Sample(
                arrays[f"{level.array}/mean"].astype(np.float64),
                arrays[f"{level.array}/covariance"],
                fit.tokens(),
                measured.tokens(),
                grid=level.grid,
            )
            lower = None if level.predicts_from is None else decoded[level.predicts_from]
            cosine = level.fidelity or get_codec(level.codec).promised_cosine
            variance = np.diag(tokens.covariance) if level.standardized else None
            target = Target(cosine, standard_errors=STANDARD_ERRORS, variance=variance)
            done = fit_level(level, tokens, target, arrays, lower)
            decoded[level.level] = done
            meter = FidelityMeter(tokens.mean)
            meter.update(tokens.held_out, done.held_out)
            fidelity = meter.compute()
            _check_promise(level, fidelity, target)
            if variance is not None:
                _check_standardized(level, tokens, done.held_out, target)
            tables = {**done.tables, "fidelity": fidelity.to_array(), "error": meter.channel_error().astype(np.float32)}
            arrays.update({f"{level.array}/{name}": array for name, array in tables.items()})
        return arrays

    def _tokens(self, level: LevelSpec, batch: Array) -> Array:
        if batch.ndim != 4 or batch.shape[1:] != (*level.grid, level.width) or not len(batch):
            raise BadInput(
                f"level {level.level}: features have shape {batch.shape}, "
                f"needed is (n, {level.grid[0]}, {level.grid[1]}, {level.width})"
            )
        if not np.isfinite(batch).all():
            raise BadInput(f"calibration, level {level.level}: a feature is NaN or infinite")
        return batch.reshape(-1, level.width).astype(np.float64)

    def _statistics(self) -> dict[str, Array]:
        statistics: dict[str, Array] = {}
        for place, level in enumerate(self.levels):
            count, shift = self._counts[place], self._shift[place]
            if shift is None:
                raise BadInput("fit() was given no rows")
            mean = self._sum[place] / count
            covariance = self._outer[place] / count - np.outer(mean, mean)
            named = {
                "mean": (mean + shift).astype(np.float32),
                "std": np.sqrt(np.diag(covariance).clip(min=0)).astype(np.float32),
                "min": self._min[place],
                "max": self._max[place],
                "covariance": covariance,
            }
            statistics.update({f"{level.array}/{name}": array for name, array in named.items()})
        return statistics


def calibrated(levels: Sequence[LevelSpec], fit: Sequence[Array], measure: Sequence[Array]) -> dict[str, Array]:
    """`Calibrator.arrays` of features that fit into memory: float32 (n, h, w, C) a level, those to fit and to measure.

    Raises:
        BadInput, CacheError: as `Calibrator` does.
    """
    calibrator = Calibrator(levels)
    calibrator.fit(fit)
    calibrator.measure(measure)
    return calibrator.arrays()


class _KeptMaps:
    """Evenly spread maps of those that it is shown, the same however they are cut into batches."""

    def __init__(self) -> None:
        self.num_seen = 0
        self._kept: list[Array] = []

    def add(self, batch: Array) -> None:
        """Look at float32 (n, h, w, C)."""
        cells = batch.shape[1] * batch.shape[2]
        share = max(TOKENS_PER_ROW, -(-cells // 16))  # of the cells, what is kept of a row on average
        rows = range(self.num_seen, self.num_seen + len(batch))
        chosen = [row - rows.start for row in rows if row == 0 or (row + 1) * share // cells > row * share // cells]
        self._kept.append(batch[chosen].reshape(-1, batch.shape[-1]))
        self.num_seen += len(batch)

    def tokens(self) -> Array:
        """float32 (n*h*w, C)."""
        return np.concatenate(self._kept)


@dataclass(frozen=True)
class FittedTokens:
    """A level that was fitted: its codec's calibration arrays, and what its tokens come back as.

    Attributes:
        tables: name -> array; what `Codec.fit` gives, and the predictor of a predicted level.
        constants: what the codec encodes and decodes with, see `level_constants`.
        tokens, held_out: float32 (n, C) and (m, C), decoded.
    """

    tables: dict[str, Array]
    constants: dict[str, npt.NDArray[np.float32]]
    tokens: Array
    held_out: Array


def fit_level(
    level: LevelSpec,
    sample: Sample,
    target: Target,
    statistics: Mapping[str, Array],
    lower: FittedTokens | None = None,
) -> FittedTokens:
    """Fit a level's codec, against the decoded level below where there is one.

    Args:
        statistics: ``level_<i>/<name>`` -> array, for codecs that need no more.
        lower: the level that this one is predicted from.

    Raises:
        CacheError: a codec with a rate cannot reach the target.
    """
    codec = get_codec(level.codec)
    tables: dict[str, Array] = {}
    predicted: Array | float = 0.0
    predicted_held_out: Array | float = 0.0
    if lower is not None:
        tables[PREDICTOR] = fit_predictor(lower.tokens, sample.tokens)
        predictor = tables[PREDICTOR].astype(np.float32)
        predicted, predicted_held_out = lower.tokens @ predictor, lower.held_out @ predictor
        sample = _residual(sample, predicted, predicted_held_out)
    tables |= codec.fit(sample, target)
    named = {f"{level.array}/{name}": array for name, array in tables.items()}
    constants = level_constants(level, {**statistics, **named})

    def through(tokens: Array) -> Array:
        stored = codec.encode(tokens.reshape(-1, *sample.grid, tokens.shape[-1]), constants).stored
        return codec.decode_numpy(stored, constants).reshape(tokens.shape)

    tokens, held_out = through(sample.tokens) + predicted, through(sample.held_out) + predicted_held_out
    return FittedTokens(tables, constants, tokens, held_out)


def _residual(sample: Sample, predicted: Array, predicted_held_out: Array) -> Sample:
    """What is left of a level's tokens when the prediction of each is taken off."""
    tokens = sample.tokens - predicted
    covariance = np.cov(tokens.astype(np.float64), rowvar=False, bias=True)
    return Sample(
        tokens.mean(0, dtype=np.float64),
        covariance.reshape(tokens.shape[1], tokens.shape[1]),
        tokens,
        sample.held_out - predicted_held_out,
        predicted_held_out,
        sample.mean,
        sample.grid,
    )


def _check_promise(level: LevelSpec, fidelity: Fidelity, target: Target) -> None:
    promised = target.cosine
    reached = min(fidelity.cosine, fidelity.centred_cosine)
    if reached < promised:
        raise CacheError(
            f"level {level.level}: {level.codec} promises a token cosine of {promised}, held-out calibration rows "
            f"reach {reached:.6f} (plain {fidelity.cosine:.6f}, centred {fidelity.centred_cosine:.6f}); "
            "use a codec with more bits"
        )


def _check_standardized(level: LevelSpec, sample: Sample, decoded: Array, target: Target) -> None:
    """As `_check_promise`, of standardized channels."""
    assert target.variance is not None
    true, back = (standardized(tokens - sample.mean, target.variance) for tokens in (sample.held_out, decoded))
    reached = float(token_cosines(true, back).mean())
    if reached < target.cosine:
        raise CacheError(
            f"level {level.level}: {level.codec} promises a token cosine of {target.cosine}, of standardized channels "
            f"held-out calibration rows reach {reached:.6f}; use a codec with more bits, or promise it of features as "
            "they are alone"
        )
