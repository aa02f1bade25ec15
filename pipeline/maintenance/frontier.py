"""`sak frontier`: how many bits each codec takes for features as they are, at a fidelity; nothing is promised, all is
measured, on rows that nothing was fitted on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.calibration.statistics import FittedTokens, calibration_rows, fit_level
from cache.codecs import Codec, Sample, Target, get_codec
from cache.codecs.coders import get_coder
from cache.codecs.fidelity import Fidelity, FidelityMeter
from cache.errors import CacheError
from cache.format.groups import PREDICTOR
from cache.format.layout import ArraySpec, index_bytes, parse_index, shard_buffers
from cache.format.parts import array_json
from cache.format.spec import LevelSpec
from cache.store import Store
from pipeline.console import say, table, warn
from pipeline.errors import UserError
from pipeline.extraction.probed import OWN, Probing, fit_probes, labelled_rows
from pipeline.recipes.stores import store_tasks

SETTINGS = ("fp16", "bf16", "int8", "int4", "klt", "klt+pcodec", "klt+trellis")
PREDICTED = "+levels"
"""Ends the name of a setting in which every level is coded against the decoded one before it."""
STORE_ROWS = 512
"""Of a store that are drawn, half of them for the report."""

_SEARCH_TOKENS = 1 << 15
_ROWS_AT_ONCE = 32
_TIMED_PASSES = 3

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Source:
    """One level's features, cut in two.

    Attributes:
        fit: float32 (n, tokens, C), what is calibrated on.
        report: float32 (m, tokens, C), what is reported on.
        rows: int64 (m,): which rows of the source these are.
        grid: (h, w) of the tokens.
    """

    fit: Array
    report: Array
    rows: Array
    grid: tuple[int, int]


def read_source(where: Path | str, teacher: str | None, level: int | None) -> Source:
    """The level of a store at a path or an address, or an array file (rows, tokens, C).

    One half of the rows is to fit on, the other to report on.

    Raises:
        UserError: it is neither, or has less than two rows.
    """
    path = Path(where)
    if path.suffix != ".npy":
        return _read_store(where, teacher, level)
    if teacher is not None or level is not None:
        raise UserError(f"--teacher and --level go with a cache; {path} is an array")
    try:
        features = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} is no array that can be read: {error}") from error
    if features.ndim != 3 or len(features) < 2 or not features.size or features.dtype.kind != "f":
        raise UserError(
            f"{path} holds {features.dtype} {features.shape}; "
            "floats (rows, tokens, width), two rows or more, are needed"
        )
    order = np.random.default_rng(0).permutation(len(features))
    half = len(order) // 2
    fit, report = np.sort(order[:half]), np.sort(order[half:])
    return _source(lambda rows: features[rows], fit, report, square(features.shape[1]), str(path))


def square(tokens: int) -> tuple[int, int]:
    """The grid that an array's tokens are taken for: a square where they fill one, else a line."""
    side = math.isqrt(tokens)
    return (side, side) if side * side == tokens else (1, tokens)


def _read_store(where: Path | str, teacher: str | None, level: int | None) -> Source:
    store = Store.open(where)
    if teacher is None or level is None:
        raise UserError(f"say which features of {where}: --teacher ({', '.join(store.teachers)}) and --level")
    features = store.features(teacher, level)
    fit, report = calibration_rows(store.valid(1), store.spec.seed, STORE_ROWS)
    width, grid = features.level.width, features.level.grid
    return _source(lambda rows: features[rows, 0].reshape(len(rows), -1, width), fit, report, grid, str(where))


def _source(read: Callable[[Array], Array], fit: Array, report: Array, grid: tuple[int, int], name: str) -> Source:
    source = Source(np.asarray(read(fit), np.float32), np.asarray(read(report), np.float32), report, grid)
    if not (np.isfinite(source.fit).all() and np.isfinite(source.report).all()):
        raise UserError(f"{name}: a feature is NaN or infinite")
    return source


