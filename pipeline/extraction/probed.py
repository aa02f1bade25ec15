"""Probes of a teacher: fitted on its raw features of labelled rows, they tell what tasks lose to its codec.

The labelled rows are a store's pixels and labels in view 0: the store's own that is being made, or another's. The
teacher runs on one half of them to fit the probes, on the other half to score them. A promise about tasks becomes a
token cosine: the lowest at which each promised task loses no more. From then on the store is like one that was asked
for that cosine, and its notes say where it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cache.calibration.statistics import Calibrator, Int64, Validity, calibration_rows, level_constants
from cache.codecs import get_codec
from cache.errors import CacheError
from cache.format.groups import PREDICTOR
from cache.format.spec import LevelSpec, SourceSpec
from cache.store import Store
from pipeline.console import progress, say, warn
from pipeline.errors import UserError
from pipeline.probes.kept import PREFIX, kept_tables
from pipeline.probes.linear import LEAST_IMAGES, Probe, ProbeFitter, side_by_side
from pipeline.probes.loss import Loss
from pipeline.probes.losses import Images, compare, draws, image_sums, num_images, scores
from pipeline.recipes.stores import store_tasks
from sak_core.tasks import Task
from sak_core.tasks.own_units import are_scaled, own_label, own_output, seen_normals
from sak_core.views.policies import ViewPolicy
from sak_core.views.view import view_scales

OWN = "own"
"""Names the labelled rows of the very store that is being made or verified."""
PROBE_ROWS = 512
"""Rows of view 0 that are drawn, half of them to be fitted on."""
MOST_BYTES = 2_000_000_000
"""Of raw features that are kept to be scored, which several codecs may be tried on."""
STEPS = tuple(round(1 - 10 ** (-k / 16), 6) for k in range(8, 81))
"""Token cosines that a promise about tasks is looked for among, from 0.68 to 0.99999: each leaves 13 % less error."""

Array = npt.NDArray[Any]
Forward = Callable[[Array], Sequence[Array]]
"""uint8 pixels (n, H, W, 3) to the teacher's maps, float32 (n, h, w, C) a level."""


class LabelledRows:
    """Rows of view 0 with labels, drawn by the store's seed.

    Args:
        valid: which samples are, where the store is still being prepared.

    Attributes:
        store: whose pixels and labels.
        fit, scored: int64 samples, ascending: what probes are fitted on, and what they are scored on.
    """

    def __init__(self, store: Store, valid: Validity | None = None) -> None:
        self.store = store
        valid = store.valid(1) if valid is None else valid
        self.fit, self.scored = calibration_rows(valid, store.spec.seed, PROBE_ROWS)

    def label(self, task: Task, sample: int) -> Tensor:
        """As stored: (H, W) or (H, W, 3)."""
        return torch.from_numpy(self.store.labels[task.name][sample, 0])

    def scales(self, task: Task, sample: int) -> Tensor:
        """(1, 2) float64: how much larger than in its image the view shows things, along y and x."""
        if not are_scaled([task]):
            return torch.ones(1, 2, dtype=torch.float64)
        boxes = self.store.views["box"][[sample], 0]
        return torch.from_numpy(view_scales(boxes, self.store.spec.size))

    def seen_label(self, task: Task, sample: int) -> Tensor:
        """What a network that sees the view is to say, as in training: (H, W) or (H, W, 3)."""
        label = self.label(task, sample)
        if task.kind != "normals" or not ViewPolicy.from_dict(self.store.spec.policy).stretches:
            return label
        return seen_normals(label[None], self.scales(task, sample))[0]


def labelled_rows(asked: Path | str, store: Store, valid: Validity | None = None) -> LabelledRows:
    """The rows that `--probes` names: "own", those of `store`, or those of the cache at a path; errors as
    `check_asked`.
    """
    check_asked(asked, store.spec)
    return LabelledRows(store, valid) if str(asked) == OWN else LabelledRows(Store.open(asked))


def check_asked(asked: Path | str, spec: SourceSpec, promised: Iterable[str] = ()) -> None:
    """Check that `--probes` names labelled rows that go with the store of `spec`.

    Args:
        promised: tasks that must have labels there.

    Raises:
        UserError: there are no labels, or none of a promised task, or views are of another size than those of the
            store.
    """
    if str(asked) == OWN and not spec.labels:
        raise UserError(
            f"{spec.store_name} has no labels to fit probes on: name a labelled cache of views of the same size, "
            "--probes CACHE (its pixels and labels are enough, no teacher need be in it)"
        )
    labelled = spec if str(asked) == OWN else Store.open(asked).spec
    if not labelled.labels:
        raise UserError(f"--probes {asked}: that cache has no labels to fit probes on")
    if labelled.size != spec.size:
        (h, w), (height, width) = labelled.size, spec.size
        raise UserError(f"--probes {asked}: its views are of {h}x{w} px, not of {height}x{width}")
    for task in promised:
        if task not in labelled.labels:
            have = ", ".join(sorted(labelled.labels))
            raise UserError(f"--fidelity {task}: {labelled.store_name} has no labels of it; it has {have}")


