"""Views: deterministic crops, flips and colour changes of a sample.

A view is a pure function of (policy, seed, sample, view) and of the sample's size and labels where the crop
rule reads them. `draw_view` draws its parameters, `apply_view` replays them on pixels and labels. The
parameters fit three small arrays that a store keeps, and those reproduce the view exactly.

Geometry. A view's canvas of size (H, W) shows the box (top, left, height, width) of the source image; canvas
pixel (y, x) looks at source point (top + (y + ½) · height / H, left + (x + ½) · width / W). The box may reach
beyond the image: what lies outside is padding (`policy.fill` in pixels, 255 in labels). The flip mirrors the
finished canvas, padding included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sak_core.labels import IGNORE
from sak_core.views.colour import NEUTRAL, ColourChange, change_colour
from sak_core.views.draws import Stream
from sak_core.views.policies import (
    EVALUATION,
    NYUD_SIZE,
    PASCAL_SIZE,
    ROOMS_TRAIN,
    ROOMS_UNLABELLED,
    STAGE1,
    STAGE2,
    ViewPolicy,
)
from sak_core.views.resampling import resize_part

__all__ = [
    "EVALUATION",
    "NYUD_SIZE",
    "PASCAL_SIZE",
    "ROOMS_TRAIN",
    "ROOMS_UNLABELLED",
    "STAGE1",
    "STAGE2",
    "View",
    "ViewPolicy",
    "apply_view",
    "draw_view",
    "largest_share",
    "sources",
    "view_scale",
    "view_scales",
]

Pixels = NDArray[np.uint8]
Size = tuple[int, int]


@dataclass(frozen=True)
class View:
    """One view's parameters; every number is exactly a float32, so that a store can keep it.

    Attributes:
        box: (top, left, height, width) of what the canvas shows, source px; may reach beyond the image.
        flip: whether the canvas is mirrored.
        colour: see sak_core.views.colour.
    """

    box: tuple[float, float, float, float]
    flip: bool = False
    colour: ColourChange = NEUTRAL

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """For a store: box (4,) float32, flip () uint8, colour (5,) float32."""
        return {
            "box": np.array(self.box, np.float32),
            "flip": np.array(self.flip, np.uint8),
            "colour": np.array(self.colour, np.float32),
        }

    @staticmethod
    def from_arrays(box: NDArray[Any], flip: NDArray[Any] | int, colour: NDArray[Any]) -> View:
        """The view that `to_arrays` described: box (4,), flip () and colour (5,)."""
        top, left, height, width = (float(value) for value in np.asarray(box, np.float32))
        change = ColourChange(*(float(value) for value in np.asarray(colour, np.float32)))
        return View((top, left, height, width), bool(flip), change)


def draw_view(
    policy: ViewPolicy,
    seed: int,
    sample: int,
    view: int,
    image_size: Size,
    size: Size,
    semseg: NDArray[Any] | None = None,
) -> View:
    """Draw one view's parameters.

    Args:
        seed, sample, view: key of the random stream; order of calls and processes do not matter.
        image_size: (h, w) of the source, px.
        size: (H, W) of the canvas.
        semseg: (h, w) class labels that `max_class_share` looks at, 255 ignored; None leaves that rule out.
    """
    if policy.kind == "pad":
        return View(_round(_centred_box(image_size, size, _shrink(image_size, size))))
    stream = Stream(seed, sample, view, "box")
    if policy.kind == "scale-crop":
        box = _scale_crop(policy, stream, image_size, size, semseg)
    else:
        box = _random_resized_crop(policy, stream, image_size)
    flip = Stream(seed, sample, view, "flip").uniform(0.0, 1.0) < policy.flip
    return View(_round(box), flip, _draw_colour(policy, Stream(seed, sample, view, "colour")))


def apply_view(
    policy: ViewPolicy,
    view: View,
    image: Pixels,
    labels: Mapping[str, NDArray[Any]],
    kinds: Mapping[str, str],
    size: Size,
) -> tuple[Pixels, dict[str, NDArray[Any]]]:
    """Replay a view on one sample.

    Pixels are resized bilinearly, labels take the value of the source pixel they look at. Depth is divided by
    the view's scale (things seen larger are nearer); the x of normals changes sign in a flip. The label value
    255 stays what it is. `sak_core.tasks.own_units` goes back, and turns normals where a view stretches.

    Args:
        image: (h, w, 3) uint8.
        labels: task to (h, w) or (h, w, 3), of the image's size.
        kinds: task to kind, a key of sak_core.tasks.KINDS.
        size: (H, W) of the canvas.

    Returns:
        Pixels (H, W, 3) uint8 and labels (H, W) or (H, W, 3) in the dtypes they came in.

    Raises:
        ValueError: a label is not of the image's size.
    """
    pixels = _view_pixels(policy, view, image, size)
    rows, columns = sources(view, image.shape[:2], size)
    made = {}
    for name, label in labels.items():
        if label.shape[:2] != image.shape[:2]:
            raise ValueError(f"label {name!r} is {label.shape[:2]}, its image {image.shape[:2]}")
        made[name] = _view_label(label, kinds[name], view, rows, columns, size)
    return pixels, made


def view_scales(boxes: NDArray[Any], size: Size) -> NDArray[np.float64]:
    """How much taller and wider things are in canvases of `size` than in their sources: boxes (B, 4) to (B, 2)."""
    scales: NDArray[np.float64] = np.array(size, np.float64) / boxes[:, 2:].astype(np.float64)
    return scales


def view_scale(view: View, size: Size) -> float:
    """How much larger things are in the canvas than in the source: the geometric mean of both axes."""
    return float(np.sqrt(size[0] / view.box[2] * size[1] / view.box[3]))


def sources(view: View, image_size: Size, size: Size) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Source row (H,) and column (W,) of every canvas row and column, flip included; −1 outside the image."""
    rows = _source_indices(view.box[0], view.box[2], image_size[0], size[0])
    columns = _source_indices(view.box[1], view.box[3], image_size[1], size[1])
    return rows, columns[::-1] if view.flip else columns


