"""Codecs against numpy's and torch's own conversions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.fft import dctn

from cache.codecs import CODECS, Sample, Target, get_codec
from cache.codecs.grid import cosines, from_frequencies, to_frequencies
from sak_common.names import UnknownName

finite = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=4, max_dims=4, max_side=4),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
moderate = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=4, max_dims=4, max_side=4),
    elements=st.floats(-1000, 1000, width=32),
)


def ranges(features: np.ndarray) -> dict[str, np.ndarray]:
    return {"min": features.min((0, 1, 2)), "max": features.max((0, 1, 2))}


def sample(features: np.ndarray) -> Sample:
    tokens = features.reshape(-1, features.shape[-1])
    covariance = np.cov(tokens.astype(np.float64), rowvar=False, bias=True)
    return Sample(tokens.mean(0, dtype=np.float64), covariance, tokens, tokens)


def constants(name: str, features: np.ndarray, cosine: float = 0.995) -> dict[str, np.ndarray]:
    codec = get_codec(name)
    return codec.constants({**ranges(features), **codec.fit(sample(features), Target(cosine))})


@given(finite)
def test_bf16_is_torchs_bfloat16(features: np.ndarray) -> None:
    codec = get_codec("bf16")
    true = torch.from_numpy(features).bfloat16()
    if not torch.isfinite(true).all():
        assert codec.find_unstorable(features) is not None
        return
    assert codec.find_unstorable(features) is None
    stored = codec.encode(features, {}).stored
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(stored, true.view(torch.int16).numpy().view(np.uint16))
    np.testing.assert_array_equal(codec.decode_numpy(stored, {}), true.float().numpy())


@given(finite)
def test_fp16_is_numpys_half_or_refused(features: np.ndarray) -> None:
    codec = get_codec("fp16")
    with np.errstate(over="ignore"):
        half = features.astype(np.float16)
    refused = codec.find_unstorable(features)
    assert (refused is None) == bool(np.isfinite(half).all())
    if refused is None:
        np.testing.assert_array_equal(codec.encode(features, {}).stored, half)
    else:
        assert not np.isfinite(half[refused.index])
        assert "bf16" in refused.why


@given(finite)
def test_fp32_is_exact(features: np.ndarray) -> None:
    codec = get_codec("fp32")
    back = codec.decode_numpy(codec.encode(features, {}).stored, {})
    np.testing.assert_array_equal(back.view(np.uint32), features.view(np.uint32))


@given(moderate)
@example(np.float32([0, 1.47e-41]).reshape(1, 1, 2, 1))
def test_int8_stays_within_half_a_step(features: np.ndarray) -> None:
    codec, made = get_codec("int8"), constants("int8", features)
    encoded = codec.encode(features, made)
    assert encoded.stored.dtype == np.int8 and encoded.num_clipped == 0
    low, high = ranges(features)["min"].astype(np.float64), ranges(features)["max"]
    error = np.abs(codec.decode_numpy(encoded.stored, made) - features)
    assert (error <= 0.51 * (high - low) / 255 + 1e-6 * np.abs(features).max((0, 1, 2)) + 1e-37).all()


def test_int8_clips_and_counts() -> None:
    codec = get_codec("int8")
    made = codec.constants({"min": np.float32([-1, 0]), "max": np.float32([1, 0])})
    features = np.float32([[-3, 0], [-1, 0], [1, 0], [2, 0], [0.5, 0], [0, 90]]).reshape(1, 2, 3, 2)
    encoded = codec.encode(features, made)
    assert encoded.num_clipped == 2  # the channel without range keeps steps of 1: 90 fits
    back = codec.decode_numpy(encoded.stored, made).reshape(6, 2)
    np.testing.assert_allclose(back[:, 0], [-1, -1, 1, 1, 0.5, 0], atol=0.5 * 2 / 255 + 1e-6)
    np.testing.assert_array_equal(back[:, 1], [0, 0, 0, 0, 0, 90])


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_grid_frequencies_are_scipys(height: int, width: int, seed: int) -> None:
    maps = np.random.default_rng(seed).normal(size=(2, height, width, 3)).astype(np.float32)
    y, x = cosines(height), cosines(width)
    found = to_frequencies(maps.reshape(-1, 3), y, x)
    pairs = sorted((v * width + u * height, v, u) for v in range(height) for u in range(width))
    expected = dctn(maps, axes=(1, 2), norm="ortho")[:, [v for _, v, _ in pairs], [u for *_, u in pairs]]
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-5)
    np.testing.assert_allclose(from_frequencies(found, y, x).reshape(maps.shape), maps, atol=1e-5)


def smooth(height: int, width: int) -> np.ndarray:
    """Maps (40, h, w, 16) of which a transform over the grid saves much."""
    whole = np.random.default_rng(0).normal(size=(40, 1, 1, 16))
    return (whole + np.random.default_rng(1).normal(size=(40, height, width, 16)) / 9).astype(np.float32)


def test_klt_keeps_no_tables_larger_than_the_basis_for_long_rows_of_tokens() -> None:
    for grid in ((7, 5), (1, 70)):
        tables = get_codec("klt").fit(dataclasses.replace(sample(smooth(*grid)), grid=grid), Target(0.99))
        assert ("dct_y" in tables) == (grid == (7, 5))
        assert sum(table.nbytes for table in tables.values()) <= 8 * 16**2


def test_klt_reaches_its_target_where_what_it_was_fitted_on_does_not_vary() -> None:
    token = np.random.default_rng(0).normal(size=(2, 1, 1, 32)).astype(np.float32)
    made = dataclasses.replace(sample(token[:1]), held_out=token[1:].reshape(1, 32))
    codec = get_codec("klt")
    tables = codec.fit(made, Target(0.999))
    decoded = codec.decode_numpy(codec.encode(token[1:], tables).stored, codec.constants(tables)).ravel()
    assert token[1].ravel() @ decoded >= 0.999 * np.linalg.norm(token[1]) * np.linalg.norm(decoded)


def test_klt_decodes_grid_frequencies_in_torch_as_in_numpy() -> None:
    features = smooth(7, 5)
    codec = get_codec("klt")
    tables = codec.fit(dataclasses.replace(sample(features), grid=(7, 5)), Target(0.99))
    assert tables["dct_y"].shape == (7, 7) and tables["dct_x"].shape == (5, 5)
    made = codec.constants(tables)
    stored = codec.encode(features, made).stored
    decoded = codec.decode_numpy(stored, made).reshape(features.shape)
    from_torch = codec.decode(torch.from_numpy(stored), {name: torch.from_numpy(array) for name, array in made.items()})
    np.testing.assert_allclose(from_torch.reshape(features.shape), decoded, atol=1e-4)
    cosine = (features * decoded).sum(-1) / np.linalg.norm(features, axis=-1) / np.linalg.norm(decoded, axis=-1)
    assert 0.99 <= cosine.mean() < 0.992


@pytest.mark.parametrize("name", sorted(CODECS))
def test_torch_decodes_as_numpy_does(name: str) -> None:
    codec = get_codec(name)
    features = np.random.default_rng(0).normal(2, 3, (3, 4, 5, 6)).astype(np.float32)
    made = constants(name, features)
    stored = codec.encode(features, made).stored
    assert stored.dtype == codec.stored_dtype and stored.shape == (3, *codec.row_shape((4, 5), 6))
    decoded = codec.decode(torch.from_numpy(stored), {k: torch.from_numpy(v) for k, v in made.items()})
    assert decoded.dtype == torch.float32
    np.testing.assert_allclose(decoded.numpy(), codec.decode_numpy(stored, made), rtol=1e-5, atol=1e-5)
    assert decoded.numel() == features.size and torch.cosine_similarity(
        decoded.reshape(-1, 6), torch.from_numpy(features).reshape(-1, 6)
    ).mean() > (0.97 if name == "int4" else 0.994)


@pytest.mark.parametrize("name", sorted(CODECS))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found(name: str, value: float) -> None:
    features = np.zeros((2, 3, 4, 5), np.float32)
    features[1, 2, 0, 4] = value
    found = get_codec(name).find_unstorable(features)
    assert found is not None and found.index == (1, 2, 0, 4)


def test_unknown_names_meet_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"fp8.*did you mean .*fp16"):
        get_codec("fp8")
