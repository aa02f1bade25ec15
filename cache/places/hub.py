"""Stores in a data set's repository on the Hugging Face hub, ``hf://datasets/OWNER/NAME[@REVISION]/folder``: read by
ranges at one commit, written by copying alone (`hub_draft`).

Commits, lists and tokens are `huggingface_hub`'s, which also waits as long as the hub's limits of requests ask for.
The hub answers each request for a large file by naming another address, good for some time; it is kept, so that a
file's ranges cost the hub one request.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Self
from urllib.parse import unquote, urlsplit

from cache.errors import BadInput, StoreNotFound
from cache.places.files import FileDigest, digest_of
from cache.places.listed import ListedPlace, ReadOnlyPlace
from cache.places.objects import COALESCED_GAP
from cache.places.open_files import OpenFile, Range, fill
from cache.places.place import MOST_READ_BYTES, check_size
from cache.places.web import warn_of_server

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SCHEME = "hf"
FORM = "hf://datasets/OWNER/NAME[@REVISION]/folder"
_ADDRESS = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@(refs/(?:pr|convert)/[\w.-]+|[^/@]+))?(?:/+(.*))?")
_COMMIT = re.compile("[0-9a-f]{40}")
_PIECE = 32 << 20
"""Bytes in memory at once where a whole file is digested."""
_TIMEOUT_S = 60.0
"""Without a byte."""
_FIRST_WAIT_S = 0.25
_ASK_AGAIN = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class HubAddress:
    """A folder of a data set's repository.

    Attributes:
        revision: a branch, tag or commit; None is what is newest.
        folder: its path, empty for all of it.
    """

    repo: str
    revision: str | None = None
    folder: str = ""

    @classmethod
    def parse(cls, text: str) -> HubAddress:
        """An address as a person writes it.

        Raises:
            BadInput: it has another form.
        """
        found = _ADDRESS.fullmatch(text)
        folder = (found[3] or "").strip("/") if found else ""
        if found is None or any(part in ("", ".", "..") for part in folder.split("/") if folder):
            raise BadInput(f"{text}: write an address of the hub as {FORM}")
        return cls(found[1], unquote(found[2]) if found[2] else None, folder)

    def __str__(self) -> str:
        at = f"@{self.revision.replace('/', '%2F')}" if self.revision else ""
        return f"hf://datasets/{self.repo}{at}{f'/{self.folder}' if self.folder else ''}"


class HubFacts(NamedTuple):
    """A file as the hub lists it: its size in bytes, and the digest that it has, of a large file's bytes (hex), or of
    a small one's as a blob of git."""

    num_bytes: int
    sha256: str | None
    blob: str | None

    def are_of(self, digest: FileDigest, data: bytes) -> bool:
        """Whether these are of the bytes `data`, whose digest is `digest`."""
        if self.sha256 is not None:
            return (self.num_bytes, self.sha256) == (digest.num_bytes, digest.sha256)
        return self.blob == hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class Repository:
    """A data set's repository at one commit, and what is in one folder of it; asks nothing when it is made. Safe from
    several threads.

    Args:
        address: of the folder.
        commit: that is read; the one that the address stands for, when first asked for, where it is None.

    Raises, in what asks the hub:
        BadInput: huggingface_hub is not installed.
        StoreNotFound: there is no such repository or revision, it is not for this token, or the hub does not answer.
    """

    def __init__(self, address: HubAddress, commit: str | None = None) -> None:
        self.address = address
        is_commit = _COMMIT.fullmatch(address.revision or "")
        self._commit = commit or (address.revision if is_commit else None)
        self._locations: dict[str, str] = {}
        self._mutex = threading.RLock()

    @property
    def commit(self) -> str:
        """What is read, 40 digits: whatever is committed later changes nothing."""
        with self._mutex:
            if self._commit is None:
                with in_words(self.address, StoreNotFound):
                    found = hub(self.address).dataset_info(
                        self.address.repo, revision=self.address.revision, expand=["sha"], timeout=_TIMEOUT_S
                    )
                    self._commit = str(found.sha)
            return self._commit

    def files(self) -> Mapping[str, HubFacts]:
        """Every file below the folder, by its path in the repository, in order."""
        return _files(self.address, self.commit)

    def read(self, path: str, start: int | None = None, num_bytes: int = 0) -> bytes:
        """A whole file, or `num_bytes` of it from `start` on, fewer where it ends.

        Raises:
            FileNotFoundError: there is none; PermissionError: the token may not read it; OSError: no answer.
        """
        if start is None:
            return bytes(self._get(path, {}).content)
        if not num_bytes:
            return b""
        answer = self._get(path, {"Range": f"bytes={start}-{start + num_bytes - 1}"})
        if answer.status_code == 416:  # it ends before
            return b""
        if answer.status_code == 200:
            warn_of_server(str(answer.url))
            return bytes(answer.content[start : start + num_bytes])
        return bytes(answer.content)

    def _get(self, path: str, headers: Mapping[str, str]) -> Any:
        """The answer that gives a file or a range of it: 200, 206 or 416."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented all the same

        asked = {**headers, "Accept-Encoding": "identity"}  # a range of what is compressed is no range of the file
        if (kept := self._locations.get(path)) is not None:
            answer = self._ask(path, kept, asked)
            if answer.status_code in (200, 206, 416):
                return answer
            self._locations.pop(path, None)  # its time is over
        url = hf_hub_url(self.address.repo, path, repo_type="dataset", revision=self.commit)
        answer = self._ask(path, url, {**build_hf_headers(library_name="sak"), **asked})
        shown = f"hf://datasets/{self.address.repo}/{path}"
        if answer.status_code == 404:
            raise FileNotFoundError(f"{shown} is not there")
        if answer.status_code in (401, 403):
            raise PermissionError(f"{shown}: {_not_for_you(self.address)}")
        if answer.status_code not in (200, 206, 416):
            raise OSError(f"{shown}: the hub answers {answer.status_code}")
        if urlsplit(found := str(answer.url))[:2] != urlsplit(url)[:2]:
            self._locations[path] = found
        return answer

    def _ask(self, path: str, url: str, headers: Mapping[str, str]) -> Any:
        from huggingface_hub.utils import http_backoff  # type: ignore[attr-defined]  # documented all the same

        try:
            return http_backoff(
                "GET",
                url,
                headers=dict(headers),
                base_wait_time=_FIRST_WAIT_S,
                retry_on_exceptions=_of_network(),
                retry_on_status_codes=_ASK_AGAIN,
                timeout=_TIMEOUT_S,
            )
        except failures() as error:
            raise OSError(f"hf://datasets/{self.address.repo}/{path}: {_first_line(error)}") from error


@lru_cache(maxsize=4)
def _files(address: HubAddress, commit: str) -> Mapping[str, HubFacts]:
    """A folder's files at a commit, which never change; asked once in a process."""
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    with in_words(address, StoreNotFound):
        try:
            found = [
                entry
                for entry in hub(address).list_repo_tree(
                    address.repo, address.folder or None, recursive=True, revision=commit, repo_type="dataset"
                )
                if isinstance(entry, RepoFile)
            ]
        except EntryNotFoundError:
            return {}
    return {entry.path: facts_of(entry) for entry in sorted(found, key=lambda entry: entry.path)}


