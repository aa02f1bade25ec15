"""Folders as labs and clusters have them: shared by a group, without locks, without fsync, without inodes."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cache.errors import PlaceWarning, StoreFull, StoreLocked
from cache.places import files
from cache.store import Store
from tests import cache_toy as toy
from tests.conftest import answer, refusal, sak
from tests.mounts import mounted
from tests.small_images import cache_arguments

MISSING = """
# a file system without locks, and without fsync of folders
import errno
import fcntl
import os
import stat

real_sync = os.fsync


def flock(descriptor, operation):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def fsync(descriptor):
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    real_sync(descriptor)


fcntl.flock, os.fsync = flock, fsync
"""


@pytest.fixture(autouse=True)
def nobody_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_warned", set())


@pytest.fixture
def group_umask() -> Iterator[None]:
    before = os.umask(0o002)
    yield
    os.umask(before)


@pytest.mark.usefixtures("group_umask")
def test_what_the_umask_leaves_to_a_group_it_may_write(tmp_path: Path) -> None:
    store = toy.make_store(tmp_path)
    store.log({"event": "made"})
    for path in (store.path, *store.path.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o775 if path.is_dir() else 0o664), path


def test_a_stricter_umask_is_kept(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        path = toy.make_store(tmp_path).path
    finally:
        os.umask(before)
    assert not any(stat.S_IMODE(file.stat().st_mode) & 0o077 for file in path.rglob("*"))


def test_a_cache_is_made_where_there_are_no_locks_and_no_sync_of_folders(
    images: Path, whole: Path, tmp_path: Path
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "sitecustomize.py").write_text(MISSING)
    done = sak(*cache_arguments(images, tmp_path / "out"), env={"PYTHONPATH": f"{code}{os.pathsep}{Path.cwd()}"})
    assert done.stderr.count("its file system has no locks (Function not implemented)") == 1
    assert done.stderr.count("cannot make new names in a folder durable (Invalid argument)") == 1
    assert "PlaceWarning" not in done.stderr and "start one at a time" in done.stderr
    (made,) = (tmp_path / "out").iterdir()
    assert toy.tree(made) == toy.tree(whole)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_no_locks_is_a_warning(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(PlaceWarning, match="has no locks") as told:
        toy.make_store(tmp_path)
    assert len(told) == 1


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EIO])
def test_no_sync_of_folders_is_a_warning_and_a_failing_disk_an_error(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    if number == errno.EIO:
        with pytest.raises(OSError, match="Input/output error"):
            files.fsync_directory(tmp_path)
        return
    with pytest.warns(PlaceWarning, match="cannot make new names in a folder durable") as told:
        toy.make_store(tmp_path)
    assert len(told) == 1


def test_out_of_inodes_is_not_out_of_space(tmp_path: Path, images: Path) -> None:
    with mounted(tmp_path / "few", "-t", "tmpfs", "-o", "size=200m,nr_inodes=40", "none") as disk:
        with pytest.raises(StoreFull, match=r"no inodes left below .* takes \d+ more \(\d[\d,]+ bytes are free\)"):
            files.write_files(disk, {f"a/{number}": [b"x"] for number in range(60)})
        assert not [path for path in disk.rglob("*") if path.is_file()]


def test_inodes_are_planned(tmp_path: Path, images: Path) -> None:
    with mounted(tmp_path / "few", "-t", "tmpfs", "-o", "size=200m,nr_inodes=330", "none") as disk:
        arguments = cache_arguments(images, disk / "out")[1:]
        planned = answer("plan", *arguments)
        assert not planned["fits"] and not planned["proposals"]
        assert planned["free_files"] < planned["pending_files"] and planned["pending_bytes"] < planned["free_bytes"]
        assert f"more files, but the disk of {disk / 'out'} has inodes for" in refusal("cache", *arguments)
        assert not list(disk.iterdir())


def test_threads_are_excluded_as_processes_are(tmp_path: Path) -> None:
    store = Store.create(tmp_path, toy.toy_spec())
    events: list[Any] = []
    first, second = threading.Event(), threading.Event()

    def other() -> None:
        with (
            pytest.raises(StoreLocked, match="another thread of this process works on source"),
            store.lock("source", wait=False),
        ):
            pass
        first.set()
        with store.lock("source", on_wait=lambda message: (events.append(message), second.set())):
            events.append("other")

    with store.lock("source"), store.lock("source"):
        thread = threading.Thread(target=other)
        thread.start()
        assert first.wait(10) and second.wait(10)
        with store.lock("mini-dino", wait=False):  # another part is another lock
            events.append("this one")
    thread.join(10)
    assert [event if " " not in event or event == "this one" else "waits" for event in events] == [
        *("waits", "this one", "other")
    ]
    with Store.open(store.path).lock("source", wait=False), pytest.raises(StoreLocked, match="another process"):
        store.lock("source", wait=False).__enter__()


def test_a_lock_that_another_thread_ends_is_free(tmp_path: Path) -> None:
    """As where a worker takes over what its caller has locked; nested holds keep other processes out till the last."""
    store = Store.create(tmp_path, toy.toy_spec())
    outer = store.lock("source")
    outer.__enter__()
    with store.lock("source"):
        thread = threading.Thread(target=lambda: outer.__exit__(None, None, None))
        thread.start()
        thread.join(10)
        with pytest.raises(StoreLocked), Store.open(store.path).lock("source", wait=False):
            pass
    with (
        Store.open(store.path).lock("source", wait=False),
        pytest.raises(StoreLocked),
        store.lock("source", wait=False),
    ):
        pass
