"""InvPT's decoder (Ye and Xu, ECCV 2022, arXiv 2203.07997): attention over all tasks' tokens at growing resolution.

In comments T is the number of tasks, E and P are the sizes of `InvPTConfig`, D_0 = E + P, D_1 = D_0 // 2 and
D_2 = D_0 // 4 the widths of the three stages, whose maps are 1/2, 1 and 2 times the token grid (h, w).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sak_core.noise import NoiseSource
from sak_core.student.decoders.base import Decoded, JointDecoder, Levels
from sak_core.student.heads.base import resize
from sak_core.student.init import init_linear
from sak_core.tasks import Task

STAGES = 3
GRID_STEP = 4
"""Sides of a grid are multiples of it: keys are pooled to a quarter of the grid at every stage."""
WIDTH_STEP = 8
"""D_0 is a multiple of it, so that the third stage has two heads of whole channels."""
LEVELS = 4


@dataclass(frozen=True)
class InvPTConfig:
    """Sizes; the defaults are the published ones.

    Attributes:
        embed: E, channels of a task's features.
        pred: P, what its initial prediction adds to them.
        heads: of the attention.
    """

    kind: Literal["invpt"] = "invpt"
    embed: int = 512
    pred: int = 64
    heads: int = 2

    def __post_init__(self) -> None:
        if min(self.embed, self.pred, self.heads) < 1:
            raise ValueError(
                f"invpt: embed, pred and heads are at least 1, not {self.embed}, {self.pred}, {self.heads}"
            )
        width, step = self.embed + self.pred, math.lcm(WIDTH_STEP, 4 * self.heads)
        if width % step:
            raise ValueError(
                f"invpt: embed + pred = {self.embed} + {self.pred} = {width}, which must be a multiple of {step}; "
                f"pred = {self.pred + -width % step} fits"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """D_0, D_1, D_2."""
        whole = self.embed + self.pred
        return whole, whole // 2, whole // 4

    def build(self, tasks: Sequence[Task], width: int, num_levels: int, grid: tuple[int, int]) -> InvPT:
        """See `InvPT`."""
        return InvPT(self, tasks, width, num_levels)


class InvPT(JointDecoder):
    """The decoder. It reads levels 0, 1 and 3: as in the authors' release, no stage adds level 2.

    A grid whose sides are no multiples of 4, which the release cannot take, is resized to the next ones first.
    Where tasks have levels of their own, a task's features begin at its own level 3; the skips are the shared ones.

    Args:
        width: channels C of every level.
        num_levels: must be 4.

    Raises:
        ValueError: it is another number.
    """

    own_levels = (LEVELS - 1,)

    def __init__(self, config: InvPTConfig, tasks: Sequence[Task], width: int, num_levels: int) -> None:
        super().__init__()
        if num_levels != LEVELS:
            raise ValueError(f"invpt reads {LEVELS} levels of the stem, not {num_levels}")
        names = [task.name for task in tasks]
        whole = config.widths[0]
        # S_1 of level 1 and S_2 of level 0
        self.skips = nn.ModuleList(
            (
                nn.Conv2d(width, config.widths[1], 3, padding=1),
                nn.ConvTranspose2d(width, config.widths[2], 3, stride=2, padding=1, output_padding=1),
            )
        )
        # F_t = ReLU(BN(conv(ReLU(BN(conv(Y))))))
        self.preliminary = nn.ModuleDict(
            {name: nn.Sequential(_conv_norm(width, width), _conv_norm(width, config.embed)) for name in names}
        )
        self.initial = nn.ModuleDict({task.name: nn.Conv2d(config.embed, task.channels, 1) for task in tasks})
        self.mixing = nn.ModuleDict({task.name: nn.Conv2d(config.embed + task.channels, whole, 1) for task in tasks})
        self.stages = nn.ModuleList(Stage(config, names, stage) for stage in range(STAGES))
        self.norms = nn.ModuleList(NormOverTasks(names, width) for width in config.widths)
        self.widen = nn.ModuleList(
            nn.ModuleDict({name: nn.Conv2d(width, whole, 1) for name in names}) for width in config.widths[1:]
        )
        self.last = nn.ModuleDict({name: _output(whole) for name in names})
        self.heads = nn.ModuleDict({task.name: nn.Conv2d(whole, task.channels, 1) for task in tasks})

    def forward(self, levels: Levels, image_size: tuple[int, int], noise: NoiseSource = None) -> Decoded:
        """See `JointDecoder.forward`; `initial` holds every task's initial prediction. Nothing is drawn."""
        grid = fitting_grid((levels.shared[0].shape[2], levels.shared[0].shape[3]))
        skips = [self.skips[0](resize(levels.shared[1], grid)), self.skips[1](resize(levels.shared[0], grid))]
        begun, initial = [], {}
        for name in self.heads:
            deepest = resize(levels.own.get(name, levels.shared)[-1], grid)
            features = self.preliminary[name](resize(deepest, (grid[0] // 2, grid[1] // 2)))
            predicted = self.initial[name](features)
            initial[name] = resize(predicted, image_size)
            begun.append(self.mixing[name](torch.cat([features, predicted], dim=1)))

        maps, message = torch.stack(begun, dim=1), None
        quarter = (4 * grid[0], 4 * grid[1])
        sums: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            maps, message = stage(maps, skips[i - 1] if i else None, message)
            # G_{i,t}; the next stage goes on from `maps`
            normed = self.norms[i](maps)
            by_task = [normed[:, t] for t in range(len(self.heads))]
            if i:
                by_task = [conv(x) for conv, x in zip(self.widen[i - 1].values(), by_task, strict=True)]  # type: ignore[operator]
            resized = [resize(x, quarter) for x in by_task]
            sums = [a + b for a, b in zip(sums, resized, strict=True)] if sums else resized
        outputs = {
            name: resize(head(self.last[name](total)), image_size)
            for (name, head), total in zip(self.heads.items(), sums, strict=True)
        }
        return Decoded(outputs, initial)


class Stage(nn.Module):
    """UP-transformer stage i: grow the tasks' maps (i > 0), then one transformer block over all their tokens."""

    def __init__(self, config: InvPTConfig, tasks: Sequence[str], stage: int) -> None:
        super().__init__()
        width = config.widths[stage]
        self.grow = nn.ModuleDict({name: _grow(config.widths[stage - 1], width) for name in tasks if stage})
        self.norm1 = nn.LayerNorm(width)
        self.attention = TaskAttention(config, tasks, stage)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            init_linear(nn.Linear(width, 4 * width)), nn.GELU(), init_linear(nn.Linear(4 * width, width))
        )

    def forward(self, maps: Tensor, skip: Tensor | None, message: Tensor | None) -> tuple[Tensor, Tensor]:
        """Maps of all tasks (B, T, D_{i-1}, r, s), at i = 0 (B, T, D_0, r, s), to (B, T, D_i, r_i, s_i) and the scores
        that the next stage gets.

        Args:
            skip: S_i, (B, D_i, r_i, s_i).
            message: what stage i - 1 kept; None at i = 0.
        """
        if skip is not None:
            size = (2 * maps.shape[3], 2 * maps.shape[4])
            # Z_t <- U_{i,t}(Z_t) + S_i
            grown = [grow(resize(maps[:, t], size)) + skip for t, grow in enumerate(self.grow.values())]
            maps = torch.stack(grown, dim=1)
        x = maps.movedim(2, -1)
        attended, scores = self.attention(self.norm1(x).movedim(-1, 2), message)
        x = x + attended.movedim(2, -1)
        x = x + self.mlp(self.norm2(x))
        return x.movedim(-1, 2), scores


class TaskAttention(nn.Module):
    """Attention of all tasks' positions to all tasks' pooled positions, told by the stage before what it looked at."""

    def __init__(self, config: InvPTConfig, tasks: Sequence[str], stage: int) -> None:
        super().__init__()
        width = config.widths[stage]
        self.heads, self.pool = config.heads, 2 ** (stage + 1)
        self.queries = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Conv2d(width, width, 3, stride=2, padding=1, groups=width, bias=False), nn.BatchNorm2d(width)
                )
                for name in tasks
            }
        )
        self.q, self.k, self.v, self.out = (init_linear(nn.Linear(width, width)) for _ in range(4))
        self.fuse = nn.Conv2d(2 * self.heads, self.heads, 1) if stage else None

    def forward(self, maps: Tensor, message: Tensor | None) -> tuple[Tensor, Tensor]:
        """Normalised maps (B, T, D, r, s) to what is added to them, and the scores R (B, heads, T·r/2, s/2, keys).

        Args:
            message: R of the stage before, None at the first.
        """
        batch, num_tasks, width, *size = maps.shape
        asked = torch.stack([query(maps[:, t]) for t, query in enumerate(self.queries.values())], dim=1)
        pooled = F.avg_pool2d(maps.flatten(0, 1), self.pool).reshape(batch, num_tasks, width, size[0] // self.pool, -1)
        q, k, v = self.q(_tokens(asked)), self.k(_tokens(pooled)), self.v(_tokens(pooled))
        q, k, v = (x.reshape(batch, -1, self.heads, width // self.heads).transpose(1, 2) for x in (q, k, v))
        # R = Q K^T · D^(-1/2): the whole width is under the root, not a head's
        scores = q @ k.transpose(2, 3) * width**-0.5
        grid = (asked.shape[3], asked.shape[4])
        if message is not None and self.fuse is not None:
            # R'_a = b_a + Σ_j w_{a,j} R_j + Σ_j w_{a,2+j} M_j
            scores = self.fuse(torch.cat([scores, _enlarged(message, num_tasks, grid)], dim=1))
        attended = (scores.softmax(3) @ v).transpose(1, 2).flatten(2)
        out = self.out(attended).transpose(1, 2).reshape(batch, width, num_tasks, *grid).transpose(1, 2)
        return resize(out.flatten(0, 1), (size[0], size[1])).reshape(maps.shape), scores


class NormOverTasks(nn.Module):
    """LayerNorm over all tasks' channels at each position; weights lie by task, so that no order can mix them up."""

    def __init__(self, tasks: Sequence[str], width: int) -> None:
        super().__init__()
        self.of = nn.ModuleDict({name: nn.LayerNorm(width) for name in tasks})

    def forward(self, maps: Tensor) -> Tensor:
        """(B, T, D, r, s) to the same shape."""
        num_tasks, width = maps.shape[1], maps.shape[2]
        weight, bias = (torch.cat([getattr(norm, name) for norm in self.of.values()]) for name in ("weight", "bias"))
        x = F.layer_norm(maps.movedim((1, 2), (3, 4)).flatten(3), (num_tasks * width,), weight, bias)
        return x.reshape(*x.shape[:3], num_tasks, width).movedim((3, 4), (1, 2))


def fitting_grid(grid: tuple[int, int]) -> tuple[int, int]:
    """The grid (h, w) itself where both sides are multiples of 4, else with the next ones."""
    return grid[0] + -grid[0] % GRID_STEP, grid[1] + -grid[1] % GRID_STEP


def _enlarged(message: Tensor, num_tasks: int, grid: tuple[int, int]) -> Tensor:
    """Scores (B, heads, T·r·s, keys) of positions at half of `grid` to (B, heads, T·grid, keys): for each key a map."""
    batch, heads, _, keys = message.shape
    maps = message.reshape(batch * heads * num_tasks, grid[0] // 2, grid[1] // 2, keys).movedim(3, 1)
    return resize(maps, grid).movedim(1, 3).reshape(batch, heads, -1, keys)


def _tokens(maps: Tensor) -> Tensor:
    """(B, T, D, r, s) to (B, T·r·s, D), task after task."""
    return maps.movedim(2, -1).flatten(1, 3)


def _conv_norm(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


def _grow(width: int, out: int) -> nn.Sequential:
    """U after its resizing: dilated convolutions."""
    layers: list[nn.Module] = []
    for channels in (width, out):
        layers += [nn.Conv2d(channels, out, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers)


def _output(width: int) -> nn.Sequential:
    conv = nn.Conv2d(width, width, 3, padding=1)
    nn.init.trunc_normal_(conv.weight, std=0.02)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())
