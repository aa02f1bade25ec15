"""Channel statistics and fidelity against numpy's and torch's own, and what is promised of a codec."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cache.calibration.statistics import Calibrator, calibrated, calibration_rows, level_constants
from cache.codecs import get_codec
from cache.codecs.fidelity import Fidelity, FidelityMeter
from cache.errors import BadInput, CacheError, CorruptFile
from cache.format.groups import fit_predictor
from cache.format.spec import LevelSpec
from cache.store import Store
from cache.writing.source_writer import TeacherWriter
from tests import cache_toy as toy

LEVEL = LevelSpec(0, (6, 5), 16, "fp16")


def features(count: int, seed: int) -> np.ndarray:
    """Correlated channels, one of them massive, as in trained transformers."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(16, 16))
    values = rng.normal(size=(count, 6, 5, 16)) @ mix
    values[..., 3] += 300
    return values.astype(np.float32)


def calibrate(codec: str = "fp16") -> dict[str, np.ndarray]:
    calibrator = Calibrator([LevelSpec(0, (6, 5), 16, codec)])
    data = features(40, 0)
    for start in range(0, 40, 7):
        calibrator.fit([data[start : start + 7]])
    for start in range(0, 24, 9):
        calibrator.measure([features(24, 1)[start : start + 9]])
    return calibrator.arrays()


def test_statistics_are_numpys() -> None:
    arrays = calibrate()
    tokens = features(40, 0).reshape(-1, 16).astype(np.float64)
    np.testing.assert_allclose(arrays["level_0/mean"], tokens.mean(0), rtol=1e-6)
    np.testing.assert_allclose(arrays["level_0/std"], tokens.std(0), rtol=1e-6)
    np.testing.assert_array_equal(arrays["level_0/min"], tokens.min(0))
    np.testing.assert_array_equal(arrays["level_0/max"], tokens.max(0))
    covariance = np.cov(tokens, rowvar=False, bias=True)
    np.testing.assert_allclose(arrays["level_0/covariance"], covariance, rtol=1e-9, atol=1e-9)
    assert arrays["level_0/covariance"].dtype == np.float64 and arrays["level_0/mean"].dtype == np.float32


def test_fidelity_is_torchs_cosine() -> None:
    arrays = calibrate()
    true, decoded = features(24, 1), features(24, 1).astype(np.float16).astype(np.float32)
    left, right = (torch.from_numpy(values.reshape(-1, 16)).double() for values in (true, decoded))
    mean = torch.from_numpy(arrays["level_0/mean"]).double()
    relative = (left - right).square().mean(0) / left.var(0, unbiased=False)
    expected = [
        F.cosine_similarity(left, right).mean(),
        F.cosine_similarity(left - mean, right - mean).mean(),
        relative.median(),
        relative.max(),
    ]
    found = Fidelity.from_array(arrays["level_0/fidelity"])
    assert found.cosine == pytest.approx(float(expected[0]), abs=1e-12)
    assert found.centred_cosine == pytest.approx(float(expected[1]), abs=1e-12)
    assert found.relative_mse_median == pytest.approx(np.median(relative.numpy()), rel=1e-9)
    assert found.relative_mse_worst == pytest.approx(float(expected[3]), rel=1e-9)
    assert found.centred_cosine < found.cosine, "the massive channel flatters the plain cosine"


def test_the_constant_mean_is_seen_through() -> None:
    data = features(50, 3)
    meter = FidelityMeter(data.mean((0, 1, 2)))
    meter.update(data, np.broadcast_to(data.mean((0, 1, 2)), data.shape))
    found = meter.compute()
    assert found.cosine > 0.9 and found.centred_cosine < 0.1
    assert found.relative_mse_median == pytest.approx(1, abs=1e-4)


def test_fidelity_of_degenerate_features() -> None:
    meter = FidelityMeter(np.zeros(3))
    meter.update(np.zeros((2, 3)), np.zeros((2, 3)))
    assert meter.compute() == Fidelity(1, 1, 0, 0)
    meter = FidelityMeter(np.ones(3))
    meter.update(np.zeros((1, 3)), np.full((1, 3), 1e-3))  # no direction that could be lost
    assert meter.compute().cosine == 1
    meter = FidelityMeter(np.ones(3))
    meter.update(np.ones((1, 3)), np.zeros((1, 3)))
    assert meter.compute().cosine == 0
    meter = FidelityMeter(np.array([1.0, 2.0, 3.0]))
    meter.update(np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 2.0, 3.001]]))  # a token that is the mean
    assert meter.compute().centred_cosine == 1
    assert meter.compute().relative_mse_worst == pytest.approx(0.001**2 / 3**2)  # no variance: its square serves


def test_a_broken_promise_is_refused() -> None:
    rng = np.random.default_rng(0)
    narrow = rng.normal(size=(50, 1, 1, 2)).astype(np.float32)
    far = narrow * np.float32([1, 9])  # outside of the calibrated range
    with pytest.raises(
        CacheError, match=r"level 0: int8 promises a token cosine of 0.999, .*use a codec with more bits"
    ):
        calibrated([LevelSpec(0, (1, 1), 2, "int8")], [narrow], [far])


