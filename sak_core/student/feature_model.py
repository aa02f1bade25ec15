"""Arms without a student: teachers' cached features under the routers and heads that a student has."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from sak_core.noise import NoiseSource
from sak_core.student.config import NUM_LEVELS, Depths, even_depths, match_levels, teacher_widths
from sak_core.student.decoder import build_heads, build_routers, decode, to_tokens
from sak_core.student.heads.base import resize
from sak_core.student.init import init_linear
from sak_core.student.network import StudentOutput
from sak_core.tasks import Task


class FeatureModel(nn.Module):
    """One teacher's features under the heads (`teacher:<name>`), or several teachers' through routers
    (`teachers`).

    For every teacher and level a LayerNorm, as the student's paths end in one (teachers' scales differ by
    orders of magnitude), then a linear layer to `width` channels if widths differ, then bilinear resizing to
    the finest grid among the maps. The teachers are the experts; routers read the mean of them, as there is
    no stem. The model has as many levels as the teacher with the most; of one with fewer, each takes the nearest in
    depth.
    """

    def __init__(
        self,
        teachers: Mapping[str, Sequence[int] | int],
        tasks: Sequence[Task],
        *,
        head: str = "sak",
        router: str = "mor",
        width: int | None = None,
        depths: Mapping[str, Depths] | None = None,
    ) -> None:
        """Routers and heads, with the published initialisation.

        Args:
            teachers: the features' width a teacher, or one a level.
            tasks: what to predict.
            head, router: as in StudentConfig.
            width: channels under the heads; None takes the widest teacher's.
            depths: where some or all teachers' levels lie, evenly spaced when absent.

        Raises:
            ValueError: there are no teachers.
        """
        super().__init__()
        if not teachers:
            raise ValueError("a feature model needs at least one teacher")
        num_levels = max((len(w) for w in teachers.values() if not isinstance(w, int)), default=NUM_LEVELS)
        own = teacher_widths(teachers, num_levels)
        at = {name: (depths or {}).get(name, even_depths(len(levels))) for name, levels in own.items()}
        finest = next(at[name] for name, levels in own.items() if len(levels) == num_levels)
        self.num_levels = {name: len(levels) for name, levels in own.items()}
        self.taken = {name: match_levels(finest, at[name]) for name in own}
        widths = {name: [own[name][level] for level in taken] for name, taken in self.taken.items()}
        self.width = max(w for level in widths.values() for w in level) if width is None else width
        self.norms = nn.ModuleDict()
        self.projectors = nn.ModuleDict()
        uniform = {w for level in widths.values() for w in level} == {self.width}
        for name, levels in widths.items():
            self.norms[name] = nn.ModuleList(nn.LayerNorm(w, eps=1e-5) for w in levels)
            self.projectors[name] = nn.ModuleList(
                nn.Identity() if uniform else init_linear(nn.Linear(w, self.width)) for w in levels
            )
        self.routers = build_routers(router, tasks, num_levels, self.width, len(widths))
        self.heads = build_heads(head, tasks, num_levels, self.width)

    def forward(
        self,
        features: Mapping[str, Sequence[Tensor]],
        image_size: tuple[int, int],
        *,
        generator: NoiseSource = None,
    ) -> StudentOutput:
        """Teachers' features to the tasks' outputs.

        Args:
            features: for each teacher a list of (B, C, h, w), shallowest first; more teachers than known are ignored.
            image_size: (H, W) in px.
            generator: where routers draw their training noise from.

        Raises:
            ValueError: a teacher has no features, or another number of levels; it is named.
        """
        for name in self.norms:
            if name not in features:
                raise ValueError(f"no features of teacher {name!r} in the batch, there are some of {sorted(features)}")
            if len(features[name]) != self.num_levels[name]:
                raise ValueError(f"{name}: {len(features[name])} levels in the batch, expected {self.num_levels[name]}")
        sizes = [level.shape[2:] for name in self.norms for level in features[name]]
        grid = max(((size[0], size[1]) for size in sizes), key=lambda size: size[0] * size[1])
        experts = [self._expert(name, features[name], grid) for name in self.norms]
        by_level = list(zip(*experts, strict=True))
        gates = [sum(level[1:], level[0]) / len(level) for level in by_level]
        outputs, weights = decode(self.routers, self.heads, by_level, gates, grid, image_size, generator)
        return StudentOutput(stem=[], aligned={}, outputs=outputs, router_weights=weights)

    def _expert(self, name: str, maps: Sequence[Tensor], grid: tuple[int, int]) -> list[Tensor]:
        norms, projectors = self.norms[name], self.projectors[name]
        assert isinstance(norms, nn.ModuleList) and isinstance(projectors, nn.ModuleList)
        tokens = []
        for level, norm, projector in zip(self.taken[name], norms, projectors, strict=True):
            projected = projector(norm(maps[level].permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
            tokens.append(to_tokens(resize(projected, grid)))
        return tokens