def facts_of(entry: Any) -> HubFacts:
    """What huggingface_hub says of a file."""
    return HubFacts(entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)


class HubFolder(ListedPlace):
    """A folder of a data set's repository.

    Args:
        repository: that it is in.
        folder: its path there, empty for all of it.
        shown: its address.
    """

    num_readers = 32

    def __init__(self, repository: Repository, folder: str, shown: str) -> None:
        self.repository, self.folder, self.shown = repository, folder, shown
        self.prefix = f"{folder}/" if folder else ""
        self.name = shown.rpartition("/")[2]

    @property
    def pinned(self) -> str:
        return str(HubAddress(self.repository.address.repo, self.repository.commit, self.folder))

    def zarr(self) -> Any:
        """See `Place`; through huggingface_hub's own file system."""
        from zarr.storage import FsspecStore

        return FsspecStore.from_url(self.pinned, read_only=True)

    def __truediv__(self, name: str) -> Self:
        return type(self)(self.repository, self.prefix + name, f"{self.shown}/{name}")

    def listing(self) -> Mapping[str, int]:
        return {path: facts.num_bytes for path, facts in sorted(dict(self.repository.files()).items())}

    def exists(self, name: str) -> bool:
        return self.prefix + name in self.repository.files()

    def read(self, name: str, most: int = MOST_READ_BYTES) -> bytes:
        """See `Place`; sizes are those that the hub lists."""
        check_size(self._facts(name).num_bytes, most)
        return self.repository.read(self.prefix + name)

    def open(self, name: str, num_bytes: int) -> OpenFile:
        """See `Place`; asks nothing."""
        return HubFile(self.repository, self.prefix + name, self.show(name))

    def digest(self, name: str, progress: Callable[[int], None] | None = None, most: int | None = None) -> FileDigest:
        """See `Place`; of the bytes that come, not what the hub says of them."""
        listed = self._facts(name).num_bytes
        if most is not None and listed > most:
            return FileDigest(listed, "")
        starts = range(0, listed, _PIECE)
        return digest_of((self.repository.read(self.prefix + name, start, _PIECE) for start in starts), progress)

    def _facts(self, name: str) -> HubFacts:
        """What the hub lists of a file; FileNotFoundError where it lists none."""
        found = self.repository.files().get(self.prefix + name)
        if found is None:
            raise FileNotFoundError(f"{self.show(name)} is not there")
        return found


