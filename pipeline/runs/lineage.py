"""What a finished run's model is and what it was made of: `model.json` in the run's folder.

Written while the caches are at hand, so that a run can be exported and used where they are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer
from torch import nn

from cache.codecs.fidelity import Fidelity
from cache.joined import shares
from cache.store import Store
from pipeline import runs
from pipeline.console import is_silent
from pipeline.errors import UserError
from pipeline.probes.kept import kept_losses
from pipeline.recipes.config import Recipe
from pipeline.recipes.stores import are_random, understood
from pipeline.recipes.strict import Strict
from sak_core.student.network import StudentNetwork


class ProbedFeatures(Strict):
    """What caching a teacher's features costs.

    Attributes:
        cosine: the lowest token cosine of a level, plain or with the mean removed.
        losses: by task what its probe loses, `pipeline.probes.loss.Loss.to_dict`.
    """

    codec: str
    cosine: float
    losses: dict[str, dict[str, Any]]


class Origin(Strict):
    """Written without what is None: as it was before there were probes, or caches on the hub."""

    @model_serializer(mode="wrap")
    def _without_nothing(self, as_it_is: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in as_it_is(self).items() if value is not None}


class TeacherOrigin(Origin):
    """A teacher whose features the model learned from.

    Attributes:
        weights: "sha256:..." or "random:<seed>".
        licence: theirs.
        probed: where its cache has probes.
        read_at: where its features lie on the hub, with the commit, where that is another place than the data's.
    """

    name: str
    library: str
    model: str
    weights: str
    licence: str
    probed: ProbedFeatures | None = None
    read_at: str | None = None

    @property
    def is_random(self) -> bool:
        """Whether it was never trained."""
        return are_random(self.weights)


class DataOrigin(Origin):
    """A cache the model was trained on.

    Attributes:
        size: of its views, HxW px.
        views: that the epochs cycled through.
        read_at: its address with the commit, where it was read from the hub.
    """

    stage: str
    dataset: str
    split: str
    size: str
    samples: int
    views: int
    cache: str
    read_at: str | None = None


class Lineage(Strict):
    """The model and what it was made of, earlier stages first.

    Attributes:
        student: `StudentConfig.to_dict`, None for arms without a student.
        stem_weights: where the stem began.
    """

    arm: str
    student: dict[str, Any] | None
    stem_weights: str | None
    teachers: tuple[TeacherOrigin, ...] = Field(())
    data: tuple[DataOrigin, ...] = Field(())

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(H, W) in px that the student's position embedding is made for; None for arms without a student."""
        if self.student is None:
            return None
        height, width = self.student["stem"]["image_size"]
        return int(height), int(width)


def record(
    run: Path, recipe: Recipe, model: nn.Module, store: Store, teachers: Sequence[str], stage1: Path | None = None
) -> None:
    """Write `model.json` of a run of `recipe` that read `teachers` from `store` and began from the run `stage1`.

    One process of several does so.
    """
    if is_silent():
        return
    before = read(stage1) if stage1 is not None else None
    height, width = store.spec.size
    data = DataOrigin(
        stage=recipe.stage,
        dataset=store.spec.dataset,
        split=store.spec.split,
        size=f"{height}x{width}",
        samples=int(store.valid(recipe.data.views).sum()),
        views=recipe.data.views,
        cache=store.name,
        read_at=store.place.pinned,
    )
    origins = {origin.name: origin for origin in (before.teachers if before else ())}
    elsewhere = {name: one.place.pinned for one, own in [*shares(store, teachers).items()][1:] for name in own}
    origins.update({name: _teacher(store, name, elsewhere.get(name)) for name in teachers})
    lineage = Lineage(
        arm=recipe.arm,
        student=model.config.to_dict() if isinstance(model, StudentNetwork) else None,
        stem_weights=before.stem_weights if before else recipe.init or recipe.student.stem.weights or None,
        teachers=tuple(origins.values()),
        data=(*(before.data if before else ()), data),
    )
    runs.write_atomically(run / "model.json", lineage.model_dump_json(indent=1))


def read(run: Path) -> Lineage:
    """A finished run's `model.json`.

    Raises:
        UserError: there is none, or a damaged one.
    """
    path = run / "model.json"
    if not path.is_file():
        raise UserError(f"{run} is not a finished run (no model.json); train it to its end first")
    try:
        return Lineage.model_validate_json(path.read_text())
    except (ValidationError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _teacher(store: Store, name: str, read_at: str | None) -> TeacherOrigin:
    with understood(f"{store}: the provenance of {name}"):
        facts = store.teacher(name).provenance["teacher"]
        known = {key: facts[key] for key in ("library", "model", "weights", "licence")}
        origin = TeacherOrigin(name=name, **known, probed=_probed(store, name), read_at=read_at)
    return origin


def _probed(store: Store, name: str) -> ProbedFeatures | None:
    losses = {task: loss.to_dict() for task, loss in kept_losses(store, name).items()}
    if not losses:
        return None
    info = store.teacher(name)
    arrays = store.calibration(name, [f"{level.array}/fidelity" for level in info.levels if not level.prefix]) or {}
    cosines = [min(f.cosine, f.centred_cosine) for f in map(Fidelity.from_array, arrays.values())]
    return ProbedFeatures(codec=info.levels[0].codec, cosine=min(cosines), losses=losses)
