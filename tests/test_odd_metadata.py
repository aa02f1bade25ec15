"""Pictures whose pixels are whole and whose metadata are not: the same pixels are read, upright where known."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

import sak_core.png
from sak_core.errors import UnreadableSample
from sak_core.images import decode_image, pixels_of, read_image
from tests.conftest import sak
from tests.small_images import encoded, png_chunk

PICTURE = Image.fromarray(data.chelsea()).resize((45, 30))
UPRIGHT = np.asarray(PICTURE)
TURNED = np.rot90(UPRIGHT, -1)  # as EXIF's orientation 6 asks for: a quarter to the right
NOISE = np.random.default_rng(0).integers(0, 4, 1_300_000).astype(np.uint8).tobytes()
XMP = b'<x tiff:Orientation="6"/>'


def exif(orientation: int = 6) -> bytes:
    """A TIFF block with that one tag."""
    return b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x112, 3, 1, orientation, 0)


def raw_profile(block: bytes) -> bytes:
    """An EXIF block as ImageMagick writes it into a text."""
    block = b"Exif\0\0" + block
    return b"\nexif\n%8d\n" % len(block) + block.hex().encode() + b"\n"


def packed(keyword: bytes, text: bytes) -> bytes:
    return png_chunk(b"zTXt", keyword + b"\0\0" + zlib.compress(text))


def international(text: bytes) -> bytes:
    return png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(text))


def png(*chunks: bytes, late: bool = False) -> bytes:
    whole = encoded(PICTURE)
    at = len(whole) - 12 if late else 33  # before IEND, or after IHDR
    return whole[:at] + b"".join(chunks) + whole[at:]


PROFILE = png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(NOISE))
LONG_TEXT = packed(b"Comment", b"x" * 1_300_000)
FLIPPED = png_chunk(b"tEXt", b"Comment\0hello")[:-1] + b"?"
PNGS: dict[str, tuple[bytes, bool]] = {
    "exif": (png_chunk(b"eXIf", b"garbage, no TIFF"), False),
    "exif cut": (png_chunk(b"eXIf", exif()[:12]), False),
    "raw exif that is no hex": (png_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nxyzw\n"), False),
    "raw exif of garbage": (png_chunk(b"tEXt", b"Raw profile type exif\0" + raw_profile(b"garbage, no TIFF")), False),
    "profile": (PROFILE, False),
    "text": (LONG_TEXT, False),
    "many texts": (b"".join(png_chunk(b"tEXt", b"%d\0" % i + NOISE) for i in range(60)), False),
    "text that is not what was written": (FLIPPED, False),
    "animation": (png_chunk(b"fcTL", bytes(26)), False),
    "profile and exif": (PROFILE + png_chunk(b"eXIf", exif()), True),
    "profile and raw exif": (PROFILE + packed(b"Raw profile type exif", raw_profile(exif())), True),
    "long xmp": (international(NOISE.hex().encode() + XMP), True),
    "exif of garbage and xmp": (png_chunk(b"eXIf", b"garbage, no TIFF") + international(XMP), True),
    "profile and a flipped exif": (PROFILE + png_chunk(b"eXIf", exif())[:-1] + b"?", False),
}


@pytest.mark.parametrize("name", PNGS)
@pytest.mark.parametrize("late", [False, True])
def test_png(name: str, late: bool, tmp_path: Path) -> None:
    chunks, is_turned = PNGS[name]
    right = TURNED if is_turned else UPRIGHT
    content = png(chunks, late=late)
    (tmp_path / "x.png").write_bytes(content)
    assert np.array_equal(read_image(tmp_path / "x.png"), right)
    assert np.array_equal(read_image(tmp_path / "x.png", as_stored=True), UPRIGHT)
    assert np.array_equal(decode_image(content, "x"), right)


def jpeg(segments: bytes) -> bytes:
    whole = encoded(PICTURE, "jpeg", quality=95)
    return whole[:2] + segments + whole[2:]


def app1(body: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def webp(block: bytes, xmp: bytes = b"") -> bytes:
    return encoded(PICTURE, "webp", lossless=True, exif=block, xmp=xmp)


@pytest.mark.parametrize(
    ("make", "is_turned"),
    [
        (lambda: webp(b"garbage, no TIFF"), False),
        (lambda: webp(b"garbage, no TIFF", XMP), True),
        (lambda: webp(b"Exif\0\0" + exif()[:12]), False),
        (lambda: webp(exif()), True),
        (lambda: jpeg(app1(b"Exif\0\0garbage, no TIFF")), False),
        (lambda: jpeg(app1(b"Exif\0\0garbage, no TIFF") + app1(b"http://ns.adobe.com/xap/1.0/\0" + XMP)), True),
        (lambda: jpeg(app1(b"Exif\0\0" + exif())), True),
    ],
)
def test_webp_and_jpeg(make: Callable[[], bytes], is_turned: bool) -> None:
    content = make()
    plain = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(decode_image(content, "x"), np.rot90(plain, -1) if is_turned else plain)


def test_a_picture_in_memory() -> None:
    for content, right in ((png(PNGS["exif"][0]), UPRIGHT), (png(png_chunk(b"eXIf", exif())), TURNED)):
        with Image.open(io.BytesIO(content)) as image:
            assert np.array_equal(pixels_of(image), right)


def test_texts_beyond_the_bound_are_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sak_core.png, "MAX_TEXT_BYTES", 2_000_000)
    long = international(b" " * 2_000_000 + XMP)
    assert np.array_equal(decode_image(png(long), "x"), UPRIGHT)
    assert np.array_equal(decode_image(png(international(b" " * 1_500_000 + XMP)), "x"), TURNED)


def test_damaged_pixels_stay_damaged() -> None:
    """Whatever else Pillow stumbles over first."""
    content = bytearray(png(PROFILE))
    content[content.index(b"IDAT") + 2000] ^= 1
    with pytest.raises(UnreadableSample, match=r"damaged|not an image"):
        decode_image(bytes(content), "x")
    whole = png(PROFILE)
    for cut in (len(whole) - 1000, whole.index(b"IDAT") + 20, 40):
        with pytest.raises(UnreadableSample, match=r"damaged|not an image"):
            decode_image(whole[:cut], "x")


def test_a_folder_of_them_has_no_problems(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    for number, (chunks, _) in enumerate(PNGS.values()):
        (root / f"{number}.png").write_bytes(png(chunks))
    (root / "x.webp").write_bytes(webp(b"garbage, no TIFF"))
    done = sak("data", "check", root, "--sheet", tmp_path / "s.png", "--json")
    told = json.loads(done.stdout)["splits"]["train"]
    assert told["samples"] == told["readable"] == len(PNGS) + 1
