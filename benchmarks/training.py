"""What the benchmarks of training steps share: a student in training, stores of random features, phases of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Row, checksum
from benchmarks.read import black_rows
from cache.calibration.statistics import calibrated
from cache.format.spec import LevelSpec, SourceSpec
from cache.loading.batch import Batch
from cache.loading.loader import Loader
from cache.store import Store
from cache.writing.source_writer import SourceWriter, TeacherWriter
from sak_core.losses.step import distillation_loss
from sak_core.student.config import StudentConfig
from sak_core.student.network import StudentNetwork
from sak_core.student.stem import StemConfig, normalize

FILL = 2
"""Steps before the timed ones of a round, so that reading ahead has reached its steady state."""

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PHASES = ("data", "forward", "backward", "optimizer")


@dataclass
class Trainee:
    """A student in stage 1: forward and loss, backward, AdamW, as `pipeline.training.loop` has them.

    Attributes:
        seconds: of each phase in every step that was timed by phase.
    """

    model: StudentNetwork
    seconds: dict[str, list[float]] = field(default_factory=lambda: {phase: [] for phase in PHASES})

    def __post_init__(self) -> None:
        self.model.to(DEVICE).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def step(self, next_batch: Callable[[], Batch], by_phase: bool = False) -> None:
        """One step; `by_phase` waits for the device after each phase and keeps its seconds."""
        clock = _Clock(self.seconds if by_phase else None)
        batch = next_batch()
        clock.note("data")
        output = self.model(normalize(batch.pixels), tasks=False)
        loss, _ = distillation_loss(output.aligned, batch.features)
        clock.note("forward")
        loss.backward()
        clock.note("backward")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        clock.note("optimizer")


class _Clock:
    def __init__(self, seconds: dict[str, list[float]] | None) -> None:
        self._seconds = seconds
        self._last = time.perf_counter()

    def note(self, phase: str) -> None:
        if self._seconds is None:
            return
        wait()
        now = time.perf_counter()
        self._seconds[phase].append(now - self._last)
        self._last = now


def wait() -> None:
    """Until the device has done all it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def make_trainee(store: Store, stem: str | Mapping[str, int]) -> Trainee:
    """A student for all teachers of a store; `stem` is timm's name, or a custom stem's dimensions."""
    torch.manual_seed(0)
    named = (
        StemConfig(stem, store.spec.size) if isinstance(stem, str) else StemConfig("custom", store.spec.size, **stem)
    )
    teachers = {name: tuple(level.width for level in store.teacher(name).levels) for name in store.teachers}
    return Trainee(StudentNetwork(StudentConfig(stem=named, teachers=teachers)))


def endless(loader: Any) -> Iterator[Batch]:
    """Batches on the device, one epoch after another."""
    while True:
        for batch in loader:
            yield batch.to(DEVICE)
        loader.set_epoch(loader.epoch + 1)


def time_steps(
    trainee: Trainee, next_batch: Callable[[], Batch], steps: int, by_phase: bool = False, fill: int = FILL
) -> float:
    """Seconds of `steps` steps, after `fill` untimed ones that fill what reads ahead."""
    for _ in range(fill):
        trainee.step(next_batch)
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        trainee.step(next_batch, by_phase)
    wait()
    return time.perf_counter() - start


def add_checksum(row: Row, batches: Sequence[Batch], half: bool = False) -> None:
    """What a side delivers: pixels and features of whole batches; `half` rounds features as fp16 does."""
    arrays = []
    for batch in batches:
        arrays += [batch.pixels.cpu().numpy()]
        levels = [level.cpu().contiguous() for by_teacher in batch.features.values() for level in by_teacher]
        arrays += [(level.half() if half else level).numpy() for level in levels]
    row.checksum, row.num_bytes = checksum(arrays)


def plain_batch(store: Store, loader: Loader) -> Batch:
    """The first batch that `loader` gives, read row by row through the plain reader instead, on the device."""
    stored = next(iter(loader))
    rows = list(zip(stored.samples.tolist(), stored.views.tolist(), strict=True))
    features = {
        name: [_maps([store.features(name, level.level)[row] for row in rows]) for level in store.teacher(name).levels]
        for name in store.teachers
    }
    pixels = torch.from_numpy(np.stack([store.pixels[row] for row in rows]))
    batch = Batch(stored.samples.clone(), stored.views.clone(), stored.weights.clone(), pixels, features, {})
    return batch.to(DEVICE)


def _maps(rows: Sequence[Any]) -> torch.Tensor:
    """Rows (h, w, C) to (B, C, h, w), channels last in memory."""
    return torch.from_numpy(np.stack(rows).astype(np.float32)).permute(0, 3, 1, 2)


def random_store(
    folder: Path, size: tuple[int, int], teachers: Mapping[str, Sequence[LevelSpec]], num_rows: int
) -> Store:
    """A store of random pixels and random features, one view."""
    spec = SourceSpec("bench", "train", size, {}, 0, num_rows, "", rows_per_shard=8)
    store = Store.create(folder, spec)
    store.ensure_views(1)
    rng = np.random.default_rng(0)
    source = SourceWriter(store)
    writers = {name: TeacherWriter(store, {"name": name}, list(levels)) for name, levels in teachers.items()}
    for _, shard in source.pending(1):
        count = len(spec.rows(shard))
        pixels = rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)
        source.write_shard(0, shard, {**black_rows(spec, shard), "pixels": pixels})
        for name, levels in teachers.items():
            values = [rng.standard_normal((count, *level.grid, level.width), np.float32) for level in levels]
            if shard == 0:
                writers[name].write_calibration(calibrated(levels, [v[:1] for v in values], [v[1:2] for v in values]))
            writers[name].write_shard(0, shard, values)
    return store
