"""What a person asks of `sak cache` and `sak plan`."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.extraction.samples import DatasetRequest


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """How teachers run and how their levels are stored; what decides a feature's bytes ends up in the provenance.

    Attributes:
        codec: a name of cache.codecs.CODECS.
        fidelity: token cosine that is promised, in (0, 1); klt then finds the fewest bits.
        standardized: the fidelity is promised of standardized channels, too.
        probes: "own", or a labelled cache: linear heads are fitted on raw features of its rows, and tell what tasks
            lose to the codec; none when None.
        promised: (task, the most that it may lose in its own unit), from which klt finds the fidelity.
        predict_levels: code each level against the one below.
        prefix: class and register tokens, too.
        levels: block numbers; four evenly spaced when None.
        grid: (h, w) cells, area-averaged; the teacher's own when None.
        weights: a file.
        random_weights: run untrained.
        allow_code: let a teacher of a user's own module run.
        precision: fp32, bf16 or fp16 (autocast).
        threads: on the CPU; torch's own choice when None.
    """

    codec: str = "fp16"
    fidelity: float | None = None
    standardized: bool = False
    probes: Path | str | None = None
    promised: tuple[tuple[str, float], ...] = ()
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


def teacher_options(
    fidelity: float | str | None = None, probes: Path | str | None = None, **options: Any
) -> TeacherOptions:
    """Options with a fidelity as people write it: a token cosine, or what tasks may lose, ``semseg=0.5,depth=0.01``.

    A promise about tasks takes the store's own labelled rows, unless `probes` says which.

    Raises:
        UserError: `fidelity` is neither.
    """
    cosine, promised = (None, ()) if fidelity is None else _parsed(str(fidelity))
    return TeacherOptions(fidelity=cosine, probes=probes or ("own" if promised else None), promised=promised, **options)


def _parsed(fidelity: str) -> tuple[float | None, tuple[tuple[str, float], ...]]:
    """The token cosine, or the tasks and the most that each may lose."""
    wrong = UserError(
        f"--fidelity {fidelity}: expected a token cosine between 0 and 1, such as 0.995, or the most that tasks may "
        "lose, such as semseg=0.5,depth=0.01"
    )
    pairs = [part.partition("=") for part in fidelity.split(",")]
    try:
        numbers = {name.strip(): float(most) for name, _, most in pairs} if "=" in fidelity else {"": float(fidelity)}
    except ValueError:
        raise wrong from None
    largest = math.inf if "=" in fidelity else 1
    if len(numbers) < len(pairs) or not all(0 < number < largest for number in numbers.values()):
        raise wrong
    return (None, tuple(sorted(numbers.items()))) if "=" in fidelity else (numbers[""], ())


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

    def __post_init__(self) -> None:
        if self.options.probes and (self.scheduler or self.workers):
            raise UserError(
                "probes are fitted in one process: leave --workers and --scheduler out (or find a promise's token "
                "cosine with --limit first, and give that)"
            )
