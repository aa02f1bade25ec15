"""What a request comes to, by a run in small of its source and of each teacher."""

from __future__ import annotations

from collections.abc import Sequence

from cache.spec import SourceSpec
from pipeline.console import say
from pipeline.extraction.amounts import PartAmount, coded
from pipeline.extraction.prepare import source_spec
from pipeline.extraction.request import CacheRequest
from pipeline.extraction.running import RunningTeacher
from pipeline.extraction.samples import num_decoders
from pipeline.extraction.sampling import (
    SourceSample,
    TeacherSample,
    measure_teacher,
    sample_store,
    source_rows,
    warmed_up,
)


def measure_source(request: CacheRequest, spec: SourceSpec) -> SourceSample:
    """Decode, draw and write some samples as the run will."""
    decoders = num_decoders(request.decoders)
    rows = source_rows(spec, request.views, decoders)
    with sample_store(request.source, request.features, rows, request.views, decoders) as (_, sample):
        return sample


def measure_teachers(
    request: CacheRequest, spec: SourceSpec, teachers: Sequence[RunningTeacher]
) -> dict[str, TeacherSample]:
    """Each teacher's sample by the name of its part in the store."""
    measured: dict[str, TeacherSample] = {}
    for teacher in teachers:
        name = teacher.provenance["name"]
        with sample_store(request.source, request.features, request.run["batch_size"]) as (store, _):
            rows, first_s = warmed_up(teacher, store, spec.num_samples)
        say(f"{name}: measured on {rows} rows")
        with sample_store(request.source, request.features, rows) as (store, _):
            measured[f"teachers/{name}"] = measure_teacher(teacher, store, first_s)
        teacher.teacher.to("cpu")
    return measured


def measure_coded(
    request: CacheRequest, teachers: Sequence[RunningTeacher], amounts: Sequence[PartAmount]
) -> list[PartAmount]:
    """`amounts` with the bytes that entropy coding leaves of each teacher's part."""
    spec = source_spec(request.source.open(), request.source)
    measured = measure_teachers(request, spec, teachers)
    return [coded(part, measured[part.part].ratios) if part.part in measured else part for part in amounts]
