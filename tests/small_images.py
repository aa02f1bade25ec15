"""A folder of small pictures, and a whole cache of them by the miniature teachers: made in seconds, damaged at will.
Also single pictures, and tars of them, as bytes.
"""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

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


def encoded(picture: Image.Image | np.ndarray, kind: str = "png", **options: Any) -> bytes:
    """What a file of this picture holds."""
    content = io.BytesIO()
    whole = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    whole.save(content, kind, **options)
    return content.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG, with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that claims a size, whatever its data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(data)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def write_tar(path: Path, members: Iterable[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    """A tar of these members in order; one that is a name alone is a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            if isinstance(name, str):
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path
