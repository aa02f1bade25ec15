"""From experts to outputs: routers weigh the experts a task and level, a head a task decodes the mixtures."""

from collections.abc import Sequence

from torch import Tensor, nn

from sak_common.names import UnknownName, unknown
from sak_core.noise import NoiseSource
from sak_core.student.heads import build_head
from sak_core.student.router import Router, TokenRouter, mix
from sak_core.tasks import Task

ROUTERS: dict[str, type[Router] | None] = {"mor": Router, "token": TokenRouter, "none": None}
"""Kinds of routers: published, a weight a token, and the plain sum of all experts, the same for every task."""


def build_routers(kind: str, tasks: Sequence[Task], num_levels: int, width: int, num_experts: int) -> nn.ModuleDict:
    """A list of routers, one a level, for each task; empty for kind "none" and where there is one expert
    only.

    Raises ValueError for an unknown kind.
    """
    if kind not in ROUTERS:
        raise UnknownName(unknown("router", kind, ROUTERS))
    routers = nn.ModuleDict()
    router = ROUTERS[kind]
    if router is not None and num_experts > 1:
        for task in tasks:
            routers[task.name] = nn.ModuleList(router(width, num_experts) for _ in range(num_levels))
    return routers


def build_heads(head: str, tasks: Sequence[Task], num_levels: int, width: int) -> nn.ModuleDict:
    """A head of kind `head` for each task."""
    return nn.ModuleDict({task.name: build_head(head, width, num_levels, task.channels) for task in tasks})


def decode(
    routers: nn.ModuleDict,
    heads: nn.ModuleDict,
    experts: Sequence[Sequence[Tensor]],
    gates: Sequence[Tensor],
    grid: tuple[int, int],
    image_size: tuple[int, int],
    generator: NoiseSource = None,
) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
    """All tasks' raw outputs (B, channels, *image_size), and router weights (B, E), one a level, by task.

    experts: for each level the experts' tokens, (B, h·w, C) each. gates: for each level the tokens that
    routers read.
    grid: (h, w). generator: where routers draw their training noise from.
    Router weights are means over positions, detached; without routers there are none, and experts are summed.
    """
    outputs: dict[str, Tensor] = {}
    weights: dict[str, list[Tensor]] = {}
    plain = [] if len(routers) else [sum(level[1:], level[0]) for level in experts]
    for task, head in heads.items():
        mixed = plain
        if len(routers):
            mixed, weights[task] = [], []
            by_level = routers[task]
            assert isinstance(by_level, nn.ModuleList)
            for level, router in enumerate(by_level):
                w = router(gates[level], generator, f"{task}/{level}")
                mixed.append(mix(experts[level], w))
                weights[task].append(w.detach().mean(dim=2))
        outputs[task] = head([to_map(x, grid) for x in mixed], image_size)
    return outputs, weights


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h·w, C) to (B, C, h, w): a view, in channel-last memory."""
    return tokens.view(tokens.shape[0], *grid, -1).permute(0, 3, 1, 2)


def to_tokens(maps: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h·w, C); a view if the memory is channel-last."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)
