"""What a teacher is: a frozen network that turns pixels into multi-level features, and its spec."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Size = tuple[int, int]


@dataclass(frozen=True)
class TeacherSpec:
    """The facts about a built teacher; what its features depend on besides the pixels.

    Attributes:
        name: the teacher's.
        library, model: where the architecture comes from, and its id there.
        weights: "sha256:<hex of the state>", or "random:<seed>" for an untrained one.
        mean, std: what pixels in [0, 1] are normalised with, RGB.
        interpolation: how views are resized to the input ("bilinear", "bicubic"; "none" if they never are).
        patch: px of the network's patch, or of a cell of its deepest level, as its library states it.
        input_size: (H, W) that the network sees, px, without padding.
        grid: (h, w) cells of the deepest level, covering exactly the view.
        widths, levels: channels, and index of the tapped block, a level; level 0 is the shallowest.
        grids: (h, w) a level, where they differ from `grid`; empty where all are equal.
        licence: of the weights.
    """

    name: str
    library: str
    model: str
    weights: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    patch: int
    input_size: Size
    grid: Size
    widths: tuple[int, ...]
    levels: tuple[int, ...]
    licence: str
    grids: tuple[Size, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.grids)) == 1:
            object.__setattr__(self, "grids", ())

    def level_grids(self) -> tuple[Size, ...]:
        """(h, w) of every level."""
        return self.grids or (self.grid,) * len(self.levels)

    @property
    def is_random(self) -> bool:
        """Whether the network was never trained."""
        return self.weights.startswith("random:")

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it, for a store's provenance."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


class Teacher(nn.Module, ABC):
    """A frozen network behind one contract; preprocessing is its own affair.

    Args:
        spec: its facts; input size, mean, std and interpolation of it are what `normalised` follows.

    Attributes:
        spec: its facts.
        native_size: (H, W) px that its weights were trained at, for lists; None where no one says. It runs at any.
        num_blocks: that its levels are of, so that one knows how deep they lie; None where no one says.
        weights_from: wrapper and prefix of names that its weights had in their file, dotted; "" where they had none.
    """

    num_prefix: int = 0
    """Prefix tokens (P) of a level that follow the maps, one (B, C, 1, P) a level, a class token first where the
    network has one; 0 where none are asked for or there are none."""
    has_class_token: bool = True
    """Whether the first prefix token is a class token; false for networks with nothing but registers."""
    mean: Tensor
    std: Tensor

    def __init__(self, spec: TeacherSpec) -> None:
        super().__init__()
        self.spec = spec
        self.native_size: Size | None = None
        self.num_blocks: int | None = None
        self.weights_from = ""
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Compute the features of a batch of views.

        Args:
            pixels: (B, H, W, 3) uint8 RGB, of the size the teacher was built for.

        Returns:
            One map (B, C, h, w) float32 a level, shallowest first: the blocks' outputs as they leave the
            block, without norm or neck; then, with `num_prefix`, a level's prefix tokens each, (B, C, 1, P).
        """
        return [level.float() for level in self.features(self.normalised(pixels))]

    @abstractmethod
    def features(self, images: Tensor) -> Sequence[Tensor]:
        """Map normalised images (B, 3, *spec.input_size) to what `forward` returns, in any float type."""

    def normalised(self, pixels: Tensor) -> Tensor:
        """Views (B, H, W, 3) uint8 as the network takes them: (B, 3, *spec.input_size), mean and std applied.

        Resizing keeps fractions of grey levels (no rounding to uint8) and averages over what it skips when it
        scales down. Scaling up is torch's plain interpolation: its antialiased bicubic has another kernel.
        """
        images = pixels.movedim(-1, 1).to(self.mean.dtype) / 255
        seen, wanted = tuple(images.shape[-2:]), self.spec.input_size
        if seen != wanted:
            images = F.interpolate(
                images,
                size=wanted,
                mode=self.spec.interpolation,
                align_corners=False,
                antialias=wanted[0] < seen[0] or wanted[1] < seen[1],
            )
        return (images - self.mean) / self.std


def prefix_as_map(tokens: Tensor) -> Tensor:
    """Prefix tokens (B, P, C) as a teacher gives them, (B, C, 1, P)."""
    return tokens.transpose(1, 2).unsqueeze(2)


def freeze(teacher: Teacher) -> Teacher:
    """`teacher` in evaluation mode, without gradients."""
    teacher.eval()
    teacher.requires_grad_(False)
    return teacher


def nearest_multiple(length: int, patch: int) -> int:
    """The positive multiple of `patch` nearest to `length`, px; a tie goes up.

    >>> nearest_multiple(384, 14), nearest_multiple(448, 16)
    (378, 448)
    """
    return max(1, (2 * length + patch) // (2 * patch)) * patch


def fit_to_patch(size: Size, patch: int) -> Size:
    """Each side of `size` at the nearest multiple of `patch`, px."""
    return nearest_multiple(size[0], patch), nearest_multiple(size[1], patch)
