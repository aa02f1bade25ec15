"""PNG files whose pixels are whole and whose other chunks Pillow stumbles over."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT_BYTES = 64 << 20
"""Longer texts, unpacked, are not looked at for how the picture is turned."""

_TURNED = (b"Raw profile type exif", b"XML:com.adobe.xmp")
"""Keywords of the texts that may say how the picture is turned."""


def pixels_alone(content: bytes) -> bytes:
    """A PNG without the chunks that its pixels do not depend on: colour profiles, texts, animation.

    What may say how the picture is turned stays, where it is whole: EXIF, and the texts with EXIF or XMP, up to
    `MAX_TEXT_BYTES` and unpacked. Chunks of pixels stay as they are, damaged or not, and so does a last one that was
    cut.
    """
    kept = [SIGNATURE]
    for kind, body, chunk in _chunks(content):
        if not kind[:1].islower() or kind == b"tRNS":  # a small letter: readers may do without
            kept.append(chunk)
        elif struct.pack(">I", zlib.crc32(kind + body)) != chunk[-4:]:
            continue
        elif kind == b"eXIf":
            kept.append(chunk)
        elif (text := _text(kind, body)) is not None:
            kept.append(_chunk(*text))
    return b"".join(kept)


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Kind, body and all bytes of each chunk to the last; at last, without kind, what is no whole one."""
    at, kind = len(SIGNATURE), b""
    while kind != b"IEND" and at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        end = at + 12 + length
        if end > len(content):
            break
        kind = content[at + 4 : at + 8]
        yield kind, content[at + 8 : end - 4], content[at:end]
        at = end
    yield b"", b"", content[at:]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _text(kind: bytes, body: bytes) -> tuple[bytes, bytes] | None:
    """Kind and body of a text chunk, unpacked; None for those that do not say how the picture is turned."""
    keyword, _, rest = body.partition(b"\0")
    if keyword not in _TURNED:
        return None
    if kind == b"tEXt":
        return kind, body
    if kind == b"zTXt":  # the method, then the packed text
        text = _unpacked(rest[1:])
        return None if text is None else (b"tEXt", keyword + b"\0" + text)
    if kind == b"iTXt":  # whether it is packed, the method, the language and a translated keyword, each with a 0
        is_packed, tail = rest[:1], rest[2:].split(b"\0", 2)
        text = _unpacked(tail[-1]) if is_packed == b"\1" else tail[-1]
        return None if text is None else (b"iTXt", keyword + b"\0\0\0\0\0" + text)
    return None


def _unpacked(packed: bytes) -> bytes | None:
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(packed, MAX_TEXT_BYTES)
    except zlib.error:
        return None
    return None if unpacker.unconsumed_tail else text
