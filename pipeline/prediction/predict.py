"""A student's predictions for pictures from anywhere: drawn, kept as arrays where asked, and on one sheet."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipeline import runs
from pipeline.console import duration, progress, say, warn
from pipeline.errors import UserError
from pipeline.pictures import Picture as Drawn
from pipeline.pictures import letterbox, sheet
from pipeline.prediction.drawing import draw, with_key, without_key
from pipeline.prediction.made_from import is_made_from, record
from pipeline.prediction.sources import Picture, Pixels, Source
from pipeline.recipes.config import recipe_differences
from sak_core.errors import UnreadableSample
from sak_core.student.pretrained import Predictions, Student
from sak_core.tasks import Task
from sak_core.tasks.own_units import are_scaled
from sak_core.weights.digests import state_digest

SHEET = "contact-sheet.png"
SHEET_ROWS = 8
CELL_PX = 216
ABOUT = "predictions.json"
"""What the folder's predictions were made with."""
NUM_IO_THREADS = 4
"""Threads that read and write pictures beside the model."""


@dataclass(frozen=True)
class Settings:
    """How to predict.

    Attributes:
        size, tile: see `Student.predict`.
        raw: keep arrays.
        overwrite: even what is there.
    """

    size: int | None = None
    tile: int | None = None
    raw: bool = False
    batch_size: int = 8
    overwrite: bool = False


