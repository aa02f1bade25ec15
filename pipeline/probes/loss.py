"""What a task loses to a codec, as it is kept and shown; without torch, for `sak info`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import UserError
from sak_core.tasks import KINDS

_KIND_OF_SCORE = {kind.score: kind for kind in KINDS.values()}
_UNITS = {"depth": "m", "normals": "degrees"}


@dataclass(frozen=True)
class Loss:
    """A task's scores, in its own unit: points of 100, metres, degrees.

    Attributes:
        score: name of the task's primary score.
        raw, decoded: the probe's, over the same images.
        loss: by how much `decoded` is the worse one; below 0 where it is better.
        low, high: 95 % of the losses over other draws of these images (with replacement, both scores of the same
            ones) lie between. That the probe was fitted on other images would change, it does not tell.
        images: with a label.
    """

    score: str
    raw: float
    decoded: float
    loss: float
    low: float
    high: float
    images: int

    @property
    def unit(self) -> str:
        """Of all of these numbers."""
        return _UNITS.get(_KIND_OF_SCORE[self.score].name, "points")

    def __str__(self) -> str:
        return (
            f"loses {self.loss:.2g} {self.unit} ({self.low:.2g} to {self.high:.2g}; {self.score} {self.raw:.4g} raw, "
            f"{self.decoded:.4g} decoded, {self.images} images)"
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it, with its unit."""
        return {**asdict(self), "unit": self.unit}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Loss:
        """The inverse of `to_dict`; what else is in `values` is passed over."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    def to_array(self) -> npt.NDArray[np.float64]:
        """float64 (6,): raw, decoded, loss, low, high, images."""
        return np.array([self.raw, self.decoded, self.loss, self.low, self.high, self.images], np.float64)

    @classmethod
    def from_array(cls, score: str, values: npt.NDArray[Any]) -> Loss:
        """The inverse of `to_array`.

        Raises:
            UserError: these are no such numbers: anyone may have written them.
        """
        if values.shape != (6,) or score not in _KIND_OF_SCORE:
            raise UserError(f"{score} {values.shape} is no score of a probe, raw and decoded")
        raw, decoded, loss, low, high, images = (float(value) for value in values)
        return cls(score, raw, decoded, loss, low, high, int(images))