class HubPlace(ReadOnlyPlace, HubFolder):
    """A folder of a data set's repository, at one commit, read-only."""

    @classmethod
    def at(cls, address: str, commit: str | None = None) -> HubPlace:
        """The folder at an address; asks nothing yet.

        Raises:
            BadInput: the address has another form.
        """
        parsed = HubAddress.parse(address)
        return cls(Repository(parsed, commit), parsed.folder, str(parsed))

    def __reduce__(self) -> tuple[Any, ...]:
        return HubPlace.at, (self.shown, self.repository.commit)

    def check_writable(self) -> NoReturn:
        raise BadInput(f"{self.shown}: the hub is written to by copying alone; write to a folder, then copy it there")


class HubFile(OpenFile):
    """A file of a repository, read by ranges, near ones by one request; asked for nothing when it is made."""

    __slots__ = ("_path", "_repository", "shown")

    def __init__(self, repository: Repository, path: str, shown: str) -> None:
        self._repository, self._path, self.shown = repository, path, shown

    def read(self, start: int, num_bytes: int) -> bytes:
        return self._repository.read(self._path, start, num_bytes)

    def read_into(self, ranges: Sequence[Range]) -> None:
        for near in coalesced(ranges, COALESCED_GAP):
            first = near[0][0]
            data = memoryview(self.read(first, max(map(_end, near)) - first))
            for start, targets in near:
                fill(targets, data[start - first : start - first + sum(map(len, targets))])


def coalesced(ranges: Sequence[Range], gap: int) -> Iterator[list[Range]]:
    """Ranges in order of their first bytes, in groups of those that are at most `gap` bytes apart."""
    near: list[Range] = []
    reached = 0
    for one in sorted(ranges, key=lambda one: one[0]):
        if near and one[0] - reached > gap:
            yield near
            near = []
        reached = max(reached, _end(one)) if near else _end(one)
        near.append(one)
    if near:
        yield near


def _end(one: Range) -> int:
    return one[0] + sum(map(len, one[1]))


# -- the hub, and what it answers ---------------------------------------------------------------------


def hub(address: HubAddress) -> HfApi:
    """The hub's interface, with the token and endpoint that huggingface_hub is set up with.

    Raises:
        BadInput: it is not installed.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise BadInput(f"{address}: the hub needs huggingface_hub; `pip install huggingface_hub`") from error
    return HfApi(library_name="sak")


def _of_network() -> tuple[type[Exception], ...]:
    """What the network's failures are raised as, by either of the libraries that huggingface_hub has been built on;
    RuntimeError where another thread has closed the connections that they share, after a failure of its own."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, RuntimeError, *HfHubHTTPError.__bases__)


def failures() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises where the hub or the network refuses."""
    return (*_of_network(), ValueError)


@contextmanager
def in_words(address: HubAddress, kind: type[Exception]) -> Iterator[None]:
    """Raise what huggingface_hub raises in the block as a `kind` that says what was asked for, and what to do."""
    hub(address)
    try:
        yield
    except failures() as error:
        raise kind(f"{address}: {_why(address, error)}") from error


def _why(address: HubAddress, error: BaseException) -> str:
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return (
            f"its owners say who may read it; ask them on {hub(address).endpoint}/datasets/{address.repo}, and then "
            f"{_LOG_IN}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{address.repo} has no revision {address.revision!r}"
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403, 404):
        return _not_for_you(address)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "huggingface_hub was told to stay offline (HF_HUB_OFFLINE)"
    return f"{hub(address).endpoint} did not do it: {_first_line(error)}"


_LOG_IN = "log in with `hf auth login` (or set HF_TOKEN)"


def _not_for_you(address: HubAddress) -> str:
    from huggingface_hub import get_token

    where = f"{hub(address).endpoint} has no data set {address.repo}"
    if get_token():
        return f"{where}, or the token that is set may not do this with it; {_LOG_IN} as who may"
    return f"{where} that everybody may read, and no token is set; for a private one, and to write, {_LOG_IN}"


def _first_line(error: BaseException) -> str:
    said = getattr(error, "server_message", None) or str(error)  # by the hub itself: how long to wait, for example
    told = said.strip().partition("\n")[0] or type(error).__name__
    return f"{told} ({_first_line(error.__cause__)})" if isinstance(error, RuntimeError) and error.__cause__ else told
