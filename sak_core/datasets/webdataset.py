"""WebDataset tars, without labels: the photographs in every tar below a folder.

The tars are indexed by their headers and read in place; nothing is unpacked. Other members (captions, classes,
hidden files, masks) are left alone.

A member's key is its name to the first dot, its ending what follows: `000.jpg` and `000.seg.png` are two images of the
key `000`. Of a key's several images the photograph alone is an input.
"""

from __future__ import annotations

import tarfile
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sak_core.datasets.folder import as_text, check_root
from sak_core.datasets.labels import check_unique
from sak_core.datasets.published import ChosenImages
from sak_core.datasets.shards import files_of_split
from sak_core.datasets.tars import Member, read_members
from sak_core.errors import DatasetError, SeveralInputs
from sak_core.images import EXTENSIONS, OTHER_EXTENSIONS, decode_image
from sak_core.interfaces.dataset import Sample

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""Compressed ones are found, too, so that they are refused: what is in them would be missing in silence."""
ALL = "all"
"""In place of endings: every image is an input."""


@dataclass(frozen=True)
class TarFolder(ChosenImages):
    """One split of a folder of tars; ids are the tar's relative path and the member's name.

    Args:
        root: the folder.
        split: "train" (in stage 1's views), "val" or "test" (whole); see `sak_core.datasets.shards.files_of_split`.
        images: endings of the photographs, such as "jpg" or "rgb.png,rgb.jpg", or `ALL`. When None, a plain ending
            (`000.jpg`) is a photograph's, and a longer one (`000.seg.png`) that stands beside a plain one in no key.

    Raises:
        DatasetError: no tars, damaged or compressed ones (all are named), no images in them, or a key of
            which several could be the photograph.
    """

    name = "webdataset"
    root: Path
    split: str
    images: str | None = None
    _members: tuple[Member, ...] = field(init=False, repr=False)
    left_alone: Mapping[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_root(self.root)
        found = [member for member in _members(files_of_split(self.root, self.split, *_TARS)) if not _is_hidden(member)]
        chosen = _asked(found, self.images, self.root) if self.images else _photographs(found)
        if not chosen:
            raise DatasetError(f"the tars in {self.root} hold no images ({', '.join(EXTENSIONS)})")
        images = Counter(_ending(m) for m in found if m.name.lower().endswith(EXTENSIONS + OTHER_EXTENSIONS))
        others = images - Counter(_ending(member) for member in chosen)
        object.__setattr__(self, "_members", tuple(chosen))
        object.__setattr__(self, "left_alone", {f".{ending}": others[ending] for ending in sorted(others)})
        check_unique(self.ids, self.root)

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
        """Decode one image.

        Raises:
            UnreadableSample: it cannot be decoded; names tar and member.
        """
        member = self._members[index]
        return Sample(decode_image(member.read(), f"{member.tar}/{member.name}"))


def _members(tars: Sequence[Path]) -> list[Member]:
    members, damaged = [], []
    for tar in tars:
        try:
            members += read_members(tar)
        except (tarfile.TarError, OSError, EOFError) as error:
            damaged.append(f"{tar}: {error}")
    if damaged:
        raise DatasetError(
            f"{len(damaged)} of {len(tars)} tars cannot be read to their ends (compressed ones never are), "
            "so what is in them is not known; get them again, or take them out of the folder:\n  "
            + "\n  ".join(damaged)
        )
    return members


def _photographs(members: Sequence[Member]) -> list[Member]:
    """The one image of each key that is no mask.

    Raises:
        DatasetError: a key leaves several endings to choose.
    """
    images = [member for member in members if member.name.lower().endswith(EXTENSIONS)]
    endings = defaultdict[tuple[Path, str], set[str]](set)
    for member in images:
        endings[_key(member)].add(_ending(member))
    masks = {e for beside in endings.values() if not beside.isdisjoint(_PLAIN) for e in beside.difference(_PLAIN)}
    for (tar, key), beside in endings.items():
        if len(left := sorted(beside - masks)) > 1:
            raise SeveralInputs(f"{tar}: {key} has several images ({', '.join(f'.{ending}' for ending in left)})")
    return [member for member in images if _ending(member) not in masks]


def _asked(members: Sequence[Member], images: str, root: Path) -> list[Member]:
    asked = {ending.strip().lower().lstrip(".") for ending in images.split(",")}
    if asked == {ALL}:
        return [member for member in members if member.name.lower().endswith(EXTENSIONS)]
    if chosen := [member for member in members if _ending(member) in asked]:
        return chosen
    there = Counter(_ending(member) for member in members).most_common(10)
    raise DatasetError(
        f"no member of the tars in {root} has the ending {images}; there are "
        + ", ".join(f"{count} .{ending}" for ending, count in there)
    )


_PLAIN: Collection[str] = frozenset(extension.lstrip(".") for extension in EXTENSIONS)


def _key(member: Member) -> tuple[Path, str]:
    folder, slash, name = member.name.rpartition("/")
    return member.tar, folder + slash + name.partition(".")[0]


def _ending(member: Member) -> str:
    return member.name.rpartition("/")[2].partition(".")[2].lower()


def _is_hidden(member: Member) -> bool:
    """Whether a member is hidden: macOS lays `._name.jpg`, which is no image, beside each `name.jpg`."""
    return member.name.rpartition("/")[2].startswith(".")
