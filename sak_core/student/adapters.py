"""Adapter paths: beside the shared stem, a light path for each teacher (SAK paper, section 3.2)."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from sak_core.student.init import init_linear


class Adapter(nn.Module):
    """A(x) = x + s · up(GELU(down(x))) with `down` C to C/4, `up` C/4 to C and a learned scalar s, initially 1.

    Args:
        width: channels C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = init_linear(nn.Linear(width, width // 4))
        self.up = init_linear(nn.Linear(width // 4, width))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to the same shape."""
        return torch.addcmul(x, self.up(nn.functional.gelu(self.down(x))), self.scale)


class AdapterPath(nn.Module):
    """One teacher's path: r = A_0(x_0), then after every block r <- A_{i+1}(r + x_{i+1}); LayerNorm where it
    is tapped.

    Args:
        width: channels C.
        depth: the stem's blocks.
        levels: tapped blocks, ascending.
        num_prefix: tokens before patches.
        adapts: False leaves the adapters out, A(x) = x, so that only the norm is the teacher's own.
    """

    def __init__(self, width: int, depth: int, levels: Sequence[int], num_prefix: int, *, adapts: bool = True) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.num_prefix = num_prefix
        self.adapters = nn.ModuleList(Adapter(width) if adapts else nn.Identity() for _ in range(depth + 1))
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-5) for _ in self.levels)

    def forward(self, tokens: Sequence[Tensor], class_token: bool = False) -> list[Tensor]:
        """The stem's tokens x_0 .. x_depth, (B, prefix + n, C) each, to one feature f (B, n, C) a level.

        Args:
            class_token: whether the path's class token follows, normed likewise, one (B, 1, C) a level.
        """
        return tapped(self._states(tokens), self.levels, self.norms, self.num_prefix, class_token)

    def _states(self, tokens: Sequence[Tensor]) -> Iterator[Tensor]:
        """r after each block."""
        r = self.adapters[0](tokens[0])
        for block, x in enumerate(tokens[1:]):
            r = self.adapters[block + 1](r + x)
            yield r


def tapped(
    states: Iterable[Tensor], levels: Sequence[int], norms: Iterable[nn.Module], num_prefix: int, class_token: bool
) -> list[Tensor]:
    """A path's `states` after each block, (B, prefix + n, C), normed at the tapped blocks `levels`: one (B, n, C) a
    level, and then, with `class_token`, one (B, 1, C) a level. What lies behind the last tapped block is not asked for.
    """
    features: list[Tensor] = []
    class_tokens: list[Tensor] = []
    at = dict(zip(levels, norms, strict=True))
    for block, state in enumerate(islice(states, levels[-1] + 1)):
        if norm := at.get(block):
            class_tokens += [norm(state[:, :1])] if class_token else []
            features.append(norm(state[:, num_prefix:]))
    return [*features, *class_tokens]
