"""What a person asks of `sak cache` and `sak plan`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from pipeline.extraction.samples import DatasetRequest


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """How teachers run and how their levels are stored; what decides a feature's bytes ends up in the provenance.

    Attributes:
        codec: a name of cache.codecs.CODECS.
        fidelity: token cosine that is promised, in (0, 1); klt then finds the fewest bits.
        standardized: the fidelity is promised of standardized channels, too.
        predict_levels: code each level against the one below. prefix: class and register tokens, too.
        levels: block numbers; four evenly spaced when None.
        grid: (h, w) cells, area-averaged; the teacher's own when None.
        weights: a file. random_weights: run untrained. allow_code: let a teacher of a user's own module run.
        precision: fp32, bf16 or fp16 (autocast). threads: on the CPU; torch's own choice when None.
    """

    codec: str = "fp16"
    fidelity: float | None = None
    standardized: bool = False
    predict_levels: bool = False
    levels: tuple[int, ...] | None = None
    prefix: bool = False
    grid: tuple[int, int] | None = None
    weights: Path | None = None
    random_weights: bool = False
    allow_code: bool = False
    device: str = "auto"
    precision: str = "fp32"
    compile: bool = False
    batch_size: int = 16
    threads: int | None = None

    def of(self, name: str) -> TeacherRequest:
        """These options for the teacher `name`."""
        return TeacherRequest(name, **{field.name: getattr(self, field.name) for field in fields(TeacherOptions)})


@dataclass(frozen=True)
class TeacherRequest(TeacherOptions):
    """Which teacher, run how."""

    name: str


@dataclass(frozen=True)
class CacheRequest:
    """Everything `sak cache` was asked for."""

    source: DatasetRequest
    teachers: tuple[str, ...]
    views: int
    features: Path | str
    options: TeacherOptions = TeacherOptions()
    decoders: int | None = None
    strict: bool = False
    scheduler: str | None = None
    workers: int = 0
