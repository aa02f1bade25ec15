"""Images from files, whatever their format: (h, w, 3) uint8 RGB, upright, or a clear reason why not."""

from __future__ import annotations

import io
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from sak_common.errors import out_of_resources
from sak_core.errors import UnreadableSample
from sak_core.png import SIGNATURE, pixels_alone

MAX_PIXELS = 178_956_970
"""Larger pictures are refused before they are decoded, as Pillow does: a small file can unpack to many gigabytes."""

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
"""Of the images that folders are searched for, lower case."""

OTHER_EXTENSIONS = (".tif", ".tiff", ".bmp", ".gif", ".heic", ".heif", ".avif", ".jp2")
"""Of images that are not searched for: people are told that such are there."""


def read_image(path: Path, *, as_stored: bool = False) -> NDArray[np.uint8]:
    """Decode a picture.

    EXIF rotation is applied, as far as metadata are whole, unless `as_stored`: where labels lie on the pixels as the
    file has them. Grey, palette, CMYK and the like become RGB; 16-bit grey is scaled by 1/257; transparent pixels
    are laid over white; of animations the first frame is taken.

    Returns:
        (h, w, 3) uint8 RGB.

    Raises:
        UnreadableSample: no such file, not a regular file, empty, no image, truncated, too large, or without a
            defined range (floats, 32-bit integers beyond 16 bits).
    """
    with open_image(path) as image:
        return _decode(path, image if as_stored else _upright(image))


def read_turned(path: Path) -> tuple[NDArray[np.uint8], int]:
    """`read_image`, upright, (h, w, 3) uint8 RGB, and the EXIF orientation (1..8) that it was turned by; 1 where it was
    not. Errors as `read_image`.
    """
    with open_image(path) as image:
        turned = _orientation(image)
        return _decode(path, _upright(image)), turned if isinstance(turned, int) and turned in _TURNS else 1


def decode_image(content: bytes, where: Path | str) -> NDArray[np.uint8]:
    """`read_image` of a file's content; `where` names it in errors.

    Returns:
        (h, w, 3) uint8 RGB.

    Raises:
        UnreadableSample: as `read_image`.
    """
    if not content:
        raise UnreadableSample(where, "is empty (0 bytes)")
    with _opened(content, where) as image:
        return _decode(where, _upright(image))


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """A picture in memory as `read_image` gives its file: upright, (h, w, 3) uint8 RGB.

    Raises:
        UnreadableSample: it cannot be decoded.
    """
    return _decode("the image", _upright(image))


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """A picture, decoded but otherwise as it is stored.

    Raises:
        UnreadableSample: it cannot be read; within the block too.
    """
    check_file(path)
    with _opened(path, path) as image:
        yield image


@contextmanager
def _opened(source: Path | bytes, where: Path | str) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with _loaded_whole(source) as image:
                yield image
    except UnreadableSample:
        raise
    except UnidentifiedImageError:
        raise UnreadableSample(where, "is not an image of a format that Pillow knows") from None
    except Image.DecompressionBombError:
        raise UnreadableSample(where, f"has more than {MAX_PIXELS} pixels: refused before decoding") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error and more
        if out_of_resources(error):
            raise
        raise UnreadableSample(where, f"is damaged: {str(error) or type(error).__name__}") from error


def _loaded_whole(source: Path | bytes) -> Image.Image:
    """A picture with its pixels; of a PNG they alone, where other chunks keep Pillow from them."""
    try:
        return _loaded(source)
    except Image.DecompressionBombError:
        raise
    except Exception as error:
        if out_of_resources(error):
            raise
        content = source if isinstance(source, bytes) else source.read_bytes()
        if not content.startswith(SIGNATURE):
            raise
        return _loaded(pixels_alone(content))


def _loaded(source: Path | bytes) -> Image.Image:
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    try:
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        image.load()
    except BaseException:
        image.close()
        raise
    return image


_TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How a picture of an EXIF orientation is turned to be upright."""
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def _upright(image: Image.Image) -> Image.Image:
    """As `PIL.ImageOps.exif_transpose`, but metadata that cannot be read are passed over."""
    image.load()
    turn = _TURNS.get(_orientation(image))  # of any type, in odd files
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> object:
    """EXIF's, 1 to 8 where it is in order, else XMP's, else None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of blocks that are cut; they name no picture
            found = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a broken block raises SyntaxError, ValueError, struct.error and more
        found = None
    if found is None:  # Pillow looks into XMP itself, unless EXIF has failed
        text = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
        match = _XMP_ORIENTATION.search(text.encode() if isinstance(text, str) else text)
        found = match and int(match[1])
    return found


def check_file(path: Path) -> int:
    """Size in bytes of a readable, non-empty, regular file.

    Raises:
        UnreadableSample: it is none.
    """
    try:
        facts = path.stat()
    except OSError as error:
        raise UnreadableSample(path, f"cannot be read: {error.strerror or error}") from error
    if not stat.S_ISREG(facts.st_mode):
        raise UnreadableSample(path, "is not a regular file")
    if facts.st_size == 0:
        raise UnreadableSample(path, "is empty (0 bytes)")
    return facts.st_size


def file_size(path: Path) -> int:
    """A file's size in bytes, 0 where there is none to read."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _decode(where: Path | str, image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I") or image.mode == "F":
        grey = _eight_bits(where, np.asarray(image))
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.array(image.convert("RGB"), np.uint8)


def _eight_bits(where: Path | str, grey: NDArray[np.generic]) -> NDArray[np.uint8]:
    """16-bit grey as 8 bits: 65535 is 255."""
    if grey.dtype.kind == "f":
        raise UnreadableSample(where, "holds floating-point values, whose range no one states")
    values = grey.astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableSample(
            where, f"holds integers {values.min()}..{values.max()}, beyond the 16 bits that can be scaled"
        )
    return np.rint(values / 257).astype(np.uint8)
