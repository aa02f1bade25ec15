"""Teachers' frozen features under the student's heads: the arms `teacher:<name>` and `teachers`."""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from sak_core.heads import build_head
from sak_core.init import init_linear
from sak_core.noise import NoiseSource
from sak_core.router import Router, mix
from sak_core.student import StudentOutput
from sak_core.tasks import Task


class FeatureModel(nn.Module):
    """Normalises cached features, mixes teachers by the published router where there are several, and decodes them.

    A LayerNorm a teacher and level evens out scales; a linear layer follows where widths differ from the widest.
    All maps are resized to the finest grid among the teachers. The first teacher stands where the student has
    its stem: its tokens decide the router's weights.
    """

    def __init__(
        self,
        widths: Mapping[str, Sequence[int]],
        tasks: Sequence[Task],
        head: str = "sak",
        router: str = "mor",
    ) -> None:
        """widths: channels a level, by teacher. head, router: as in `StudentConfig`.

        Raises ValueError without teachers, or where their numbers of levels differ.
        """
        super().__init__()
        levels = {len(w) for w in widths.values()}
        if len(levels) != 1:
            raise ValueError(f"teachers need the same number of levels, at least one teacher: {dict(widths)}")
        self.num_levels = levels.pop()
        self.teachers = list(widths)
        self.width = max(max(w) for w in widths.values())
        self.inputs = nn.ModuleDict(
            {name: nn.ModuleList(self._input(w) for w in level_widths) for name, level_widths in widths.items()}
        )
        self.routers = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        for task in tasks:
            if router == "mor" and len(widths) > 1:
                self.routers[task.name] = nn.ModuleList(
                    Router(self.width, len(widths)) for _ in range(self.num_levels)
                )
            self.heads[task.name] = build_head(head, self.width, self.num_levels, task.channels)

    def _input(self, width: int) -> nn.Module:
        norm = nn.LayerNorm(width)
        return norm if width == self.width else nn.Sequential(norm, init_linear(nn.Linear(width, self.width)))

    def forward(
        self,
        features: Mapping[str, Sequence[Tensor]],
        image_size: tuple[int, int],
        *,
        generator: NoiseSource = None,
    ) -> StudentOutput:
        """Features, one (B, C, h, w) a level by teacher, to outputs (B, channels, H, W) by task."""
        sizes = [level.shape[2:] for name in self.teachers for level in features[name]]
        grid = (max(s[0] for s in sizes), max(s[1] for s in sizes))
        experts = [self._level(features, level, grid) for level in range(self.num_levels)]
        outputs: dict[str, Tensor] = {}
        weights: dict[str, list[Tensor]] = {}
        plain = [sum(level[1:], level[0]) for level in experts]
        for task, head in self.heads.items():
            mixed = plain
            if task in self.routers:
                routers = self.routers[task]
                assert isinstance(routers, nn.ModuleList)
                mixed, weights[task] = [], []
                for number, (router, level) in enumerate(zip(routers, experts, strict=True)):
                    w = router(level[0], generator, f"{task}/{number}")
                    mixed.append(mix(level, w))
                    weights[task].append(w.detach().mean(dim=2))
            maps = [x.unflatten(1, grid).permute(0, 3, 1, 2) for x in mixed]
            outputs[task] = head(maps, image_size)
        return StudentOutput(stem=[], aligned={}, outputs=outputs, router_weights=weights)

    def _level(
        self, features: Mapping[str, Sequence[Tensor]], level: int, grid: tuple[int, int]
    ) -> list[Tensor]:
        """One level of every teacher as tokens (B, h·w, width) on the common grid."""
        tokens = []
        for name in self.teachers:
            maps = features[name][level]
            if maps.shape[2:] != grid:
                maps = F.interpolate(maps, size=grid, mode="bilinear")
            inputs = self.inputs[name]
            assert isinstance(inputs, nn.ModuleList)
            tokens.append(inputs[level](maps.permute(0, 2, 3, 1).flatten(1, 2)))
        return tokens
