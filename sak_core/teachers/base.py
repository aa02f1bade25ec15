"""What a teacher is to this project: pixels in, one feature map a level out, and facts that identify it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn


class TeacherUnavailable(Exception):
    """A teacher cannot be built here: no weights, no network, a file that does not fit. The message says what to do."""


@dataclass(frozen=True)
class TeacherSpec:
    """What identifies a teacher's features; stored as provenance.

    weights: `sha256:<digest>` or `random:<seed>`. mean, std: of pixels in [0, 1]. patch: px a cell.
    input_size: (H, W) the tower runs at, px. grid: (h, w) cells that cover the view. widths: channels a level.
    levels: block indices, shallowest first. versions: of the libraries that compute it.
    """

    name: str
    library: str
    model: str
    weights: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    patch: int
    input_size: tuple[int, int]
    grid: tuple[int, int]
    widths: tuple[int, ...]
    levels: tuple[int, ...]
    licence: str
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """The grid of every level."""
        return (self.grid,) * len(self.levels)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


class Teacher(nn.Module):
    """A frozen network. `forward` takes uint8 pixels (B, H, W, 3) and gives one float32 (B, C, h, w) a level.

    Resizing, padding and normalisation happen inside, with the teacher's own mean and std.
    """

    spec: TeacherSpec

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """uint8 (B, H, W, 3) to float32 (B, C, h, w) a level, shallowest first."""
        raise NotImplementedError