class Probing:
    """A teacher's probes and what they need to tell losses: raw features of the rows to score, and labels.

    Args:
        raw: of the first of `rows.scored`, or all of them.

    Attributes:
        probes: by task; only tasks that a probe could be fitted for.
        missing: task -> why it has no probe.
        rows: labelled.
        raw: float32 (n, h, w, C) a level, of the scored rows.
    """

    def __init__(self, rows: LabelledRows, probes: Mapping[str, Probe], raw: Sequence[Array]) -> None:
        self.rows, self.raw = rows, raw
        self.probes: dict[str, Probe] = {}
        self.missing: dict[str, str] = {}
        self._scored = rows.scored[: len(raw[0])]
        self._raw_scores: dict[str, tuple[Array, Tensor]] = {}
        for name, probe in probes.items():
            images = self._images(probe, raw)
            count = num_images(images)
            if count < LEAST_IMAGES:
                self.missing[name] = (
                    f"{name}: no probe can be scored: {count} of the rows to score have a label, {LEAST_IMAGES} are "
                    "needed"
                )
                continue
            self.probes[name] = probe
            counts = draws(count)
            self._raw_scores[name] = scores(probe.task, images, counts), counts

    @property
    def scored(self) -> Int64:
        """Samples of the rows that are scored."""
        return self._scored

    def losses(self, decoded: Sequence[Array], tasks: Iterable[str] | None = None) -> dict[str, Loss]:
        """What each task (all, or those of `tasks`) loses where `raw` comes back as `decoded`."""
        found = {}
        for name in self.probes if tasks is None else tasks:
            probe, (raw, counts) = self.probes[name], self._raw_scores[name]
            back = scores(probe.task, self._images(probe, decoded), counts)
            found[name] = compare(probe.task, raw, back, counts.shape[1])
        return found

    def _images(self, probe: Probe, levels: Sequence[Array]) -> Images:
        task, size = probe.task, self.rows.store.spec.size

        def outputs() -> Iterator[Tensor]:
            for place, sample in enumerate(self._scored):
                features = side_by_side([as_maps(level[place : place + 1]) for level in levels])
                yield own_output(task, probe(features, size), self.rows.scales(task, int(sample)))[0]

        labels = (
            own_label(task, self.rows.label(task, int(sample))[None], self.rows.scales(task, int(sample)))[0]
            for sample in self._scored
        )
        return image_sums(task, outputs(), labels)


def as_maps(level: Array) -> Tensor:
    """float32 (n, h, w, C) as (n, C, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(level, np.float32)).permute(0, 3, 1, 2)


def fit_probes(
    rows: LabelledRows, tasks: Sequence[Task], batches: Iterable[tuple[Int64, Sequence[Array]]]
) -> tuple[dict[str, Probe], dict[str, str]]:
    """The probes by task, and of tasks that none can be fitted for, why.

    Args:
        batches: samples of `rows` and their raw features, float32 (n, h, w, C) a level.
    """
    fitters = {task.name: ProbeFitter(task) for task in tasks}
    for samples, levels in batches:
        features = side_by_side([as_maps(level) for level in levels])
        for fitter in fitters.values():
            for sample, one in zip(samples, features, strict=True):
                fitter.update(one, rows.seen_label(fitter.task, int(sample)))
    probes, missing = dict[str, Probe](), dict[str, str]()
    for name, fitter in fitters.items():
        try:
            probes[name] = fitter.fit()
        except UserError as error:
            missing[name] = str(error)
    return probes, missing


def probe_teacher(
    rows: LabelledRows,
    forward: Forward,
    levels: Sequence[LevelSpec],
    batch_size: int,
    kept: Mapping[str, Probe] | None = None,
) -> Probing:
    """Run a teacher over labelled rows, fit its probes (or take those that are `kept`), and score them raw.

    Warnings name tasks without a probe.

    Args:
        levels: as stored; prefix tokens are left out.
    """
    num_maps = sum(not level.prefix for level in levels)
    row_bytes = 4 * sum(level.grid[0] * level.grid[1] * level.width for level in levels)
    scored = rows.scored[: max(LEAST_IMAGES, MOST_BYTES // row_bytes)]
    fit = rows.fit if kept is None else rows.fit[:0]
    missing: dict[str, str] = {}
    with progress("probes", len(fit) + len(scored), "rows") as advance:

        def features(samples: Int64) -> Iterator[tuple[Int64, Sequence[Array]]]:
            for start in range(0, len(samples), batch_size):
                chosen = samples[start : start + batch_size]
                yield chosen, forward(rows.store.pixels[chosen, 0])[:num_maps]
                advance(len(chosen))

        if kept is None:
            kept, missing = fit_probes(rows, store_tasks(rows.store), features(fit))
        parts = [level for _, level in features(scored)]
        probing = Probing(rows, kept, [np.concatenate(level) for level in zip(*parts, strict=True)])
    probing.missing.update(missing)
    for why in probing.missing.values():
        warn(why)
    return probing


def coded(levels: Sequence[LevelSpec], calibration: Mapping[str, Array], features: Sequence[Array]) -> list[Array]:
    """Features float32 (n, h, w, C) a level, as they come back from the levels' codecs."""
    decoded: dict[int, Array] = {}
    for level, raw in zip(levels, features, strict=True):
        codec, constants = get_codec(level.codec), level_constants(level, calibration)
        below = None if level.predicts_from is None else decoded[level.predicts_from] @ constants[PREDICTOR]
        back = np.empty_like(raw)
        for row in range(len(raw)):  # one at a time: codecs work in memory of several times a batch's size
            residual = raw[row : row + 1] if below is None else raw[row : row + 1] - below[row : row + 1]
            stored = codec.encode(residual, constants).stored
            back[row] = codec.decode_numpy(stored, constants).reshape(raw[row].shape)
        decoded[level.level] = back if below is None else back + below
    return list(decoded.values())


