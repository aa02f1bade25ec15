"""Boundary scoring against the benchmark's own counts, scikit-image's thinning and higra's matching."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.morphology import thin as skimage_thin

from sak_core.boundary import best_counts, boundary_counts, boundary_scores, even_thresholds, nms
from sak_core.boundary.matching import match
from sak_core.boundary.thinning import thin
from sak_core.metrics import BoundaryMetric

FIXTURES = Path(__file__).parent / "fixtures" / "odsf"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())
NAMES = ("camera", "chelsea", "coffee")
CASES = [(s, d) for s in ("sets", "nms_sets") for d in EXPECTED[s]]


def picture(name: str, what: str) -> np.ndarray:
    return np.array(Image.open(FIXTURES / f"{name}-{what}.png"))


@pytest.mark.parametrize("which,max_dist", CASES)
def test_counts_and_odsf_equal_the_benchmarks(which, max_dist):
    expected = EXPECTED[which][max_dist]
    thresholds = EXPECTED["thresholds"]
    total = np.zeros((4, len(thresholds)), dtype=np.int64)
    best = np.zeros(4, dtype=np.int64)
    for name in NAMES:
        prediction = picture(name, "prediction")
        if which == "nms_sets":
            prediction = nms(prediction)
        counts = boundary_counts(prediction, [picture(name, "boundary")], thresholds, float(max_dist))
        theirs = np.array([expected["images"][name][k] for k in ("count_r", "sum_r", "count_p", "sum_p")])
        assert np.all(np.abs(counts - theirs) <= np.maximum(0.02 * theirs, 1))
        if which == "sets":
            # a maximum matching is never below theirs, and thinning is theirs to the pixel
            assert np.array_equal(counts[3], theirs[3]) and np.all(counts[0] >= theirs[0])
        assert np.array_equal(counts[0], counts[2])
        total, best = total + counts, best + best_counts(counts)
    scores = boundary_scores(total, best, thresholds)
    assert scores.ods_f == pytest.approx(expected["odsF"], abs=0.003)
    place = [thresholds.index(expected["threshold"]), thresholds.index(scores.ods_threshold)]
    assert abs(place[0] - place[1]) <= 1
    assert scores.ods_f <= scores.ois_f <= 1 and 0 < scores.ap < 1


@pytest.mark.parametrize("name", NAMES)
def test_suppression_equals_the_fixture(name):
    ours, theirs = nms(picture(name, "prediction")).astype(int), picture(name, "nms").astype(int)
    assert np.mean(np.abs(ours - theirs) <= 2) >= 0.99


def test_suppression_keeps_a_ridge_and_nothing_else():
    image = np.zeros((40, 40), dtype=np.uint8)
    image[:, 19:22] = (100, 200, 100)
    kept = nms(image)
    assert kept[10:30, 20].min() > 100 and np.count_nonzero(kept[10:30]) == 20


@st.composite
def masks(draw):
    """One mask (1, h, w), its width around the 64 pixels of a word, from sparse to dense."""
    height, width = draw(st.integers(1, 9)), draw(st.sampled_from([1, 5, 63, 64, 65, 70]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return rng.random((1, height, width)) < draw(st.floats(0.1, 0.95))


def slow_thin(mask: np.ndarray) -> np.ndarray:
    """Guo-Hall a pixel at a time, from the paper's conditions."""
    image = np.pad(mask.astype(int), 1)
    while True:
        for first in (True, False):
            gone = []
            for y, x in zip(*np.nonzero(image), strict=True):
                n, ne, e, se = image[y - 1, x], image[y - 1, x + 1], image[y, x + 1], image[y + 1, x + 1]
                s, sw, w, nw = image[y + 1, x], image[y + 1, x - 1], image[y, x - 1], image[y - 1, x - 1]
                steps = ((n, ne | e), (e, se | s), (s, sw | w), (w, nw | n))
                crossings = sum(not side and corner for side, corner in steps)
                pairs = min((nw | n) + (ne | e) + (se | s) + (sw | w), (n | ne) + (e | se) + (s | sw) + (w | nw))
                side = (n | ne | (1 - se)) & e if first else (s | sw | (1 - nw)) & w
                if crossings == 1 and 2 <= pairs <= 3 and not side:
                    gone.append((y, x))
            for y, x in gone:
                image[y, x] = 0
            if not gone:
                return image[1:-1, 1:-1].astype(bool)


@settings(max_examples=60, deadline=None)
@given(masks())
def test_thinning_equals_the_slow_rule(mask):
    assert np.array_equal(thin(mask)[0], slow_thin(mask[0]))


def test_masks_do_not_disturb_each_other():
    stack = np.random.default_rng(0).random((40, 50, 70)) < np.linspace(0.1, 0.9, 40)[:, None, None]
    together = thin(stack)
    assert all(np.array_equal(thin(stack[i : i + 1])[0], together[i]) for i in range(0, 40, 7))
    assert thin(stack[:0]).shape == (0, 50, 70)


def test_thinning_is_close_to_scikit_images():
    for name in NAMES:
        mask = picture(name, "prediction") >= 100
        assert np.mean(thin(mask[None])[0] != skimage_thin(mask)) < 0.006


