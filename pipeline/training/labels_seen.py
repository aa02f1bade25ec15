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
    looked_at = f"the {len(chosen)} samples looked at"
    nothing = f"no pixel of {looked_at} has a label, so there is nothing to learn"
    if task.kind == "depth":
        return _depths_lack(store, task, chosen, looked_at, nothing)
    values = set[int]()
    has_label = False
    for sample in chosen:
        found = _valid_values(store, task, int(sample))
        has_label = has_label or found.size > 0
        if task.kind == "normals" and has_label:
            return None
        if task.kind != "normals":
            values |= set(np.unique(found).tolist())
            if len(values) > 1:
                return None
    if not has_label:
        return nothing
    (value,) = values
    name = repr(task.classes[value]) if task.kind == "classes" else str(value)
    return f"every labelled pixel of {looked_at} is {name}, so there is nothing to tell it from"


def _depths_lack(store: Store, task: Task, chosen: npt.NDArray[np.intp], looked_at: str, nothing: str) -> str | None:
    """The same of depth; and of a described data set, depths that it could have called none."""
    may_say = row_of(store.spec) == DESCRIBED
    has_label = is_scored = False
    for number, sample in enumerate(chosen):
        if is_scored and (number >= FEW_SAMPLES or not may_say):
            return None
        found = _valid_values(store, task, int(sample))
        if may_say and found.size and found.min() <= 0:
            return f"{store.ids(int(sample))[0]} has depths of {found.min():g} m: {NO_DEPTH_ADVICE}"
        has_label = has_label or found.size > 0
        is_scored = is_scored or bool((found < FARTHEST_M).any())
    if is_scored:
        return None
    if not has_label:
        return nothing
    return f"all depths of {looked_at} are {FARTHEST_M:g} m or more, which no score counts; is the scale in metres?"


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
