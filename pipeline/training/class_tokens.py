"""Teachers' class tokens in a store: whether they are there, and what their channels are like."""

from __future__ import annotations

import torch

from cache.calibration.statistics import calibration_order
from cache.store import Store
from pipeline.errors import UserError
from pipeline.recipes.arms import class_tokens_read
from pipeline.recipes.config import Recipe
from pipeline.recipes.stores import REGISTERS
from sak_core.losses.balance import ChannelStatistics

STATISTICS_SAMPLES = 1024
"""Whose class tokens of view 0 give the statistics: a token a sample, where the calibration has hundreds."""


def check_class_tokens(recipe: Recipe, store: Store) -> tuple[str, ...]:
    """The teachers whose class tokens the recipe compares.

    Raises:
        UserError: the store does not hold them.
    """
    names = class_tokens_read(recipe)
    for name in names:
        teacher = store.teacher(name)
        if len(teacher.levels) == len(teacher.maps):
            raise UserError(
                f"loss.class_tokens: {store.name} has no class tokens of {name}. Cache {name} with --prefix: sak drop "
                f"its features and run sak cache --teacher {name} --prefix (a teacher without such tokens has none)"
            )
        if teacher.provenance["prefix"] == REGISTERS:
            raise UserError(f"loss.class_tokens: {name}'s network has registers and no class token; leave {name} out")
    return names


def class_token_statistics(store: Store, teacher: str) -> list[ChannelStatistics]:
    """Mean and covariance of a cached teacher's class tokens, one a level, over samples that the store's seed draws.

    The calibration's own would be over class token and registers together.
    """
    order = calibration_order(store.spec.num_samples, store.spec.seed)
    drawn = order[store.valid(1)[order]][:STATISTICS_SAMPLES]
    statistics = []
    for level in store.teacher(teacher).maps:
        tokens = torch.from_numpy(store.features(teacher, level.level, prefix=True)[drawn, 0][:, 0]).double()
        covariance = torch.cov(tokens.T, correction=0).reshape(level.width, level.width)
        statistics.append(ChannelStatistics(tokens.mean(0), covariance))
    return statistics
