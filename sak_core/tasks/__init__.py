"""Tasks: what a network predicts, how its labels look, and how it is trained and scored.

A `Task` is a name, a kind and (for classes) class names; everything else follows from the kind, one row of
`KINDS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import numpy as np

from sak_common.names import UnknownName, unknown
from sak_core.labels import IGNORE

if TYPE_CHECKING:
    from torch import Tensor

    from sak_core.metrics.base import TaskMetric
    from sak_core.tasks.losses import OverRanks

TASK_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
"""Tasks name parts of networks, and files and folders of predictions."""
# fmt: off
TAKEN_NAMES = frozenset((
    "add_module", "apply", "bfloat16", "buffers", "children", "clear", "compile", "cpu", "cuda", "double", "eval",
    "float", "forward", "half", "items", "keys", "modules", "parameters", "pop", "state_dict", "to", "to_empty",
    "train", "training", "type", "update", "values", "zero_grad",
))
# fmt: on
"""What torch's containers of parts call something else: no part can have these names. (Others that they have are long
ones that no task is called by.)"""

Loss = Callable[["Tensor", "Tensor", "OverRanks | None"], "Tensor"]
"""(output (B, C, H, W), label (B, H, W[, 3]), over_ranks) to a scalar."""


@dataclass(frozen=True)
class Kind:
    """What all tasks of one kind share.

    Attributes:
        label_dtype: numpy dtype of stored labels.
        label_channels: 0 for labels (H, W), 3 for labels (H, W, 3).
        channels: output channels of the network, None for one a class.
        loss, metric: see sak_core.tasks.losses and sak_core.metrics (imported when first used: torchmetrics is slow to
            load).
        score, higher_is_better: the primary score's name in the metric's result, and its sense.
        weight: factor of the loss in the total where nothing else is said; the published ones.
    """

    name: str
    label_dtype: np.dtype[Any]
    label_channels: int
    channels: int | None
    loss: Loss
    metric: Callable[[Task], TaskMetric]
    score: str
    higher_is_better: bool
    weight: float = 1.0


@dataclass(frozen=True)
class Task:
    """One dense prediction task.

    Attributes:
        name: unique among a model's tasks.
        kind: a key of `KINDS`.
        classes: class names in label order (kind "classes" only).
        weight: factor of its loss in the total.
        max_dist: how far a boundary may be off and still count, as a share of the diagonal (kind "boundary" only;
            published: 0.0075 on PASCAL-Context, 0.011 on NYUD-v2).
    """

    name: str
    kind: str
    classes: tuple[str, ...] = ()
    weight: float = 1.0
    max_dist: float = 0.0075

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownName(f"task {self.name!r}: {unknown('kind', self.kind, KINDS)}")
        if (self.kind == "classes") != bool(self.classes):
            raise ValueError(
                f"task {self.name!r} of kind {self.kind!r} has {len(self.classes)} class names: "
                "kind 'classes' needs them, no other kind takes them"
            )
        if len(self.classes) > IGNORE:
            raise ValueError(f"task {self.name!r}: {len(self.classes)} classes, but labels hold 0..{IGNORE - 1}")
        object.__setattr__(self, "classes", tuple(self.classes))

    @property
    def spec(self) -> Kind:
        """The row of `KINDS` that this task belongs to."""
        return KINDS[self.kind]

    @property
    def channels(self) -> int:
        """Output channels of the network."""
        fixed = self.spec.channels
        return len(self.classes) if fixed is None else fixed

    @property
    def class_keys(self) -> tuple[str, ...]:
        """The class names, numbered where one comes twice: a table by name loses none of them."""
        count = self.classes.count
        return tuple(name if count(name) == 1 else f"{name} (class {i})" for i, name in enumerate(self.classes))

    @property
    def score(self) -> str:
        """Name of the primary score."""
        return self.spec.score

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger primary score is the better one."""
        return self.spec.higher_is_better

    def metric(self) -> TaskMetric:
        """A fresh metric; its `compute()` has the primary score under `score`."""
        return self.spec.metric(self)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; `Task.from_dict` reads it back."""
        return {**asdict(self), "classes": list(self.classes)}

    @staticmethod
    def from_dict(value: dict[str, Any]) -> Task:
        """The task that `to_dict` described."""
        return Task(**{**value, "classes": tuple(value.get("classes", ()))})


def check_class_names(classes: Sequence[str]) -> None:
    """Check the names of a task's classes.

    Raises:
        ValueError: one stands twice, or alone: a network has nothing to tell one class from.
    """
    for name in classes:
        if classes.count(name) > 1:
            raise ValueError(f"class {name!r} comes twice: each class needs a name of its own")
    if len(classes) == 1:
        raise ValueError(
            f"{classes[0]!r} is the only class, so there is nothing to tell it from: list what else there is, such as "
            'the background, or take kind = "saliency"'
        )


def published_weight(name: str) -> float:
    """Loss weight that the SAK paper (arXiv 2410.14633, appendix B) gives its task of this name on NYUD and
    PASCAL-Context; of all other data sets the kind decides (`Kind.weight`).
    """
    return {
        "human_parts": 2.0,
        "sal": 5.0,
        "saliency": 5.0,
        "edge": 50.0,
        "boundary": 50.0,
        "normals": 10.0,
    }.get(name, 1.0)


def published_max_dist(dataset: str) -> float:
    """How far boundaries may be off on a dataset in published scores, as a share of the diagonal."""
    return {"nyud": 0.011}.get(dataset, 0.0075)


def _loss(name: str) -> Loss:
    """The loss that `sak_core.tasks.losses` calls so."""

    def loss(output: Tensor, label: Tensor, over_ranks: OverRanks | None) -> Tensor:
        found: Loss = resolve_name(f"sak_core.tasks.losses:{name}")
        return found(output, label, over_ranks)

    return loss


def _metric(name: str, *fields: str) -> Callable[[Task], TaskMetric]:
    """The metric that `sak_core.metrics` calls so, made of these fields of the task."""

    def metric(task: Task) -> TaskMetric:
        found: Callable[..., TaskMetric] = resolve_name(f"sak_core.metrics:{name}")
        return found(*(getattr(task, field) for field in fields))

    return metric


_U8 = np.dtype(np.uint8)
_F32 = np.dtype(np.float32)

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("classes", _U8, 0, None, _loss("cross_entropy"), _metric("ClassesMetric", "channels"), "mIoU", True),
        Kind("saliency", _U8, 0, 2, _loss("balanced_cross_entropy"), _metric("SaliencyMetric"), "maxF", True, 5.0),
        Kind("normals", _F32, 3, 3, _loss("normals_l1"), _metric("NormalsMetric"), "mErr", False, 10.0),
        Kind("depth", _F32, 0, 1, _loss("depth_l1"), _metric("DepthMetric"), "RMSE", False),
        Kind(
            "boundary",
            _U8,
            0,
            1,
            _loss("boundary_cross_entropy"),
            _metric("BoundaryMetric", "max_dist"),
            "odsF",
            True,
            50.0,
        ),
    )
}
"""The kinds of tasks, one row each."""