def _source_indices(start: float, length: float, image_length: int, count: int) -> NDArray[np.intp]:
    points = start + (np.arange(count) + 0.5) * (length / count)
    indices: NDArray[np.intp] = np.floor(points).astype(np.intp)
    indices[(indices < 0) | (indices >= image_length)] = -1
    return indices


def _round(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    top, left, height, width = (float(np.float32(value)) for value in box)
    return top, left, height, width


def _shrink(image_size: Size, size: Size) -> float:
    return min(1.0, size[0] / image_size[0], size[1] / image_size[1])


def _scaled(image_size: Size, factor: float) -> Size:
    return max(1, round(image_size[0] * factor)), max(1, round(image_size[1] * factor))


def _box(offset: Size, scaled: Size, image_size: Size, size: Size) -> tuple[float, float, float, float]:
    """The source box of a canvas that lies at `offset` (px) in the image scaled to `scaled`."""
    y, x = image_size[0] / scaled[0], image_size[1] / scaled[1]
    return offset[0] * y, offset[1] * x, size[0] * y, size[1] * x


def _centred_box(image_size: Size, size: Size, factor: float) -> tuple[float, float, float, float]:
    scaled = _scaled(image_size, factor)
    offset = -((size[0] - scaled[0]) // 2), -((size[1] - scaled[1]) // 2)
    return _box(offset, scaled, image_size, size)


def _scale_crop(
    policy: ViewPolicy, stream: Stream, image_size: Size, size: Size, semseg: NDArray[Any] | None
) -> tuple[float, float, float, float]:
    factor = stream.uniform(*policy.scale)
    if policy.fit:
        factor *= max(size[0] / image_size[0], size[1] / image_size[1])
    scaled = _scaled(image_size, factor)
    spare = tuple(max(0, inner - canvas) for inner, canvas in zip(scaled, size, strict=True))
    padding = tuple(max(0, canvas - inner) // 2 for inner, canvas in zip(scaled, size, strict=True))
    for _ in range(policy.redraws + 1):
        offset = stream.integer(spare[0] + 1) - padding[0], stream.integer(spare[1] + 1) - padding[1]
        box = _box(offset, scaled, image_size, size)
        if semseg is None or policy.max_class_share >= 1 or spare == (0, 0):
            break
        if largest_share(semseg, View(_round(box)), size) <= policy.max_class_share:
            break
    return box


def largest_share(semseg: NDArray[Any], view: View, size: Size) -> float:
    """Share of a view's valid pixels that its largest class fills; 1 if none is valid.

    Args:
        semseg: (h, w) class labels of the source, 255 ignored.
    """
    rows, columns = sources(view, (semseg.shape[0], semseg.shape[1]), size)
    seen = semseg[rows[rows >= 0][:, None], columns[columns >= 0][None, :]]
    counts = np.bincount(seen.ravel(), minlength=IGNORE + 1)
    counts[IGNORE] = 0
    valid = int(counts.sum())
    return float(counts.max() / valid) if valid else 1.0


def _random_resized_crop(policy: ViewPolicy, stream: Stream, image_size: Size) -> tuple[float, float, float, float]:
    """torchvision's RandomResizedCrop.get_params: ten tries, then the largest allowed central box."""
    height, width = image_size
    low, high = (float(np.log(value)) for value in policy.ratio)
    for _ in range(10):
        area = height * width * stream.uniform(*policy.scale)
        aspect = float(np.exp(stream.uniform(low, high)))
        w, h = round(float(np.sqrt(area * aspect))), round(float(np.sqrt(area / aspect)))
        if 0 < w <= width and 0 < h <= height:
            return stream.integer(height - h + 1), stream.integer(width - w + 1), h, w
    aspect = min(max(width / height, policy.ratio[0]), policy.ratio[1])
    if width / height < policy.ratio[0]:
        w, h = width, max(1, round(width / aspect))
    elif width / height > policy.ratio[1]:
        w, h = max(1, round(height * aspect)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


def _draw_colour(policy: ViewPolicy, stream: Stream) -> ColourChange:
    """Each change happens with probability `policy.colour`; a fair coin puts contrast first or last."""

    def happens() -> bool:
        return stream.uniform(0.0, 1.0) < policy.colour

    # every number is drawn, used or not, so that one setting does not shift the others' draws
    brightness = happens(), stream.uniform(-policy.brightness, policy.brightness)
    contrast_first = stream.uniform(0.0, 1.0) < 0.5
    contrast = happens(), stream.uniform(*policy.contrast)
    saturation = happens(), stream.uniform(*policy.saturation)
    hue = happens(), stream.uniform(-policy.hue, policy.hue)
    return ColourChange(
        brightness=brightness[1] if brightness[0] else 0.0,
        contrast=contrast[1] if contrast[0] else 1.0,
        contrast_first=float(contrast_first),
        saturation=saturation[1] if saturation[0] else 1.0,
        hue=hue[1] if hue[0] else 0.0,
    ).rounded()


def _inside(start: float, length: float, image_length: int, count: int) -> tuple[int, int]:
    """First and last + 1 canvas index that looks at the image, along one axis."""
    seen = np.flatnonzero(_source_indices(start, length, image_length, count) >= 0)
    return (int(seen[0]), int(seen[-1]) + 1) if seen.size else (0, 0)


def _view_pixels(policy: ViewPolicy, view: View, image: Pixels, size: Size) -> Pixels:
    top, left, height, width = view.box
    (y0, y1), (x0, x1) = (
        _inside(top, height, image.shape[0], size[0]),
        _inside(left, width, image.shape[1], size[1]),
    )
    canvas = np.empty((*size, 3), np.uint8)
    canvas[:] = policy.fill
    if y1 > y0 and x1 > x0:
        # colour changes leave padding alone: they act on the image, as published
        step_y, step_x = height / size[0], width / size[1]
        seen = resize_part(
            image,
            (top + y0 * step_y, left + x0 * step_x, (y1 - y0) * step_y, (x1 - x0) * step_x),
            (y1 - y0, x1 - x0),
            policy.antialias,
            context=policy.kind != "random-resized-crop",
        )
        canvas[y0:y1, x0:x1] = change_colour(seen, view.colour)
    return np.ascontiguousarray(canvas[:, ::-1]) if view.flip else canvas


def _view_label(
    label: NDArray[Any],
    kind: str,
    view: View,
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    size: Size,
) -> NDArray[Any]:
    made: NDArray[Any] = label[rows[:, None], columns[None, :]]
    outside = (rows < 0)[:, None] | (columns < 0)[None, :]
    if kind == "depth":
        scale = np.float32(view_scale(view, size))
        divided = (made / scale).astype(label.dtype)
        # a depth that came to lie on the value of no label would be lost: it goes to the number beside it
        divided[divided == IGNORE] = np.nextafter(IGNORE, 0, dtype=label.dtype)
        made = np.where(made == IGNORE, made, divided)
    elif kind == "normals" and view.flip:
        valid = ~np.all(made == IGNORE, axis=-1)
        made[..., 0] = np.where(valid, -made[..., 0], made[..., 0])
    made[outside] = IGNORE
    return made
