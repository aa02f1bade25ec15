"""Tar files, indexed by their headers and read in place: every file in them, or an error where that is not known."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from sak_common.errors import out_of_resources
from sak_core.errors import UnreadableSample


@dataclass(frozen=True)
class Member:
    """One file in a tar: its name in there, where its bytes are.

    Attributes:
        link: what it leads to, where that is not in the tar, or where links lead round in a circle; then it has no
            bytes.
    """

    tar: Path
    name: str
    offset: int = 0
    size: int = 0
    link: str = ""

    def read(self) -> bytes:
        """Its bytes.

        Raises:
            UnreadableSample: it cannot be read; tar and member are named.
        """
        where = f"{self.tar}/{self.name}"
        if self.link:
            raise UnreadableSample(where, f"is a link to {self.link}, which leads to no file in the tar")
        try:
            with self.tar.open("rb") as stream:
                stream.seek(self.offset)
                content = stream.read(self.size)
        except OSError as error:
            if out_of_resources(error):
                raise
            raise UnreadableSample(where, f"cannot be read: {error.strerror or error}") from error
        if len(content) < self.size:
            raise UnreadableSample(where, f"is truncated: {len(content)} of {self.size} bytes are there")
        return content


def read_members(tar: Path) -> list[Member]:
    """The files of a tar, in its order, as unpacking it would leave them: links lead to what they name, and of a
    name that comes twice the later member counts.

    Raises:
        tarfile.TarError, OSError, EOFError: compressed, damaged, without the end mark, with bytes behind it, or with a
            file that is stored with holes.
    """
    found: dict[str, Member] = {}  # by the place that unpacking gives them: "./a" is "a"
    with tar.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        for info in archive:
            place = posixpath.normpath(info.name)
            if info.issparse():
                raise tarfile.ReadError(f"{info.name} is stored with holes, as a sparse file")
            if info.isreg():
                found[place] = Member(tar, info.name, info.offset_data, info.size)
            elif info.issym():
                link = posixpath.normpath(posixpath.join(posixpath.dirname(place), info.linkname))
                found[place] = Member(tar, info.name, link=link)
            elif info.islnk():
                # the file of that name as it is now, whatever replaces it later
                link = posixpath.normpath(info.linkname)
                found[place] = replace(found.get(link, Member(tar, "", link=link)), name=info.name)
        _check_end(stream, archive.offset)
    return [_followed(member, found) for member in found.values()]


def _followed(member: Member, found: Mapping[str, Member]) -> Member:
    target, seen = member, set[str]()
    while target.link in found and target.link not in seen:
        seen.add(target.link)
        target = found[target.link]
    return replace(target, name=member.name) if member.link else member


def _check_end(stream: IO[bytes], offset: int) -> None:
    """Raise unless zeros, and a block of them at least, go from `offset` on: tarfile stops without a word where a
    file was cut between two members, or at a header that is none.
    """
    stream.seek(offset)
    mark = stream.read(tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it stops at byte {offset + len(mark)} without a tar's end mark")
    if any(mark):
        raise tarfile.ReadError(f"what follows at byte {offset} is no member")
    while content := stream.read(1 << 20):
        if content.count(0) < len(content):
            raise tarfile.ReadError(
                f"more bytes follow its end mark at byte {offset}: where two tars were joined, lay them side by side"
            )
