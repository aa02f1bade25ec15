"""`sak redundancy`: how much of a teacher's features follows linearly from the others'."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cache.store import find_stores
from pipeline.studies.redundancy import RIDGE, r_squared
from tests.conftest import answer, refusal, sak


def maps(channels: int, seed: int) -> torch.Tensor:
    """(40, channels, 3, 4)"""
    return torch.randn(40, channels, 3, 4, generator=torch.Generator().manual_seed(seed))


def test_known_shares_of_variance() -> None:
    given = torch.cat([maps(5, 0), torch.full((40, 1, 3, 4), 7.0)], 1)  # one channel that does not vary
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    mixed = torch.einsum("bchw,ck->bkhw", given, weight)
    assert r_squared(given, mixed + 3) == pytest.approx(1, abs=1e-4)
    assert r_squared(given, maps(4, 2)) == pytest.approx(0, abs=0.1)
    noise = maps(4, 3) * mixed.std((0, 2, 3), keepdim=True)
    assert r_squared(given, mixed + noise) == pytest.approx(0.5, abs=0.05)


def test_the_regression_is_the_ridge_of_numpy() -> None:
    given, wanted = maps(3, 4), maps(2, 5) + maps(3, 4)[:, :2] ** 2
    wrong = total = 0.0
    for half in (0, 1):
        x, y = (m[half::2].movedim(1, -1).reshape(-1, m.shape[1]).double().numpy() for m in (given, wanted))
        u, v = (m[1 - half :: 2].movedim(1, -1).reshape(-1, m.shape[1]).double().numpy() for m in (given, wanted))
        mean, std, middle = x.mean(0), x.std(0), y.mean(0)
        rows = np.vstack([(x - mean) / std, np.sqrt(RIDGE * len(x)) * np.eye(3)])
        weight = np.linalg.lstsq(rows, np.vstack([y - middle, np.zeros((3, 2))]), rcond=None)[0]
        wrong += ((v - middle - (u - mean) / std @ weight) ** 2).sum()
        total += ((v - middle) ** 2).sum()
    assert r_squared(given, wanted) == pytest.approx(1 - wrong / total, rel=1e-9)


def test_the_command_tells_every_teacher_and_level(features: Path, tmp_path: Path) -> None:
    store = find_stores(features, "rooms", "test")[0].path
    told = answer("redundancy", store)
    assert told["rows"] == 16 and set(told["r2"]) == {"mini-dino", "mini-clip", "mini-sam"}
    assert all(len(levels) == 4 and all(value < 1 for value in levels) for levels in told["r2"].values())
    shown = sak("redundancy", store).stdout
    assert f"{told['r2']['mini-sam'][3]:.3f}" in shown and "level 4" in shown
    assert "8 images are too few" in refusal("redundancy", store, "--rows", "8")
