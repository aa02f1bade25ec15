"""The teachers' parts of a store: cached pixels through each teacher once, coded and written shard by shard."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from cache.calibration import Calibrator, calibration_rows
from cache.spec import LevelSpec
from cache.store import Store
from cache.teacher_writer import TeacherWriter
from pipeline.console import progress, say, warn
from pipeline.errors import UserError
from sak_core.names import part_name
from sak_core.teachers import build_teacher
from sak_core.teachers.base import Teacher

CALIBRATION_ROWS = 256
"""Rows of view 0 that a teacher's channel statistics are fitted on."""

LIBRARIES = {
    "timm": "timm",
    "open_clip": "open_clip_torch",
    "segment_anything": "segment-anything",
    "transformers": "transformers",
}
"""Distribution that a teacher's library comes from, for versions in the provenance."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TeacherRequest:
    """Which teacher, run how. Everything that decides a feature's bytes ends up in the provenance."""

    name: str
    codec: str = "fp16"
    levels: tuple[int, ...] | None = None
    grid: tuple[int, int] | None = None
    weights: Path | None = None
    random_weights: bool = False
    device: str = "auto"
    precision: str = "fp32"
    batch_size: int = 16
    threads: int | None = None


@dataclass(frozen=True)
class RunningTeacher:
    """A teacher set up as a request asks: what extraction, repair and live checks run rows through.

    Attributes:
        request: as asked.
        device: where it runs.
        teacher: built, with its weights.
        levels: as stored.
        provenance: what decides the bytes of its features.
    """

    request: TeacherRequest
    device: torch.device
    teacher: Teacher
    levels: tuple[LevelSpec, ...]
    provenance: dict[str, Any]

    def forward(self, pixels: Array) -> list[Array]:
        """uint8 pixels (n, H, W, 3) to one float32 (n, h, w, C) a level, area-averaged to the requested grid."""
        if self.teacher.mean.device.type != self.device.type:  # several teachers share a GPU one after the other
            self.teacher.to(self.device)
        batch = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device)
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.request.precision == "bf16"),
        ):
            maps = self.teacher(batch)
        if self.request.grid:
            maps = [F.adaptive_avg_pool2d(m.float(), self.request.grid) for m in maps]
        return [m.float().permute(0, 2, 3, 1).contiguous().cpu().numpy() for m in maps]


def start_teacher(request: TeacherRequest, size: tuple[int, int]) -> RunningTeacher:
    """Build a teacher for views of `size`, with its number of threads; it moves to its device with its first rows.

    Raises `UserError` for a device that is not there, and what `build_teacher` raises.
    """
    device = resolve_device(request.device)
    if request.threads:
        torch.set_num_threads(request.threads)
    teacher = build_teacher(
        request.name,
        size=size,
        levels=request.levels,
        weights=request.weights,
        random_weights=request.random_weights,
    )
    return RunningTeacher(
        request, device, teacher, _level_specs(teacher, request), _provenance(teacher, request, device)
    )


def batches(rows: range, batch_size: int) -> Iterator[range]:
    """The rows of a shard as the teacher sees them: cut the same way always, so that a row's numbers never depend on
    a resume, a repair or who computes them."""
    for first in range(rows.start, rows.stop, batch_size):
        yield range(first, min(first + batch_size, rows.stop))


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch sees no GPU on this machine; use --device cpu")
    return torch.device(name)


