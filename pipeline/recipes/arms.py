"""Arms: the systems a study compares. An arm is a row of configuration; the trainer is the same for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import nn

from cache.loading.batch import Batch
from cache.store import Store
from pipeline.console import say
from pipeline.errors import UserError
from pipeline.recipes.config import Recipe
from pipeline.recipes.frozen import frozen_part, student_input
from sak_common.errors import SakError
from sak_common.names import unknown
from sak_core.noise import NoiseSource
from sak_core.student.config import NUM_LEVELS, Depths, StudentConfig, match_levels
from sak_core.student.decoders import DECODERS, DecoderConfig
from sak_core.student.feature_model import FeatureModel
from sak_core.student.initial_weights import STAGE2_PARTS, load_stem, load_student
from sak_core.student.network import StudentNetwork, StudentOutput
from sak_core.student.pretrained import Student
from sak_core.student.stem import StemConfig
from sak_core.tasks import Task

TEACHER_PREFIX = "teacher:"
SINGLE_TASK = "single-task"
ORACLE = "oracle"


@dataclass(frozen=True)
class Arm:
    """One system.

    Attributes:
        distils: whether it learns from teachers' features, in stage 1 and (times alpha) in stage 2.
        paths: whether the student has an adapter path a teacher.
        frozen_features: whether cached teachers' features take the student's place under the heads; such an arm needs
            the teachers cached on the splits it is scored on, too.
        per_task: whether it is one model a task.
        derived: whether its scores follow from other arms', nothing is trained.
        decoder: the decoder of all tasks that makes the arm what it is.
    """

    name: str
    about: str
    distils: bool = False
    paths: bool = False
    frozen_features: bool = False
    per_task: bool = False
    derived: bool = False
    decoder: Literal["invpt", "mlore"] | None = None

    @property
    def takes_decoder(self) -> bool:
        """Whether its tasks may be decoded together: one student has levels for all of them."""
        return not (self.frozen_features or self.per_task or self.derived)


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm(SINGLE_TASK, "stem and one head, a student a task, no teachers", per_task=True),
        Arm("multi-task", "stem and heads, no teachers"),
        Arm("invpt", "stem and InvPT's decoder of all tasks, no teachers", decoder="invpt"),
        Arm("mlore", "stem and MLoRE's decoder of all tasks, no teachers", decoder="mlore"),
        Arm("teacher:<name>", "one teacher's frozen cached features under the same heads", frozen_features=True),
        Arm(ORACLE, "each task's best teacher:<name>, which a study picks", derived=True),
        Arm("teachers", "all teachers' frozen cached features through routers", frozen_features=True),
        Arm("many-to-one", "one representation, a projector a teacher and level", distils=True),
        Arm("sak", "stem, an adapter path a teacher, routers", distils=True, paths=True),
    )
}
"""All arms, one row each."""


def find_arm(name: str) -> Arm:
    """The arm called `name`; `teacher:mini-sam` is the row `teacher:<name>`.

    Raises:
        UserError: there is no such arm.
    """
    if name.startswith(TEACHER_PREFIX) and len(name) > len(TEACHER_PREFIX):
        return ARMS["teacher:<name>"]
    if name not in ARMS:
        raise UserError(unknown("arm", name, ARMS))
    return ARMS[name]


def teachers_read(recipe: Recipe) -> tuple[str, ...]:
    """The teachers whose cached features a run of this recipe reads in training.

    Raises:
        UserError: the arm needs teachers and has none, or has a decoder and can have none.
    """
    arm = find_arm(recipe.arm)
    decoder_of(recipe)
    if recipe.arm.startswith(TEACHER_PREFIX):
        return (recipe.arm.removeprefix(TEACHER_PREFIX),)
    # routers and heads have no part in the distillation loss: where they alone train, it would change nothing
    compares = recipe.stage == "distill" or (recipe.loss.alpha > 0 and recipe.trains != "routers")
    needed = arm.frozen_features or (arm.distils and compares)
    if (arm.distils or arm.frozen_features) and not recipe.teachers:
        raise UserError(f"arm {recipe.arm} needs teachers: name them in the recipe, teachers = [...]")
    return recipe.teachers if needed else ()


def features_read(recipe: Recipe) -> tuple[str, ...]:
    """The teachers whose cached features take the student's place, where the recipe's arm is of that kind."""
    return teachers_read(recipe) if find_arm(recipe.arm).frozen_features else ()


def decoder_of(recipe: Recipe) -> DecoderConfig | None:
    """What decodes all tasks of a recipe together; None where each has a head.

    Raises:
        UserError: the arm has no decoder or another one, or the decoder cannot have these sizes.
    """
    arm, options = find_arm(recipe.arm), recipe.student
    if options.decoder != "none" and not arm.takes_decoder:
        able = [row.name for row in ARMS.values() if row.takes_decoder]
        raise UserError(
            f"student.decoder = {options.decoder!r}: arm {recipe.arm} has no student that predicts all tasks; "
            f"a decoder of all tasks goes with {', '.join(able)}"
        )
    if arm.decoder and options.decoder not in ("none", arm.decoder):
        raise UserError(f"student.decoder = {options.decoder!r}: arm {recipe.arm} has its own; leave the decoder out")
    name = arm.decoder or options.decoder
    if name == "none":
        return None
    try:
        return DECODERS[name](**getattr(options, name).model_dump())
    except ValueError as error:
        raise UserError(f"student.{error}") from None


def parts_read(recipe: Recipe) -> tuple[str, ...]:
    """The cached parts that training reads beside pixels and labels: teachers, and frozen parts of its own."""
    frozen = frozen_part(recipe)
    return (*teachers_read(recipe), *([frozen] if frozen else []))


def class_tokens_read(recipe: Recipe) -> tuple[str, ...]:
    """The teachers whose cached class tokens a run of this recipe reads in training.

    Raises:
        UserError: class tokens are asked of others than the recipe's teachers, or have nothing to compare.
    """
    if not recipe.loss.class_tokens or not find_arm(recipe.arm).distils:
        return ()
    if recipe.loss.kind == "relational":
        raise UserError("loss.class_tokens: one token has no relations; choose loss.kind = 'cos+l1', 'cos' or 'l2'")
    for name in recipe.loss.class_tokens:
        if name not in recipe.teachers:
            raise UserError(f"loss.class_tokens: {unknown('teacher', name, recipe.teachers)}")
    return tuple(name for name in teachers_read(recipe) if name in recipe.loss.class_tokens)


def prefixes_read(recipe: Recipe) -> tuple[str, ...]:
    """The cached parts whose prefix tokens training reads: of teachers as targets, of a frozen stem as they are."""
    frozen = frozen_part(recipe)
    return (*class_tokens_read(recipe), *([frozen] if frozen and recipe.trains == "adapters" else []))


def starts_from_stage1(recipe: Recipe) -> bool:
    """Whether stage 2 of a recipe starts from a distilled run."""
    return find_arm(recipe.arm).distils and recipe.stage1 == "on"


def one_a_task(recipe: Recipe, tasks: Sequence[str]) -> dict[str, Recipe]:
    """What the students of an arm `per_task` train by, one a task."""
    singles = {}
    for task in tasks:
        weights = {name: weight for name, weight in recipe.loss.task_weights.items() if name == task}
        changes: dict[str, Any] = {
            "arm": "multi-task",
            "tasks": (task,),
            "loss": recipe.loss.model_copy(update={"task_weights": weights}),
        }
        if recipe.validation and recipe.validation.best_by in tasks:
            changes["validation"] = recipe.validation.model_copy(update={"best_by": task})
        singles[task] = recipe.model_copy(update=changes)
    return singles


def build_model(recipe: Recipe, store: Store, tasks: Sequence[Task]) -> nn.Module:
    """The model that a recipe's arm trains, with random weights that depend on the recipe's seed alone.

    `store` gives the image size, the teachers' widths and how deep their levels lie; `tasks` is () in stage 1.
    """
    built = teachers_built(recipe)
    widths, depths = {name: _widths(store, name) for name in built}, {name: _depths(store, name) for name in built}
    return model_of(recipe, store.spec.size, widths, tasks, depths, matches_of(recipe, store))


def check_decoder(recipe: Recipe, trained_on: Store, tasks: Sequence[Task], seen: Store | None = None) -> None:
    """Check that a recipe's decoder of all tasks fits the views.

    Args:
        trained_on: the store for whose views it is built.
        seen: a store whose views it is to see, too.

    Raises:
        UserError: it cannot be built for the ones, or, built for them, cannot see the others.
    """
    if decoder_of(recipe) is None or not tasks:
        return
    with torch.device("meta"):
        model = build_model(recipe, trained_on, tasks)
    fixed = model.fixed_size if isinstance(model, StudentNetwork) else None
    if fixed and seen and seen.spec.size != fixed:
        raise UserError(
            f"{seen.name} has views of {seen.spec.size[0]}x{seen.spec.size[1]} px, but arm {recipe.arm}'s decoder has "
            f"routers for the grid of {fixed[0]}x{fixed[1]} px, on which it trains, and takes no other: make both alike"
        )


def matches_of(recipe: Recipe, store: Store) -> dict[str, tuple[int, ...]]:
    """The student's levels that the levels of a teacher are compared with, by the recipe or the nearest in depth; only
    of teachers whose levels are not as many and matched one to one. Empty for arms that distil nothing.

    Raises:
        UserError: the recipe names other teachers or levels than there are.
    """
    if not find_arm(recipe.arm).distils:
        return {}
    given, ours = recipe.loss.match_levels or {}, range(len(recipe.student.levels or range(NUM_LEVELS)))
    for name in given:
        if name not in recipe.teachers:
            raise UserError(f"loss.match_levels: {unknown('teacher', name, recipe.teachers)}")
    found = {}
    for name in recipe.teachers:
        theirs = _depths(store, name)
        if name in given:
            matched = given[name]
            if len(matched) != len(theirs) or not set(matched) <= set(ours):
                raise UserError(
                    f"loss.match_levels.{name} = {list(matched)}: one of the student's levels 0..{ours[-1]} is "
                    f"expected for each of the {len(theirs)} levels in the cache"
                )
        elif len(theirs) == len(ours):
            continue
        else:
            with torch.device("meta"):
                matched = match_levels(theirs, stem_of(recipe, store.spec.size).depths)
        if matched != tuple(ours):
            found[name] = matched
    return found


def say_matches(matches: Mapping[str, tuple[int, ...]]) -> None:
    """Name the levels that a student's are compared with, where it is not each with its own."""
    for name, matched in matches.items():
        pairs = ", ".join(f"{theirs} with {ours}" for theirs, ours in enumerate(matched))
        say(f"{name}: its levels are compared with the student's by depth or as the recipe says: {pairs}")


