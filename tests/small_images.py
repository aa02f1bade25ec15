"""A folder of small pictures, and a whole cache of them by the miniature teachers: made in seconds, damaged at will."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

TEACHERS = ("mini-dino", "mini-sam")
NUM_IMAGES = 70
"""Two shards a view, the second one short."""


def make_images(root: Path, count: int = NUM_IMAGES) -> Path:
    """`count` smooth pictures of 48x40 px below `root`, and the last of them no picture at all."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count - 1):
        colours = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((48, 40), Image.Resampling.BICUBIC).save(root / f"{number:04d}.png")
    (root / f"{count - 1:04d}.png").write_bytes(b"not a picture")
    return root


def cache_arguments(images: Path, out: Path, teachers: Sequence[str] = TEACHERS, views: int = 2) -> list[str]:
    """What `sak cache` is told to make the small cache; mini-dino is stored as int8, which needs its calibration."""
    return [
        "cache", "--dataset", "folder", "--root", str(images), "--size", "32", "--views", str(views),
        "--teacher", ",".join(teachers), "--codec", "int8", "--threads", "1", "--decoders", "0", "--out", str(out),
    ]  # fmt: skip
