"""Trellis-coded quantisation against every sequence there is, and against a reader that goes place by place."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cache.codecs import Sample, Target, get_codec, trellis
from cache.codecs.coders import get_coder
from cache.codecs.trellis import prices, quantise, reconstruct, reconstruct_torch
from tests.plain_klt import by_state
from tests.trained_like import trained_like

integers = hnp.arrays(
    np.int16, hnp.array_shapes(min_dims=2, max_dims=3, max_side=9), elements=st.integers(-32767, 32767)
)
values = hnp.arrays(np.float32, (2, 4, 1), elements=st.floats(-4.5, 4.5, width=32))


@given(integers)
def test_values_are_those_of_the_state_machine(whole: np.ndarray) -> None:
    expected = by_state(whole.astype(np.int64))
    np.testing.assert_array_equal(reconstruct(whole), expected)
    np.testing.assert_array_equal(reconstruct(whole.astype(np.float32)), expected)
    np.testing.assert_array_equal(reconstruct_torch(torch.from_numpy(whole)).numpy(), expected)


@given(values, st.floats(-3, 6, width=32), st.floats(0.0625, 3, width=32))
def test_no_sequence_costs_less(scaled: np.ndarray, first: float, more: float) -> None:
    bit = trellis._BIT

    def cost(whole: np.ndarray, true: np.ndarray) -> np.ndarray:
        """Of sequences (n, 4): squared error against (4,) and bits."""
        bits = np.where(whole == 0, 0, first + more * (np.abs(whole) - 1))
        return (np.square(by_state(whole) - true) + bit * bits).sum(-1)

    every = np.array(list(itertools.product(range(-4, 5), repeat=4)))
    found = quantise(scaled, np.float32([first]), np.float32([more]))
    assert found.shape == scaled.shape
    for sequence, true in zip(found[..., 0].astype(np.int64), scaled[..., 0].astype(np.float64), strict=True):
        assert cost(sequence[None], true)[0] <= cost(every, true).min() + 1e-4


def test_bits_of_geometric_integers_are_their_surprise() -> None:
    """Zero in 60 of 100 cases; beside it, each further one half as likely as the one before."""
    rng = np.random.default_rng(0)
    whole = rng.geometric(0.5, (200_000, 1)) * rng.choice([-1, 1], (200_000, 1)) * (rng.random((200_000, 1)) < 0.4)
    first, more = prices(whole)
    np.testing.assert_allclose(first, np.log2(0.6) - np.log2(0.4 * 0.5 / 2), atol=0.02)
    np.testing.assert_allclose(more, 1, atol=0.02)


def test_a_step_of_equal_error_takes_fewer_bits_than_rounding() -> None:
    """By the granular gain of four states, 0.99 dB of 1.53 (Marcellin and Fischer, 1990): 0.16 bit at high rates."""
    scaled = np.random.default_rng(0).normal(scale=40, size=(16, 512, 8)).astype(np.float32)
    whole = quantise(scaled, *prices(np.rint(scaled / 2).reshape(-1, 8)))
    error = np.square(reconstruct(whole.swapaxes(1, 2)).swapaxes(1, 2) - scaled).mean()
    rounded = 12 * error  # squared step at which rounding costs the same

    def entropy(numbers: np.ndarray) -> float:
        share = np.unique(numbers, return_counts=True)[1] / numbers.size
        return float(-(share * np.log2(share)).sum())

    gain = entropy(np.rint(scaled / np.sqrt(rounded))) - entropy(whole)
    assert 0.13 < gain < 0.2


def test_wide_rows_take_fewer_bytes_and_keep_the_target() -> None:
    """Of integers rounded and packed alike, at the same fidelity; small rows stay rounded."""
    bytes_of, steered = {}, {}
    for tokens, width in ((196, 192), (16, 24)):
        rows = trained_like(48, tokens, width)
        fit, held_out = rows[:24].reshape(-1, width), rows[24:].reshape(-1, width)
        covariance = np.cov(fit.astype(np.float64), rowvar=False, bias=True)
        made = Sample(fit.mean(0, dtype=np.float64), covariance, fit, held_out, grid=(1, tokens))
        for name in ("klt+pcodec", "klt+trellis"):
            codec = get_codec(name)
            tables = codec.fit(made, Target(0.9995, centred=False))
            constants = codec.constants(tables)
            stored = codec.encode(rows[24:, None], constants).stored
            bytes_of[name, tokens] = sum(len(get_coder("pcodec").encode(row)) for row in stored)
            decoded = codec.decode_numpy(stored, constants).reshape(held_out.shape)
            cosine = torch.cosine_similarity(torch.from_numpy(decoded), torch.from_numpy(held_out)).mean()
            assert 0.9995 <= cosine < 0.99952
            steered[name, tokens] = np.count_nonzero(tables.get("more_bits", 0))
    assert bytes_of["klt+trellis", 196] < 0.98 * bytes_of["klt+pcodec", 196] and steered["klt+trellis", 196] > 96
    assert bytes_of["klt+trellis", 16] < 1.002 * bytes_of["klt+pcodec", 16] and not steered["klt+trellis", 16]
