"""What publishing the base trio comes to, by `sak plan`'s own arithmetic: `python -m benchmarks.publishing`.

Prints the table of docs/sharing.md. Nothing is run and no weights are needed: bytes follow from samples, views, grids
and widths. Only what klt codes them to depends on the features; here it is taken for a sixth of fp16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from cache.format.spec import LabelSpec, LevelSpec, SourceSpec
from pipeline.api import TRAINING_VIEWS
from pipeline.console import amount, table
from pipeline.extraction.amounts import coded, source_amount, teacher_amount
from sak_core.datasets import DATASETS
from sak_core.tasks import KINDS
from sak_core.teachers import build_teacher

TRIO = ("dinov2", "clip", "sam")
CODECS = ("fp16", "int8", "int4", "klt")
KLT = 1 / 6
"""Of the bytes of fp16, at a token cosine of 0.995 (docs/codecs.md)."""
BYTES_PER_S = 100e6
PATCH = 16
"""Pixels that a cell of the coarser grid covers along each side."""


@dataclass(frozen=True)
class Published:
    """A published data set.

    Attributes:
        size: (H, W) of its views, px.
        splits: samples and views of each.
    """

    title: str
    row: str
    size: tuple[int, int]
    splits: tuple[tuple[int, int], ...]


DATA = (
    Published("NYUD-v2", "nyud", (448, 576), ((795, TRAINING_VIEWS), (654, 1))),
    Published("PASCAL-Context", "pascal_context", (512, 512), ((4998, TRAINING_VIEWS), (5105, 1))),
    Published("ImageNet-1k", "imagenet", (384, 384), ((1_281_167, TRAINING_VIEWS),)),
)


@cache
def shapes(teacher: str, size: tuple[int, int]) -> tuple[tuple[tuple[int, int], int], ...]:
    """Own grid and width of each of a teacher's levels."""
    with torch.device("meta"):
        spec = build_teacher(teacher, size, random_weights=True).spec
    return tuple(zip(spec.level_grids(), spec.widths, strict=True))


def levels(teacher: str, size: tuple[int, int], codec: str, grid: tuple[int, int] | None) -> list[LevelSpec]:
    """A teacher's levels as they would be stored.

    Args:
        grid: None is its own.
    """
    numbered = enumerate(shapes(teacher, size))
    return [LevelSpec(number, grid or own, width, codec) for number, (own, width) in numbered]


def specs(data: Published) -> Iterator[tuple[SourceSpec, int]]:
    """The source part of each split, and its views."""
    tasks = DATASETS[data.row].tasks
    kinds = {task.name: KINDS[task.kind] for task in (tasks() if tasks else ())}
    labels = {name: LabelSpec(kind.label_dtype.name, kind.label_channels) for name, kind in kinds.items()}
    for samples, views in data.splits:
        yield SourceSpec(data.row, "train", data.size, {}, 0, samples, "", labels), views


def pixel_bytes(data: Published) -> int:
    """Of pixels, labels and facts of all splits: what --without-pixels leaves out, but for a few bytes an image."""
    return sum(source_amount(spec, None, views).pending_bytes for spec, views in specs(data))


def feature_bytes(data: Published, codec: str, grid: tuple[int, int] | None, teachers: Sequence[str] = TRIO) -> int:
    """Of the teachers' features in all splits."""
    total = 0
    for teacher in teachers:
        stored = levels(teacher, data.size, codec, grid)
        # integers of klt are two bytes each before coding, as fp16's floats are
        ratios = {level.array: KLT if codec == "klt" else 1.0 for level in stored}
        parts = (teacher_amount(spec, None, teacher, stored, views) for spec, views in specs(data))
        total += sum(coded(part, ratios).pending_bytes for part in parts)
    return total


def cost(num_bytes: int) -> str:
    """Bytes, and how long they take at `BYTES_PER_S`."""
    hours = num_bytes / BYTES_PER_S / 3600
    return f"{amount(num_bytes)}, {hours:,.0f} h" if hours >= 10 else f"{amount(num_bytes)}, {hours:.2g} h"


def costs() -> str:
    """The table, as Markdown."""
    rows = []
    for data in DATA:
        height, width = data.size
        coarse = (height // PATCH, width // PATCH)
        for title, grid in (("own", None), (f"{coarse[0]}x{coarse[1]}", coarse)):
            features = [cost(feature_bytes(data, codec, grid)) for codec in CODECS]
            rows.append([data.title, title, *features, cost(pixel_bytes(data))])
    return table(["data set", "grid", *CODECS, "pixels and labels"], rows)


if __name__ == "__main__":
    print(costs())