def read_probing(where: Path | str, sources: Sequence[Source]) -> Probing:
    """Probes on the rows of `sources`, all of them levels of a teacher in the labelled cache `where`: fitted on those
    that codecs are, to be scored on those that are reported on.

    Raises:
        UserError: the cache has no labels, or none for a probe.
    """
    if Path(where).suffix == ".npy":
        raise UserError(f"--probes goes with a cache: the array {where} has no labels")
    rows = labelled_rows(OWN, Store.open(where))
    if not np.array_equal(rows.scored, sources[0].rows):
        raise UserError("--probes goes with levels of one cache")
    fit = [source.fit.reshape(-1, *source.grid, source.fit.shape[-1]) for source in sources]
    report = [source.report.reshape(-1, *source.grid, source.report.shape[-1]) for source in sources]
    probes, missing = fit_probes(rows, store_tasks(rows.store), [(rows.fit, fit)])
    probing = Probing(rows, probes, report)
    for why in (*missing.values(), *probing.missing.values()):
        warn(why)
    if not probing.probes:
        raise UserError(f"{where}: no probe can be fitted")
    return probing


def frontier(
    sources: Sequence[Source],
    fidelity: float | Sequence[float],
    save: Path | None = None,
    probing: Probing | None = None,
) -> dict[str, Any]:
    """Every codec setting's bits, fidelity and speed on `sources`, the levels of one teacher, row for row.

    Args:
        fidelity: plain token cosine that codecs with a rate reach, on the reported rows; of several, each in turn.
        save: folder for the coded and decoded rows of every setting.
        probing: of the same rows, to tell what tasks lose.

    Returns:
        ``{"results": [...]}``, JSON-able, a dict a setting: see `_report`. A setting that these features do not allow
        is left out, and a warning says why.

    Raises:
        UserError: the sources differ in rows or tokens.
    """
    if len({source.report.shape[:2] for source in sources}) > 1:
        raise UserError("several sources are levels of one teacher: the same rows and tokens in each")
    samples = [_sample(source) for source in sources]
    settings = [*SETTINGS, *(name + PREDICTED for name in SETTINGS if len(sources) > 1 and get_codec(name).has_rate)]
    results = []
    fidelities = [fidelity] if isinstance(fidelity, float) else list(fidelity)
    rated = {name: get_codec(name.removesuffix(PREDICTED)).has_rate for name in settings}  # others have none to be set
    for setting, cosine in [(name, rate) for name in settings for rate in (fidelities if rated[name] else [None])]:
        name = setting if cosine is None or len(fidelities) == 1 else f"{setting} at {cosine:g}"
        say(f"frontier: {name}")
        codec = get_codec(setting.removesuffix(PREDICTED))
        levels = [
            LevelSpec(place, source.grid, source.fit.shape[2], codec.name) for place, source in enumerate(sources)
        ]
        if setting.endswith(PREDICTED):
            levels = [replace(level, predicts_from=level.level - 1 if level.level else None) for level in levels]
        try:
            _check_storable(codec, sources)
            fitted = _fit(levels, sources, samples, fidelities[0] if cosine is None else cosine)
        except CacheError as error:
            warn(f"{name} is left out: {error}")
            continue
        results.append(_report(name, codec, levels, sources, samples, fitted, save, probing))
    return {"results": results}


def _check_storable(codec: Codec, sources: Sequence[Source]) -> None:
    """Refuse values that are beyond what the codec can hold."""
    for source in sources:
        for features in (source.fit, source.report):
            refused = codec.find_unstorable(features)
            if refused is not None:
                raise CacheError(f"a feature is {refused.value:g}: {refused.why}")


def _sample(source: Source) -> Sample:
    width = source.fit.shape[-1]
    tokens = source.fit.reshape(-1, width)
    mean = tokens.mean(0, dtype=np.float64)
    second = np.zeros((width, width))
    for start in range(0, len(tokens), _SEARCH_TOKENS):
        centred = tokens[start : start + _SEARCH_TOKENS] - mean
        second += centred.T @ centred
    return Sample(mean, second / len(tokens), _thin(source.fit), _thin(source.report), grid=source.grid)


