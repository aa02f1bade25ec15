"""What a student is compared with: cached features, balanced, under the loss and the weights of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from cache.codecs.fidelity import LARGEST_NOISE, Fidelity, deviations, is_near_dead
from cache.format.spec import LevelSpec
from cache.loading.batch import Batch
from cache.store import Store
from pipeline.console import say
from pipeline.errors import UserError
from pipeline.recipes.config import Recipe
from pipeline.training.class_tokens import check_class_tokens, class_token_statistics
from sak_common.names import unknown
from sak_core.losses.balance import Balance, ChannelStatistics
from sak_core.losses.dropping import TeacherDropping
from sak_core.losses.step import distillation_loss
from sak_core.noise import NoiseSource
from sak_core.student.network import StudentOutput
from sak_core.tasks.losses import OverRanks

Array = npt.NDArray[Any]


class Targets:
    """The distillation loss as a recipe has it; called with the student's output and a batch.

    A teacher's class tokens count as further levels of one token each, behind those of its maps; they are balanced by
    statistics of their own.
    """

    def __init__(self, recipe: Recipe, store: Store, teachers: Sequence[str]) -> None:
        """Fit the balance.

        Args:
            store: whose calibration of `teachers` a balance is fitted on.

        Raises:
            UserError: weights name unknown teachers or levels, features cannot be balanced, or class tokens are asked
                for that the store does not hold.
        """
        self.recipe, self.teachers = recipe, tuple(teachers)
        self.class_tokens = check_class_tokens(recipe, store)
        self.num_levels = {name: len(store.teacher(name).maps) for name in teachers}
        options = recipe.loss
        self.level_weights = _weights("loss.level_weights", options.level_weights, self.num_levels)
        class_weights = _weights("loss.class_tokens", options.class_tokens, self.num_levels)
        for name in self.class_tokens:
            maps = self.level_weights.get(name, (1.0,) * self.num_levels[name])
            self.level_weights[name] = (*maps, *class_weights[name])
        balances = options.balance != "none"
        where = f"{options.balance} on {store.name}"
        of_maps = {name: channel_statistics(store, name, options.balance) for name in teachers if balances}
        self.balance = _balance(options.balance, of_maps, f"balance {where}")
        of_tokens = {name: class_token_statistics(store, name) for name in self.class_tokens if balances}
        self.class_balance = _balance(options.balance, of_tokens, f"balance {where}, class tokens")

    def __call__(
        self,
        output: StudentOutput,
        batch: Batch,
        noise: NoiseSource,
        over_ranks: OverRanks | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, (), and its terms, `<teacher>_level<i + 1>` and `<teacher>_class<i + 1>`.

        Args:
            noise: decides which teachers are dropped.
        """
        recipe = self.recipe
        ours, theirs = dict(output.aligned), self.balanced(batch.features)
        for name, tokens in self.balanced_class_tokens(batch).items():
            ours[name] = [*ours[name], *(_one_token(token) for token in output.class_tokens[name])]
            theirs[name] = [*theirs[name], *tokens]
        loss, terms = distillation_loss(
            ours,
            theirs,
            recipe.loss.kind,
            relational=recipe.loss.relational,
            level_weights=self.level_weights,
            dropping=TeacherDropping(recipe.loss.drop_teachers, noise) if recipe.loss.drop_teachers else None,
            over_ranks=over_ranks,
        )
        for name in self.class_tokens:
            levels = self.num_levels[name]
            for level in range(1, levels + 1):
                terms[f"{name}_class{level}"] = terms.pop(f"{name}_level{levels + level}")
        return loss, terms

    def balanced(self, features: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
        """What the student's maps are compared with: a batch's features of the teachers, one (B, C, h, w) a level,
        balanced.
        """
        own = {teacher: features[teacher] for teacher in self.teachers}
        found: dict[str, list[Tensor]] = self.balance.to(own[self.teachers[0]][0].device)(own)
        return found

    def balanced_class_tokens(self, batch: Batch) -> dict[str, list[Tensor]]:
        """What the student's class tokens are compared with, one (B, C, 1, 1) a level, balanced."""
        own = {name: [_one_token(tokens[:, 0]) for tokens in batch.prefixes[name]] for name in self.class_tokens}
        found: dict[str, list[Tensor]] = self.class_balance.to(batch.pixels.device)(own)
        return found


def channel_statistics(store: Store, teacher: str, balance: str) -> list[ChannelStatistics]:
    """Statistics of a cached teacher's channels, one a level, as its calibration measured them for a `balance`.

    Raises:
        UserError: channels are to be standardized, some are near-dead, and nothing says which.
    """
    arrays = store.calibration(teacher)
    if arrays is None:
        raise UserError(f"{store.name}: teacher {teacher} is not calibrated; run `sak cache` again to finish it")
    statistics = []
    for level in store.teacher(teacher).maps:
        mean, covariance = (torch.from_numpy(arrays[f"{level.array}/{name}"]) for name in ("mean", "covariance"))
        divided = _deviations(store, teacher, level, arrays) if balance == "standardize" else None
        statistics.append(ChannelStatistics(mean, covariance, divided))
    return statistics


def _deviations(store: Store, teacher: str, level: LevelSpec, calibration: Mapping[str, Array]) -> Tensor | None:
    """What standardizing divides channels by, (C,), said where some are near-dead; None: their standard deviations."""
    name = f"{teacher} level {level.level}"
    if f"{level.array}/error" not in calibration:
        worst = Fidelity.from_array(calibration[f"{level.array}/fidelity"]).relative_mse_worst
        if worst <= LARGEST_NOISE:
            return None
        raise UserError(
            f"balance standardize on {store.name}: the coding error of a channel of {name} is {worst:.2g} times its "
            "variance, and this store is from before it was kept which channel's: it would become a target of noise. "
            f"Use loss.balance = 'phi-s' or 'none', or `sak drop` {teacher} and cache it again"
        )
    variance, error = calibration[f"{level.array}/covariance"].diagonal(), calibration[f"{level.array}/error"]
    if count := int(is_near_dead(variance, error).sum()):
        advice = "" if level.standardized else "; `sak cache --standardized` would keep more of them"
        say(
            f"balance standardize: {count} of {level.width} channels of {name} are near-dead, coding costs them more "
            f"than {LARGEST_NOISE:.0%} of their variance: they are scaled down to what is left of them{advice}"
        )
    return torch.from_numpy(deviations(variance, error))


def _balance(kind: str, statistics: Mapping[str, Sequence[ChannelStatistics]], where: str) -> Balance:
    try:
        return Balance(kind, statistics)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _one_token(token: Tensor) -> Tensor:
    """(B, C) as the map of one cell that the losses take, (B, C, 1, 1)."""
    return token[:, :, None, None]


def _weights(
    key: str, table: Mapping[str, float | tuple[float, ...]], num_levels: Mapping[str, int]
) -> dict[str, tuple[float, ...]]:
    """The recipe's `key`, a weight a level for each teacher that it names.

    Raises:
        UserError: it does not fit.
    """
    weights: dict[str, tuple[float, ...]] = {}
    for name, given in table.items():
        if name not in num_levels:
            raise UserError(f"{key}: {unknown('teacher', name, num_levels)}")
        levels = num_levels[name]
        weights[name] = (given,) * levels if isinstance(given, float) else given
        if len(weights[name]) != levels:
            raise UserError(f"{key}.{name}: {len(weights[name])} weights, but the cache has {levels} levels")
    return weights
