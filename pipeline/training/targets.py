"""What a student is compared with: cached features, balanced, under the loss and the weights of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cache.store import Store
from pipeline.config import Recipe
from pipeline.errors import UserError
from sak_core.balance import Balance, ChannelStatistics
from sak_core.dropping import TeacherDropping
from sak_core.losses import distillation_loss
from sak_core.names import unknown
from sak_core.noise import NoiseSource
from sak_core.tasks import OverRanks


class Targets:
    """The distillation loss as a recipe has it; called with the student's aligned maps and a batch's features."""

    def __init__(self, recipe: Recipe, store: Store, teachers: Sequence[str]) -> None:
        """store: whose calibration of `teachers` a balance is fitted on.

        Raises `UserError` for weights of unknown teachers or levels and for features that cannot be balanced.
        """
        self.recipe, self.teachers = recipe, tuple(teachers)
        self.level_weights = _level_weights(recipe, store, teachers)
        statistics = {} if recipe.balance == "none" else {name: channel_statistics(store, name) for name in teachers}
        try:
            self.balance = Balance(recipe.balance, statistics)
        except ValueError as error:
            raise UserError(f"balance {recipe.balance} on {store.name}: {error}") from error

    def __call__(
        self,
        aligned: Mapping[str, Sequence[Tensor]],
        features: Mapping[str, Sequence[Tensor]],
        noise: NoiseSource,
        over_ranks: OverRanks | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms, `<teacher>_level<i + 1>`; `noise` decides which teachers are dropped."""
        recipe = self.recipe
        return distillation_loss(
            aligned,
            self.balanced(features),
            recipe.loss,
            relational=recipe.relational,
            level_weights=self.level_weights,
            dropping=TeacherDropping(recipe.drop_teachers, noise) if recipe.drop_teachers else None,
            over_ranks=over_ranks,
        )

    def balanced(self, features: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
        """What the student's maps are compared with: a batch's features of the teachers, balanced."""
        own = {teacher: features[teacher] for teacher in self.teachers}
        found: dict[str, list[Tensor]] = self.balance.to(own[self.teachers[0]][0].device)(own)
        return found


def channel_statistics(store: Store, teacher: str) -> list[ChannelStatistics]:
    """Mean and covariance of a cached teacher's channels, one a level, as its calibration measured them."""
    arrays = store.calibration(teacher)
    if arrays is None:
        raise UserError(f"{store.name}: teacher {teacher} is not calibrated; run `sak cache` again to finish it")
    return [
        ChannelStatistics(
            torch.from_numpy(arrays[f"{level.array}/mean"]), torch.from_numpy(arrays[f"{level.array}/covariance"])
        )
        for level in store.teacher(teacher).maps
    ]


def _level_weights(recipe: Recipe, store: Store, teachers: Sequence[str]) -> dict[str, tuple[float, ...]]:
    weights: dict[str, tuple[float, ...]] = {}
    for name, given in recipe.level_weights.items():
        if name not in teachers:
            raise UserError(f"level_weights: {unknown('teacher', name, teachers)}")
        levels = len(store.teacher(name).maps)
        weights[name] = (given,) * levels if isinstance(given, float) else given
        if len(weights[name]) != levels:
            raise UserError(f"level_weights.{name}: {len(weights[name])} weights, but the cache has {levels} levels")
    return weights
