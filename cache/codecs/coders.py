"""Entropy coders: how a row of stored integers becomes fewer bytes, and what Zarr readers are told of it."""

from __future__ import annotations

import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
from numcodecs import blosc

from sak_common.names import find

Array = npt.NDArray[Any]

# Within this process one thread a call: with several, blosc lays blocks in the order in which they finish, and equal
# rows would give different bytes. Threads share rows instead; this way also lets go of the GIL.
blosc.use_threads = False


_BLOSC_HEADER_BYTES = 16


class Coder(ABC):
    """Lossless bytes of one row.

    Attributes:
        name: as in specs.
        package: distribution whose version decides the bytes.
    """

    name: str
    package: str

    @abstractmethod
    def zarr_codecs(self, row_shape: Sequence[int], item_bytes: int) -> list[dict[str, Any]]:
        """The codecs of a row's chunk in ``zarr.json``, without its crc32c."""

    @abstractmethod
    def encode(self, row: Array) -> bytes:
        """The bytes of a row, integers (*row_shape), C-contiguous and little-endian."""

    @abstractmethod
    def decode_into(self, data: memoryview, target: Array) -> None:
        """Decode into `target`, (n,), all numbers of the row.

        Raises:
            ValueError: these are not bytes of such a row.
        """


class BloscZstd(Coder):
    """Blosc: bits of equal weight together, then zstd. Read by zarr-python, zarrs and tensorstore."""

    name = "blosc"
    package = "numcodecs"
    _level = 5  # of 9; 8 saves another 0.6 % at a quarter of the speed

    def zarr_codecs(self, row_shape: Sequence[int], item_bytes: int) -> list[dict[str, Any]]:
        configuration = {
            "cname": "zstd",
            "clevel": self._level,
            "shuffle": "bitshuffle",
            "typesize": item_bytes,
            "blocksize": 0,
        }
        return [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "blosc", "configuration": configuration},
        ]

    def encode(self, row: Array) -> bytes:
        coded: bytes = blosc.compress(row.reshape(-1), b"zstd", self._level, blosc.BITSHUFFLE, 0)
        return coded

    def decode_into(self, data: memoryview, target: Array) -> None:
        # The decoder believes the header: what it says of both sizes is held to what is there, and is to be.
        if len(data) < _BLOSC_HEADER_BYTES:
            raise ValueError(f"{len(data)} bytes are less than a header")
        num_bytes, block_bytes, coded_bytes = struct.unpack_from("<III", data, 4)
        if coded_bytes != len(data) or num_bytes != target.nbytes or block_bytes > num_bytes:
            raise ValueError(f"its header says {num_bytes} bytes of {coded_bytes}: {target.nbytes} of {len(data)} are")
        try:
            blosc.decompress(data, target)
        except RuntimeError as error:
            raise ValueError(str(error)) from error


class Pcodec(Coder):
    """pcodec (pco): bins and asymmetric numeral systems, a table a group of rows' leading dimension.

    Packs some 5 % tighter than blosc. zarr-python reads it (``numcodecs.pcodec``); tensorstore does not.
    """

    name = "pcodec"
    package = "pcodec"
    _level = 8

    def _page(self, row_shape: Sequence[int]) -> int:
        """Numbers that share a table: more tables fit components better, and each costs some 100 bytes."""
        leading, rest = row_shape[0], math.prod(row_shape[1:])
        groups = min(leading, max(1, round(math.sqrt(leading * rest / 1200))))
        return -(-leading // groups) * rest

    def zarr_codecs(self, row_shape: Sequence[int], item_bytes: int) -> list[dict[str, Any]]:
        configuration = {
            "level": self._level,
            "mode_spec": "classic",
            "delta_spec": "none",
            "paging_spec": "equal_pages_up_to",
            "delta_encoding_order": None,
            "equal_pages_up_to": self._page(row_shape),
        }
        return [{"name": "numcodecs.pcodec", "configuration": configuration}]

    def encode(self, row: Array) -> bytes:
        from pcodec import ChunkConfig, DeltaSpec, ModeSpec, PagingSpec, standalone

        config = ChunkConfig(
            compression_level=self._level,
            mode_spec=ModeSpec.classic(),
            delta_spec=DeltaSpec.no_op(),
            paging_spec=PagingSpec.equal_pages_up_to(self._page(row.shape)),
        )
        coded: bytes = standalone.simple_compress(row.reshape(-1), config)
        return coded

    def decode_into(self, data: memoryview, target: Array) -> None:
        from pcodec import standalone

        try:
            progress = standalone.simple_decompress_into(bytes(data), target)
        except (RuntimeError, TypeError) as error:
            raise ValueError(str(error)) from error
        if progress.n_processed != len(target) or not progress.finished:
            have = "more than" if progress.n_processed == len(target) else f"{progress.n_processed} of"
            raise ValueError(f"{have} {len(target)} numbers are there")


CODERS: dict[str, Coder] = {coder.name: coder for coder in (BloscZstd(), Pcodec())}


def get_coder(name: str) -> Coder:
    """The coder called `name`.

    Raises:
        UnknownName: there is none; the message names the nearest ones.
    """
    return find("coder", name, CODERS)
