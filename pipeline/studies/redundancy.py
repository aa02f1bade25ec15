"""How much of each teacher's features follows linearly from the other teachers': where all does, one representation
holds them all, and paths of their own have nothing to add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cache.store import Store
from pipeline.console import number, table
from pipeline.errors import UserError
from pipeline.training.few_rows import few_rows, spread_over

ROWS = 200
LEAST_ROWS = 16
RIDGE = 1e-3
"""Added to each predictor's variance, which is scaled to 1."""


def redundancy(store: Store, rows: int = ROWS) -> dict[str, Any]:
    """The R² of a ridge regression from all other teachers' features of a level to a teacher's, token by token, on the
    teacher's own grid.

    Every other image is fitted on and the rest scored, then the other way round; all tokens and channels are pooled, so
    a channel counts by its variance.

    Args:
        rows: at most so many images, view 0 of each, evenly spread.

    Returns:
        ``store``, ``dataset``, ``split``, ``rows``, ``ridge``, and ``r2``: by teacher, a number a level (None where no
        other teacher has that level); JSON-able.

    Raises:
        UserError: there is one teacher alone, or too few images.
    """
    if len(store.teachers) < 2:
        raise UserError(f"{store.name} holds {', '.join(store.teachers) or 'no teacher'}: at least two are compared")
    samples = spread_over(store, rows)
    if len(samples) < LEAST_ROWS:
        raise UserError(f"{store.name}: {len(samples)} images are too few to fit on; {LEAST_ROWS} are needed")
    maps = few_rows(store, samples, store.teachers).features
    return {
        "store": store.name,
        "dataset": store.spec.dataset,
        "split": store.spec.split,
        "rows": len(samples),
        "ridge": RIDGE,
        "r2": {name: [_level(maps, name, level) for level in range(len(own))] for name, own in maps.items()},
    }


def _level(maps: Mapping[str, Sequence[Tensor]], teacher: str, level: int) -> float | None:
    """The R² of one teacher's level (B, C, h, w) from the others'."""
    own = maps[teacher][level].float()
    others = [_on_grid(levels[level], own) for name, levels in maps.items() if name != teacher and level < len(levels)]
    return r_squared(torch.cat(others, 1), own) if others else None


def _on_grid(maps: Tensor, like: Tensor) -> Tensor:
    """Maps (B, C, h, w) on the grid of others, averaged where theirs is coarser."""
    size = like.shape[2:]
    same = maps.shape[2:] == size
    return maps.float() if same else F.interpolate(maps.float(), size, mode="bilinear", antialias=True)


def r_squared(given: Tensor, wanted: Tensor) -> float:
    """The share of variance of `wanted` (B, K, h, w) that a ridge regression on `given` (B, C, h, w) predicts on
    images that it was not fitted on: 1 is all of it, 0 as much as the mean of the fitted images does."""
    wrong, total = torch.zeros(2, dtype=torch.float64)
    for fitted in (slice(0, None, 2), slice(1, None, 2)):
        scored = slice(1 - (fitted.start or 0), None, 2)
        x, y = _tokens(given[fitted]), _tokens(wanted[fitted])
        mean, scale, offset = x.mean(0), x.std(0, correction=0), y.mean(0)
        scale = torch.where(scale > 1e-6 * scale.max(), scale, torch.inf)  # what does not vary predicts nothing
        x = (x - mean) / scale
        inner = x.T @ x / len(x) + RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
        weight = torch.linalg.solve(inner, x.T @ (y - offset) / len(x))
        target = _tokens(wanted[scored]) - offset
        wrong += (target - (_tokens(given[scored]) - mean) / scale @ weight).square().sum()
        total += target.square().sum()
    return float(1 - wrong / total)


def _tokens(maps: Tensor) -> Tensor:
    """(B, C, h, w) to (B * h * w, C), float64."""
    return maps.movedim(1, -1).flatten(0, -2).double()


def redundancy_text(found: Mapping[str, Any]) -> str:
    """`redundancy` for people."""
    depth = max(len(levels) for levels in found["r2"].values())
    lines = [
        [name, *(number(value, ".3f") for value in levels), *["-"] * (depth - len(levels))]
        for name, levels in found["r2"].items()
    ]
    about = (
        f"{found['dataset']} {found['split']}, {found['rows']} images: share of a teacher's variance that follows "
        "linearly from the other teachers' features of the same level, on images not fitted on."
    )
    return f"{about}\n\n{table(['teacher', *(f'level {level + 1}' for level in range(depth))], lines)}"
