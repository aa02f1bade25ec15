"""The student: stem, adapter paths, aligners, routers and heads put together (SAK, arXiv 2410.14633)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sak_common.names import UnknownName, unknown
from sak_core.noise import NoiseSource
from sak_core.student.adapters import AdapterPath
from sak_core.student.config import StudentConfig, even_depths, match_levels, tapped_levels, teacher_widths
from sak_core.student.decoder import build_heads, build_routers, decode, decode_jointly, to_map
from sak_core.student.decoders import Decoded, JointDecoder
from sak_core.student.hierarchical_stem import AnyStem, build_stem
from sak_core.student.init import init_linear
from sak_core.student.stem import Stem

T = TypeVar("T")


@dataclass
class StudentOutput:
    """What a forward pass gives.

    Attributes:
        stem: the stem's tapped tokens as maps, one (B, C, h, w) a level.
        aligned: for each teacher one (B, teacher's width, h, w) for each of its levels, to be compared with its
            features.
        class_tokens: for each teacher that the configuration names one (B, teacher's width) a level of it, likewise.
        outputs: for each task the raw output (B, channels, H, W).
        router_weights: for each task one (B, E) a level, mean over positions, detached; experts are the stem, then the
            teachers. Empty without routers.
        initial, routes: what a decoder of all tasks gives beside outputs, see `sak_core.student.decoders.Decoded`.
    """

    stem: list[Tensor]
    aligned: dict[str, list[Tensor]]
    outputs: dict[str, Tensor]
    router_weights: dict[str, list[Tensor]]
    class_tokens: dict[str, list[Tensor]] = field(default_factory=dict)
    initial: dict[str, Tensor] = field(default_factory=dict)
    routes: list[Tensor] = field(default_factory=list)


@dataclass  # not frozen, as RowNoise
class StemTokens:
    """What a frozen stem gave for a batch, in place of images: x_0 .. x_depth, (B, prefix + h·w, C) each.

    Attributes:
        image_size: (H, W) in px of the images it saw.
    """

    tokens: Sequence[Tensor]
    image_size: tuple[int, int]


@dataclass  # not frozen, as RowNoise
class Experts:
    """What a frozen stem and its frozen paths gave: the stem, then each teacher's path, one (B, h·w, C) a level.

    Attributes:
        image_size: (H, W) in px of the images they saw.
    """

    experts: Sequence[Sequence[Tensor]]
    image_size: tuple[int, int]


class StudentNetwork(nn.Module):
    """Stem, adapter paths, aligners, routers and heads."""

    def __init__(self, config: StudentConfig) -> None:
        """Builds the student with initial weights drawn from torch's global generator.

        Raises:
            ValueError: levels or widths do not fit.
        """
        super().__init__()
        self.config = config
        self.stem = build_stem(config.stem)
        width = self.stem.width
        self.levels = tapped_levels(self.stem.depth, config.levels)
        self.paths = nn.ModuleDict()
        self.projector_norms = nn.ModuleDict()
        self.aligners = nn.ModuleDict()
        self.matches = self._matches()
        for teacher, widths in teacher_widths(config.teachers, len(self.levels)).items():
            if config.paths:
                self.paths[teacher] = build_path(config.adapter, self.stem, teacher, self.levels)
            else:
                self.projector_norms[teacher] = nn.ModuleList(nn.LayerNorm(width, eps=1e-5) for _ in widths)
            if config.aligner or not config.paths:
                self.aligners[teacher] = nn.ModuleList(init_linear(nn.Linear(width, w)) for w in widths)
            elif set(widths) != {width}:
                raise ValueError(f"{teacher} is {widths} wide, the stem {width}: set aligner=True to map between them")
        self.class_aligners = self._build_class_aligners()
        self.num_experts = 1 + len(self.paths)
        num_levels = len(self.levels)
        self.decoder = self._build_decoder()
        routed = None if self.decoder is None else self.decoder.own_levels
        self.routers = build_routers(config.router, config.tasks, num_levels, width, self.num_experts, routed)
        self.heads = nn.ModuleDict()
        if self.decoder is None:
            self.heads = build_heads(config.head, config.tasks, num_levels, width)
        else:
            self.final_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(
        self, images: Tensor | StemTokens | Experts, *, tasks: bool = True, generator: NoiseSource = None
    ) -> StudentOutput:
        """images (B, 3, H, W), normalised (sak_core.student.stem.normalize), H and W multiples of the patch; or what
        frozen parts gave for them, and then only the others run (from experts, `stem` and `aligned` come out empty).

        Args:
            tasks: False leaves routers, heads and decoder out.
            generator: where training noise is drawn from.
        """
        if isinstance(images, StemTokens):
            return self.from_tokens(images.tokens, images.image_size, tasks=tasks, generator=generator)
        if isinstance(images, Experts):
            decoded, weights = self.decode(images.experts, images.image_size, generator=generator)
            return StudentOutput([], {}, decoded.outputs, weights, {}, decoded.initial, decoded.routes)
        image_size = (images.shape[2], images.shape[3])
        return self.from_tokens(self.stem(images, generator), image_size, tasks=tasks, generator=generator)

    def from_tokens(
        self,
        tokens: Sequence[Tensor],
        image_size: tuple[int, int],
        *,
        tasks: bool = True,
        generator: NoiseSource = None,
    ) -> StudentOutput:
        """The rest of the forward pass, from the stem's tokens x_0 .. x_depth, (B, prefix + n, C) each."""
        grid = self.stem.grid(*image_size)
        # contiguous once here, or every task's router would copy it
        stem = [level.contiguous() for level in self.stem_features(tokens)]
        features = self.path_features(tokens, class_tokens=True)
        class_tokens = {
            name: features[name][len(self.levels) :] for name in self.config.class_tokens if name in features
        }
        features = {name: levels[: len(self.levels)] for name, levels in features.items()}
        decoded, weights = Decoded({}), dict[str, list[Tensor]]()
        if tasks and self.config.tasks:
            decoded, weights = self.decode([stem, *features.values()], image_size, generator=generator)
        return StudentOutput(
            stem=[to_map(x, grid) for x in stem],
            aligned=self.align(stem, features, grid),
            outputs=decoded.outputs,
            router_weights=weights,
            class_tokens=self.align_class_tokens(tokens, class_tokens),
            initial=decoded.initial,
            routes=decoded.routes,
        )

    def stem_features(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """The stem's tokens x_0 .. x_depth to those of the tapped blocks without prefix, one (B, n, C) a level."""
        return [tokens[block + 1][:, self.stem.num_prefix :] for block in self.levels]

    def path_features(self, tokens: Sequence[Tensor], *, class_tokens: bool = False) -> dict[str, list[Tensor]]:
        """The stem's tokens x_0 .. x_depth to every path's features, one (B, n, C) a level, by teacher.

        Args:
            class_tokens: whether the class tokens that the configuration asks for follow, one (B, 1, C) a level.
        """
        wants = {name: class_tokens and name in self.config.class_tokens for name in self.paths}
        if self.config.stem.checkpointing and torch.is_grad_enabled():
            return {
                name: checkpoint(path, tokens, wants[name], use_reentrant=False) for name, path in self.paths.items()
            }
        return {name: path(tokens, wants[name]) for name, path in self.paths.items()}

    def align_class_tokens(
        self, tokens: Sequence[Tensor], class_tokens: Mapping[str, Sequence[Tensor]]
    ) -> dict[str, list[Tensor]]:
        """The paths' class tokens, one (B, 1, C) a level, to (B, teacher's width), one a level of it, by teacher.

        Args:
            tokens: the stem's x_0 .. x_depth, of which the many-to-one student's projectors read the class token.
        """
        aligned: dict[str, list[Tensor]] = {}
        for teacher in self.config.class_tokens:
            levels: Sequence[Tensor]
            if teacher in self.paths:
                levels = self._matched(teacher, class_tokens[teacher])
            else:
                norms, blocks = self._list(self.projector_norms, teacher), self._matched(teacher, self.levels)
                levels = [norm(tokens[block + 1][:, :1]) for norm, block in zip(norms, blocks, strict=True)]
            linears = self._list(self.class_aligners, teacher)
            aligned[teacher] = [linear(x[:, 0]) for linear, x in zip(linears, levels, strict=True)]
        return aligned

    def _matches(self) -> dict[str, tuple[int, ...]]:
        """The student's level that each of a teacher's is compared with."""
        widths, ours = teacher_widths(self.config.teachers, len(self.levels)), len(self.levels)
        matches = {name: match_levels(even_depths(len(own)), self.depths) for name, own in widths.items()}
        for name, levels in self.config.matches.items():
            if name not in matches:
                raise UnknownName(f"matches: {unknown('teacher', name, matches)}")
            if len(levels) != len(widths[name]) or not all(0 <= level < ours for level in levels):
                raise ValueError(
                    f"matches of {name}, {list(levels)}: one of the student's levels 0..{ours - 1} is expected for "
                    f"each of the teacher's {len(widths[name])}"
                )
            matches[name] = tuple(levels)
        return matches

    @property
    def depths(self) -> tuple[Fraction, ...]:
        """Where its levels lie: the share of the stem's blocks up to each."""
        return tuple(Fraction(block + 1, self.stem.depth) for block in self.levels)

    def _matched(self, teacher: str, levels: Sequence[T]) -> list[T]:
        """Of something for each of the student's levels, what each of the teacher's is compared with."""
        return [levels[level] for level in self.matches[teacher]]

    def _build_decoder(self) -> JointDecoder | None:
        config = self.config
        if config.decoder is None or not config.tasks:
            return None
        grid = self.stem.grid(*config.stem.image_size)
        return config.decoder.build(config.tasks, self.stem.width, len(self.levels), grid)

    def _build_class_aligners(self) -> nn.ModuleDict:
        aligners = nn.ModuleDict()
        for teacher in self.config.class_tokens:
            if teacher not in self.config.teachers:
                raise UnknownName(f"class tokens: {unknown('teacher', teacher, self.config.teachers)}")
            if not self.stem.has_class_token:
                raise ValueError(f"stem {self.config.stem.name} has no class token to compare with {teacher}'s")
            widths = teacher_widths(self.config.teachers, len(self.levels))[teacher]
            aligners[teacher] = nn.ModuleList(init_linear(nn.Linear(self.stem.width, w)) for w in widths)
        return aligners

    def align(
        self, stem: Sequence[Tensor], features: Mapping[str, Sequence[Tensor]], grid: tuple[int, int]
    ) -> dict[str, list[Tensor]]:
        """Features, one (B, n, C) a level, to maps (B, teacher's width, h, w), one for each of its levels, by teacher.

        Args:
            stem: the tapped tokens without prefix; the many-to-one student's projectors read them.
        """
        aligned: dict[str, list[Tensor]] = {}
        for teacher in self.config.teachers:
            levels: Sequence[Tensor]
            if teacher in self.paths:
                levels = self._matched(teacher, features[teacher])
            else:
                norms, tapped = self._list(self.projector_norms, teacher), self._matched(teacher, stem)
                levels = [norm(x) for norm, x in zip(norms, tapped, strict=True)]
            if teacher in self.aligners:
                levels = [linear(x) for linear, x in zip(self._list(self.aligners, teacher), levels, strict=True)]
            aligned[teacher] = [to_map(x, grid) for x in levels]
        return aligned

    def decode(
        self,
        experts: Sequence[Sequence[Tensor]],
        image_size: tuple[int, int],
        *,
        generator: NoiseSource = None,
    ) -> tuple[Decoded, dict[str, list[Tensor]]]:
        """Experts (the stem, then the paths), each one (B, n, C) a level, to all tasks' outputs and router
        weights.
        """
        by_level = list(zip(*experts, strict=True))
        grid = self.stem.grid(*image_size)
        if self.decoder is not None:
            return decode_jointly(self.routers, self.decoder, self.final_norm, by_level, grid, image_size, generator)
        outputs, weights = decode(self.routers, self.heads, by_level, experts[0], grid, image_size, generator)
        return Decoded(outputs), weights

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(H, W) in px, the only size of images that it decodes; None where any multiple of the patch will do."""
        if self.decoder is None or self.decoder.grid is None:
            return None
        height, width = self.decoder.grid
        return height * self.stem.patch, width * self.stem.patch

    @staticmethod
    def _list(modules: nn.ModuleDict, name: str) -> nn.ModuleList:
        found = modules[name]
        assert isinstance(found, nn.ModuleList)
        return found


ADAPTERS = ("standard", "none", "lora")
"""What adapter paths are made of."""


def build_path(adapter: str, stem: AnyStem, teacher: str, levels: Sequence[int]) -> nn.Module:
    """A teacher's path beside `stem`.

    Raises:
        ValueError: the adapter is unknown, or the stem is no ViT.
    """
    if adapter not in ADAPTERS:
        raise UnknownName(unknown("adapter", adapter, ADAPTERS))
    if not isinstance(stem, Stem):
        raise ValueError(
            f"{stem.config.name} has no blocks of one width and grid, which adapter paths follow: "
            "it is for students without paths"
        )
    if adapter == "lora":
        # peft takes seconds to import
        from sak_core.student.lora import LoraPath

        return LoraPath(stem, teacher, levels)
    return AdapterPath(stem.width, stem.depth, levels, stem.num_prefix, adapts=adapter == "standard")
