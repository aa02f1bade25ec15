"""Whether predictions are still of the picture that lies under their name: contents decide, sizes and times first.

Each drawn prediction keeps, as a text of its PNG, what file it was made from. Where size and times of that file are
what they were, nothing is read; where they differ, as in another folder of equal names, its content is compared.
"""

from __future__ import annotations

import json
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cache.places.files import digest_of_file

_KEY = "sak:made_from"
Stamp = tuple[int, int, int]
"""Of a file: bytes, time of modification and time of change, ns."""


def stamp_of(file: Path) -> Stamp:
    """Size (bytes) and times (ns; of contents and of the entry) of a file.

    Raises:
        OSError: it cannot be looked at.
    """
    found = file.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def record(file: Path) -> PngInfo:
    """What a prediction made from `file` keeps; taken before the file is read. Nothing where it cannot be looked at."""
    info = PngInfo()
    with suppress(OSError):
        stamp = stamp_of(file)
        info.add_text(_KEY, json.dumps({"stamp": stamp, "sha256": _digest(file, stamp)}))
    return info


def is_made_from(prediction: Path, file: Path) -> bool:
    """Whether the PNG `prediction` is there, whole in its head, and was made from what `file` holds now.

    One that does not say what it was made from was not.
    """
    try:
        with Image.open(prediction) as image:
            kept: Any = json.loads(image.info[_KEY])
        stamp = stamp_of(file)
        return bool(tuple(kept["stamp"]) == stamp or kept["sha256"] == _digest(file, stamp))
    except (OSError, KeyError, TypeError, ValueError, SyntaxError):
        return False


@lru_cache(maxsize=64)  # a video's is asked for at every frame
def _digest(file: Path, stamp: Stamp) -> str:
    return digest_of_file(file).sha256
