"""One-to-one matching of boundary pixels within a distance: greedy from near to far, completed by maximum flow."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

Masks = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]


def match(predictions: Masks, truth: Masks, radius: float) -> Masks:
    """Which predicted pixels of each mask (T, h, w) are matched to `truth` (h, w), one to one, at most
    `radius` px apart.

    A maximum matching, so that the same number of truth pixels is matched. Of several it is one that prefers near
    pixels, as the benchmark's does: with several annotations it matters which predicted pixels each one matches.
    """
    matched = np.zeros_like(predictions)
    for prediction, result in zip(predictions, matched, strict=True):
        pairs = _pairs(prediction, truth, radius)
        pairs.left_taken[_augment(pairs)] = True
        result[prediction] = pairs.left_taken
    return matched


@dataclass(frozen=True)
class _Pairs:
    """Every predicted and true pixel within reach of each other, and which of them a greedy matching takes.

    Attributes:
        left, right: numbers of a predicted and of a true pixel, a pair.
        chosen: whether the pair is taken.
        left_taken, right_taken: whether a pixel is, by number, in the order of the mask's pixels.
    """

    left: Indices
    right: Indices
    chosen: Masks
    left_taken: Masks
    right_taken: Masks


def _pairs(prediction: Masks, truth: Masks, radius: float) -> _Pairs:
    """The pairs by offset, nearest first; pairs of one offset never share a pixel, so all free ones are taken."""
    reach = math.floor(radius)
    height, width = truth.shape
    padded_width = width + 2 * reach
    padded = np.zeros((height + 2 * reach, padded_width), dtype=bool)
    padded[reach : reach + height, reach : reach + width] = truth
    near = padded.ravel()
    y, x = np.nonzero(prediction)
    corner = (y + reach) * padded_width + x + reach
    left_taken = np.zeros(len(corner), dtype=bool)
    right_taken = np.zeros(int(truth.sum()), dtype=bool)
    number = np.cumsum(near) - 1
    lefts, rights, chosen = [], [], []
    for dy, dx in _offsets(radius):
        place = corner + (dy * padded_width + dx)
        left = np.flatnonzero(near[place])
        right = number[place[left]]
        free = ~(left_taken[left] | right_taken[right])
        left_taken[left[free]] = right_taken[right[free]] = True
        lefts.append(left)
        rights.append(right)
        chosen.append(free)
    return _Pairs(np.concatenate(lefts), np.concatenate(rights), np.concatenate(chosen), left_taken, right_taken)


def _offsets(radius: float) -> list[tuple[int, int]]:
    """All (dy, dx) no longer than `radius`, the shortest first."""
    span = range(-math.floor(radius), math.floor(radius) + 1)
    return sorted(
        ((dy, dx) for dy in span for dx in span if dy**2 + dx**2 <= radius**2), key=lambda o: o[0] ** 2 + o[1] ** 2
    )


def _augment(pairs: _Pairs) -> Indices:
    """The predicted pixels that a maximum matching takes beyond the chosen ones.

    A maximum flow of unit capacities through what the chosen pairs leave: along its paths every pixel that is
    taken stays so.
    """
    num_left, num_right = len(pairs.left_taken), len(pairs.right_taken)
    free_left, free_right = np.flatnonzero(~pairs.left_taken), np.flatnonzero(~pairs.right_taken)
    if not len(free_left) or not len(free_right):
        return free_left[:0]
    source, sink = num_left + num_right, num_left + num_right + 1
    # a chosen pair can only be undone: from the true pixel back to the predicted one
    right = pairs.right + num_left
    start = [np.where(pairs.chosen, right, pairs.left), np.full(len(free_left), source), free_right + num_left]
    end = [np.where(pairs.chosen, pairs.left, right), free_left, np.full(len(free_right), sink)]
    edges = np.concatenate(start).astype(np.int32), np.concatenate(end).astype(np.int32)
    capacity = csr_array((np.ones(len(edges[0]), dtype=np.int32), edges), shape=(sink + 1, sink + 1))
    flow = maximum_flow(capacity, source, sink, method="dinic").flow
    row = slice(flow.indptr[source], flow.indptr[source + 1])
    taken: Indices = flow.indices[row][flow.data[row] > 0]
    return taken
