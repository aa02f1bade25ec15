"""Weights from the libraries' hub: asked only where it can be reached, else its local cache alone."""

from __future__ import annotations

import logging
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from sak_common.errors import first_line


@contextmanager
def hub_or_local() -> Iterator[None]:
    """Where the hub's name does not even resolve, only its local cache is asked: the libraries would try for
    most of a minute. Their log lines about it are left out.
    """
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    try:
        constants.HF_HUB_OFFLINE = offline or not _resolves(constants.ENDPOINT)
        with quiet():
            yield
    finally:
        constants.HF_HUB_OFFLINE = offline


@contextmanager
def quiet(level: int = logging.ERROR) -> Iterator[None]:
    """Keep a library's log messages up to `level` down, where this project says the same in its own words."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)


def hub_reason(error: Exception) -> str:
    """A library's error as one line, its kind first."""
    return f"{type(error).__name__}: {first_line(error)}"


def _resolves(url: str) -> bool:
    """Whether the host of `url` has an address, or a proxy would look for it."""
    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(url).hostname, None)
    except OSError:
        return False
    return True
