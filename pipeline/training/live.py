"""Teachers run in the training step, on the step's own pixels: training without a cache of features.

This is the only file of the training side that builds teachers. It reads from the store which teachers ran how, and
runs them so again; their cached features, complete or not, are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cache.loading.batch import Batch
from cache.store import Store
from pipeline.errors import UserError
from pipeline.extraction.running import RunningTeacher, request_of, start_teacher
from pipeline.training.following import FollowingBatches
from pipeline.training.loop import Batches
from sak_common.differences import first_difference


class LiveBatches(FollowingBatches):
    """The batches of a loader, with features that teachers compute as each batch comes.

    Args:
        loader: of pixels and labels.
        teachers: by the name that the student knows them by.
    """

    def __init__(self, loader: Batches, teachers: Mapping[str, RunningTeacher]) -> None:
        super().__init__(loader)
        self._teachers = teachers

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._followed:
            yield self._with_features(batch)

    def _with_features(self, batch: Batch) -> Batch:
        features: dict[str, list[torch.Tensor]] = {}
        prefixes: dict[str, list[torch.Tensor]] = {}
        for name, teacher in self._teachers.items():
            with torch.no_grad():
                found = teacher.maps(batch.pixels.to(teacher.device))
            count = len(teacher.teacher.spec.levels)
            features[name] = found[:count]
            prefixes[name] = [tokens[:, :, 0].transpose(1, 2) for tokens in found[count:]]
        return replace(batch, features=features, prefixes=prefixes, _decoders=None, _prefix_decoders=None)


def start_teachers(
    store: Store, names: Sequence[str], device: torch.device, weights: Mapping[str, Path] | None = None
) -> dict[str, RunningTeacher]:
    """The teachers of a store on `device`, run as they were when they were cached.

    Args:
        weights: teacher -> file, for teachers that were cached with one.

    Raises:
        UserError: a teacher built now is not the one that was cached; the difference is named.
    """
    teachers = {}
    for name in names:
        cached = store.teacher(name).provenance
        asked = request_of(cached, (weights or {}).get(name), str(device))
        running = start_teacher(replace(asked, threads=None), store.spec.size)
        if difference := first_difference(cached["teacher"], running.provenance["teacher"]):
            field, was, now = difference
            hint = f"; --weights {name}=FILE where they came from a file" if field == "weights" else ""
            raise UserError(f"{store.name}: {name} was cached with {field} = {was!r}, but here it has {now!r}{hint}")
        running.teacher.to(device)
        teachers[name] = running
    return teachers
