"""Which student: its stem, teachers, paths, routers and heads in words and numbers, as JSON can hold them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

from sak_common.names import find
from sak_core.student.decoders import DECODERS, DecoderConfig
from sak_core.student.stem import StemConfig
from sak_core.tasks import Task


@dataclass(frozen=True)
class StudentConfig:
    """Which student.

    Attributes:
        stem: its ViT.
        levels: the tapped blocks, ascending; None taps four, evenly spaced (2, 5, 8, 11 of 12).
        teachers: feature width a teacher, or a tuple of widths, one for each of its levels, of which it may have
            another number than the student taps blocks. May be empty.
        paths: True builds an adapter path a teacher. False is the many-to-one student: one shared representation; for
            every teacher and level a LayerNorm and a linear layer of its own map the stem's tapped tokens (without
            prefix) to the teacher's width, and heads see the stem's tokens alone, without a router.
        adapter: what a path is made of, a key of `ADAPTERS`: "standard" (published), "none" (the path only sums the
            stem's tokens), "lora" (sak_core.student.lora).
        aligner: with paths, whether a linear layer maps a path's feature to the teacher's width. Without it widths must
            agree.
        class_tokens: teachers whose class token is a further target: a linear layer a level maps the class token of the
            teacher's path (without paths, of the stem) to the teacher's width.
        router: "mor" (published), "token" (a weight a token) or "none" (plain sum of stem and paths).
        head: a key of sak_core.student.heads.HEADS.
        tasks: what to predict; () for distillation alone.
        decoder: what decodes all tasks at once, in place of a head a task; None for heads.
        matches: for some or all teachers the student's level (0 is the shallowest) that each of theirs is compared
            with; for the others `match_levels` of evenly spaced levels, the same one where there are as many.
    """

    stem: StemConfig = field(default_factory=StemConfig)
    teachers: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    levels: tuple[int, ...] | None = None
    paths: bool = True
    adapter: str = "standard"
    aligner: bool = True
    class_tokens: tuple[str, ...] = ()
    router: str = "mor"
    head: str = "sak"
    tasks: tuple[Task, ...] = ()
    matches: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    decoder: DecoderConfig | None = None

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError(f"task names must differ: {names}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "stem": self.stem.to_dict(),
            "teachers": {
                name: width if isinstance(width, int) else list(width) for name, width in self.teachers.items()
            },
            "levels": None if self.levels is None else list(self.levels),
            "paths": self.paths,
            "adapter": self.adapter,
            "aligner": self.aligner,
            "class_tokens": list(self.class_tokens),
            "router": self.router,
            "head": self.head,
            "tasks": [task.to_dict() for task in self.tasks],
            # left out where there are none, so that a student of before is described as before
            **({"matches": {name: list(levels) for name, levels in self.matches.items()}} if self.matches else {}),
            **({"decoder": _as_json(self.decoder)} if self.decoder else {}),
        }

    @staticmethod
    def from_dict(value: dict[str, Any]) -> "StudentConfig":
        """The configuration that `to_dict` described."""
        return StudentConfig(
            **{
                **value,
                "stem": StemConfig.from_dict(value["stem"]),
                "teachers": {k: v if isinstance(v, int) else tuple(v) for k, v in value["teachers"].items()},
                "levels": None if value["levels"] is None else tuple(value["levels"]),
                "class_tokens": tuple(value.get("class_tokens", ())),
                "tasks": tuple(Task.from_dict(task) for task in value["tasks"]),
                "matches": {name: tuple(levels) for name, levels in value.get("matches", {}).items()},
                "decoder": _decoder(value.get("decoder")),
            }
        )


def _as_json(decoder: DecoderConfig) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(decoder).items()}


def _decoder(value: Mapping[str, Any] | None) -> DecoderConfig | None:
    """The decoder that `_as_json` described."""
    if value is None:
        return None
    return find("decoder", str(value.get("kind")), DECODERS)(**value)


NUM_LEVELS = 4
"""Blocks that a student taps unless it is told which."""


def tapped_levels(depth: int, levels: Sequence[int] | None) -> tuple[int, ...]:
    """The tapped blocks: those given, or four evenly spaced ones up to the last.

    Raises:
        ValueError: there are none, or they do not ascend within a stem of `depth` blocks.
    """
    evenly = tuple(depth * (k + 1) // NUM_LEVELS - 1 for k in range(NUM_LEVELS))
    chosen = evenly if levels is None else tuple(levels)
    if not chosen or list(chosen) != sorted(set(chosen)) or not 0 <= chosen[0] <= chosen[-1] < depth:
        raise ValueError(f"levels {chosen} are not ascending block numbers of a stem of {depth} blocks")
    return chosen


def teacher_widths(teachers: Mapping[str, int | Sequence[int]], num_levels: int) -> dict[str, tuple[int, ...]]:
    """A width a level for every teacher; one number stands for `num_levels` alike.

    Raises:
        ValueError: there are none.
    """
    widths = {
        name: (width,) * num_levels if isinstance(width, int) else tuple(width) for name, width in teachers.items()
    }
    for name, own in widths.items():
        if not own:
            raise ValueError(f"{name} has no levels")
    return widths


Depths = Sequence[Fraction]
"""Where levels lie in a network, shallowest first: the share of its blocks up to each, in (0, 1]."""


def even_depths(num_levels: int) -> tuple[Fraction, ...]:
    """Of levels at equal distances down to the end: 1/4, 1/2, 3/4, 1 of four."""
    return tuple(Fraction(level + 1, num_levels) for level in range(num_levels))


def match_levels(theirs: Depths, ours: Depths) -> tuple[int, ...]:
    """The level of `ours` that lies nearest to each of `theirs`, the deeper one of two as near; of as many levels the
    same one, wherever they lie.

    >>> match_levels(even_depths(3), even_depths(4)), match_levels(even_depths(1), even_depths(4))
    ((0, 2, 3), (3,))
    """
    if len(theirs) == len(ours):
        return tuple(range(len(ours)))
    return tuple(min(range(len(ours)), key=lambda level: (abs(ours[level] - depth), -level)) for depth in theirs)