def predict(model: Student, sources: Sequence[Source], out: Path, settings: Settings) -> dict[str, Any]:
    """Draw `model`'s predictions for all pictures of `sources` into the folder `out`.

    Makes `<task>/<name>.png` a task, `raw/<name>.npz` where asked, and a contact sheet; what is there already is left,
    so that a run that was interrupted goes on, unless its picture is another one now. Pictures that cannot be read are
    listed and left out.

    Returns:
        Counts, the unreadable with reasons, and the model's seconds an image.

    Raises:
        UserError: the model has no tasks, or `out` holds another model's predictions.
    """
    if not model.tasks:
        raise UserError("this model has no tasks: it was distilled only; fine-tune it first (make finetune)")
    if torch.cuda.is_available():
        model.to("cuda")
    _claim(model, out, settings)
    total = sum(source.count for source in sources)
    chosen = {k * total // SHEET_ROWS for k in range(SHEET_ROWS)} if total > SHEET_ROWS else set(range(total))
    rows: dict[int, list[Drawn]] = {}
    unreadable: list[dict[str, str]] = []
    made = left = 0
    began, busy = time.monotonic(), 0.0
    numbered = enumerate(picture for source in sources for picture in source.pictures())
    writes: list[Future[None]] = []
    with ThreadPoolExecutor(NUM_IO_THREADS) as pool, progress("predict", total, "images") as advance:
        while batch := list(islice(numbered, settings.batch_size)):
            missing = [(i, p) for i, p in batch if settings.overwrite or not _is_done(model.tasks, out, p, settings)]
            images: list[tuple[int, _Seen]] = []
            for (i, picture), read in [(item, pool.submit(_look, item[1])) for item in missing]:
                try:
                    images.append((i, read.result()))
                except UnreadableSample as error:
                    unreadable.append({"picture": picture.origin, "reason": error.reason})
            start = time.monotonic()
            found = model.predict(
                [seen.pixels for _, seen in images],
                size=settings.size,
                tile=settings.tile,
                batch_size=settings.batch_size,
            )
            busy += time.monotonic() - start
            for write in writes:
                write.result()
            writes = [
                pool.submit(_write, model.tasks, out, seen, predictions, settings.raw)
                for (_, seen), predictions in zip(images, found, strict=True)
            ]
            for (i, seen), predictions in zip(images, found, strict=True):
                if i in chosen:
                    rows[i] = _sheet_row(model.tasks, seen.pixels, predictions)
            kept = {i for i, _ in batch} - {i for i, _ in missing}
            for i, picture in batch:
                if i in kept & chosen:
                    with suppress(UnreadableSample):  # its predictions are there, only the sheet goes without it
                        rows[i] = _kept_row(model.tasks, out, picture)
            made, left = made + len(images), left + len(kept)
            advance(len(batch))
        for write in writes:
            write.result()
    if rows:
        captions = ["image", *(task.name for task in model.tasks)]
        _save(Image.fromarray(np.asarray(sheet([rows[i] for i in sorted(rows)], captions, CELL_PX))), out / SHEET)
    for entry in unreadable:
        warn(f"{entry['picture']} {entry['reason']}")
    seconds = time.monotonic() - began
    if made:
        rate = f"{made / seconds:.1f} images/s, the model {busy / made:.3f} s an image"
        say(f"{made} images in {duration(seconds)}, {rate}")
    return {
        "out": str(out),
        "predicted": made,
        "already_there": left,
        "unreadable": unreadable,
        "seconds": round(seconds, 3),
        "images_per_s": round(made / seconds, 3) if made else None,
        "model_s_per_image": round(busy / made, 4) if made else None,
        "contact_sheet": str(out / SHEET) if rows else None,
    }


def plan(model: Student, sources: Sequence[Source], out: Path, settings: Settings) -> dict[str, Any]:
    """What `predict` would do: how many pictures there are, how many of them are predicted already, for which tasks."""
    pictures = [picture for source in sources for picture in source.pictures()]
    there = 0 if settings.overwrite else sum(_is_done(model.tasks, out, each, settings) for each in pictures)
    tasks = [task.name for task in model.tasks]
    return {"images": len(pictures), "already_there": there, "tasks": tasks, "out": str(out)}


def predict_text(result: dict[str, Any]) -> str:
    """`predict`'s result for people."""
    lines = [f"{result['predicted']} predicted, {result['already_there']} there already"]
    if result["unreadable"]:
        lines.append(f"{len(result['unreadable'])} unreadable, left out: see above")
    return "\n".join([*lines, result["contact_sheet"] or result["out"]])


def _claim(model: Student, out: Path, settings: Settings) -> None:
    """Write down what the folder's predictions are made with, or refuse to mix them with others."""
    about = {
        "model": state_digest(model.network.state_dict()),
        "tasks": [task.name for task in model.tasks],
        "size": settings.size,
        "tile": settings.tile or model.default_tile,
        "random_weights": list(model.config.random_weights),
        # what was scaled down and kept without this word has depth of the smaller image
        **({"units": "the image's own"} if settings.size and are_scaled(model.tasks) else {}),
    }
    path = out / ABOUT
    if path.exists() and not settings.overwrite:
        try:
            before = json.loads(path.read_text())
        except ValueError:
            before = {}
        if changed := recipe_differences(before, about):
            raise UserError(
                f"{out} holds predictions made otherwise ({'; '.join(changed)}); choose another --out, or --overwrite"
            )
    elif out.exists() and not path.exists() and any(out.iterdir()) and not settings.overwrite:
        raise UserError(f"{out} holds other files; choose an empty folder for --out, or --overwrite")
    out.mkdir(parents=True, exist_ok=True)
    runs.write_atomically(path, json.dumps(about, indent=1))


def _is_done(tasks: Sequence[Task], out: Path, picture: Picture, settings: Settings) -> bool:
    drawn = [out / task.name / f"{picture.name}.png" for task in tasks]
    if settings.raw and not _raw_path(out, picture.name).is_file():
        return False
    return all(is_made_from(path, picture.file) for path in drawn)


def _raw_path(out: Path, name: str) -> Path:
    return out / "raw" / f"{name}.npz"


@dataclass(frozen=True)
class _Seen:
    """A picture as it was read.

    Attributes:
        made_from: what its predictions keep of its file.
    """

    name: str
    pixels: Pixels
    made_from: PngInfo


def _look(picture: Picture) -> _Seen:
    made_from = record(picture.file)  # before it is read: what changes meanwhile is another picture
    return _Seen(picture.name, picture.read(), made_from)


def _write(tasks: Sequence[Task], out: Path, seen: _Seen, found: Predictions, raw: bool) -> None:
    """One picture's files, each whole or not there; the arrays first, since the drawn ones say what all are made of."""
    if raw:
        path = _raw_path(out, seen.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.tmp")
        with temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **found)
        temporary.replace(path)
    for task in tasks:
        drawn = with_key(task, draw(task, seen.pixels, found[task.name]), found[task.name])
        _save(Image.fromarray(drawn), out / task.name / f"{seen.name}.png", seen.made_from)


def _save(picture: Image.Image, path: Path, told: PngInfo | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    picture.save(temporary, format="PNG", compress_level=3, pnginfo=told)
    temporary.replace(path)


def _sheet_row(tasks: Sequence[Task], image: Pixels, found: Predictions) -> list[Drawn]:
    return [letterbox(picture) for picture in (image, *(draw(task, image, found[task.name]) for task in tasks))]


def _kept_row(tasks: Sequence[Task], out: Path, picture: Picture) -> list[Drawn]:
    """The sheet's row of predictions that an earlier run drew.

    Raises:
        UnreadableSample: the image is gone.
    """
    image = picture.read()
    shape = image.shape[0], image.shape[1]
    kept = [(task, np.asarray(Image.open(out / task.name / f"{picture.name}.png").convert("RGB"))) for task in tasks]
    return [letterbox(each) for each in (image, *(without_key(task, drawn, shape) for task, drawn in kept))]
