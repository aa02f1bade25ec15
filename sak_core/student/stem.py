"""The Teacher-Agnostic Stem: a ViT that gives its tokens before the first and after every block."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sak_common.names import UnknownName, unknown
from sak_core.noise import NoiseSource, draw_uniform
from sak_core.weights.positions import resample_positions


@dataclass(frozen=True)
class StemConfig:
    """Which ViT.

    Attributes:
        name: a timm name such as "vit_base_patch16_384", or "custom" for a ViT of the sizes below.
        image_size: (height, width) in px that the position embedding is made for; other sizes resample it at run time.
        patch_size, width, depth, heads: px, channels, blocks and heads of "custom", and of it alone.
        checkpointing: recompute activations in the backward pass; saves memory, changes no bit.
        class_token: False builds the ViT without one (and its position), as MLoRE's release has it.
        drop_path: how likely training leaves a block's branch out of a row (stochastic depth, Huang et al. 2016, arXiv
            1603.09382) at the last block; it grows evenly from 0 at the first.
    """

    name: str = "vit_base_patch16_384"
    image_size: tuple[int, int] = (384, 384)
    patch_size: int | None = None
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    checkpointing: bool = False
    class_token: bool = True
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("patch_size", "width", "depth", "heads")}
        missing = [name for name, size in sizes.items() if size is None]
        if self.name == "custom" and missing:
            raise ValueError(f"a custom stem needs {', '.join(sizes)}: there is no {' and no '.join(missing)}")
        if self.name != "custom" and len(missing) < len(sizes):
            raise ValueError(f"patch_size, width, depth and heads belong to name='custom', not to {self.name!r}")
        height, width = self.image_size
        object.__setattr__(self, "image_size", (height, width))

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        # what came later is left out where it is not used, so that a stem of before is described as before
        later = {"class_token": True, "drop_path": 0.0}
        values = {key: value for key, value in asdict(self).items() if key not in later or value != later[key]}
        return {**values, "image_size": list(self.image_size)}

    @staticmethod
    def from_dict(value: dict[str, Any]) -> "StemConfig":
        """The configuration that `to_dict` described."""
        return StemConfig(**{**value, "image_size": tuple(value["image_size"])})


def normalize(pixels: Tensor) -> Tensor:
    """uint8 pixels (B, H, W, 3) to the stem's input (B, 3, H, W): float32 with mean and std 0.5, as the
    AugReg ViTs have it.
    """
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1.0)


class Stem(nn.Module):
    """timm's ViT without its final norm and head.

    Attributes:
        width: channels C.
        depth: number of blocks.
        patch: side in px of what a token stands for.
        multiple: of which an image's sides must be, in px.
        num_prefix: class and register tokens.
    """

    def __init__(self, config: StemConfig) -> None:
        """Builds the ViT with random weights.

        Raises:
            ValueError: timm has no plain ViT of that name.
        """
        super().__init__()
        self.config = config
        self.vit = _build_vit(config)
        self.width: int = self.vit.embed_dim
        self.depth: int = len(self.vit.blocks)
        self.num_prefix: int = self.vit.num_prefix_tokens
        self.patch: int = self.vit.patch_embed.patch_size[0]
        self.multiple = self.patch
        self.has_class_token: bool = self.vit.cls_token is not None
        self._drops = [StochasticDepth() for _ in range(2 * self.depth if config.drop_path else 0)]
        for number, drop in enumerate(self._drops):
            drop.rate = config.drop_path * (number // 2) / max(self.depth - 1, 1)
            drop.name = f"stem/{number // 2}/{number % 2}"
            setattr(self.vit.blocks[number // 2], f"drop_path{number % 2 + 1}", drop)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Token grid (h, w) of an image of this size in px.

        Raises:
            ValueError: the patch does not divide it.
        """
        if height % self.patch or width % self.patch:
            raise ValueError(f"an image of {height}x{width} px is no multiple of the stem's patch of {self.patch} px")
        return height // self.patch, width // self.patch

    def forward(self, images: Tensor, noise: NoiseSource = None) -> list[Tensor]:
        """images (B, 3, H, W), normalised, to depth + 1 tensors (B, prefix + h·w, C): x_0, then x_{i+1} =
        block_i(x_i).

        Args:
            noise: where stochastic depth draws from in training.
        """
        for drop in self._drops:
            drop.noise = noise
        x = self._embed(images)
        tokens = [x]
        for block in self.vit.blocks:
            if self.config.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            tokens.append(x)
        return tokens

    def _embed(self, images: Tensor) -> Tensor:
        vit = self.vit
        grid = self.grid(*images.shape[2:])
        x = vit.patch_embed.norm(vit.patch_embed.proj(images).flatten(2).transpose(1, 2))
        prefix = [token.expand(x.shape[0], -1, -1) for token in (vit.cls_token, vit.reg_token) if token is not None]
        if vit.pos_embed is None:
            return vit.norm_pre(torch.cat([*prefix, x], dim=1))  # type: ignore[no-any-return]
        position = resample_positions(vit.pos_embed, vit.patch_embed.grid_size, grid)
        if vit.no_embed_class:
            x = torch.cat([*prefix, x + position], dim=1)
        else:
            x = torch.cat([*prefix, x], dim=1) + position
        return vit.norm_pre(x)  # type: ignore[no-any-return]


class StochasticDepth(nn.Module):
    """Leaves a branch out of some rows in training, and makes up for it in the others.

    Attributes:
        rate: how likely.
        name: tells its draws from others' of the same step.
        noise: where they come from.
    """

    rate: float = 0.0
    name: str = ""
    noise: NoiseSource = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, C) to the same shape."""
        if not self.training or not self.rate:
            return x
        kept = draw_uniform(self.noise, self.name, x[:, :1, :1]) >= self.rate
        return x * (kept.to(x.dtype) / (1 - self.rate))


def _build_vit(config: StemConfig) -> Any:
    import timm
    from timm.layers.patch_embed import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    vit: Any
    without_token: dict[str, Any] = {} if config.class_token else {"class_token": False, "global_pool": "avg"}
    if config.name == "custom":
        assert config.patch_size and config.width and config.depth and config.heads
        vit = VisionTransformer(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            num_classes=0,
            final_norm=False,
            **without_token,
        )
    else:
        try:
            vit = timm.create_model(config.name, img_size=config.image_size, num_classes=0, **without_token)
        except (RuntimeError, TypeError) as error:
            raise UnknownName(f"{unknown('timm ViT', config.name, timm.list_models('*vit*'))} ({error})") from error
    if type(vit) is not VisionTransformer or type(vit.patch_embed) is not PatchEmbed:
        raise ValueError(f"{config.name!r} is a {type(vit).__name__}, the stem needs timm's plain VisionTransformer")
    vit.norm = vit.fc_norm = nn.Identity()
    return vit
