"""Four students from one read beside the four alone, where every request to the storage takes 20 ms."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Result, Row, SlowPlace, checksum, installed
from benchmarks.training import DEVICE, Trainee, make_trainee, random_store, wait
from cache.format.spec import LevelSpec
from cache.loading.loader import Loader
from cache.store import Store
from pipeline.training.loop import endless
from pipeline.training.shared_reads import Share, run_sharing

GOAL = "four students from one read, at 20 ms a request, take at most 0.4 of the time of the four alone"
MOST = 0.4
REQUEST_S = 0.02
NUM_STUDENTS = 4
STEM = {"patch_size": 8, "width": 96, "depth": 4, "heads": 3}
"""Of students that take less time than their data, as students do on a GPU beside slow storage."""


def run(quick: bool) -> Result:
    """Both sides in turns. Their checksums are over the weights that every student ends with: they must be equal."""
    steps, rounds = (5, 1) if quick else (10, 3)
    levels = {name: [LevelSpec(i, (12, 12), 96, "fp16") for i in range(4)] for name in ("dinov2", "clip")}
    with tempfile.TemporaryDirectory(prefix="sak-bench-") as folder:
        made = random_store(Path(folder), (96, 96), levels, 32)
        store = Store.open(SlowPlace(made.path, REQUEST_S))
        note = f"{DEVICE.type}, batch 8, {REQUEST_S * 1000:.0f} ms a request"
        rows = [
            Row(name, installed("torch"), note, unit="steps/s", amount=NUM_STUDENTS * steps)
            for name in ("one after the other", "together")
        ]
        for _ in range(rounds):
            for row, is_shared in zip(rows, (False, True), strict=True):
                students = [make_trainee(store, STEM) for _ in range(NUM_STUDENTS)]
                start = time.perf_counter()
                _train(store, list(levels), students, steps, is_shared)
                row.seconds.append(time.perf_counter() - start)
                row.checksum, row.num_bytes = checksum(_weights(students))
    assert rows[0].checksum == rows[1].checksum, "students that were trained together end with other weights"
    alone, together = (statistics.median(row.seconds) for row in rows)
    return Result("shared-reads", GOAL, {"shared_over_alone": together / alone}, together <= MOST * alone, rows)


def _train(store: Store, teachers: list[str], students: list[Trainee], steps: int, is_shared: bool) -> None:
    def work(student: Trainee) -> Any:
        def train(share: Share) -> None:
            loader = share(Loader(store, teachers, batch_size=8, num_views=1))
            batches = endless(loader, 1)
            for _ in range(steps):
                student.step(lambda: next(batches).to(DEVICE))
            wait()
            batches.close()  # which ends what reads ahead

        return train

    works = [work(student) for student in students]
    if is_shared:
        run_sharing(works, 1)
        return
    for train in works:
        train(lambda loader: loader)


def _weights(students: list[Trainee]) -> list[Any]:
    """Every student's weights, an array a tensor."""
    return [
        value.detach().cpu().float().reshape(1, -1).numpy()
        for student in students
        for value in student.model.state_dict().values()
        if isinstance(value, torch.Tensor)
    ]