@pytest.mark.parametrize("seed", range(8))
def test_a_promise_holds_on_rows_that_calibration_did_not_see(seed: int) -> None:
    """Maps of unlike contrast: a step that just reaches it on the held-out ones falls short on half of all others."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(16, 16)) * 0.7 ** np.arange(16)[:, None]

    def maps(number: int) -> np.ndarray:
        contrast = rng.lognormal(sigma=0.5, size=(number, 1, 1, 1))
        return (contrast * (rng.normal(size=(number, 4, 4, 16)) @ mixing)).astype(np.float32)

    level = LevelSpec(0, (4, 4), 16, "klt", fidelity=0.98)
    arrays = calibrated([level], [maps(48)], [maps(48)])
    constants, others = level_constants(level, arrays), maps(2000)
    codec = get_codec("klt")
    meter = FidelityMeter(arrays["level_0/mean"])
    meter.update(others, codec.decode_numpy(codec.encode(others, constants).stored, constants).reshape(others.shape))
    reached = meter.compute()
    assert 0.98 <= min(reached.cosine, reached.centred_cosine) < 0.99


def test_bad_calibration_input_is_named() -> None:
    calibrator = Calibrator([LEVEL])
    with pytest.raises(BadInput, match=r"level 0: features have shape \(2, 5, 6, 16\), needed is \(n, 6, 5, 16\)"):
        calibrator.fit([np.zeros((2, 5, 6, 16), np.float32)])
    with pytest.raises(BadInput, match="NaN or infinite"):
        calibrator.fit([np.full((2, 6, 5, 16), np.nan, np.float32)])
    with pytest.raises(BadInput, match=r"fit\(\) was given no rows"):
        calibrator.arrays()
    calibrator.fit([features(2, 0)])
    with pytest.raises(BadInput, match=r"measure\(\) was given no rows"):
        calibrator.arrays()
    with pytest.raises(BadInput, match=r"channel 3: 70000.0; .*bf16"):
        large = features(2, 0)
        large[1, 2, 3, 3] = 70000
        calibrator.measure([large])


def test_rows_are_drawn_by_the_seed() -> None:
    valid = np.ones(100, bool)
    valid[::7] = False
    fit, measure = calibration_rows(valid, 5, 20)
    assert len(fit) == len(measure) == 10 and not set(fit) & set(measure)
    assert valid[fit].all() and valid[measure].all() and (np.diff(fit) > 0).all()
    again = calibration_rows(valid, 5, 20)
    np.testing.assert_array_equal(again[0], fit)
    assert set(calibration_rows(valid, 6, 20)[0]) != set(fit)
    assert [len(rows) for rows in calibration_rows(valid, 5, 1000)] == [42, 43]
    one = np.zeros(9, bool)
    one[4] = True
    assert [rows.tolist() for rows in calibration_rows(one, 0, 8)] == [[4], [4]]
    with pytest.raises(BadInput, match="no valid sample"):
        calibration_rows(np.zeros(3, bool), 0, 8)


def test_a_calibration_is_kept_and_held_to(tmp_path: Path) -> None:
    store = Store.create(tmp_path, toy.toy_spec())
    writer = TeacherWriter(store, {"name": "t"}, [LEVEL])
    assert writer.calibration() is None and store.calibration("t") is None
    arrays = calibrate()
    writer.write_calibration(arrays)
    before = toy.tree(store.path)
    again = TeacherWriter(Store.open(store.path), {"name": "t"}, [LEVEL])
    kept = again.calibration()
    assert kept is not None and kept.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(kept[name], array)
        assert kept[name].dtype == array.dtype
    changed = {**arrays, "level_0/mean": arrays["level_0/mean"] + 1}
    with pytest.raises(CacheError, match=r"level_0/mean/c\.0 differs from the committed calibration"):
        again.write_calibration(changed)
    damaged = store.path / "teachers/t/calibration/level_0/mean/c.0"
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    with pytest.raises(CorruptFile, match="mean"):
        store.calibration("t")
    again.write_calibration(arrays)  # equal arrays repair it
    assert toy.tree(store.path) == before
    for bad, message in (
        ({"level_0/mean": np.float32([np.nan])}, "NaN or infinite"),
        ({"level_0/mean": np.int32([1])}, "floats"),
    ):
        with pytest.raises(BadInput, match=message):
            again.write_calibration(bad)


@pytest.mark.parametrize("num_tokens", [96, 128, 144, 4000])
def test_a_prediction_fitted_on_few_tokens_holds_for_others(num_tokens: int) -> None:
    """Of 128 channels with 24 components in common and a tenth of noise: the nearest fit to as many tokens as channels
    leaves half of others' variance."""
    draw = np.random.default_rng(0)
    lower, upper = draw.normal(size=(2, 24, 128))

    def tokens(count: int) -> tuple[np.ndarray, np.ndarray]:
        common = draw.normal(size=(count, 24))
        noise = 0.5 * draw.normal(size=(2, count, 128))
        return (common @ lower + noise[0]).astype(np.float32), (common @ upper + noise[1]).astype(np.float32)

    predictor = fit_predictor(*tokens(num_tokens)).astype(np.float32)
    below, above = tokens(4000)
    left = (above - above.mean(0)) - (below - below.mean(0)) @ predictor
    assert left.var() / above.var() < 0.025
    assert not fit_predictor(below[:1], above[:1]).any()  # one token tells nothing of what belongs together
