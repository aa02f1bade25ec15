"""What a store's labels leave to be learned, looked at before the first step: training on nothing looks well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.store import Store
from pipeline.console import warn
from pipeline.recipes.stores import DESCRIBED, row_of
from sak_core.datasets.label_files import NO_DEPTH_ADVICE
from sak_core.labels import FARTHEST_M, IGNORE
from sak_core.tasks import Task, check_class_names
from sak_core.views.view import View, view_scale

MOST_SAMPLES = 1000
"""Samples whose labels are looked at, at most, spread evenly; a usual task needs only the first."""
FEW_SAMPLES = 16
"""That are looked at for depths which are none."""


def warn_of_labels(store: Store, tasks: Sequence[Task]) -> None:
    """Warn of each task whose labels in `store` teach nothing that can be scored, naming task and store."""
    for task in tasks:
        if told := labels_lack(store, task):
            warn(f"{task.name}: {told} ({store.name})")


def labels_lack(store: Store, task: Task) -> str | None:
    """What the task's labels lack, in words: any label, more than one class, depths that are scored."""
    if task.kind == "classes":
        try:
            check_class_names(task.classes)
        except ValueError as error:
            return str(error)
    valid = np.flatnonzero(store.valid(1))
    chosen = valid[:: -(-len(valid) // MOST_SAMPLES)] if len(valid) else valid
    values = set[int]()
    has_label = has_depth = False
    for number, sample in enumerate(chosen):
        found = _valid_values(store, task, int(sample))
        has_label = has_label or found.size > 0
        if task.kind == "normals" and has_label:
            return None
        if task.kind == "depth" and row_of(store.spec) == DESCRIBED and (found <= 0).any():
            return f"{store.ids(int(sample))[0]} has depths of {found.min():g} m: {NO_DEPTH_ADVICE}"
        if task.kind == "depth" and number >= FEW_SAMPLES and has_depth:
            return None
        has_depth = has_depth or bool((found < FARTHEST_M).any())
        if task.kind not in ("normals", "depth"):
            values |= set(np.unique(found).tolist())
            if len(values) > 1:
                return None
    looked_at = f"the {len(chosen)} samples looked at"
    if not has_label:
        return f"no pixel of {looked_at} has a label, so there is nothing to learn"
    if task.kind == "depth" and has_depth:
        return None
    if task.kind == "depth":
        return f"all depths of {looked_at} are {FARTHEST_M:g} m or more, which no score counts; is the scale in metres?"
    (value,) = values
    name = repr(task.classes[value]) if task.kind == "classes" else str(value)
    return f"every labelled pixel of {looked_at} is {name}, so there is nothing to tell it from"


def _valid_values(store: Store, task: Task, sample: int) -> npt.NDArray[Any]:
    """The labelled pixels of a sample's first view, (n,) or (n, 3); depth in the image's own metres."""
    label: npt.NDArray[Any] = store.labels[task.name][sample, 0]
    is_valid = label != IGNORE
    found: npt.NDArray[Any] = label[is_valid.any(-1) if task.kind == "normals" else is_valid]
    if task.kind != "depth":
        return found
    view = View.from_arrays(*(store.views[name][sample, 0] for name in ("box", "flip", "colour")))
    in_metres: npt.NDArray[Any] = found * np.float32(view_scale(view, store.spec.size))
    return in_metres
