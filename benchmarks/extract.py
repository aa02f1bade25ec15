"""A folder of photographs through an untrained base tower at 384 px: extraction beside the teacher's forward alone."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from benchmarks.harness import Result, Side, measure
from cache.codecs import CODECS
from cache.format.spec import LevelSpec
from cache.store import Store
from cache.writing.teacher_writer import TeacherWriter
from pipeline.extraction.extract import calibrate, extract
from pipeline.extraction.prepare import preparing
from pipeline.extraction.request import TeacherRequest
from pipeline.extraction.running import RunningTeacher, batches, start_teacher
from pipeline.extraction.samples import DatasetRequest

GOAL = "extraction's wall time at most 1.05x the teacher's forward time alone on the same batches"
TEACHER, SIZE = "dinov2", (384, 384)

Array = npt.NDArray[Any]


def run(quick: bool) -> Result:
    """Time both on the same images; calibration, whose batches are others, comes before and is not timed."""
    num_images, batch_size, rounds = (3, 3, 1) if quick else (32, 8, 3)
    codecs = ["fp16"] if quick else ["fp16", *(name for name in CODECS if name != "fp16")]
    with tempfile.TemporaryDirectory(prefix="sak-bench-") as folder, redirect_stderr(StringIO()):
        photographs = make_photographs(Path(folder) / "photographs", num_images)
        dataset = DatasetRequest("folder", "train", SIZE, photographs)
        running = start_teacher(TeacherRequest(TEACHER, random_weights=True, batch_size=batch_size), SIZE)
        # processes that decode take seconds to start, which a run of hours does not notice and a quick one would
        decoders = 0 if quick else None
        with preparing(dataset, Path(folder) / "plain", 1, decoders=0) as source:
            pass
        sides = [teacher_alone(running, source.store)]
        for codec in codecs:
            sides.append(extraction(with_codec(running, codec), source.store, dataset, Path(folder), decoders))
        rows = measure(sides, rounds)
    alone = statistics.median(rows[0].seconds)
    value = {codec: statistics.median(row.seconds) / alone for codec, row in zip(codecs, rows[1:], strict=True)}
    return Result("extract", GOAL, value, value["fp16"] <= 1.05, rows)


def make_photographs(folder: Path, count: int, width: int = 640, height: int = 480) -> Path:
    """JPEG files of so many px with smooth and noisy places."""
    folder.mkdir()
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / width
    for number in range(count):
        rng = np.random.default_rng(number)
        waves = [np.sin(30 * (rng.random() * x + rng.random() * y)) for _ in range(3)]
        image = 128 + 80 * np.stack(waves, -1) + rng.normal(0, 12, (height, width, 3))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04d}.jpg", quality=90)
    return folder


def with_codec(running: RunningTeacher, codec: str) -> RunningTeacher:
    """The same teacher, stored otherwise."""
    levels = tuple(LevelSpec(level.level, level.grid, level.width, codec) for level in running.levels)
    return replace(running, levels=levels, provenance={**running.provenance, "codec": codec})


def teacher_alone(running: RunningTeacher, store: Store) -> Side:
    """Nothing but the network, on the batches that extraction gives it, from memory."""
    pixels = store.pixels[:, 0]
    cut = [
        rows for s in range(store.spec.num_shards) for rows in batches(store.spec.rows(s), running.request.batch_size)
    ]

    def alone(number: int) -> Iterator[Any]:
        for rows in cut:
            with torch.inference_mode():
                maps = running.network(torch.from_numpy(pixels[rows.start : rows.stop]).to(running.device))
                if running.device.type == "cuda":
                    torch.cuda.synchronize()
            if number == 0:
                yield as_rows(maps)

    return Side("teacher alone", alone, "timm", f"{TEACHER}, batches of {running.request.batch_size}")


def as_rows(maps: list[torch.Tensor]) -> Array:
    """Maps (n, C, h, w) a level to the bytes of their fp16 rows, all levels of a row together."""
    flat = [m.permute(0, 2, 3, 1).contiguous().cpu().numpy().astype(np.float16).reshape(len(m), -1) for m in maps]
    return np.concatenate(flat, axis=1)


def extraction(
    running: RunningTeacher, prepared: Store, dataset: DatasetRequest, folder: Path, decoders: int | None
) -> Side:
    """Decoding, views, the teacher, encoding and writing, into a new store each round."""
    codec = running.levels[0].codec
    calibration = calibrate(prepared, running)

    def extracted(number: int) -> Iterator[Any]:
        delivered: list[Array] = []
        watched = replace(running, network=_watch(running.network, delivered)) if number == 0 else running

        def calibrated(store: Store) -> None:
            TeacherWriter(store, running.provenance, running.levels).write_calibration(calibration)

        with preparing(dataset, folder / f"{codec}-{number}", 1, decoders=decoders) as source:
            calibrated(source.store)
            extract(source, watched)
        yield from delivered

    return Side(f"extraction, {codec}", extracted, note="decoded, prepared, encoded and committed")


def _watch(
    network: Callable[[torch.Tensor], list[torch.Tensor]], delivered: list[Array]
) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """`network`, noting down what it gives."""

    def watched(batch: torch.Tensor) -> list[torch.Tensor]:
        maps = network(batch)
        delivered.append(as_rows(maps))
        return maps

    return watched
