"""`sak cache`: the source part first, then each teacher's part, all in one store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from cache.calibration.statistics import calibration_order
from cache.codecs import get_codec
from cache.errors import SpecMismatch
from cache.format.spec import SourceSpec
from cache.places.addresses import as_place
from cache.store import Store
from pipeline.console import amount, say, warn
from pipeline.errors import UserError
from pipeline.extraction.amounts import (
    PartAmount,
    check_disk,
    existing_store,
    files_left,
    free_bytes,
    source_amount,
    teacher_amount,
)
from pipeline.extraction.prepare import preparing, say_left_alone, source_spec
from pipeline.extraction.request import CacheRequest
from pipeline.recipes.frozen import is_own
from sak_common.differences import first_difference
from sak_core.interfaces.dataset import unlabelled

if TYPE_CHECKING:
    from pipeline.extraction.cluster_tasks import Described
    from pipeline.extraction.request import TeacherRequest
    from pipeline.extraction.running import RunningTeacher
    from pipeline.extraction.sampling import TeacherSample

WHAT = "pixels, labels and features"


def run_cache(request: CacheRequest) -> dict[str, Any]:
    """Make, finish or extend the store that `request` describes; returns what it came to, JSON-able.

    Everything that can be known before the first row is checked before it: names, teachers' weights, the disk.
    """
    as_place(request.features).check_writable()
    get_codec(request.options.codec)
    dataset = request.source.open()
    partly = unlabelled(dataset)
    for task, samples in partly.items():
        path = next(iter(samples.values()))
        warn(f"{task}: {len(samples)} samples have no file, such as {path}; they are kept, without a label of {task}")
    store, timings = _on_cluster(request) if request.scheduler or request.workers else _in_this_process(request)
    invalid = store.invalid(request.views)
    say(f"{store}: {store.spec.num_samples - len(invalid)} of {store.spec.num_samples} samples valid")
    return {
        "store": str(store),
        "rows": store.spec.num_samples * request.views,
        "views": request.views,
        "teachers": store.teachers,
        "invalid": {store.ids(sample)[0]: reason for sample, reason in sorted(invalid.items())},
        "unlabelled": {task: [dataset.ids[i] for i in samples] for task, samples in partly.items()},
        "timings": timings,
    }


def _in_this_process(request: CacheRequest) -> tuple[Store, dict[str, Any]]:
    """The finished store, and where each teacher's time went."""
    teachers = start_teachers(request)
    _check_disk(request, teachers, lambda: _measure(request, teachers))
    timings: dict[str, Any] = {}
    first = _calibration_samples if teachers else lambda spec: ()
    with preparing(
        request.source, request.features, request.views, decoders=request.decoders, strict=request.strict, first=first
    ) as source:
        for teacher in teachers:
            from pipeline.extraction.extract import extract

            if timing := extract(source, teacher):
                timings[teacher.provenance["name"]] = asdict(timing)
    return source.store, timings


def _on_cluster(request: CacheRequest) -> tuple[Store, dict[str, Any]]:
    """As `_in_this_process`, by Dask's workers; they alone load teachers."""
    from pipeline.extraction.cluster import (
        connected,
        describe_teachers,
        extract_on_cluster,
        measure_on_workers,
        needed_resources,
    )

    dataset, device = request.source.open(), request.options.device
    say_left_alone(dataset)
    spec = source_spec(dataset, request.source)
    asked = teacher_requests(request)
    with connected(request.scheduler, request.workers, device) as client:
        resources = needed_resources(client, device) if asked else {}
        described = describe_teachers(client, asked, spec.size, resources)
        for one, facts in zip(asked, described, strict=True):
            _say_where(one, facts.provenance)
        _check_disk(
            request,
            described,
            lambda: measure_on_workers(client, request.source, request.features, asked, described, resources),
        )
        store = Store.create(request.features, spec, on_wait=say)
        timings = extract_on_cluster(
            client, store, request.source, asked, described, request.views, resources, request.strict
        )
    return store, {name: asdict(timing) for name, timing in timings.items()}


def _check_disk(
    request: CacheRequest,
    teachers: Sequence[RunningTeacher] | Sequence[Described],
    measure: Callable[[], Mapping[str, TeacherSample]],
) -> None:
    """Refuse a disk that is too small. Where only the most that entropy coding can leave would not fit, what it does
    leave is measured first, as `sak plan` does.
    """
    amounts = planned_amounts(request, teachers)
    free = free_bytes(request.features)
    if free is not None and sum(part.needed_bytes for part in amounts) > free and _is_measurable(request, teachers):
        from pipeline.extraction.sampling import as_coded

        say("the disk does not hold the most that coding can leave; measuring what it does leave")
        amounts = as_coded(amounts, measure())
    needed_files = sum(part.pending_files for part in amounts)
    check_disk(request.features, sum(part.needed_bytes for part in amounts), WHAT, needed_files)


def _is_measurable(request: CacheRequest, teachers: Sequence[RunningTeacher] | Sequence[Described]) -> bool:
    """Whether a few rows tell what coding leaves: not where it hangs on a promise about tasks."""
    is_coded = any(get_codec(level.codec).coder is not None for teacher in teachers for level in teacher.levels)
    return is_coded and not request.options.promised


def _measure(request: CacheRequest, teachers: Sequence[RunningTeacher]) -> Mapping[str, TeacherSample]:
    from pipeline.extraction.sampling import measure_teachers

    return measure_teachers(request, source_spec(request.source.open(), request.source), teachers)


def _calibration_samples(spec: SourceSpec) -> list[int]:
    """The samples that are likely to calibrate teachers, so that they need not wait for the others."""
    from pipeline.extraction.extract import CALIBRATION_ROWS

    return [int(sample) for sample in calibration_order(spec.num_samples, spec.seed)[:CALIBRATION_ROWS]]


