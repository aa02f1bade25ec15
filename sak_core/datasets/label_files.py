"""How one task's labels are stored, as a description says (see sak_core.datasets.labelled), and reading them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sak_core.datasets.labels import normals_of, read_array, read_colours, read_grey
from sak_core.errors import UnreadableSample
from sak_core.interfaces.dataset import Label
from sak_core.labels import IGNORE

NAN_ADVICE = "if that marks what is not known, say so by ignore = [nan], or [inf], in dataset.toml"
NO_DEPTH_ADVICE = (
    "training takes 0 m and less for truth, and scores leave it out; if it marks what is not known, say so by "
    "ignore = [0] in dataset.toml"
)
ZERO_ADVICE = "a normal has a direction; if 0 marks what is not known, say so by ignore = [0] in dataset.toml"


@dataclass(frozen=True)
class LabelFiles:
    """How one task's labels are stored.

    Attributes:
        kind: of the task.
        files: path with {id} in it.
        classes: names in label order (kind "classes").
        ignore: stored values that are no label, of normals in all three channels (NaN in any); they decide alone. None,
            where the description is silent: 255 is no label.
        offset: added to stored classes.
        scale: metres for each stored 1.
        threshold: from which on a stored value is 1.
        weight: of the loss; None for the published one.
        optional: whether a sample may lack its file; it is then not labelled for this task.
    """

    kind: str
    files: str
    classes: tuple[str, ...] = ()
    ignore: tuple[float, ...] | None = None
    offset: int = 0
    scale: float = 1.0
    threshold: float = 1.0
    weight: float | None = None
    optional: bool = False

    @property
    def coding(self) -> dict[str, Any]:
        """What a store keeps of this, JSON-able: the settings, `optional` where it is set."""
        told = {setting.name: getattr(self, setting.name) for setting in fields(self)}
        told |= {"classes": list(self.classes), "ignore": [_plain(value) for value in self.ignore or ()]}
        if not self.optional:
            del told["optional"]
        return told

    def read(self, path: Path) -> Label:
        """One label in this project's coding, 255 where there is none.

        Raises:
            UnreadableSample: it cannot be read, or holds what its kind does not.
        """
        stored = self._stored(path)
        if self.kind == "normals" and (stored.ndim != 3 or stored.shape[2] != 3):
            raise UnreadableSample(path, f"has shape {stored.shape}, normals are (h, w, 3)")
        missing = self._missing(stored)
        if stored.dtype.kind == "f" and not np.isfinite(stored[~missing]).all():
            raise UnreadableSample(path, f"holds NaN or infinite values; {NAN_ADVICE}")
        if self.kind == "normals":
            return self._normals(path, stored, missing)
        if self.kind == "depth":
            return self._marked(stored.astype(np.float32) * np.float32(self.scale), missing)
        if self.kind == "classes":
            return self._indices(path, stored, missing)
        return self._marked((stored >= self.threshold).astype(np.uint8), missing)

    def _stored(self, path: Path) -> NDArray[Any]:
        if path.suffix.lower() == ".npy":
            return read_array(path)
        if self.kind == "normals":
            return read_colours(path)
        # what a lossy format makes of 0 and 1 is not what was saved; half of the range is far enough from both
        exact = self.kind == "classes" or (self.kind in ("saliency", "boundary") and self.threshold <= 1)
        return read_grey(path, exact=exact)

    def _missing(self, stored: NDArray[Any]) -> NDArray[np.bool_]:
        """Where `stored` (h, w[, 3]) is no label, (h, w): by the values of `ignore`."""
        values: NDArray[Any] = np.asarray([value for value in self.ignore or () if not math.isnan(value)])
        is_nan = np.zeros(stored.shape, np.bool_)
        if stored.dtype.kind == "f":
            # -3.4e38 and 0.1 have no equal among float32 unless they are rounded as the file's were
            with np.errstate(over="ignore"):
                values = values.astype(stored.dtype)
            if any(math.isnan(value) for value in self.ignore or ()):
                is_nan = np.isnan(stored)
        found: NDArray[np.bool_] = np.isin(stored, values)
        return np.logical_or(found.all(-1), is_nan.any(-1)) if self.kind == "normals" else found | is_nan

    def _normals(self, path: Path, stored: NDArray[Any], missing: NDArray[np.bool_]) -> Label:
        if path.suffix.lower() != ".npy":
            return self._marked(normals_of(stored), missing)
        if not stored[~missing].any(-1).all():
            raise UnreadableSample(path, f"holds normals of length 0; {ZERO_ADVICE}")
        return self._marked(stored.astype(np.float32), missing)

    def _indices(self, path: Path, stored: NDArray[Any], missing: NDArray[np.bool_]) -> Label:
        if stored.dtype.kind not in "ui":
            raise UnreadableSample(path, f"is {stored.dtype}, class labels are whole numbers")
        if self.ignore is None:
            missing = missing | (stored == IGNORE)
        indices = stored.astype(np.int64) + self.offset
        wrong = stored[~missing & ((indices < 0) | (indices >= len(self.classes)))]
        if wrong.size:
            void = "; it is no label where `ignore` says so, too" if IGNORE in wrong and self.ignore is not None else ""
            raise UnreadableSample(
                path, f"holds {wrong[0]}, beyond the {len(self.classes)} classes (offset {self.offset}){void}"
            )
        return self._marked(indices.astype(np.uint8), missing)

    def _marked(self, label: Label, missing: NDArray[np.bool_]) -> Label:
        """`label` with 255 where there is none; where `ignore` is given, a depth of 255 m stays a depth."""
        if self.ignore is not None and label.dtype == np.float32:
            label[label == IGNORE] = np.nextafter(np.float32(IGNORE), np.float32(np.inf))
        label[missing] = IGNORE
        return label


def _plain(value: float) -> float | str:
    """A value of `ignore` as JSON has it: there, NaN and infinities are no numbers."""
    return value if math.isfinite(value) else str(value)
