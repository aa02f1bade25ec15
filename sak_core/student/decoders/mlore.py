"""MLoRE's decoder (Yang et al., CVPR 2024, arXiv 2403.17749): mixtures of low-rank experts that tasks share.

In comments D is the decoder's width and N the number of experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sak_core.noise import NoiseSource, draw_normal
from sak_core.student.decoders.base import Decoded, JointDecoder, Levels
from sak_core.student.heads.base import resize
from sak_core.tasks import Task

NARROWEST = 4
"""Routers work at a quarter of the width."""


@dataclass(frozen=True)
class MLoREConfig:
    """Sizes and routing; the defaults are the published ones of ViT-B.

    Attributes:
        width: D.
        ranks: of the experts, one each.
        task_rank: of a task's own low-rank convolution.
        top_k: experts that an image keeps.
        pre_softmax: whether the others are left out before the softmax (published on NYUD-v2), or after it, so that
            weights need not sum to 1 (PASCAL-Context).
    """

    kind: Literal["mlore"] = "mlore"
    width: int = 640
    ranks: tuple[int, ...] = tuple(range(16, 129, 8))
    task_rank: int = 64
    top_k: int = 9
    pre_softmax: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranks", tuple(self.ranks))
        if self.width < NARROWEST:
            raise ValueError(f"mlore: width is at least {NARROWEST}, not {self.width}")
        if len(self.ranks) < 2 or min(*self.ranks, self.task_rank) < 1:
            raise ValueError(
                f"mlore: ranks = {self.ranks}, task_rank = {self.task_rank}: at least two experts are needed, "
                "each of a rank of at least 1, as task_rank is"
            )
        if not 1 <= self.top_k <= len(self.ranks):
            raise ValueError(
                f"mlore: top_k = {self.top_k}, but there are {len(self.ranks)} experts to keep 1 or more of"
            )

    def build(self, tasks: Sequence[Task], width: int, num_levels: int, grid: tuple[int, int]) -> MLoRE:
        """See `MLoRE`."""
        return MLoRE(self, tasks, width, num_levels, grid)


class MLoRE(JointDecoder):
    """The decoder: two blocks a level, a fusion of the levels and a head for each task.

    Its routers hold a linear layer over the grid's positions, so it takes that grid alone.

    Args:
        width: channels C of every level.
        grid: (h, w) of the levels.
    """

    def __init__(
        self, config: MLoREConfig, tasks: Sequence[Task], width: int, num_levels: int, grid: tuple[int, int]
    ) -> None:
        super().__init__()
        names, inner = [task.name for task in tasks], config.width
        self.own_levels, self.grid = tuple(range(num_levels)), grid
        self.enter = nn.ModuleList(nn.Conv2d(width, inner, 1) for _ in range(num_levels))
        self.first, self.second = (
            nn.ModuleList(Block(config, names, grid[0] * grid[1]) for _ in range(num_levels)) for _ in range(2)
        )
        self.masks = nn.ModuleDict({name: _mask(inner, num_levels) for name in names})
        self.last = nn.ModuleDict({name: _output(inner) for name in names})
        self.heads = nn.ModuleDict({task.name: nn.Conv2d(inner, task.channels, 1) for task in tasks})

    def forward(self, levels: Levels, image_size: tuple[int, int], noise: NoiseSource = None) -> Decoded:
        """See `JointDecoder.forward`; `routes` holds the experts' weights, one a block: first, second of each level."""
        found = (levels.shared[0].shape[2], levels.shared[0].shape[3])
        if found != self.grid and self.grid is not None:
            raise ValueError(
                f"mlore: its routers were built for a grid of {self.grid[0]}x{self.grid[1]} tokens and take no other; "
                f"this image has {found[0]}x{found[1]}"
            )
        by_task: dict[str, list[Tensor]] = {name: [] for name in self.heads}
        routes: list[Tensor] = []
        for level, blocks in enumerate(zip(self.first, self.second, strict=True)):
            shared = None if levels.own else self.enter[level](levels.shared[level])
            taken: list[list[Tensor]] = [[], []]
            for name, maps in by_task.items():
                x = self.enter[level](levels.own[name][level]) if shared is None else shared
                for number, block in enumerate(blocks):
                    x, weights = block(x, name, noise, f"mlore/{number}/{level}")
                    taken[number].append(weights)
                maps.append(x)
            routes += [torch.stack(weights, dim=1) for weights in taken]
        outputs: dict[str, Tensor] = {}
        for name, maps in by_task.items():
            fused = self.fuse(name, maps)
            outputs[name] = resize(self.heads[name](self.last[name](fused)), image_size)
        return Decoded(outputs, routes=routes)

    def fuse(self, task: str, maps: Sequence[Tensor]) -> Tensor:
        """A task's maps (B, D, h, w), one a level, to their weighted sum at each position, (B, D, 4·h, 4·w)."""
        masks = self.masks[task](torch.cat(list(maps), dim=1)).softmax(1)
        fused = sum((masks[:, level, None] * x for level, x in enumerate(maps)), torch.zeros_like(maps[0]))
        return resize(fused, (4 * maps[0].shape[2], 4 * maps[0].shape[3]))


