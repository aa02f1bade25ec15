"""Counts of a prediction against a label that may have pixels without one; no torch, so that workers start fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import find_objects

from sak_core.boundary.counts import Counts, boundary_counts
from sak_core.boundary.suppression import nms
from sak_core.labels import IGNORE


@dataclass(frozen=True)
class LabelledImage:
    """A predicted map of boundaries and its label.

    Attributes:
        strength: (h, w) uint8, 255 being 1.
        label: (h, w), boundaries where 1, 255 where no one knows.
    """

    strength: npt.NDArray[np.uint8]
    label: npt.NDArray[Any]


@dataclass(frozen=True)
class Rule:
    """How an image is counted: max_dist as a share of the diagonal, thresholds in (0, 1], suppression or not."""

    max_dist: float
    thresholds: Sequence[float]
    suppress: bool

    def __call__(self, image: LabelledImage) -> Counts | None:
        """Counts (4, T) of an image cut to the bounding box of its valid pixels, so that padding changes nothing;
        pixels ignored inside count as no boundary. None where no pixel is valid.
        """
        boxes = find_objects((image.label != IGNORE).astype(np.uint8))
        if not boxes:
            return None
        label = image.label[boxes[0]]
        valid = label != IGNORE
        strength = np.where(valid, image.strength[boxes[0]], 0).astype(np.uint8)
        if self.suppress:
            strength = nms(strength)
        return boundary_counts(strength, [(label > 0) & valid], self.thresholds, self.max_dist)
