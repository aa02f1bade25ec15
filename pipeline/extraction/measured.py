"""What a request comes to, by a run in small of its source and of each teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cache.format.manifest import teacher_part
from cache.format.spec import SourceSpec
from pipeline.console import say
from pipeline.extraction.amounts import PartAmount, coded
from pipeline.extraction.request import CacheRequest
from pipeline.extraction.running import RunningTeacher
from pipeline.extraction.samples import DatasetRequest, num_decoders
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
        say(f"{name}: measuring")
        sample = measure_one(teacher, request.source, request.features, spec.num_samples)
        say(f"{name}: measured on {sample.rows} rows")
        measured[teacher_part(name)] = sample
        teacher.teacher.to("cpu")
    return measured


def measure_one(
    teacher: RunningTeacher, source: DatasetRequest, features: Path | str, num_samples: int
) -> TeacherSample:
    """A teacher's sample, of a data set of `num_samples`, on the disk of `features`."""
    with sample_store(source, features, teacher.request.batch_size) as (store, _):
        rows, first_s = warmed_up(teacher, store, num_samples)
    with sample_store(source, features, rows) as (store, _):
        return measure_teacher(teacher, store, first_s)


def as_coded(amounts: Sequence[PartAmount], measured: Mapping[str, TeacherSample]) -> list[PartAmount]:
    """`amounts` with the bytes that entropy coding leaves of each teacher's part, by the samples of `measured`."""
    return [coded(part, measured[part.part].ratios) if part.part in measured else part for part in amounts]
