"""A stem of stages that shrink as they deepen, a ConvNeXt or a Swin: each stage's map as tokens of one grid."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sak_common.names import UnknownName, unknown
from sak_core.noise import NoiseSource
from sak_core.student.init import init_linear
from sak_core.student.stem import Stem, StemConfig

REDUCTIONS = (4, 8, 16, 32)
"""Image pixels a side of a map's pixel, of every stage."""
STRIDE = 16
"""Of the grid of tokens, in px: that of the plain ViTs that teach."""


class HierarchicalStem(nn.Module):
    """timm's ConvNeXt or Swin without its final norm and head, as `Stem` gives its tokens.

    A stage counts as a block. Its map is brought to the grid of 16 px (averaged where it is finer, bilinear where it
    is coarser) and, through a LayerNorm and a linear layer of its own, to the width of the stage on that grid.
    Normalises pixels by the mean and standard deviation that timm names for its weights.

    Attributes:
        width, depth, num_prefix, patch: as `Stem`.
        multiple: of which an image's sides must be, in px.
    """

    has_class_token = False
    num_prefix = 0
    patch = STRIDE
    multiple = REDUCTIONS[-1]

    def __init__(self, config: StemConfig) -> None:
        """Builds the model with random weights.

        Raises:
            ValueError: there are options that only a ViT has.
        """
        super().__init__()
        if not config.class_token or config.drop_path or config.checkpointing:
            raise ValueError(f"{config.name!r} is no ViT: class_token, drop_path and checkpointing do not apply to it")
        self.config = config
        self.backbone = _build(config)
        widths = [int(stage["num_chs"]) for stage in self.backbone.feature_info]
        self.width: int = widths[REDUCTIONS.index(STRIDE)]
        self.depth = len(widths)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for width in widths)
        self.projections = nn.ModuleList(init_linear(nn.Linear(width, self.width)) for width in widths)
        mean, std = (torch.tensor(self.backbone.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        # from the ViTs' mean and std of 0.5, which `normalize` applied
        self.register_buffer("scale", 0.5 / std, persistent=False)
        self.register_buffer("shift", (0.5 - mean) / std, persistent=False)
        self.scale: Tensor
        self.shift: Tensor

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Token grid (h, w) of an image of this size in px.

        Raises:
            ValueError: 32 does not divide it.
        """
        if height % self.multiple or width % self.multiple:
            raise ValueError(
                f"an image of {height}x{width} px is no multiple of {self.multiple} px, as {self.config.name} needs"
            )
        return height // STRIDE, width // STRIDE

    def forward(self, images: Tensor, noise: NoiseSource = None) -> list[Tensor]:
        """images (B, 3, H, W), normalised as for a ViT, to depth + 1 tensors (B, h·w, C): of the first stage twice
        (what enters it has no map that timm's models share), then of each other stage.

        Args:
            noise: not drawn from.
        """
        grid = self.grid(images.shape[2], images.shape[3])
        maps = self.backbone.forward_intermediates(
            images * self.scale + self.shift, norm=False, output_fmt="NCHW", intermediates_only=True
        )
        tokens = [
            projection(norm(_resized(x, grid).flatten(2).transpose(1, 2)))
            for x, norm, projection in zip(maps, self.norms, self.projections, strict=True)
        ]
        return [tokens[0], *tokens]


def _resized(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """A map (B, C, h, w) on another grid: means of whole cells where it is finer, bilinear where it is coarser."""
    factor = x.shape[2] // grid[0]
    if factor > 1:
        return F.avg_pool2d(x, factor)
    return x if factor == 1 else F.interpolate(x, size=grid, mode="bilinear", align_corners=False)


AnyStem = Stem | HierarchicalStem


def build_stem(config: StemConfig) -> AnyStem:
    """The stem of that name, with random weights.

    Raises:
        ValueError: timm has no such stem, or the options do not fit.
    """
    return HierarchicalStem(config) if _is_hierarchical(config.name) else Stem(config)


def _is_hierarchical(name: str) -> bool:
    """Whether timm's model of that name is one that this stem is made of."""
    return name.startswith(("convnext", "swin"))


def _build(config: StemConfig) -> Any:
    import timm
    from timm.models.convnext import ConvNeXt
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    sized: dict[str, Any] = {}
    if config.name.startswith("swin"):
        sized = {"img_size": config.image_size, "strict_img_size": False}
    try:
        model: Any = timm.create_model(config.name, num_classes=0, **sized)
    except (RuntimeError, TypeError) as error:
        names = [*timm.list_models("convnext*"), *timm.list_models("swin*")]
        raise UnknownName(f"{unknown('timm model', config.name, names)} ({error})") from error
    if not isinstance(model, (ConvNeXt, SwinTransformer, SwinTransformerV2)):
        raise ValueError(f"{config.name!r} is a {type(model).__name__}, expected timm's ConvNeXt or Swin")
    reductions = tuple(stage["reduction"] for stage in model.feature_info)
    if reductions != REDUCTIONS:
        raise ValueError(f"{config.name!r} has stages that shrink by {reductions}, expected {REDUCTIONS}")
    # what a student does not use would have no gradient, which several processes do not allow
    model.prune_intermediate_layers(list(range(len(REDUCTIONS))), prune_norm=True, prune_head=True)
    return model
