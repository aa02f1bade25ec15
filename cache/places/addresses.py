"""Where a store lies, from what a person wrote: a folder's path, or an address such as ``s3://bucket/prefix`` or
``https://host/folder``, or of a data set of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from cache.errors import BadInput
from cache.places.hub import FORM as HUB_FORM
from cache.places.hub import SCHEME as HUB
from cache.places.hub import HubPlace
from cache.places.hub_draft import HubTarget
from cache.places.local import LocalPlace
from cache.places.objects import SCHEMES, ObjectPlace
from cache.places.place import Place
from cache.places.web import SCHEMES as WEB_SCHEMES
from cache.places.web import WebPlace
from sak_common.names import UnknownName, unknown


def as_place(where: Place | Path | str) -> Place:
    """The place at a path, or at an address such as ``s3://bucket/prefix``, ``https://host/folder`` or
    ``hf://datasets/owner/name/folder``.

    Raises:
        UnknownName: an address of a kind that is not known.
        BadInput: an address that is written wrongly, or obstore is not installed.
    """
    if isinstance(where, Place):
        return where
    text = str(where)
    if isinstance(where, str) and "://" in text:
        scheme = text.partition("://")[0]
        if scheme == HUB:
            return HubPlace.at(text)
        if scheme in WEB_SCHEMES:
            return WebPlace.at(text)
        if scheme in SCHEMES:
            return ObjectPlace.at(text)
        raise UnknownName(unknown("kind of address", scheme, (*SCHEMES, HUB, *WEB_SCHEMES)))
    scheme = text.partition(":")[0]
    if scheme == HUB and text.startswith(f"{HUB}:/"):
        raise BadInput(f"{text}: write an address of the hub as {HUB_FORM}")
    if scheme in (*SCHEMES, *WEB_SCHEMES):
        raise BadInput(f"{text}: write an address as {scheme}://{'host' if scheme in WEB_SCHEMES else 'bucket'}/folder")
    return LocalPlace(Path(text))


def as_target(where: Place | Path | str) -> Place:
    """As `as_place`, of a folder to copy stores into: the hub is written to in no other way.

    Raises:
        BadInput: nothing can ever be written there.
    """
    place = as_place(where)
    if isinstance(place, HubPlace):
        return HubTarget.at(place.shown)
    place.check_writable()
    return place


def folder_of(place: Place) -> Place | None:
    """The folder that a store's place is in; None where its address names none, as that of a whole bucket."""
    if isinstance(place, LocalPlace):
        return LocalPlace(place.path.absolute().parent)
    try:
        return as_place(place.shown.rstrip("/").rpartition("/")[0])
    except BadInput:
        return None


def pinned(where: Path | str) -> Path | str:
    """`where`, of the hub with the commit that it stands for now, so that all who are given it read the same.

    Raises:
        StoreNotFound: the hub has no such data set or revision, or does not answer.
    """
    return as_place(where).pinned or where if isinstance(where, str) and "://" in where else where
