"""What predictions are made of: image files, folders of them, videos; each picture with a name and a way to read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.console import warn
from pipeline.data.check import left_alone
from pipeline.errors import UserError
from sak_common.extras import how_to_install
from sak_core.datasets.folder import ImageFolder
from sak_core.errors import UnreadableSample
from sak_core.images import read_image

VIDEOS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts")
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """One image to look at.

    Attributes:
        name: unique, relative, without suffix: what its predictions are called.
        origin: of which file, for people.
        file: that it lies in.
        read: (H, W, 3) uint8; raises UnreadableSample.
    """

    name: str
    origin: str
    file: Path
    read: Callable[[], Pixels]


@dataclass(frozen=True)
class Source:
    """Pictures of one command-line argument, in order.

    Attributes:
        count: how many.
        pictures: makes them anew at every call.
    """

    count: int
    pictures: Callable[[], Iterator[Picture]]


def open_sources(paths: Sequence[Path], every: int = 1) -> list[Source]:
    """The pictures of files, folders (nested) and videos (every `every`-th frame).

    Images keep their path relative to the folder they were found in, without suffix; where two would be called the
    same, the suffix stays on as `-jpg`.

    Raises:
        UserError: a source is not there, names still collide, or PyAV is missing for a video.
        DatasetError: a folder has no images.
    """
    found: list[tuple[str, Path]] = []
    videos: list[Path] = []
    for path in paths:
        if path.suffix.lower() in VIDEOS and path.is_file():
            videos.append(path)
        elif path.is_dir():
            folder = ImageFolder(path, "test")
            found += [(name, folder.files(i)["image"]) for i, name in enumerate(folder.ids)]
            others = ", ".join(f"{count} {ending}" for ending, count in left_alone(path).items())
            if others:
                warn(f"{path}: left alone: {others}; give them by name")
        elif path.exists():
            found.append((path.name, path))
        else:
            raise UserError(f"{path}: no such file or folder")
    names = _image_names([name for name, _ in found])
    images = [(name, path) for name, (_, path) in zip(names, found, strict=True)]
    _check_names([*images, *((_frame_name(path, 0), path) for path in videos)])
    return ([_images(images)] if images else []) + [_video(path, every) for path in videos]


def _image_names(relative: Sequence[str]) -> list[str]:
    """What images' predictions are called, by the images' relative paths."""
    plain = [PurePosixPath(path).with_suffix("").as_posix() for path in relative]
    shared = Counter(plain)
    return [
        name if shared[name] == 1 else f"{name}-{PurePosixPath(path).suffix.lstrip('.')}"
        for name, path in zip(plain, relative, strict=True)
    ]


def _check_names(named: Sequence[tuple[str, Path]]) -> None:
    """Refuse files whose predictions would be written over each other."""
    paths: dict[str, list[Path]] = {}
    for name, path in named:
        paths.setdefault(name, []).append(path)
    for name, those in paths.items():
        if len(those) > 1:
            which = ", ".join(map(str, those))
            raise UserError(f"the predictions of {which} would have one name, {name}; give them in two commands")


def _images(named: Sequence[tuple[str, Path]]) -> Source:
    def pictures() -> Iterator[Picture]:
        for name, path in named:
            yield Picture(name, str(path), path, lambda path=path: read_image(path))  # type: ignore[misc]

    return Source(len(named), pictures)


def _video(path: Path, every: int) -> Source:
    try:
        import av
    except ModuleNotFoundError:
        raise UserError(f"{path} is a video, which PyAV reads: {how_to_install('video')} (or av)") from None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path} has no video stream")
            # packets are counted, not decoded: a container's own number of frames may be missing or wrong
            count = sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))
    except av.FFmpegError as error:
        raise UserError(f"{path} cannot be read as a video: {error}") from None

    def pictures() -> Iterator[Picture]:
        with av.open(str(path)) as container:
            frames = container.decode(container.streams.video[0])
            number = 0
            while True:
                try:
                    frame = next(frames, None)
                except av.FFmpegError as error:
                    told = f"{path} frame {number}"
                    yield Picture(_frame_name(path, number), told, path, _refuse(path, number, error))
                    return
                if frame is None:
                    return
                if number % every == 0:
                    name, told = _frame_name(path, number), f"{path} frame {number}"
                    yield Picture(name, told, path, lambda frame=frame: _upright(frame))  # type: ignore[misc]
                number += 1

    return Source(-(-count // every), pictures)


def _frame_name(path: Path, number: int) -> str:
    return f"{path.stem}/{number:06d}"


def _refuse(path: Path, number: int, error: Exception) -> Callable[[], Pixels]:
    def read() -> Pixels:
        raise UnreadableSample(path, f"is damaged at frame {number}: {error}; the rest is left out")

    return read


def _upright(frame: Any) -> Pixels:
    """A frame as people see it: phones store the turn beside the pixels (degrees, counter-clockwise)."""
    pixels: Pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
