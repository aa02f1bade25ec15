"""Manifest files on disk: canonical JSON that carries its own digest, so that no byte can change unseen."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from cache.errors import CorruptFile
from cache.format.documents import parse_json
from cache.format.spec import FORMAT_VERSION, GRID_FORMAT_VERSION
from cache.places.files import canonical_json

_DIGEST = b'"digest":"'


def seal(document: Mapping[str, Any]) -> bytes:
    """A manifest file's bytes: `document` with its own digest, the SHA-256 of the bytes without that member."""
    return canonical_json({**document, "digest": hashlib.sha256(canonical_json(document)).hexdigest()})


def is_sealed(raw: bytes) -> bool:
    """Whether a manifest file's bytes have the digest that they carry."""
    # No array, reason or field before it is called "digest" and followed by text, so the first such member is the one.
    # (Attributes of groups may be; "groups" comes after it.)
    start = raw.find(_DIGEST)
    end = start + len(_DIGEST) + 64
    if start < 0 or raw[end : end + 2] != b'",':
        return False
    return hashlib.sha256(raw[:start] + raw[end + 2 :]).hexdigest().encode() == raw[start + len(_DIGEST) : end]


def unseal(raw: bytes, path: object) -> dict[str, Any]:
    """A manifest file's content; `path` is named in errors.

    Raises:
        CorruptFile: it is not what was written, or of another format version.
    """
    if not is_sealed(raw):
        raise CorruptFile(path, "this manifest file fails its own digest")
    document = parse_json(raw, path)
    if not isinstance(document, dict) or document.get("format") not in (FORMAT_VERSION, GRID_FORMAT_VERSION):
        version = document.get("format") if isinstance(document, dict) else None
        known = f"{FORMAT_VERSION} and {GRID_FORMAT_VERSION}"
        raise CorruptFile(path, f"format {version}, this version reads {known}")
    return document
