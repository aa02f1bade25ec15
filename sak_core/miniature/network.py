"""The miniature teachers: three small networks of one architecture that ship with the package.

`mini-dino`, `mini-clip` and `mini-sam` differ only in what they were taught on rendered `rooms` scenes
(pipeline/miniatures holds the objectives, docs/miniatures.md the account). They stand in for the real
towers wherever those are too heavy: in the demo, in tests, in a first look at the method.

The network: a convolutional stem to stride 8, sine-cosine positions over the unit square, and four ViT
blocks, each with a depthwise convolution (conditional positions, arXiv 2102.10882) before attention and
MLP. The outputs of the four blocks are the four levels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sak_common.names import UnknownName, unknown
from sak_core.errors import TeacherUnavailable
from sak_core.interfaces.teacher import Teacher, TeacherSpec, fit_to_patch, freeze
from sak_core.weights.digests import state_digest
from sak_core.weights.prefixes import split_choice
from sak_core.weights.teacher_weights import choose_levels, found_in, seeded
from sak_core.weights.tensor_files import State, check_state

ARCHITECTURE_VERSION = 1
PATCH = 8
WIDTH = 128
NUM_BLOCKS = 4
WEIGHTS_DIR = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Miniature:
    """What tells one miniature from another, besides its weights."""

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    objective: str


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

# Each miniature normalises as its model does, so that code which mixes the three up is found out.
MINIATURES: dict[str, Miniature] = {
    "mini-dino": Miniature("mini-dino", *_IMAGENET, "masked prediction of patches' class and part histograms"),
    "mini-clip": Miniature("mini-clip", *_OPENAI, "contrast of phrases with the prompt vocabulary, and grounding"),
    "mini-sam": Miniature("mini-sam", *_IMAGENET, "point-prompted masks at three levels, and pixel affinity"),
}

STEM = Miniature("mini-vit", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "masked pixels")
"""The students' stem on `rooms`: no teacher, and another network, a ViT by timm's names."""

SHIPPED = {**MINIATURES, STEM.name: STEM}
"""All whose weights ship."""


def position_grid(height: int, width: int, channels: int) -> Tensor:
    """Sine-cosine positions over the unit square, (1, height * width, channels) float32.

    Coordinates are cell centres relative to the whole grid, so grids of any size share one scale.
    """
    frequencies = torch.pi * 2.0 ** torch.linspace(-1.0, 3.0, channels // 4)
    y = ((torch.arange(height) + 0.5) / height)[:, None] * frequencies
    x = ((torch.arange(width) + 0.5) / width)[:, None] * frequencies
    rows = torch.cat([y.sin(), y.cos()], dim=1)[:, None, :].expand(height, width, -1)
    columns = torch.cat([x.sin(), x.cos()], dim=1)[None, :, :].expand(height, width, -1)
    return torch.cat([rows, columns], dim=2).reshape(1, height * width, channels)


class Block(nn.Module):
    """Depthwise 3×3 convolution, self-attention and MLP, each with a residual; the last two after a norm."""

    def __init__(self, width: int = WIDTH, num_heads: int = 4, mlp_ratio: int = 3) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, mlp_ratio * width)
        self.fc2 = nn.Linear(mlp_ratio * width, width)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Map tokens (B, h * w, C) of a grid (h, w) to tokens of the same shape."""
        b, n, c = tokens.shape
        image = tokens.transpose(1, 2).reshape(b, c, *grid)
        tokens = tokens + self.depthwise(image).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm1(tokens)).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        tokens = tokens + self.proj(attended)
        hidden: Tensor = self.fc2(F.gelu(self.fc1(self.norm2(tokens))))
        return tokens + hidden


class MiniatureNet(nn.Module):
    """The network all miniature teachers share, 0.82 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 48, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(48),
            nn.GELU(),
            nn.Conv2d(48, 96, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(96),
            nn.GELU(),
            nn.Conv2d(96, WIDTH, 3, stride=2, padding=1),
        )
        self.mask_token = nn.Parameter(torch.zeros(WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(NUM_BLOCKS))
        self.apply(_initialise)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Compute the features of all blocks.

        Args:
            images: (B, 3, H, W) float32, normalised, H and W multiples of 8.
            mask: (B, h, w) bool, true where a patch is hidden (its stem features are replaced by the mask
                token); used in training only.

        Returns:
            One map (B, 128, H / 8, W / 8) a block, shallowest first.
        """
        x = self.stem(images)
        b, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        if mask is not None:
            tokens = torch.where(mask.flatten(1)[:, :, None], self.mask_token, tokens)
        tokens = tokens + 0.5 * position_grid(h, w, c).to(tokens)
        levels = []
        for block in self.blocks:
            tokens = block(tokens, (h, w))
            levels.append(tokens.transpose(1, 2).reshape(b, c, h, w))
        return levels


