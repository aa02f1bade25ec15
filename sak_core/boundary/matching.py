"""One-to-one matching of boundary pixels within a distance: a maximum matching, by maximum flow."""

import math

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

Masks = npt.NDArray[np.bool_]


def match(predictions: Masks, truth: Masks, radius: float) -> Masks:
    """Which predicted pixels of each mask (T, h, w) are matched to `truth` (h, w), one to one, at most
    `radius` px apart.

    A maximum matching, so that the same number of truth pixels is matched; which of several it is does not
    matter to counts.
    """
    matched = np.zeros_like(predictions)
    for prediction, result in zip(predictions, matched, strict=True):
        _match_one(prediction, truth, radius, result)
    return matched


def _match_one(prediction: Masks, truth: Masks, radius: float, matched: Masks) -> None:
    pixel, target = _pairs(prediction, truth, radius)
    if not len(pixel):
        return
    left, left_of = np.unique(pixel, return_inverse=True)
    right, right_of = np.unique(target, return_inverse=True)
    num_left, num_right = len(left), len(right)
    source, sink = num_left + num_right, num_left + num_right + 1
    # rows of the capacity matrix in order: predicted pixels, truth pixels, source, sink
    degree = np.bincount(left_of, minlength=num_left)
    starts = np.concatenate([[0], np.cumsum(degree)])
    columns = np.concatenate([right_of + num_left, np.full(num_right, sink), np.arange(num_left)])
    indptr = np.concatenate(
        [
            starts,
            starts[-1] + np.arange(1, num_right + 1),
            np.full(2, starts[-1] + num_right + num_left),
        ]
    )
    capacity = csr_array(
        (np.ones(len(columns), dtype=np.int32), columns.astype(np.int32), indptr.astype(np.int32)),
        shape=(sink + 1, sink + 1),
    )
    flow = maximum_flow(capacity, source, sink, method="dinic").flow
    row = flow.indices[flow.indptr[source] : flow.indptr[source + 1]]
    amount = flow.data[flow.indptr[source] : flow.indptr[source + 1]]
    matched.flat[left[row[amount > 0]]] = True


def _pairs(prediction: Masks, truth: Masks, radius: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Flat indices of every predicted and true pixel at most `radius` apart, predicted ones ascending."""
    reach = math.floor(radius)
    height, width = truth.shape
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    near = dy**2 + dx**2 <= radius**2
    dy, dx = dy[near], dx[near]
    padded_width = width + 2 * reach
    padded = np.zeros((height + 2 * reach, padded_width), dtype=bool)
    padded[reach : reach + height, reach : reach + width] = truth
    y, x = np.nonzero(prediction)
    corner = (y + reach) * padded_width + x + reach
    hit = padded.ravel()[corner[:, None] + (dy * padded_width + dx)]
    pixel, offset = np.nonzero(hit)
    y, x = y[pixel], x[pixel]
    return y * width + x, (y + dy[offset]) * width + x + dx[offset]