def _thin(maps: Array) -> Array:
    """Evenly spread maps (n, tokens, C) as tokens: at most `_SEARCH_TOKENS`, or one map."""
    at_most = max(1, _SEARCH_TOKENS // maps.shape[1])
    return maps[:: -(-len(maps) // at_most)].reshape(-1, maps.shape[-1])


def _statistics(levels: Sequence[LevelSpec], sources: Sequence[Source]) -> dict[str, Array]:
    return {
        f"{level.array}/{name}": reduce(source.fit, (0, 1))
        for level, source in zip(levels, sources, strict=True)
        for name, reduce in (("min", np.min), ("max", np.max))
    }


def _fit(
    levels: Sequence[LevelSpec], sources: Sequence[Source], samples: Sequence[Sample], fidelity: float
) -> list[FittedTokens]:
    """Each level's tables; where the search's tokens flattered, the target is raised until all of them reach it."""
    statistics = _statistics(levels, sources)
    fitted: list[FittedTokens] = []
    decoded: Array | None = None
    for level, source, sample in zip(levels, sources, samples, strict=True):
        lower = None if level.predicts_from is None else fitted[level.predicts_from]
        below = decoded
        target = fidelity
        for _ in range(4):
            done = fit_level(level, sample, Target(target, centred=False), statistics, lower)
            coded, _ = _encoded(level, done.constants, source.report, below)
            decoded = _decoded(level, done.constants, coded, below)
            meter = FidelityMeter(sample.mean)
            meter.update(source.report, decoded)
            missing = fidelity - meter.compute().cosine
            if missing <= 0 or not get_codec(level.codec).has_rate:
                break
            target = min(target + missing + 1e-6, 1 - 1e-7)
        fitted.append(done)
    return fitted


def _predicted(level: LevelSpec, constants: Mapping[str, Array], below: Array | None, rows: slice) -> Array:
    """What the level below tells of one's `rows`, (n, tokens, C); 0 where it is coded by itself."""
    if level.predicts_from is None or below is None:
        return np.zeros(1, np.float32)
    return np.asarray(below[rows] @ constants[PREDICTOR])


def _rows_of(array: Array) -> Iterator[slice]:
    """Some rows at a time: codecs work in memory of several times their size."""
    return (slice(start, start + _ROWS_AT_ONCE) for start in range(0, len(array), _ROWS_AT_ONCE))


def _encoded(
    level: LevelSpec, constants: Mapping[str, Array], features: Array, below: Array | None
) -> tuple[Array, int]:
    """Features (n, tokens, C) as stored numbers, (n, *row_shape), and how many were clipped."""
    codec, clipped = get_codec(level.codec), 0
    stored = np.empty((len(features), *codec.row_shape(level.grid, level.width)), codec.stored_dtype)
    for rows in _rows_of(features):
        residual = features[rows] - _predicted(level, constants, below, rows)
        encoded = codec.encode(residual.reshape(-1, *level.grid, level.width), constants)
        stored[rows] = encoded.stored
        clipped += encoded.num_clipped
    return stored, clipped


def _decoded(level: LevelSpec, constants: Mapping[str, Array], stored: Array, below: Array | None) -> Array:
    """The inverse of `_encoded`: float32 (n, tokens, C)."""
    codec, tokens = get_codec(level.codec), level.grid[0] * level.grid[1]
    decoded = np.empty((len(stored), tokens, level.width), np.float32)
    for rows in _rows_of(stored):
        values = codec.decode_numpy(stored[rows], constants).reshape(decoded[rows].shape)
        decoded[rows] = values + _predicted(level, constants, below, rows)
    return decoded


def _report(
    setting: str,
    codec: Codec,
    levels: Sequence[LevelSpec],
    sources: Sequence[Source],
    samples: Sequence[Sample],
    fitted: Sequence[FittedTokens],
    save: Path | None,
    probing: Probing | None,
) -> dict[str, Any]:
    """Code the reported rows as a store would, decode them from these bytes, and say what came of it.

    ``bits``: of all files of coded rows, a value. ``cosine``, ``centred_cosine`` (means over tokens), ``relative_mse``
    and ``relative_mse_worst`` (median and worst channel): the worst level's. ``encode_values_per_s``: features to
    coded bytes; ``decode_values_per_s``: coded bytes to stored integers (what reading threads do; floats and basis are
    the training device's part); both a second of one core's time. ``probes``: by task what it loses, where there is
    `probing`.
    """
    statistics = _statistics(levels, sources)
    num_values = coded_bytes = side_bytes = clipped = 0
    encode_s = decode_s = 0.0
    figures: list[Fidelity] = []
    decoded: Array | None = None
    maps: list[Array] = []
    for place, (level, source, sample, done) in enumerate(zip(levels, sources, samples, fitted, strict=True)):
        spec = ArraySpec(
            level.array,
            codec.stored_dtype,
            codec.row_shape(level.grid, level.width),
            codec.dims,
            has_views=False,
            fill_value=codec.fill_value,
            coder=codec.coder,
        )
        below, num_rows = decoded, len(source.report)
        started = time.process_time()
        stored, num_clipped = _encoded(level, done.constants, source.report, below)
        clipped += num_clipped
        shard = b"".join(shard_buffers(spec, [stored], num_rows))
        encode_s += time.process_time() - started
        back, seconds = _read(spec, shard, num_rows)
        decode_s += seconds
        assert np.array_equal(back, stored), f"{setting}: decoded integers differ"
        decoded = _decoded(level, done.constants, back, below)
        if probing is not None:
            maps.append(decoded.reshape(-1, *source.grid, level.width))
        meter = FidelityMeter(sample.mean)
        meter.update(source.report, decoded)
        figures.append(meter.compute())
        needed = {name: statistics[f"{level.array}/{name}"] for name in codec.needs if name not in done.tables}
        side = {**needed, **done.tables}
        metadata = array_json(spec, 0, num_rows, num_rows)
        num_values += source.report.size
        coded_bytes += len(shard) + len(metadata)
        side_bytes += sum(array.nbytes for array in side.values())
        if save is not None:
            folder = save / setting
            for name, data in ((f"{level.array}/zarr.json", metadata), (spec.file(0, 0), shard)):
                (folder / "coded" / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / "coded" / name).write_bytes(data)
            (folder / "side").mkdir(exist_ok=True)
            for name, array in side.items():
                np.save(folder / "side" / f"{level.array}-{name}.npy", array)
            np.save(folder / ("decoded.npy" if len(sources) == 1 else f"decoded-{place}.npy"), decoded)
            np.save(folder / "rows.npy", source.rows)
    return {
        "codec": setting,
        "bits": 8 * coded_bytes / num_values,
        "cosine": min(figure.cosine for figure in figures),
        "centred_cosine": min(figure.centred_cosine for figure in figures),
        "relative_mse": max(figure.relative_mse_median for figure in figures),
        "relative_mse_worst": max(figure.relative_mse_worst for figure in figures),
        "clipped": clipped,
        "side_bytes": side_bytes,
        "encode_values_per_s": num_values / max(encode_s, 1e-9),
        "decode_values_per_s": num_values / max(decode_s, 1e-9),
        **({} if probing is None else {"probes": {t: loss.to_dict() for t, loss in probing.losses(maps).items()}}),
    }


def _read(spec: ArraySpec, shard: bytes, num_rows: int) -> tuple[Array, float]:
    """The stored integers of a shard's rows (n, *row_shape), and the seconds of one core that this took."""
    index = parse_index(shard[-index_bytes(num_rows) :], spec.path)
    out = np.empty((num_rows, *spec.row_shape), spec.dtype)
    out.view(np.uint8).fill(0)  # memory that is there: readers reuse theirs
    rows = [memoryview(shard)[start : start + size - 4] for start, size in index.astype(int).tolist()]
    seconds = []
    for _ in range(_TIMED_PASSES):
        started = time.process_time()
        for row, data in enumerate(rows):
            target = out[row].reshape(-1)
            if spec.coder is None:
                np.copyto(target, np.frombuffer(data, spec.dtype))
            else:
                get_coder(spec.coder).decode_into(data, target)
        seconds.append(time.process_time() - started)
    return out, min(seconds)


def frontier_text(result: dict[str, Any]) -> str:
    """`frontier` for people."""
    columns = ["codec", "bits", "cosine", "centred", "relative mse", "worst", "side kB", "encode M/s", "decode M/s"]
    rows: list[dict[str, Any]] = result["results"]
    first: dict[str, Any] = rows[0].get("probes", {}) if rows else {}
    columns += [f"{task} {loss['score']} lost" for task, loss in first.items()]
    return table(
        columns,
        [
            [
                row["codec"],
                f"{row['bits']:.3f}",
                f"{row['cosine']:.5f}",
                f"{row['centred_cosine']:.5f}",
                f"{row['relative_mse']:.4f}",
                f"{row['relative_mse_worst']:.4f}",
                f"{row['side_bytes'] / 1e3:.0f}",
                f"{row['encode_values_per_s'] / 1e6:.0f}",
                f"{row['decode_values_per_s'] / 1e6:.0f}",
                *(f"{p['loss']:.2g} ({p['low']:.2g} to {p['high']:.2g})" for p in row.get("probes", {}).values()),
            ]
            for row in result["results"]
        ],
    )
