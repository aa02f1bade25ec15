"""Boundary scores of 500x375 px pictures, by CPU time: this project's matching beside its peers' on equal masks."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import Result, Row, checksum, installed
from sak_core.boundary import boundary_counts, even_thresholds, nms
from sak_core.boundary.matching import match
from sak_core.boundary.thinning import thin

GOAL = "at most 3 s an image and core at 500x375 px, 99 thresholds, with and without NMS"
LIMIT_S = 3.0
HEIGHT, WIDTH = 375, 500
MAX_DIST = 0.0075
PICTURES = ("astronaut", "chelsea", "coffee")

Array = npt.NDArray[Any]
Matcher = Callable[[Array, Array], Array]
"""A thinned mask and the truth, (h, w) bool each, to the matched predicted pixels, (h, w) bool."""


@dataclass(frozen=True)
class Case:
    """A picture's strengths (h, w) uint8 and its truth (h, w) bool."""

    name: str
    strength: Array
    truth: Array


def run(quick: bool) -> Result:
    """Time whole images at 99 thresholds; then, at fewer, the matching alone beside what is installed of the peers."""
    cases = [make_case(name) for name in PICTURES]
    whole = [_whole(case, suppress, 1 if quick else 5) for case in cases for suppress in (False, True)]
    peers, agreement = _matchers(cases[0], 4 if quick else 24, 1 if quick else 3)
    worst = max(statistics.median(row.seconds) for row in whole)
    value = {"worst_image_s": worst, **agreement}
    speeds = {row.side: statistics.median(row.rates) for row in peers if row.seconds}
    for name, speed in speeds.items():
        if name != "sak":
            value[f"times_{name}"] = speeds["sak"] / speed
    return Result("boundary", GOAL, value, worst <= LIMIT_S, [*whole, *peers])


def make_case(name: str) -> Case:
    """One of scikit-image's photographs: smoothed gradients as strengths, Canny edges as the truth."""
    from skimage import color, data, feature, filters, transform

    grey = transform.resize(color.rgb2gray(getattr(data, name)()), (HEIGHT, WIDTH), anti_aliasing=True)
    slope = filters.sobel(filters.gaussian(grey, 1.2))
    strength = np.clip(slope / np.quantile(slope, 0.98), 0, 1)
    return Case(name, np.rint(strength * 255).astype(np.uint8), feature.canny(grey, sigma=2.0))


def _whole(case: Case, suppress: bool, rounds: int) -> Row:
    """Suppression, thinning and matching of one image at 99 thresholds."""
    row = Row(f"{case.name}{', NMS' if suppress else ''}", installed(None), "all of it, 99 thresholds", unit="images/s")
    row.amount = 1
    for _ in range(rounds):
        start = time.process_time()
        strength = nms(case.strength) if suppress else case.strength
        counts = boundary_counts(strength, [case.truth], even_thresholds(), MAX_DIST)
        row.seconds.append(time.process_time() - start)
    row.checksum, row.num_bytes = checksum([counts])
    return row


def _matchers(case: Case, number: int, rounds: int) -> tuple[list[Row], dict[str, float]]:
    """Rows of every matcher on the same thinned masks, taking turns, and how far their counts are from ours."""
    radius = MAX_DIST * float(np.hypot(HEIGHT, WIDTH))
    grey = np.array([255 * t for t in even_thresholds(number)])
    masks = thin(nms(case.strength)[None] >= grey[:, None, None])
    sides: dict[str, tuple[str | None, Matcher]] = {
        "sak": (None, lambda mask, truth: match(mask[None], truth, radius)[0]),
        "higra": ("higra", _higra),
        "pyEdgeEval": ("pyEdgeEval", _py_edge_eval),
    }
    rows: dict[str, Row] = {}
    found: dict[str, list[int]] = {}
    for name, (package, _) in sides.items():
        there = package is None or importlib.util.find_spec(package) is not None
        note = f"matching alone, {number} thresholds" if there else "not installed"
        rows[name] = Row(name, installed(package), note, unit="masks/s", amount=number)
        rows[name].checksum, rows[name].num_bytes = checksum([masks])
    for _ in range(rounds):
        for name, (_, matcher) in sides.items():
            if rows[name].note == "not installed":
                continue
            start = time.process_time()
            matched = [matcher(mask, case.truth) for mask in masks]
            rows[name].seconds.append(time.process_time() - start)
            found[name] = [int(mask.sum()) for mask in matched]
    ours = found.pop("sak")
    return list(rows.values()), {
        f"count_difference_{name}": _difference(ours, theirs) for name, theirs in found.items()
    }


def _difference(ours: Sequence[int], theirs: Sequence[int]) -> float:
    """The largest difference of matched pixels at a threshold, in percent of theirs."""
    return max(100 * abs(a - b) / max(b, 1) for a, b in zip(ours, theirs, strict=True))


def _higra(mask: Array, truth: Array) -> Array:
    import higra

    if not mask.any():  # it crashes on weights that are all zero
        return mask
    first, _ = higra.match_pixels_image_2d(mask.astype(float), truth.astype(float), MAX_DIST, "relative")
    matched: Array = np.asarray(first) > 0
    return matched


def _py_edge_eval(mask: Array, truth: Array) -> Array:
    from pyEdgeEval._lib import correspond_pixels

    first, _, _, _ = correspond_pixels(mask, truth, max_dist=MAX_DIST)
    matched: Array = np.asarray(first) > 0
    return matched
