"""WebDataset tars, without labels: every image in every tar below a folder.

The tars are indexed by their headers and read in place; nothing is unpacked. Other members (captions, classes,
hidden files) are left alone.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sak_core.datasets.folder import as_text, check_root
from sak_core.datasets.labels import check_unique
from sak_core.datasets.published import Stage1Images
from sak_core.datasets.shards import files_of_split
from sak_core.errors import DatasetError, UnreadableSample
from sak_core.images import EXTENSIONS, decode_image
from sak_core.interfaces.dataset import Sample


@dataclass(frozen=True)
class Member:
    """One image: its tar, its name in there, where its bytes are."""

    tar: Path
    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class TarFolder(Stage1Images):
    """One split of a folder of tars; ids are the tar's relative path and the member's name.

    Args:
        root: the folder. split: "train" (in stage 1's views), "val" or "test" (whole); see
            `sak_core.datasets.shards.files_of_split`.

    Raises:
        DatasetError: no tars, damaged or compressed ones (all are named), or no images in them.
    """

    root: Path
    split: str
    _members: tuple[Member, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_root(self.root)
        tars = files_of_split(self.root, self.split, ".tar")
        members, damaged = [], []
        for tar in tars:
            try:
                members += _images(tar)
            except (tarfile.TarError, OSError, EOFError) as error:
                damaged.append(f"{tar}: {error}")
        if damaged:
            raise DatasetError(
                f"{len(damaged)} of {len(tars)} tars cannot be read to their ends (compressed ones never are), "
                "so what is in them is not known; get them again, or take them out of the folder:\n  "
                + "\n  ".join(damaged)
            )
        if not members:
            raise DatasetError(f"the tars in {self.root} hold no images ({', '.join(EXTENSIONS)})")
        object.__setattr__(self, "_members", tuple(members))
        check_unique(self.ids, self.root)

    @property
    def name(self) -> str:
        """The dataset's name."""
        return "webdataset"

    @cached_property
    def ids(self) -> Sequence[str]:
        """Tar and member, with "/" between; bytes that are no UTF-8 are written as \\xNN."""
        return [as_text(f"{m.tar.relative_to(self.root).as_posix()}/{m.name}") for m in self._members]

    @cached_property
    def fingerprints(self) -> Sequence[int]:
        """Bytes of each image."""
        return [member.size for member in self._members]

    @property
    def archives(self) -> Sequence[Path]:
        """The tars that hold images."""
        return tuple(dict.fromkeys(member.tar for member in self._members))

    def load(self, index: int) -> Sample:
        """Decode one image; raises UnreadableSample naming tar and member."""
        member = self._members[index]
        where = f"{member.tar}/{member.name}"
        try:
            with member.tar.open("rb") as stream:
                stream.seek(member.offset)
                content = stream.read(member.size)
        except OSError as error:
            raise UnreadableSample(where, f"cannot be read: {error.strerror or error}") from error
        if len(content) < member.size:
            raise UnreadableSample(where, f"is truncated: {len(content)} of {member.size} bytes are there")
        return Sample(decode_image(content, where))


def _images(tar: Path) -> list[Member]:
    with tarfile.open(tar, "r:") as archive:
        return [
            Member(tar, member.name, member.offset_data, member.size)
            for member in archive
            if member.isreg() and member.name.lower().endswith(EXTENSIONS) and not _is_hidden(member.name)
        ]


def _is_hidden(member: str) -> bool:
    """Whether a member is hidden: macOS lays `._name.jpg`, which is no image, beside each `name.jpg`."""
    return member.rpartition("/")[2].startswith(".")