def device_model(device: torch.device) -> str:
    """The model of the device: a GPU's or a processor's name; bytes may differ between models."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def extract(store: Store, running: RunningTeacher, num_views: int) -> None:
    """Write the part of one teacher for `num_views` views: calibration first, then every shard not yet committed.

    Raises NaN features (by the writer, naming sample, view and level) and `cache.errors.SpecMismatch` where the store
    holds this teacher with another provenance.
    """
    request, provenance = running.request, running.provenance
    say(f"{request.name}: {provenance['device']}, {torch.get_num_threads()} threads, {request.precision}")
    if running.teacher.spec.is_random:
        warn(f"{request.name} runs with random weights: good for trials, meaningless as a teacher")
    with store.lock(f"teachers/{provenance['name']}", on_wait=say):
        writer = TeacherWriter(store, provenance, running.levels)
        if writer.calibration() is None:
            writer.write_calibration(calibrate(store, running))
        _write(store, writer, running, num_views)
    running.teacher.to("cpu")


def _level_specs(teacher: Teacher, request: TeacherRequest) -> tuple[LevelSpec, ...]:
    grids = teacher.spec.level_grids()
    return tuple(
        LevelSpec(level, request.grid or grid, width, request.codec)
        for level, (grid, width) in enumerate(zip(grids, teacher.spec.widths, strict=True))
    )


def _provenance(teacher: Teacher, request: TeacherRequest, device: torch.device) -> dict[str, Any]:
    """What decides the bytes of this teacher's features."""
    library = LIBRARIES.get(teacher.spec.library)
    versions = {name: version(name) for name in ("torch", *([library] if library else ()))}
    return {
        "name": part_name(request.name),
        "teacher": teacher.spec.to_dict(),
        "grid": list(request.grid) if request.grid else "native",
        "codec": request.codec,
        "precision": request.precision,
        "batch_size": request.batch_size,
        "device": device_model(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        "versions": versions,
    }


def request_of(provenance: Mapping[str, Any], weights: Path | None = None, device: str = "auto") -> TeacherRequest:
    """The request that made a part with this provenance, for making it again.

    Args:
        weights: file that holds the teacher's weights, where they come from neither the package, a hub nor a seed.
    """
    teacher = provenance["teacher"]
    return TeacherRequest(
        teacher["name"],
        codec=provenance["codec"],
        levels=tuple(teacher["levels"]),
        grid=None if provenance["grid"] == "native" else (provenance["grid"][0], provenance["grid"][1]),
        weights=weights,
        random_weights=weights is None and teacher["weights"].startswith("random:"),
        device=device,
        precision=provenance["precision"],
        batch_size=provenance["batch_size"],
        threads=provenance["threads"] or None,
    )


def calibrate(store: Store, running: RunningTeacher) -> dict[str, Array]:
    """Channel statistics and fidelity a level, from rows of view 0 that the store's seed draws."""
    fitted, measured = calibration_rows(store.valid(1), store.spec.seed, CALIBRATION_ROWS)
    calibrator = Calibrator(running.levels)
    request = running.request
    total = len(fitted) + len(measured)
    with progress(f"{request.name} calibration", total, "rows") as advance:
        for rows, use in ((fitted, calibrator.fit), (measured, calibrator.measure)):
            for start in range(0, len(rows), request.batch_size):
                chosen = rows[start : start + request.batch_size]
                pixels = np.stack([store.pixels[int(sample), 0] for sample in chosen])
                use(running.forward(pixels))
                advance(len(chosen))
    return calibrator.arrays()


def shard_features(
    store: Store, running: RunningTeacher, view: int, shard: int, advance: Callable[[int], None] = lambda rows: None
) -> list[Array]:
    """The features of one shard's rows, from the store's own pixels: float32 (n, h, w, C) a level."""
    parts: list[list[Array]] = []
    for rows in batches(store.spec.rows(shard), running.request.batch_size):
        parts.append(running.forward(store.pixels[rows.start : rows.stop, view]))
        advance(len(rows))
    return [np.concatenate(level) for level in zip(*parts, strict=True)]


def _write(store: Store, writer: TeacherWriter, running: RunningTeacher, num_views: int) -> None:
    name = running.request.name
    pending = list(writer.pending(num_views))
    total = store.spec.num_samples * num_views
    left = sum(len(store.spec.rows(shard)) for _, shard in pending)
    if not pending:
        say(f"{name}: {total} rows already cached")
        return
    start, busy = time.monotonic(), 0.0
    with progress(name, total, "rows", total - left) as advance:
        for view, shard in pending:
            began = time.monotonic()
            levels = shard_features(store, running, view, shard, advance)
            busy += time.monotonic() - began
            writer.write_shard(view, shard, levels)
    seconds = time.monotonic() - start
    store.log({"stage": "extract", "teacher": name, "rows": left, "seconds": round(seconds, 2)})
    say(f"{name}: {left} rows in {seconds:.1f} s, the teacher was busy {busy / seconds:.0%} of it")