def teachers_built(recipe: Recipe) -> tuple[str, ...]:
    """The teachers that a recipe's model has parts for."""
    return recipe.teachers if find_arm(recipe.arm).distils else teachers_read(recipe)


def model_of(
    recipe: Recipe,
    size: tuple[int, int],
    widths: Mapping[str, tuple[int, ...]],
    tasks: Sequence[Task],
    depths: Mapping[str, Depths] | None = None,
    matches: Mapping[str, tuple[int, ...]] | None = None,
) -> nn.Module:
    """As `build_model`, from the size (H, W) of the views in px and the widths, a level each, of `teachers_built`.

    Args:
        depths, matches: see `FeatureModel` and `StudentConfig`; no parameter's shape depends on them.

    Raises:
        UserError: the decoder of all tasks cannot be built.
    """
    arm, options = find_arm(recipe.arm), recipe.student
    torch.manual_seed(recipe.seed)
    if arm.frozen_features:
        return FeatureModel(widths, tuple(tasks), head=options.head, router=options.router, depths=depths)
    config = StudentConfig(
        stem=_stem_config(recipe, size),
        teachers=dict(widths),
        levels=options.levels,
        paths=arm.paths,
        adapter=options.adapter,
        aligner=options.aligner,
        class_tokens=tuple(name for name in recipe.teachers if name in recipe.loss.class_tokens) if arm.distils else (),
        router=options.router,
        head=options.head,
        tasks=tuple(tasks),
        matches=dict(matches or {}),
        decoder=decoder_of(recipe),
    )
    try:
        return StudentNetwork(config)
    except ValueError as error:
        raise UserError(f"the student of recipe {recipe.name} cannot be built: {error}") from None


