"""Labels, predictions and features as pictures, and sheets of them."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cache.loading.batch import Batch
from sak_core.labels import IGNORE
from sak_core.tasks import Task
from sak_core.tasks.outputs import readable

Picture = npt.NDArray[np.uint8]
CELL_PX = 144
CAPTION_PX = 18
GAP_PX = 4


def palette(count: int) -> Picture:
    """`count` colours (count, 3) to tell neighbours apart: hues by the golden angle, three lightnesses."""
    golden = 0.61803398875
    colours = [
        colorsys.hls_to_rgb((0.02 + i * golden) % 1.0, (0.50, 0.36, 0.68)[i % 3], (0.65, 0.75, 0.55)[i // 3 % 3])
        for i in range(count)
    ]
    return (np.array(colours) * 255).round().astype(np.uint8)


def colour_classes(labels: npt.NDArray[np.integer], count: int) -> Picture:
    """Class labels (H, W) to RGB; ignored pixels are black."""
    table = np.zeros((256, 3), np.uint8)
    table[:count] = palette(count)
    result: Picture = table[labels]
    return result


def depth_span(*depths: npt.NDArray[np.floating]) -> tuple[float, float]:
    """The nearest and the farthest depth of all maps, ignored pixels left out; 0 and 1 m where there is none."""
    known = np.concatenate([depth[depth != IGNORE] for depth in depths])
    return (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)


def colour_depth(depth: npt.NDArray[np.floating], span: tuple[float, float] | None = None) -> Picture:
    """Depth (H, W) to RGB by a perceptual map from span[0], bright, to span[1]; over the map's own span without one.
    Ignored pixels are black."""
    from matplotlib import colormaps

    valid = depth != IGNORE
    low, high = span or depth_span(depth)
    scaled = 1 - (depth - low) / max(high - low, 1e-6)
    colours = (colormaps["viridis"](scaled)[..., :3] * 255).round().astype(np.uint8)
    return np.where(valid[..., None], colours, 0).astype(np.uint8)


def colour_normals(normals: npt.NDArray[np.floating]) -> Picture:
    """Unit normals (H, W, 3) to RGB, (n + 1) / 2; ignored pixels are black."""
    colours = ((np.clip(normals, -1, 1) + 1) * 127.5).round().astype(np.uint8)
    return np.where((normals == IGNORE).all(-1, keepdims=True), 0, colours).astype(np.uint8)


def colour_strength(strength: npt.NDArray[np.generic]) -> Picture:
    """A mask or a probability in [0, 1], (H, W), to grey; ignored pixels are mid-grey."""
    values = np.where(strength == IGNORE, 0.5, strength.astype(np.float32))
    return np.repeat((np.clip(values, 0, 1) * 255).round().astype(np.uint8)[..., None], 3, axis=-1)


def label_picture(task: Task, label: npt.NDArray[np.generic]) -> Picture:
    """A label, or a prediction in a label's form, (H, W) or (H, W, 3), to RGB (H, W, 3)."""
    if task.kind == "classes":
        return colour_classes(label.astype(np.uint8), len(task.classes))
    if task.kind == "depth":
        return colour_depth(label.astype(np.float32))
    if task.kind == "normals":
        return colour_normals(label.astype(np.float32))
    return colour_strength(label)


def truth_and_prediction(
    task: Task, truth: npt.NDArray[np.generic], prediction: npt.NDArray[np.generic]
) -> tuple[Picture, Picture]:
    """Both as `label_picture` draws them; equal colours mean equal depths."""
    if task.kind == "depth":
        depths = truth.astype(np.float32), prediction.astype(np.float32)
        span = depth_span(depths[0] if (truth != IGNORE).any() else depths[1])
        return colour_depth(depths[0], span), colour_depth(depths[1], span)
    return label_picture(task, truth), label_picture(task, prediction)


def prediction_rows(
    tasks: Sequence[Task], batch: Batch, outputs: Mapping[str, Tensor]
) -> tuple[list[list[Picture]], list[str]]:
    """A row a sample of a batch with its raw outputs (B, C, H, W) by task: image, then truth and prediction of every
    task; and the columns' captions."""
    rows = []
    for i in range(len(batch)):
        row = [batch.pixels[i].cpu().numpy()]
        for task in tasks:
            truth = batch.labels[task.name][i].cpu().numpy()
            row += truth_and_prediction(task, truth, readable(task, outputs[task.name][i].float().cpu()))
        rows.append(row)
    return rows, prediction_captions(tasks)


def prediction_captions(tasks: Sequence[Task]) -> list[str]:
    """The columns of a sheet with the image, then truth and prediction of every task."""
    return ["image", *(f"{task.name} {what}" for task in tasks for what in ("truth", "predicted"))]


def sheet(rows: Sequence[Sequence[Picture]], captions: Sequence[str], cell_px: int = CELL_PX) -> Image.Image:
    """Pictures in a grid, each scaled to `cell_px` high, columns captioned.

    Raises:
        ValueError: there is no row.
    """
    if not rows:
        raise ValueError("a sheet needs at least one row")
    height, width = rows[0][0].shape[:2]
    cell = (max(1, round(cell_px * width / height)), cell_px)
    columns = len(rows[0])
    canvas = Image.new(
        "RGB",
        (columns * (cell[0] + GAP_PX) + GAP_PX, CAPTION_PX + len(rows) * (cell[1] + GAP_PX) + GAP_PX),
        "white",
    )
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for x, caption in enumerate(captions):
        draw.text((GAP_PX + x * (cell[0] + GAP_PX), 3), caption, fill="black", font=font)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            scaled = Image.fromarray(picture).resize(cell, Image.Resampling.NEAREST)
            canvas.paste(scaled, (GAP_PX + x * (cell[0] + GAP_PX), CAPTION_PX + GAP_PX + y * (cell[1] + GAP_PX)))
    return canvas


def save_sheet(rows: Sequence[Sequence[Picture]], captions: Sequence[str], out: Path) -> Path:
    """Write rows of equally large pictures, captioned by column, as a PNG."""
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet(rows, captions).save(out)
    return out


CANVAS = (288, 384)
"""Of pictures of many sizes on one sheet: (H, W) px."""


def letterbox(picture: Picture) -> Picture:
    """A picture scaled to fit a white canvas of `CANVAS` px, centred."""
    height, width = picture.shape[:2]
    scale = min(CANVAS[0] / height, CANVAS[1] / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    canvas = Image.new("RGB", (CANVAS[1], CANVAS[0]), "white")
    canvas.paste(Image.fromarray(picture).resize(size), ((CANVAS[1] - size[0]) // 2, (CANVAS[0] - size[1]) // 2))
    return np.asarray(canvas)
