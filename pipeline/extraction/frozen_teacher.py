"""This project's own stem or distilled student as a teacher, so that its frozen parts can be cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from pipeline import runs
from pipeline.errors import UserError
from pipeline.recipes.config import load_recipe, some_stages
from pipeline.recipes.frozen import PREFIXES, STEM, frozen_digest
from pipeline.runs import lineage
from sak_core.interfaces.teacher import Teacher, TeacherSpec, freeze, prefix_as_map
from sak_core.student.config import StudentConfig
from sak_core.student.decoder import to_map
from sak_core.student.network import StudentNetwork
from sak_core.student.stem import normalize


class OwnTeacher(Teacher):
    """A student of this project as a teacher: it sees pixels as in training, bit for bit.

    Args:
        name: as asked for.
        size: (H, W) of the views in px.
        blocks: a level each.
        weights: what they are.
    """

    def __init__(
        self,
        name: str,
        student: StudentNetwork,
        size: tuple[int, int],
        blocks: tuple[int, ...],
        weights: str,
        licence: str = "its weights' own",
    ) -> None:
        super().__init__(
            TeacherSpec(
                name=name,
                library="sak",
                model=student.config.stem.name,
                weights=weights,
                mean=(0.5, 0.5, 0.5),
                std=(0.5, 0.5, 0.5),
                interpolation="none",
                patch=student.stem.patch,
                input_size=size,
                grid=student.stem.grid(*size),
                widths=(student.stem.width,) * len(blocks),
                levels=blocks,
                licence=licence,
            )
        )
        self.student = student

    def normalised(self, pixels: Tensor) -> Tensor:
        """Views (B, H, W, 3) uint8 as the student takes them in training, (B, 3, H, W)."""
        return normalize(pixels)


class FrozenTeacher(OwnTeacher):
    """A student's frozen parts. Under `trains = "adapters"` every block's tokens x_0 .. x_depth, maps first, then
    prefix tokens; under "routers" the stem's tapped maps, then each path's, without prefix tokens.

    Args:
        student: whose parts.
        size: (H, W) of the views in px.
        kind: a key of sak_core.student.parts.TRAINS.
    """

    def __init__(self, name: str, student: StudentNetwork, size: tuple[int, int], kind: str) -> None:
        whole = kind == "adapters"
        blocks = tuple(range(student.stem.depth + 1)) if whole else student.levels * student.num_experts
        super().__init__(name, student, size, blocks, frozen_digest(student, kind))
        self.kind, self.num_prefix = kind, student.stem.num_prefix if whole else 0

    def features(self, images: Tensor) -> Sequence[Tensor]:
        """Maps (B, C, h, w), then prefix tokens (B, C, 1, P) where every block's are kept."""
        stem, grid = self.student.stem, self.spec.grid
        tokens = stem(images)
        if self.kind == "routers":
            experts = [self.student.stem_features(tokens), *self.student.path_features(tokens).values()]
            return [to_map(x.contiguous(), grid) for levels in experts for x in levels]
        maps = [to_map(x[:, stem.num_prefix :].contiguous(), grid) for x in tokens]
        prefixes = [prefix_as_map(x[:, : stem.num_prefix]) for x in tokens]
        return [*maps, *prefixes]


def build_frozen(name: str, size: tuple[int, int]) -> Teacher:
    """`stem:RECIPE`, `stem:RUN` or `student:RUN` for views of `size`.

    Raises:
        UserError: there is no such recipe or run, or it has no student.
    """
    prefix = next(p for p in PREFIXES if name.startswith(p))
    source = name.removeprefix(prefix)
    run = runs.finished_run(source, runs.RUNS)
    if run is not None:
        student = student_of_run(run, lineage.read(run), size)
    elif prefix == STEM:
        student = _of_recipe(source, size)
    else:
        raise UserError(f"{name}: no finished run {source} (nor below {runs.RUNS})")
    return freeze(FrozenTeacher(name, student, size, PREFIXES[prefix]))


def student_of_run(run: Path, made: lineage.Lineage, size: tuple[int, int]) -> StudentNetwork:
    """The student of a finished run for views of `size`, (H, W) px, its position embedding resampled.

    Args:
        made: the run's lineage.

    Raises:
        UserError: the run has no student.
    """
    if made.student is None:
        raise UserError(f"{run} has no student whose parts could be cached")
    student = student_of_size(StudentConfig.from_dict(made.student), size)
    runs.start_from(run, student, made.image_size)
    return student


def student_of_size(config: StudentConfig, size: tuple[int, int]) -> StudentNetwork:
    """A student of `config` but for views of `size`, (H, W) px, with random weights."""
    return StudentNetwork(replace(config, stem=replace(config.stem, image_size=size)))


def _of_recipe(name: str, size: tuple[int, int]) -> StudentNetwork:
    """The stem of a recipe before any training; teachers and tasks have no part in it."""
    from pipeline.recipes.arms import initialize, stem_of

    recipe = load_recipe(name, some_stages(name)[0])
    student = stem_of(recipe, size)
    initialize(recipe, student)
    return student