def _initialise(module: nn.Module) -> None:
    """ViT's usual start: truncated normals for linear layers, He for convolutions, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.04)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d) and module.groups == 1:
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class MiniatureTeacher(Teacher):
    """A miniature teacher on pixels of one size; computes in float32.

    Args:
        name: a key of `MINIATURES`.
        net: the network.
        weights: what identifies its weights in provenance, `sha256:...` or `random:<seed>`.
        size: (H, W) of the pixels it will be given; it works at the nearest multiples of 8, so that its grid
            covers the whole view.
        levels: which blocks' outputs to give, ascending.
    """

    def __init__(
        self, name: str, net: MiniatureNet, weights: str, size: tuple[int, int], levels: tuple[int, ...]
    ) -> None:
        row = MINIATURES[name]
        input_size = fit_to_patch(size, PATCH)
        super().__init__(
            TeacherSpec(
                name=name,
                library="sak",
                model=f"miniature-v{ARCHITECTURE_VERSION}",
                weights=weights,
                mean=row.mean,
                std=row.std,
                interpolation="bilinear",
                patch=PATCH,
                input_size=input_size,
                grid=(input_size[0] // PATCH, input_size[1] // PATCH),
                widths=(WIDTH,) * len(levels),
                levels=levels,
                licence="Apache-2.0",
            )
        )
        self.net = net

    def features(self, images: Tensor) -> list[Tensor]:
        """Map normalised images (B, 3, *spec.input_size) to one map (B, 128, h, w) a level."""
        every = self.net(images)
        return [every[level] for level in self.spec.levels]


def build_miniature(
    name: str,
    size: tuple[int, int],
    levels: Sequence[int] | None = None,
    weights: Path | None = None,
    random_weights: bool = False,
    seed: int = 0,
) -> MiniatureTeacher:
    """Build a miniature teacher with the weights that ship, those of a file, or random ones; arguments are those of
    `sak_core.teachers.build_teacher`.

    Raises:
        UnknownName: there is no such miniature teacher.
        BadTeacherOptions: a level that the network does not have, or levels out of order.
        TeacherUnavailable: the weights file is missing or does not fit the network.
    """
    if name not in MINIATURES:
        raise UnknownName(unknown("miniature teacher", name, MINIATURES))
    chosen = choose_levels(name, levels, NUM_BLOCKS)
    with seeded(seed):
        net = MiniatureNet()
    identity, weights_from = f"random:{seed}", ""
    if not random_weights:
        identity, weights_from = load_weights(net, weights or shipped_weights(name))
    teacher = MiniatureTeacher(name, net, identity, size, chosen)
    teacher.weights_from, teacher.num_blocks = weights_from, NUM_BLOCKS
    teacher.native_size = (96, 96)
    freeze(teacher)
    return teacher


def shipped_weights(name: str) -> Path:
    """Path of the weights of `name` that ship with the package."""
    return WEIGHTS_DIR / f"{name}.safetensors"


def load_weights(net: MiniatureNet, path: Path) -> tuple[str, str]:
    """Load a safetensors file into `net` (fp16 becomes float32) and return its `state_digest`, and the wrapper and
    prefix that its names had.

    Raises:
        TeacherUnavailable: the file is missing, unreadable or holds other tensors than the network.
    """
    wanted = {name: value for name, value in net.state_dict().items() if not name.endswith("num_batches_tracked")}

    def fit(state: State) -> State:
        check_state(wanted, state)
        return state

    if not split_choice(path)[0].is_file():
        raise TeacherUnavailable(f"no weights at {path}")
    found = found_in(path, fit)
    net.load_state_dict({k: v.float() for k, v in found.value.items()}, strict=False)
    return state_digest(found.value), found.where


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