def teacher_requests(request: CacheRequest) -> list[TeacherRequest]:
    """The teachers asked for, their names checked."""
    if not request.teachers:
        return []
    from sak_core.teachers import check_teacher

    for name in request.teachers:
        if not is_own(name):
            check_teacher(name, request.options.allow_code)
    return [request.options.of(name) for name in request.teachers]


def start_teachers(request: CacheRequest, untrained: bool = False) -> list[RunningTeacher]:
    """The teachers of a request, built; `untrained` needs no weights and tells as much about sizes and speed."""
    asked = teacher_requests(request)
    if not asked:
        return []
    from pipeline.extraction.running import start_teacher

    spec = source_spec(request.source.open(), request.source)
    if request.options.probes:
        from pipeline.extraction.probed import check_asked

        check_asked(request.options.probes, spec, dict(request.options.promised))
    if untrained:
        # this project's own are built from their recipe or run, with the weights of these
        asked = [one if is_own(one.name) else replace(one, weights=None, random_weights=True) for one in asked]
    running = [_as_promised(request, start_teacher(teacher, spec.size)) for teacher in asked]
    for teacher in running:
        _refuse_finer_grid(teacher)
        _say_where(teacher.request, teacher.provenance)
        if teacher.request.prefix and not teacher.teacher.num_prefix:
            say(f"{teacher.request.name} has no class or register tokens: --prefix adds nothing to it")
        elif teacher.request.prefix and not teacher.teacher.has_class_token:
            say(f"{teacher.request.name} has no class token: --prefix keeps its {teacher.teacher.num_prefix} registers")
    return running


def _as_promised(request: CacheRequest, running: RunningTeacher) -> RunningTeacher:
    """The teacher with the token cosine that its part in the store was given for the same promise about tasks.

    A part that was made without this promise is refused: features that are there keep their codec.
    """
    from pipeline.extraction.running import with_fidelity
    from pipeline.probes.kept import promised_of

    store = existing_store(request.features, source_spec(request.source.open(), request.source))
    name, promised = running.provenance["name"], dict(request.options.promised)
    if not promised or store is None or name not in store.teachers:
        return running
    made = store.teacher(name).provenance
    if promised_of(made) != promised:
        have = ",".join(f"{task}={most:g}" for task, most in promised_of(made).items()) or made.get("fidelity", "none")
        asked = ",".join(f"{task}={most:g}" for task, most in promised.items())
        raise UserError(
            f"{name} in {store} was made with --fidelity {have}, not {asked}; ask for what it has, or take it out "
            "first (`sak drop`)"
        )
    return with_fidelity(running, made.get("fidelity"))


def _refuse_finer_grid(running: RunningTeacher) -> None:
    """Refuse a grid that a level's own cells would have to be repeated for."""
    grid, own = running.request.grid, running.teacher.spec.level_grids()
    for level, (h, w) in enumerate(own):
        if grid and (grid[0] > h or grid[1] > w):
            raise UserError(
                f"--grid {grid[0]}x{grid[1]}: level {level} of {running.request.name} has {h}x{w} cells, and a finer "
                f"grid would store them repeatedly; ask for {min(h for h, _ in own)}x{min(w for _, w in own)} or less, "
                "or leave --grid out"
            )


def _say_where(request: TeacherRequest, provenance: Mapping[str, Any]) -> None:
    """Name the wrapper and prefix under which a file's weights were found."""
    if where := provenance.get("notes", {}).get("weights_from"):
        say(f"{request.name}: weights of {request.weights} under {where!r}")


def planned_amounts(
    request: CacheRequest, teachers: Sequence[RunningTeacher] | Sequence[Described]
) -> list[PartAmount]:
    """What each part of the store will take, and how much of it is still to be written.

    Raises:
        SpecMismatch: the store has one of the teachers with other levels, grids or codec.
    """
    spec = source_spec(request.source.open(), request.source)
    store = existing_store(request.features, spec)
    for teacher in teachers:
        name = teacher.provenance["name"]
        if store is not None and name in store.teachers:
            stored = [level.to_dict() for level in store.teacher(name).levels]
            if difference := first_difference({"levels": stored}, {"levels": [lv.to_dict() for lv in teacher.levels]}):
                raise SpecMismatch(f"teacher {name} in {store}", *difference)
    return [
        source_amount(spec, store, request.views),
        *(teacher_amount(spec, store, t.provenance["name"], t.levels, request.views) for t in teachers),
    ]


def dry_run(request: CacheRequest) -> dict[str, Any]:
    """What `request` would write, JSON-able; nothing is prepared, run or written."""
    get_codec(request.options.codec)
    spec = source_spec(request.source.open(), request.source)
    # a hub is not asked for a trial, but a file is looked at as the run will
    amounts = planned_amounts(request, start_teachers(request, untrained=request.options.weights is None))
    for part in amounts:
        say(f"{part.part}: {part.pending_rows} of {part.rows} rows to write, {amount(part.pending_bytes)}")
    return summary(request, spec, amounts)


def summary(request: CacheRequest, spec: SourceSpec, amounts: Sequence[PartAmount]) -> dict[str, Any]:
    """What a run of `request` would write, beside what the disk has free, JSON-able."""
    return {
        "store": (as_place(request.features) / spec.store_name).shown,
        "rows": spec.num_samples * request.views,
        "views": request.views,
        "teachers": list(request.teachers),
        "parts": [asdict(part) for part in amounts],
        "pending_bytes": sum(part.pending_bytes for part in amounts),
        "margin_bytes": sum(part.margin_bytes for part in amounts),
        "free_bytes": free_bytes(request.features),
        "pending_files": sum(part.pending_files for part in amounts),
        "free_files": files_left(request.features),
    }
