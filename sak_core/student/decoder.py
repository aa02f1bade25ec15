"""From experts to outputs: routers weigh the experts a task and level; a head a task decodes the mixtures, or one
decoder all of them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sak_common.names import find
from sak_core.noise import NoiseSource
from sak_core.student.decoders import Decoded, JointDecoder, Levels
from sak_core.student.heads import build_head
from sak_core.student.router import Router, TokenRouter, mix
from sak_core.tasks import Task

ROUTERS: dict[str, type[Router] | None] = {"mor": Router, "token": TokenRouter, "none": None}
"""Kinds of routers: published, a weight a token, and the plain sum of all experts, the same for every task."""


def build_routers(
    kind: str,
    tasks: Sequence[Task],
    num_levels: int,
    width: int,
    num_experts: int,
    routed: Sequence[int] | None = None,
) -> nn.ModuleDict:
    """A list of routers, one a level, for each task; empty for kind "none" and where there is one expert
    only.

    Args:
        routed: the levels that have one, all when absent; the others have an `nn.Identity` that nothing calls.

    Raises:
        ValueError: the kind is unknown.
    """
    routers = nn.ModuleDict()
    router = find("router", kind, ROUTERS)
    if router is not None and num_experts > 1:
        for task in tasks:
            routers[task.name] = nn.ModuleList(
                router(width, num_experts) if routed is None or level in routed else nn.Identity()
                for level in range(num_levels)
            )
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

    Args:
        experts: for each level the experts' tokens, (B, h·w, C) each.
        gates: for each level the tokens that routers read.
        grid: (h, w).
        generator: where routers draw their training noise from. Router weights are means over positions, detached;
            without routers there are none, and experts are summed.
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


def decode_jointly(
    routers: nn.ModuleDict,
    decoder: JointDecoder,
    final_norm: nn.Module,
    experts: Sequence[Sequence[Tensor]],
    grid: tuple[int, int],
    image_size: tuple[int, int],
    generator: NoiseSource = None,
) -> tuple[Decoded, dict[str, list[Tensor]]]:
    """What a decoder makes of all tasks together, and router weights as from `decode`.

    Args:
        final_norm: of the last level's tokens.
        experts: as for `decode`, the stem first, whose tokens the routers read. Where there are routers, tasks have
            levels of their own where the decoder reads such; at the others all read the stem, and their weights say so.
            Without routers all read the sum of the experts.
    """
    weights: dict[str, list[Tensor]] = {}
    own: dict[str, list[Tensor]] = {}
    shared = [level[0] if len(routers) else sum(level[1:], level[0]) for level in experts]
    stem_alone = torch.eye(len(experts[0])).to(shared[0])[:1].expand(shared[0].shape[0], -1)

    def maps(tokens: Sequence[Tensor]) -> list[Tensor]:
        return [to_map(x, grid) for x in (*tokens[:-1], final_norm(tokens[-1]))]

    for task, by_level in routers.items():
        assert isinstance(by_level, nn.ModuleList)
        mixed, weights[task] = list(shared), []
        for level, router in enumerate(by_level):
            if level not in decoder.own_levels:
                weights[task].append(stem_alone)
                continue
            w = router(shared[level], generator, f"{task}/{level}")
            mixed[level] = mix(experts[level], w)
            weights[task].append(w.detach().mean(dim=2))
        own[task] = maps(mixed)
    return decoder(Levels(maps(shared), own), image_size, generator), weights


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h·w, C) to (B, C, h, w): a view, in channel-last memory."""
    return tokens.view(tokens.shape[0], *grid, -1).permute(0, 3, 1, 2)


def to_tokens(maps: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h·w, C); a view if the memory is channel-last."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)
