"""The BSDS boundary benchmark (Martin, Fowlkes, Malik 2004, doi 10.1109/TPAMI.2004.1273918): counts and scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sak_core.boundary.matching import match
from sak_core.boundary.thinning import thin

Counts = npt.NDArray[np.int64]
"""(4, T): matched truth pixels, truth pixels, matched predicted pixels, predicted pixels, at T thresholds."""

NUM_THRESHOLDS = 99


def even_thresholds(number: int = NUM_THRESHOLDS) -> tuple[float, ...]:
    """k / (number + 1) for k = 1 .. number; 99 gives 0.01 .. 0.99."""
    return tuple(k / (number + 1) for k in range(1, number + 1))


def boundary_counts(
    prediction: npt.NDArray[np.uint8],
    truths: Sequence[npt.NDArray[Any]],
    thresholds: Sequence[float],
    max_dist: float,
) -> Counts:
    """Counts (4, T) of one image.

    With several truths a predicted pixel counts as matched if one of them matches it, and truth pixels are summed.

    Args:
        prediction: (h, w) strengths, 255 being 1; on where the strength reaches a threshold, then thinned.
        truths: one or more annotations (h, w), boundaries where not 0; not thinned.
        thresholds: in (0, 1].
        max_dist: how far apart matched pixels may be, as a share of the image's diagonal.

    Raises:
        TypeError: predictions that are not uint8.
        ValueError: sizes differ.
    """
    if prediction.dtype != np.uint8:
        raise TypeError(f"boundary strengths are uint8, not {prediction.dtype}")
    for truth in truths:
        if truth.shape != prediction.shape:
            raise ValueError(f"the prediction is {prediction.shape}, a truth {truth.shape}")
    # in grey levels, so that a threshold such as 0.6000000000000001 does not lose grey 153, which is 0.6
    grey = np.ceil(np.asarray(thresholds) * 255.0 - 1e-6)
    levels, at = np.unique(np.searchsorted(np.unique(prediction), grey), return_inverse=True)
    values = np.append(np.unique(prediction).astype(np.int64), 256)
    # thresholds between two grey levels that occur give the same mask
    masks = thin(prediction[None] >= values[levels][:, None, None])
    radius = max_dist * float(np.hypot(*prediction.shape))
    counts = np.zeros((4, len(levels)), dtype=np.int64)
    any_matched = np.zeros_like(masks)
    for truth in truths:
        boundary = truth > 0
        matched = match(masks, boundary, radius)
        counts[0] += matched.sum(axis=(1, 2))
        counts[1] += int(boundary.sum())
        any_matched |= matched
    counts[2] = any_matched.sum(axis=(1, 2))
    counts[3] = masks.sum(axis=(1, 2))
    return counts[:, at]


@dataclass(frozen=True)
class BoundaryScores:
    """Scores of a set, each in [0, 1].

    Attributes:
        ods_f: best F at one threshold for all images.
        ods_threshold: that threshold, the first of equals.
        ois_f: F of the counts at every image's own best threshold.
        ap: average precision.
    """

    ods_f: float
    ods_threshold: float
    ois_f: float
    ap: float


def f_measure(counts: Counts) -> npt.NDArray[np.float64]:
    """F = 2 P R / (P + R) of counts (4, ...), 0 where undefined."""
    recall, precision = _ratio(counts[0], counts[1]), _ratio(counts[2], counts[3])
    return _ratio(2 * precision * recall, precision + recall)


def best_counts(counts: Counts) -> Counts:
    """The counts (4,) at the threshold where an image's F is best, the first of equals."""
    return counts[:, int(np.argmax(f_measure(counts)))]


def boundary_scores(counts: Counts, best: Counts, thresholds: Sequence[float]) -> BoundaryScores:
    """Scores from counts (4, T) and from best counts (4,), both summed over images; no interpolation for
    odsF.

    Average precision as in the BSDS benchmark: precision interpolated linearly over recall at 0, 0.01 .. 1, 0
    outside the curve, mean over those 101 points but one (the sum times 0.01).
    """
    f = f_measure(counts)
    index = int(np.argmax(f))
    recall, precision = _ratio(counts[0], counts[1]), _ratio(counts[2], counts[3])
    recall, first = np.unique(recall, return_index=True)
    points = np.interp(np.linspace(0, 1, 101), recall, precision[first], left=0.0, right=0.0)
    return BoundaryScores(
        ods_f=float(f[index]),
        ods_threshold=float(thresholds[index]),
        ois_f=float(f_measure(best)),
        ap=float(points.sum() * 0.01) if len(recall) > 1 else 0.0,
    )


def _ratio(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    ratio: npt.NDArray[np.float64] = np.divide(a, b, out=np.zeros(np.shape(a)), where=np.asarray(b) > 0)
    return ratio
