"""Copies to the Hugging Face hub: commits of many files each to a data set's repository.

Bytes go as they come, by the hub's own protocol for large files; their names wait for the next commit, which names
whole files alone. A copy that was killed goes on from the last commit, and bytes that are there are not sent again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cache.errors import AlreadyThere, BadInput, StoreNotFound, WriteFailed
from cache.places.files import BeforeCommit, Buffers, FileDigest, digest_of
from cache.places.hub import HubAddress, HubFacts, HubFolder, Repository, facts_of, hub, in_words

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

PER_COMMIT = 200
"""Files: the hub takes few commits an hour, and long over large ones."""
_ASKED_AT_ONCE = 100


class Draft(Repository):
    """A repository's newest commit, and over it what waits for the next one. A repository that is not there is made,
    private, by the first write. Safe from several threads, of one process.

    Raises, in what writes:
        WriteFailed: the hub refuses, or somebody else has committed meanwhile; what was committed before stays.
    """

    def __init__(self, address: HubAddress) -> None:
        super().__init__(address)
        self._now: dict[str, HubFacts] | None = None
        self._committed: set[str] = set()
        self._waiting: dict[str, CommitOperationAdd | CommitOperationDelete] = {}
        self._sent: dict[str, FileDigest] = {}

    def files(self) -> dict[str, HubFacts]:
        """As it will be after the next commit."""
        with self._mutex:
            if self._now is None:
                self._now = dict(super().files()) if self._is_there() else {}
                self._committed = set(self._now)
            return self._now

    def _is_there(self) -> bool:
        try:
            return bool(self.commit)
        except StoreNotFound as error:
            from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

            # it may also be somebody's private one: then making it is refused
            if isinstance(error.__cause__, RepositoryNotFoundError) and not isinstance(error.__cause__, GatedRepoError):
                return False
            raise

    def read(self, path: str, start: int | None = None, num_bytes: int = 0) -> bytes:
        with self._mutex:
            if path not in self.files():
                raise FileNotFoundError(f"hf://datasets/{self.address.repo}/{path} is not there")
            if path in self._waiting:
                content = getattr(self._waiting[path], "path_or_fileobj", b"")
                if len(content) == self.files()[path].num_bytes:
                    return bytes(content if start is None else content[start : start + num_bytes])
                self.commit_waiting()  # its bytes have been sent and let go
        return super().read(path, start, num_bytes)

    def write(self, files: Mapping[str, bytes], digests: Mapping[str, FileDigest], replace: bool) -> None:
        """Send files, path in the repository -> bytes, to be committed.

        Raises:
            AlreadyThere: one is there with other bytes, and `replace` is false; nothing is sent.
        """
        from huggingface_hub import CommitOperationAdd

        with self._mutex:
            now = self.files()
            new = {}
            for path, data in files.items():
                if path not in now or not now[path].are_of(digests[path], data):
                    new[path] = data
                if path in now and path in new and not replace:
                    raise AlreadyThere(
                        f"hf://datasets/{self.address.repo}/{path} is there already with other bytes. Nothing was "
                        "written over it"
                    )
            additions = [CommitOperationAdd(path, data) for path, data in new.items()]
            if not additions:
                return
            now = self._make()
            with in_words(self.address, WriteFailed), _silent_bars():
                hub(self.address).preupload_lfs_files(self.address.repo, additions, repo_type="dataset")
            for addition in additions:
                path = addition.path_in_repo
                self._waiting[path], self._sent[path] = addition, digests[path]
                now[path] = HubFacts(digests[path].num_bytes, digests[path].sha256, None)
            if len(self._waiting) >= PER_COMMIT:
                self.commit_waiting()

    def delete(self, paths: Sequence[str]) -> None:
        """Let files go with the next commit; it is no error where there is none."""
        from huggingface_hub import CommitOperationDelete

        with self._mutex:
            for path in paths:
                if self.files().pop(path, None) is None:
                    continue
                self._waiting.pop(path, None)
                if path in self._committed:
                    self._waiting[path] = CommitOperationDelete(path)

    def commit_waiting(self) -> None:
        """Commit what waits, and ask the hub what it holds now."""
        with self._mutex:
            if not self._waiting:
                return
            operations = list(self._waiting.values())
            with in_words(self.address, WriteFailed), _others(self.address), _silent_bars():
                done = hub(self.address).create_commit(
                    self.address.repo,
                    operations,
                    commit_message=f"Copy {len(operations)} files",
                    repo_type="dataset",
                    parent_commit=self._commit,
                )
            self._commit = done.oid
            self._locations.clear()
            self._committed = set(self.files())
            # what is left of a large file, whose bytes were sent before, is its digest
            sent = {
                addition.path_in_repo: bytes(getattr(addition, "path_or_fileobj", b""))
                for addition in operations
                if addition.path_in_repo in self.files()
            }
            self._waiting.clear()
            self._check(sent)

    def _check(self, contents: Mapping[str, bytes]) -> None:
        """Refuse files that are not what was sent."""
        paths = list(contents)
        found: dict[str, HubFacts] = {}
        for first in range(0, len(paths), _ASKED_AT_ONCE):
            with in_words(self.address, WriteFailed):
                told = hub(self.address).get_paths_info(
                    self.address.repo,
                    paths[first : first + _ASKED_AT_ONCE],
                    revision=self._commit,
                    repo_type="dataset",
                )
            found |= {entry.path: facts_of(entry) for entry in told}
        for path, content in contents.items():
            sent, facts = self._sent.pop(path), found.get(path)
            if facts is None or not facts.are_of(sent, content):
                raise WriteFailed(
                    f"hf://datasets/{self.address.repo}/{path}: the hub holds {facts}, and {sent} was sent"
                )

    def _make(self) -> dict[str, HubFacts]:
        """Make the repository where it is not there; what is in it."""
        if self._commit is not None:
            return self.files()
        with in_words(self.address, WriteFailed):
            hub(self.address).create_repo(self.address.repo, repo_type="dataset", private=True, exist_ok=True)
        self._now = None
        return self.files()


class HubTarget(HubFolder):
    """A folder of a data set's repository to copy stores into; what is written is there for others after `finish`."""

    repository: Draft

    @classmethod
    def at(cls, address: str) -> HubTarget:
        """The folder at an address.

        Raises:
            BadInput: it has another form, or names a revision, of which each is what it is.
        """
        parsed = HubAddress.parse(address)
        if parsed.revision is not None:
            raise BadInput(
                f"{address}: a fixed revision is only read from; copies become its newest: leave @{parsed.revision} out"
            )
        return cls(Draft(parsed), parsed.folder, str(parsed))

    def write(
        self, files: Mapping[str, Buffers], *, replace: bool = False, before_commit: BeforeCommit | None = None
    ) -> dict[str, FileDigest]:
        """See `Place`; durable after `finish`."""
        digests = {name: digest_of(buffers) for name, buffers in files.items()}
        if before_commit is not None:
            before_commit(digests)
        self.repository.write(
            {self.prefix + name: b"".join(buffers) for name, buffers in files.items()},
            {self.prefix + name: digest for name, digest in digests.items()},
            replace,
        )
        return digests

    def delete(self, names: Sequence[str]) -> None:
        """See `Place`; for good after `finish`."""
        self.repository.delete([self.prefix + name for name in names])

    def append(self, name: str, line: bytes) -> None:
        self.write({name: [self.read(name) if self.exists(name) else b"", line]}, replace=True)

    def finish(self) -> None:
        self.repository.commit_waiting()


@contextmanager
def _others(address: HubAddress) -> Iterator[None]:
    """Say that somebody else's commit came between."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (409, 412):
            raise WriteFailed(
                f"{address}: somebody else has committed to it meanwhile. Their commit is untouched, and what had been "
                "committed of this copy is there: it goes on from it"
            ) from error
        raise


@contextmanager
def _silent_bars() -> Iterator[None]:
    """Without huggingface_hub's own progress bars."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
