"""A distilled student as a teacher of the next: its stem, or one of its paths, as what others are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from pipeline import runs
from pipeline.console import warn
from pipeline.errors import UserError
from pipeline.extraction.frozen_teacher import OwnTeacher, student_of_run, student_of_size
from pipeline.recipes.frozen import STUDENT
from pipeline.runs import lineage
from pipeline.runs.licences import strictest
from sak_common.names import unknown
from sak_core.interfaces.teacher import Teacher, freeze
from sak_core.student.decoder import to_map
from sak_core.student.initial_weights import STAGE2_PARTS, load_student
from sak_core.student.network import StudentNetwork
from sak_core.student.pretrained import STEM, Student
from sak_core.weights.digests import state_digest


@dataclass(frozen=True)
class Taught:
    """A student and what it learned from.

    Attributes:
        licences, random: its teachers' licences and those never trained.
    """

    student: StudentNetwork
    licences: tuple[tuple[str, str], ...]
    random: tuple[str, ...]


class StudentTeacher(OwnTeacher):
    """One output of a student, its maps at the student's levels."""

    def __init__(self, name: str, output: str, size: tuple[int, int], taught: Taught) -> None:
        """A student's output as a teacher.

        Args:
            name: with the output.
            output: "stem", or a teacher whose path gives it.
            size: (H, W) of the views in px.

        Raises:
            UserError: the student has no such output.
        """
        student = taught.student
        if output not in (known := (STEM, *student.paths)):
            raise UserError(f"{name}: {unknown('output of the student', output, known)}")
        parts = ("stem.",) if output == STEM else ("stem.", f"paths.{output}.")
        strict = dict.fromkeys(licence for _, licence in strictest(taught.licences).by)
        weights = state_digest({n: v for n, v in student.state_dict().items() if n.startswith(parts)})
        super().__init__(name, student, size, student.levels, weights, ", ".join(strict) or "its weights' own")
        self.output, self.num_blocks = output, student.stem.depth

    def features(self, images: Tensor) -> Sequence[Tensor]:
        """Maps (B, C, h, w), one a level."""
        student, tokens = self.student, self.student.stem(images)
        maps = student.stem_features(tokens) if self.output == STEM else student.paths[self.output](tokens, False)
        return [to_map(level.contiguous(), self.spec.grid) for level in maps]


def build_student_teacher(name: str, size: tuple[int, int]) -> Teacher:
    """`student:SOURCE#OUTPUT` for views of `size`: of a finished run, an exported folder, a hub id or one that ships.

    Says in red where the student learned from teachers that were never trained.

    Raises:
        UserError: it has no such output.
        ModelNotFound, or what else `Student.from_pretrained` raises: there is no such student.
    """
    source, _, output = name.removeprefix(STUDENT).partition("#")
    taught = find_student(source, size)
    if taught.random:
        warn(f"{source} learned from teachers with random weights: {', '.join(taught.random)}")
    return freeze(StudentTeacher(name, output, size, taught))


def find_student(source: str, size: tuple[int, int]) -> Taught:
    """The student `source` for views of `size`, (H, W) px; its position embedding is resampled where it had another.

    Raises:
        UserError, or what `Student.from_pretrained` raises: the run has no student, or there is no such student.
    """
    run = runs.finished_run(source, runs.RUNS)
    if run is None:
        found = Student.from_pretrained(source)
        student = student_of_size(found.network.config, size)
        load_student(student, found.network.state_dict(), STAGE2_PARTS, found.network.config.stem.image_size)
        return Taught(student, _licences(source, found.config.about), found.config.random_weights)
    made = lineage.read(run)
    student = student_of_run(run, made, size)
    licences = tuple((teacher.name, teacher.licence) for teacher in made.teachers)
    return Taught(student, licences, tuple(teacher.name for teacher in made.teachers if teacher.is_random))


def _licences(source: str, about: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The teachers' names and licences that a saved student's card is made from."""
    try:
        told = TypeAdapter(tuple[lineage.TeacherOrigin, ...]).validate_python(about.get("teachers", ()))
    except ValidationError as error:
        raise UserError(f"{source} does not say what it learned from: {error}") from None
    return tuple((teacher.name, teacher.licence) for teacher in told)
