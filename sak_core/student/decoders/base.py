"""What every decoder is that sees all tasks at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from sak_core.noise import NoiseSource


@dataclass
class Levels:
    """What a decoder reads: maps (B, C, h, w), one a level, shallowest first, the last one normalised.

    Attributes:
        shared: the same for all tasks.
        own: for each task levels of its own, where routers gave it some; else empty.
    """

    shared: Sequence[Tensor]
    own: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)


@dataclass
class Decoded:
    """What a decoder gives.

    Attributes:
        outputs: for each task the raw output (B, channels, H, W).
        initial: likewise, of predictions on the way there that have losses of their own; empty where there are none.
        routes: how much of each of N experts was taken, one (B, T, N) a place where experts are weighed, tasks in
            order; empty without experts.
    """

    outputs: dict[str, Tensor]
    initial: dict[str, Tensor] = field(default_factory=dict)
    routes: list[Tensor] = field(default_factory=list)


class JointDecoder(nn.Module):
    """All tasks' outputs from one pass, in which tasks may see each other. Subclasses implement `forward`.

    Attributes:
        own_levels: at which levels it reads a task's own maps, where there are some; at the others it reads the shared
            ones.
        grid: (h, w), the only grid of tokens that it takes; None where it takes any.
    """

    own_levels: tuple[int, ...]
    grid: tuple[int, int] | None = None

    def forward(self, levels: Levels, image_size: tuple[int, int], noise: NoiseSource = None) -> Decoded:
        """All tasks' outputs, `Decoded`.

        Args:
            levels: of an image of `image_size` (H, W) px.
            noise: where training draws from.

        Raises:
            ValueError: it does not take this grid.
        """
        raise NotImplementedError
