"""Codecs: how a feature tensor becomes stored numbers. A new one is a small file and a row here."""

from __future__ import annotations

from cache.codecs.base import Codec, Encoded, Sample, Target, Unstorable
from cache.codecs.floats import Bf16, Fp16, Fp32
from cache.codecs.int4 import Int4
from cache.codecs.int8 import Int8
from cache.codecs.klt import Klt
from cache.codecs.klt_trellis import KltTrellis
from sak_common.names import find

CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        Fp32(),
        Fp16(),
        Bf16(),
        Int8(),
        Int4(),
        Klt("klt", "blosc"),
        Klt("klt+pcodec", "pcodec"),
        KltTrellis("klt+trellis", "pcodec"),
    )
}

__all__ = ["CODECS", "Codec", "Encoded", "Sample", "Target", "Unstorable", "get_codec"]


def get_codec(name: str) -> Codec:
    """The codec called `name`.

    Raises:
        UnknownName: there is none; the message names the nearest ones.
    """
    return find("codec", name, CODECS)