def brute_matching(prediction: np.ndarray, truth: np.ndarray, radius: float) -> int:
    """The size of a maximum matching, by augmenting paths (Kuhn)."""
    left, right = np.argwhere(prediction), np.argwhere(truth)
    near = [np.flatnonzero(((right - p) ** 2).sum(1) <= radius**2) for p in left] if len(right) else []
    owner: dict[int, int] = {}

    def augment(i: int, seen: set[int]) -> bool:
        for j in near[i]:
            if j not in seen:
                seen.add(j)
                if j not in owner or augment(owner[j], seen):
                    owner[j] = i
                    return True
        return False

    return sum(augment(i, set()) for i in range(len(near)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.05, 0.7), st.floats(0, 4))
def test_matching_is_maximum(seed, density, radius):
    rng = np.random.default_rng(seed)
    prediction, truth = rng.random((2, 9, 11)) < density
    matched = match(prediction[None], truth, radius)[0]
    assert np.all(prediction[matched])
    assert matched.sum() == brute_matching(prediction, truth, radius)


def test_matching_equals_higras():
    import higra

    prediction = thin((picture("coffee", "prediction") >= 120)[None])[0]
    truth = picture("coffee", "boundary") > 0
    for max_dist in (0.0075, 0.011):
        pairs = higra.match_pixels_image_2d(prediction.astype(float), truth.astype(float), max_dist, "relative")
        ours = match(prediction[None], truth, max_dist * np.hypot(*truth.shape)).sum()
        assert ours == np.count_nonzero(np.asarray(pairs[0]))


def test_grey_levels_on_the_threshold_are_on():
    prediction = np.zeros((9, 9), dtype=np.uint8)
    prediction[4, 1:5] = (51, 102, 153, 204)
    thresholds = np.cumsum(np.full(99, 0.01))
    counts = boundary_counts(prediction, [prediction], thresholds, 0.01)
    for grey_level, number in ((51, 4), (102, 3), (153, 2), (204, 1)):
        assert counts[3][round(grey_level / 2.55) - 1] == number
    assert np.array_equal(counts, boundary_counts(prediction, [prediction], even_thresholds(), 0.01))


def test_an_image_without_truth_counts_its_predictions():
    prediction = np.zeros((20, 20), dtype=np.uint8)
    prediction[10, 2:18] = 200
    counts = boundary_counts(prediction, [np.zeros((20, 20))], (0.5, 0.9), 0.05)
    assert counts.tolist() == [[0, 0], [0, 0], [0, 0], [16, 0]]


def test_several_truths_share_the_predicted_pixels():
    prediction = np.zeros((20, 20), dtype=np.uint8)
    prediction[5, 5:10] = prediction[15, 5:10] = 255
    first, second = np.zeros((2, 20, 20))
    first[5, 5:10] = 1
    second[15, 5:9] = 1
    counts = boundary_counts(prediction, [first, second], (0.5,), 0.01)
    assert counts[:, 0].tolist() == [9, 9, 9, 10]


def test_wrong_input_is_refused():
    with pytest.raises(TypeError, match="uint8, not float64"):
        boundary_counts(np.zeros((4, 4)), [np.zeros((4, 4))], (0.5,), 0.01)
    with pytest.raises(ValueError, match=r"\(4, 4\), a truth \(4, 5\)"):
        boundary_counts(np.zeros((4, 4), np.uint8), [np.zeros((4, 5))], (0.5,), 0.01)


def test_padding_of_an_evaluation_view_changes_nothing():
    strength, truth = picture("coffee", "prediction"), picture("coffee", "boundary") > 0
    logits = torch.logit(torch.from_numpy(strength / 255.0).clamp(1e-6, 1 - 1e-6)).float()[None, None]
    label = torch.from_numpy(truth.astype(np.uint8))[None]
    plain, padded = BoundaryMetric(), BoundaryMetric()
    plain.update(logits, label)
    around = (20, 30, 10, 40)
    padded.update(torch.nn.functional.pad(logits, around, value=3.0), torch.nn.functional.pad(label, around, value=255))
    assert torch.equal(plain.counts, padded.counts)
    expected = boundary_counts(nms(strength), [truth], even_thresholds(), 0.0075)
    assert np.array_equal(plain.counts.numpy(), expected)


def test_average_precision_of_a_known_curve():
    # precision 1 up to recall 1/2, 1/2 at recall 1: 0 below the first recall, linear between the two
    counts = np.array([[10, 5], [10, 10], [10, 5], [20, 5]])
    scores = boundary_scores(counts, best_counts(counts), (0.1, 0.2))
    recalls = np.arange(101) / 100
    expected = sum(1 - (r - 0.5) for r in recalls if r >= 0.5 - 1e-12) * 0.01
    assert scores.ap == pytest.approx(expected)
    assert scores.ods_f == pytest.approx(2 / 3) and scores.ods_threshold == 0.1


@pytest.mark.slow
def test_speed_at_published_sizes():
    strength = np.array(Image.fromarray(picture("camera", "prediction")).resize((500, 375), Image.BILINEAR))
    truth = np.array(Image.fromarray(picture("camera", "boundary")).resize((500, 375), Image.NEAREST))
    start = time.process_time()
    boundary_counts(strength, [truth], even_thresholds(), 0.0075)
    assert time.process_time() - start < 3