def maps_of(levels: Sequence[LevelSpec]) -> list[LevelSpec]:
    """The levels without prefix tokens."""
    return [level for level in levels if not level.prefix]


def check_promised(probing: Probing, promised: Mapping[str, float]) -> None:
    """Check that every promised task has a probe.

    Raises:
        UserError: one has none; it says why.
    """
    for task in promised:
        if task in probing.missing:
            raise UserError(f"nothing can be promised of {probing.missing[task]}")


def broken(losses: Mapping[str, Loss], promised: Mapping[str, float]) -> list[str]:
    """The promises that do not hold with 95 % of the draws of images, in words."""
    return [
        f"{task} {losses[task]}, promised is at most {most:g}"
        for task, most in promised.items()
        if not losses[task].high <= most
    ]


def settle(
    calibrator: Calibrator, probing: Probing, promised: Mapping[str, float]
) -> tuple[float | None, dict[str, Array]]:
    """The lowest token cosine of `STEPS` at which each promised task loses no more, and the calibration at it.

    A codec without a rate has no cosine to choose: None, and its promise is checked.

    Raises:
        UserError: the finest coding does not keep a promise; what it loses is said.
    """
    levels = list(calibrator.levels)

    def at(cosine: float | None) -> tuple[dict[str, Array], list[str]]:
        calibrator.levels = [level if level.prefix else replace(level, fidelity=cosine) for level in levels]
        arrays = calibrator.arrays()
        return arrays, broken(probing.losses(coded(maps_of(levels), arrays, probing.raw), promised), promised)

    codec = levels[0].codec
    if not get_codec(codec).has_rate:
        arrays, problems = at(None)
        if problems:
            raise UserError(
                f"{codec} does not keep what is promised: {'; '.join(problems)}. Use a codec with more bits"
            )
        return None, arrays
    low, high, best = -1, len(STEPS) - 1, None
    try:
        best = at(STEPS[high])
    except CacheError as error:
        raise UserError(f"{error} (its finest coding is needed to tell whether a promise about tasks holds)") from error
    if best[1]:
        raise UserError(
            f"{codec} at its finest (token cosine {STEPS[high]}) does not keep what is promised: {'; '.join(best[1])}. "
            "Allow more loss, give more labelled rows (the interval narrows), or take fp16"
        )
    while high - low > 1:
        middle = (low + high) // 2
        tried = at(STEPS[middle])
        say(f"token cosine {STEPS[middle]}: {'too low' if tried[1] else 'enough'}")
        low, high, best = (middle, high, best) if tried[1] else (low, middle, tried)
    return STEPS[high], best[0]


def tables(probing: Probing, losses: Mapping[str, Loss]) -> dict[str, Array]:
    """Probes and losses as arrays of a calibration: of each task ``probe_<task>/weight`` float32 (inputs, channels),
    ``bias`` float32 (channels,), and, named as the task's score, float64 (6,), see `Loss.to_array`."""
    arrays: dict[str, Array] = {}
    for task, probe in probing.probes.items():
        arrays[f"{PREFIX}{task}/weight"] = probe.weight.numpy()
        arrays[f"{PREFIX}{task}/bias"] = probe.bias.numpy()
        arrays[f"{PREFIX}{task}/{losses[task].score}"] = losses[task].to_array()
    return arrays


def kept_probes(store: Store, teacher: str, tasks: Sequence[Task]) -> dict[str, Probe]:
    """The probes that lie beside a teacher's calibration, of those of `tasks` that have one."""
    arrays = kept_tables(store, teacher, is_head=True)
    return {
        task.name: Probe(
            task, *(torch.from_numpy(arrays[f"{PREFIX}{task.name}/{name}"]) for name in ("weight", "bias"))
        )
        for task in tasks
        if f"{PREFIX}{task.name}/weight" in arrays
    }
