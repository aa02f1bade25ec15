"""Channels of which coding leaves little: what a balance makes of them, and what is promised of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

from cache.calibration.statistics import calibrated, level_constants
from cache.codecs import get_codec
from cache.codecs.fidelity import deviations, is_near_dead
from cache.errors import CacheError
from cache.format.spec import LevelSpec
from cache.store import Store
from pipeline.errors import UserError
from pipeline.extraction.running import request_of
from pipeline.recipes.config import Recipe, load_recipe, parse_set
from pipeline.training.targets import Targets
from sak_core.losses.balance import AffineBalance, ChannelStatistics, standardize
from tests.conftest import TINY, refusal, sak

Array = npt.NDArray[Any]
WIDTH = 16


def maps(count: int, seed: int) -> Array:
    """Heavy-tailed channels, of which the first varies by little, and the last not at all."""
    draw = np.random.default_rng(seed)
    values = draw.normal(size=(count, 6, 5, WIDTH)) ** 3
    values[..., 0] *= 0.01
    values[..., -1] = 0
    return values.astype(np.float32)


def level_of(codec: str, **how: Any) -> tuple[LevelSpec, dict[str, Array]]:
    level = LevelSpec(0, (6, 5), WIDTH, codec, **how)
    return level, calibrated([level], [maps(200, 0)], [maps(200, 1)])


def decoded(level: LevelSpec, arrays: dict[str, Array], features: Array) -> Array:
    codec, constants = get_codec(level.codec), level_constants(level, arrays)
    return codec.decode_numpy(codec.encode(features, constants).stored, constants).reshape(features.shape)


def balance(arrays: dict[str, Array]) -> AffineBalance:
    mean, covariance = (torch.from_numpy(arrays[f"level_0/{name}"]) for name in ("mean", "covariance"))
    divided = deviations(arrays["level_0/covariance"].diagonal(), arrays["level_0/error"])
    return standardize(ChannelStatistics(mean, covariance, torch.from_numpy(divided)))


def test_divisors_by_hand() -> None:
    """Variance 1 beside error 0.1 is still a channel; beside 1, its noise would be as loud as itself."""
    variance, error = np.array([4, 1, 1, 1e-4, 0, 0]), np.array([0, 0.1, 1, 0.01, 0.01, 0])
    assert deviations(variance, error).tolist() == pytest.approx([2, 1, 10, 10, np.inf, np.inf])
    assert is_near_dead(variance, error).tolist() == [False, False, True, True, True, True]
    noise = error[:5] / deviations(variance, error)[:5] ** 2
    assert (noise <= 0.1 + 1e-9).all()


def test_errors_of_channels_are_measured_on_held_out_maps() -> None:
    level, arrays = level_of("int4", fidelity=0.9)
    true = torch.from_numpy(maps(200, 1)).double()
    back = torch.from_numpy(decoded(level, arrays, maps(200, 1))).double()
    torch.testing.assert_close(
        torch.from_numpy(arrays["level_0/error"]).double(), (true - back).square().mean((0, 1, 2)), rtol=1e-6, atol=0
    )


def test_a_near_dead_channel_is_no_loud_target() -> None:
    """A rotation spreads the error of int4 evenly: of one channel it leaves noise hundreds of times its variance."""
    level, arrays = level_of("int4", fidelity=0.9)
    variance, error = arrays["level_0/covariance"].diagonal(), arrays["level_0/error"]
    assert error[0] > 200 * variance[0] and variance[-1] == 0 < error[-1]
    back = torch.from_numpy(decoded(level, arrays, maps(400, 2))).permute(0, 3, 1, 2)
    fitted = balance(arrays)
    spread = fitted(back).var((0, 2, 3))
    assert spread[0] < 1e-3 and spread[-1] == 0
    healthy = ~torch.from_numpy(is_near_dead(variance, error))
    assert healthy.sum() > 8 and (spread[healthy] > 0.4).all()
    own = torch.from_numpy(variance.copy()).sqrt()
    assert torch.equal(fitted.unscale[healthy], own[healthy].float()), "others to variance 1, to the bit"
    restored = fitted.inverse(fitted(back))
    torch.testing.assert_close(restored[:, :-1], back[:, :-1], rtol=1e-4, atol=1e-3)
    assert (restored[:, -1] == fitted.mean[-1]).all()


def standardized_cosine(true: Array, back: Array) -> float:
    """Of channels at variance 1, all but the constant one."""
    mean, spread = true.mean((0, 1, 2)), true.std((0, 1, 2))
    left, right = (torch.from_numpy((m - mean)[..., :-1] / spread[:-1]).double() for m in (true, back))
    return float(F.cosine_similarity(left, right, dim=-1).mean())


@pytest.mark.parametrize("codec", ["klt", "klt+pcodec"])
def test_a_promise_can_be_of_standardized_channels(codec: str) -> None:
    others = maps(400, 3)
    reached = []
    for how in ({}, {"standardized": True}):
        level, arrays = level_of(codec, fidelity=0.97, **how)
        reached.append(standardized_cosine(others, decoded(level, arrays, others)))
    assert reached[0] < 0.96 < 0.97 <= reached[1]
    with pytest.raises(CacheError, match=r"int4 promises a token cosine of 0.9, of standardized channels .* reach 0\."):
        level_of("int4", fidelity=0.9, standardized=True)


# ---- through the command line ----------------------------------------------------------------------------------------

TEACHER = '''
import torch
from sak_core.interfaces.teacher import Teacher, TeacherSpec, fit_to_patch


class Sparse(Teacher):
    """Means of cells and what differs in them: the last channel hardly varies, and tells nothing of the others."""

    def features(self, images):
        cells = torch.nn.functional.avg_pool2d(images, 8)
        faint = torch.sin(cells[:, :1] * 5000) * 0.01
        return [torch.cat([cells, cells.roll(1, 1) ** 2, faint], 1)] * 4


def build(size, levels=None, weights=None, random_weights=False, seed=0):
    seen = fit_to_patch(size, 8)
    return Sparse(TeacherSpec(
        name="sparse", library="", model="", weights="sha256:none", mean=(0.5,) * 3, std=(0.5,) * 3,
        interpolation="bilinear", patch=8, input_size=seen, grid=(seen[0] // 8, seen[1] // 8), widths=(7,) * 4,
        levels=(0, 1, 2, 3), licence="mine",
    ))
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    package = tmp_path_factory.mktemp("code") / "own_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "sparse.py").write_text(TEACHER)
    return {"PYTHONPATH": str(package.parent)}


def cached(out: Path, own: dict[str, str], *more: str) -> Store:
    """A store of a few rooms."""
    asks = ["--teacher", "own_package.sparse:build", "--allow-code", "--codec", "klt", "--fidelity", "0.98"]
    options = ["--split", "unlabelled", "--limit", "16", "--views", "1", "--threads", "1", "--decoders", "0"]
    sak("cache", *asks, *options, "--out", out, *more, env=own)
    (path,) = out.iterdir()
    return Store.open(path)


@pytest.fixture(scope="module")
def store(own: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Store:
    return cached(tmp_path_factory.mktemp("features"), own)


def asks(store: Store) -> list[str]:
    return [f"teachers={json.dumps(store.teachers)}", 'loss.balance="standardize"', "data.views=1"]


def recipe_of(store: Store) -> Recipe:
    return load_recipe("demo", "distill", parse_set(asks(store)))


def test_training_says_how_many_channels_are_near_dead(store: Store, tmp_path: Path) -> None:
    options = [part for ask in asks(store) for part in ("--set", ask)]
    done = sak("distill", "demo", "--out", store.path.parent, "--run", tmp_path / "run", *TINY, *options)
    (name,) = store.teachers
    assert f"1 of 7 channels of {name} level 3 are near-dead, coding costs them more than 10%" in done.stderr
    assert "sak cache --standardized" in done.stderr


def test_what_is_promised_of_standardized_channels_leaves_none_near_dead(
    store: Store, own: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    better = cached(tmp_path / "features", own, "--fidelity", "0.995", "--standardized")
    (name,) = better.teachers
    Targets(recipe_of(better), better, [name])
    assert "near-dead" not in capsys.readouterr().err
    provenance = better.teacher(name).provenance
    assert provenance["standardized"] is True and request_of(provenance, allow_code=True).standardized
    assert "0.995 promised, of standardized channels, too" in sak("info", better.path).stdout
    said = refusal(
        *("cache", "--teacher", "own_package.sparse:build", "--allow-code", "--codec", "klt"),
        *("--split", "unlabelled", "--limit", "16", "--views", "1", "--threads", "1", "--decoders", "0"),
        *("--out", better.path.parent, "--fidelity", "0.995"),
        env=own,
    )
    assert "standardized" in said
    assert "standardized" not in store.teacher(name).provenance


def test_a_store_that_does_not_know_its_channels_errors_is_taken_or_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of before they were kept: fine where the worst channel is, and refused where it is not."""
    (name,) = store.teachers
    arrays = {key: value for key, value in (store.calibration(name) or {}).items() if not key.endswith("/error")}
    monkeypatch.setattr(store, "calibration", lambda teacher: arrays)
    with pytest.raises(
        UserError, match=r"level 0 is .* times its variance.*loss.balance = 'phi-s' or 'none', or `sak drop`"
    ):
        Targets(recipe_of(store), store, [name])
    for level in range(4):
        arrays[f"level_{level}/fidelity"] = np.array([0.99, 0.99, 0.01, 0.09])
    fitted = Targets(recipe_of(store), store, [name]).balance.by_teacher[name][2]
    own_deviation = torch.from_numpy(arrays["level_2/covariance"]).diagonal().sqrt()
    assert torch.equal(fitted.scale, (1 / own_deviation).float())