def stem_of(recipe: Recipe, size: tuple[int, int]) -> StudentNetwork:
    """A student of nothing but the recipe's stem, for views of `size`, with the weights that `build_model` draws."""
    torch.manual_seed(recipe.seed)
    return StudentNetwork(StudentConfig(stem=_stem_config(recipe, size), levels=recipe.student.levels))


def _stem_config(recipe: Recipe, size: tuple[int, int]) -> StemConfig:
    options = recipe.student.stem.model_dump(exclude={"weights"})
    return StemConfig(image_size=size, checkpointing=recipe.student.checkpointing, **options)


def initialize(recipe: Recipe, model: nn.Module) -> None:
    """Load the weights that a recipe begins with, the stem's or a trained student's, into a model that has a stem.

    Raises:
        UserError: they are not to be had or do not fit.
    """
    if not isinstance(model, StudentNetwork):
        return
    if recipe.init:
        _go_on_from(recipe.init, model)
    elif source := recipe.student.stem.weights:
        try:
            where = load_stem(model.stem, source, model.final_norm if model.decoder else None)
        except (ValueError, OSError) as error:
            raise UserError(f"student.stem.weights = {source!r}: {error}") from error
        if where:
            say(f"stem: weights of {source} under {where!r}")


def _go_on_from(source: str, model: StudentNetwork) -> None:
    """Load a saved student's stem and paths; its routers, heads and decoder stay behind."""
    try:
        saved = Student.from_pretrained(source)
        kept = {name: value for name, value in saved.network.state_dict().items() if not name.startswith(STAGE2_PARTS)}
        load_student(model, kept, STAGE2_PARTS, saved.config.student.stem.image_size)
    except (SakError, ValueError, OSError) as error:
        raise UserError(f"init = {source!r}: {error}") from error


def run_model(recipe: Recipe, model: nn.Module, batch: Batch, noise: NoiseSource = None) -> StudentOutput:
    """What the arm's `model` makes of a batch: of its teachers' features where the arm is frozen, else of its pixels.

    Args:
        noise: where routers draw from in training.
    """
    if find_arm(recipe.arm).frozen_features:
        output: StudentOutput = model(batch.features, (batch.pixels.shape[1], batch.pixels.shape[2]), generator=noise)
    else:
        output = model(student_input(recipe, batch), generator=noise)
    return output


def _depths(store: Store, teacher: str) -> Depths:
    """Where a teacher's stored levels lie in it. Of how many blocks is noted where others than its own were asked for;
    its own end with the last block."""
    info = store.teacher(teacher)
    blocks = info.provenance["teacher"]["levels"]
    count = info.provenance.get("notes", {}).get("num_blocks", blocks[-1] + 1)
    return [Fraction(blocks[level.level] + 1, count) for level in info.maps]


def _widths(store: Store, teacher: str) -> tuple[int, ...]:
    return tuple(level.width for level in store.teacher(teacher).maps)
