"""Predictions as pictures worth looking at: over the image where that helps, with a key to read them by."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pipeline.pictures import Picture, colour_depth, colour_normals, label_picture, palette
from sak_core.tasks import Task

Prediction = npt.NDArray[Any]
TINT = 0.7
"""How much of a pixel is its class' colour, the rest being the image's grey."""
DIMMED = 0.15
"""Brightness of what is not salient."""
KEY_PX = 150
"""Width of the key beside a picture."""
LINE_PX = 20
SMALL_PX = 320
"""Pictures with a shorter side are enlarged by a whole factor before a key is set beside them,"""
LARGE_PX = 4096
"""but not beyond this longer side: strips stay narrow."""
KEY_MIN_PX = 160
"""Height of a key beside a lower picture."""


def draw(task: Task, image: Picture, prediction: Prediction) -> Picture:
    """A prediction of an image (H, W, 3) in colours (H, W, 3).

    Classes tint the grey image; what is not salient is dimmed; depth, normals and boundaries stand alone.
    """
    if task.kind == "classes":
        grey = image.astype(np.float32).mean(axis=-1, keepdims=True)
        mixed = TINT * label_picture(task, prediction) + (1 - TINT) * grey
        tinted: Picture = mixed.round().astype(np.uint8)
        return tinted
    if task.kind == "saliency":
        light = DIMMED + (1 - DIMMED) * np.clip(prediction, 0, 1)[..., None]
        lit: Picture = (image * light).round().astype(np.uint8)
        return lit
    return label_picture(task, prediction)


def with_key(task: Task, picture: Picture, prediction: Prediction) -> Picture:
    """`draw`'s picture with a key on its right: classes present, metres, or directions.

    Saliency and boundaries come as they are: they need none, and their pixels are their values.
    """
    if task.kind not in _KEYS:
        return picture
    factor = _enlargement(picture.shape[:2])
    large = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    key = Image.new("RGB", (KEY_PX, max(large.shape[0], KEY_MIN_PX)), "white")
    _KEYS[task.kind](ImageDraw.Draw(key), key, task, prediction)
    canvas = Image.new("RGB", (large.shape[1] + KEY_PX, key.height), "white")
    canvas.paste(Image.fromarray(large), (0, 0))
    canvas.paste(key, (large.shape[1], 0))
    return np.asarray(canvas)


def without_key(task: Task, keyed: Picture, shape: tuple[int, int]) -> Picture:
    """The picture that `with_key` set beside a key, perhaps enlarged.

    Args:
        shape: (H, W) of the image.
    """
    factor = _enlargement(shape) if task.kind in _KEYS else 1
    return keyed[: factor * shape[0], : factor * shape[1]]


def _enlargement(shape: tuple[int, ...]) -> int:
    """The whole factor by which a picture of `shape` (H, W) is enlarged."""
    return max(1, min(-(-SMALL_PX // min(shape)), LARGE_PX // max(shape)))


def _class_key(pen: ImageDraw.ImageDraw, key: Image.Image, task: Task, prediction: Prediction) -> None:
    """Classes by area, largest first, as many as fit."""
    colours, font = palette(len(task.classes)), ImageFont.load_default(12)
    areas = np.bincount(prediction.ravel(), minlength=len(task.classes))[: len(task.classes)]
    present = [int(i) for i in np.argsort(-areas, kind="stable") if areas[i]]
    fits = max((key.height - 8) // LINE_PX, 1)
    shown = present if len(present) <= fits else present[: fits - 1]
    for line, index in enumerate(shown):
        top = 6 + line * LINE_PX
        # as the tint shows it over mid-grey
        shown_as = tuple(round(TINT * int(c) + (1 - TINT) * 128) for c in colours[index])
        pen.rectangle((8, top, 22, top + 13), fill=shown_as, outline="grey")
        share = 100 * areas[index] / prediction.size
        percent = f"{share:.0f} %" if share >= 1 else "<1 %"
        name = _shortened(pen, task.classes[index], font, KEY_PX - 36 - pen.textlength(percent, font=font) - 10)
        pen.text((28, top - 1), name, fill="black", font=font)
        pen.text((KEY_PX - 6, top - 1), percent, fill="grey", font=font, anchor="ra")
    if len(shown) < len(present):
        pen.text((28, 5 + len(shown) * LINE_PX), f"and {len(present) - len(shown)} more", fill="grey", font=font)


def _depth_key(pen: ImageDraw.ImageDraw, key: Image.Image, task: Task, prediction: Prediction) -> None:
    """A colour bar, near on top as it is bright."""
    font = ImageFont.load_default(12)
    low, high = float(prediction.min()), float(prediction.max())
    height = max(min(key.height - 40, 400), 20)
    bar = colour_depth(np.linspace(low, high, height, dtype=np.float32)[:, None].repeat(18, axis=1))
    key.paste(Image.fromarray(bar), (12, 14))
    for k in range(5):
        top = 14 + round(k * (height - 1) / 4)
        pen.line((30, top, 35, top), fill="black")
        pen.text((40, top), f"{low + k * (high - low) / 4:.2f} m", fill="black", font=font, anchor="lm")


def _normal_key(pen: ImageDraw.ImageDraw, key: Image.Image, task: Task, prediction: Prediction) -> None:
    """The colours of the six directions along the axes; which way these point is the data's convention."""
    font = ImageFont.load_default(12)
    for line, axis in enumerate(f"{sign}{name}" for name in "xyz" for sign in "+-"):
        top = 6 + line * LINE_PX
        direction = np.zeros((1, 1, 3), np.float32)
        direction[..., line // 2] = 1 if axis.startswith("+") else -1
        colour = tuple(int(c) for c in colour_normals(direction)[0, 0])
        pen.rectangle((8, top, 22, top + 13), fill=colour, outline="grey")
        pen.text((28, top - 1), axis, fill="black", font=font)


def _shortened(pen: ImageDraw.ImageDraw, text: str, font: Any, width: float) -> str:
    """`text`, cut with an ellipsis where it is wider than `width` px."""
    if pen.textlength(text, font=font) <= width:
        return text
    while text and pen.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text + "…"


_KEYS = {"classes": _class_key, "depth": _depth_key, "normals": _normal_key}