class Block(nn.Module):
    """A mixture of the experts, a low-rank convolution of the task's own, and a full one that all tasks share."""

    def __init__(self, config: MLoREConfig, tasks: Sequence[str], positions: int) -> None:
        super().__init__()
        width = config.width
        self.enter = nn.ModuleDict({name: nn.Conv2d(width, width, 1) for name in tasks})
        self.routers = nn.ModuleDict({name: ExpertRouter(config, positions) for name in tasks})
        self.experts = nn.ModuleList(LowRank(width, rank) for rank in config.ranks)
        self.own = nn.ModuleDict({name: LowRank(width, config.task_rank) for name in tasks})
        self.shared = nn.Conv2d(width, width, 3, padding=1)
        self.mixture_norms = nn.ModuleDict({name: nn.BatchNorm2d(width) for name in tasks})
        self.norms = nn.ModuleDict({name: nn.BatchNorm2d(width) for name in tasks})
        self.leave = nn.ModuleDict({name: nn.Conv2d(width, width, 1) for name in tasks})

    def forward(self, x: Tensor, task: str, noise: NoiseSource, name: str) -> tuple[Tensor, Tensor]:
        """(B, D, h, w) to the same shape, and the experts' weights (B, N).

        Args:
            name: of this block's draws.
        """
        a = self.enter[task](x)
        weights, share = self.routers[task](a, noise, f"{name}/{task}")
        # y = BN(e) + m · own(a) + shared(stop-gradient(a))
        y = self.mixture_norms[task](self.mixture(a, weights))
        y = y + share[:, :, None, None] * self.own[task](a) + self.shared(a.detach())
        return self.leave[task](F.gelu(self.norms[task](y))), weights

    def mixture(self, a: Tensor, weights: Tensor) -> Tensor:
        """e = Σ_j p_j · expert_j(a), (B, D, h, w): all experts as one convolution, as each is linear."""
        down, up = ([getattr(expert, part) for expert in self.experts] for part in ("down", "up"))
        ranks = [conv.out_channels for conv in down]
        hidden = F.conv2d(a, torch.cat([c.weight for c in down]), torch.cat([c.bias for c in down]), padding=1)
        weights = weights.to(hidden.dtype)
        scaled = (
            hidden * torch.cat([weights[:, j, None].expand(-1, r) for j, r in enumerate(ranks)], 1)[..., None, None]
        )
        biases = weights @ torch.stack([c.bias for c in up]).to(hidden.dtype)
        return F.conv2d(scaled, torch.cat([c.weight for c in up], dim=1)) + biases[:, :, None, None]


class LowRank(nn.Module):
    """A 3x3 convolution to `rank` channels and a 1x1 one back, nothing between."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, rank, 3, padding=1)
        self.up = nn.Conv2d(rank, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to the same shape."""
        return self.up(self.down(x))  # type: ignore[no-any-return]


class ExpertRouter(nn.Module):
    """How much of each expert an image takes, and of the task's own convolution: from channels and from positions.

    Args:
        positions: h·w of the only grid that it takes.
    """

    def __init__(self, config: MLoREConfig, positions: int) -> None:
        super().__init__()
        width, quarter = config.width, config.width // 4
        self.config = config
        self.channels = nn.Conv2d(width, quarter, 1)
        self.channels_norm = nn.LayerNorm(quarter)
        self.channels_out = nn.Conv2d(quarter, quarter, 1)
        self.positions = nn.Linear(positions, 1)
        self.positions_norm = nn.LayerNorm(width)
        self.positions_out = nn.Conv2d(width, quarter, 1)
        self.gates = nn.Conv2d(2 * quarter, 2 * len(config.ranks) + 1, 1)

    def forward(self, a: Tensor, noise: NoiseSource, name: str) -> tuple[Tensor, Tensor]:
        """(B, D, h, w) to the weights p (B, N), float32 or wider, and m (B, 1)."""
        first = self.channels_norm(self.channels(a).movedim(1, 3)).movedim(3, 1)
        first = self.channels_out(F.gelu(first)).mean((2, 3), keepdim=True)
        second = F.gelu(self.positions_norm(self.positions(a.flatten(2))[:, :, 0]))
        second = self.positions_out(second[:, :, None, None])
        gates = self.gates(torch.cat([first, second], dim=1))[:, :, 0, 0]
        count = len(self.config.ranks)
        # half precision cannot hold what a softmax over few of many needs
        logits, spread = (x if x.dtype == torch.float64 else x.float() for x in gates[:, : 2 * count].chunk(2, dim=1))
        if self.training:
            # g <- g + s · N(0, 1), of either sign
            logits = logits + spread * draw_normal(noise, name, logits)
        return self.keep(logits), gates[:, 2 * count :]

    def keep(self, logits: Tensor) -> Tensor:
        """Logits (B, N) to weights, all but the `top_k` largest 0."""
        if self.config.pre_softmax:
            return logits.masked_fill(self._dropped(logits), float("-inf")).softmax(1)
        weights = logits.softmax(1)
        return weights.masked_fill(self._dropped(weights), 0.0)

    def _dropped(self, values: Tensor) -> Tensor:
        kept = values.topk(self.config.top_k, dim=1).indices
        return torch.ones_like(values, dtype=torch.bool).scatter(1, kept, False)


def _mask(width: int, num_levels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(num_levels * width, width, 1),
        nn.BatchNorm2d(width),
        nn.GELU(),
        nn.Conv2d(width, num_levels, 3, padding=1),
    )


def _output(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.GELU())
