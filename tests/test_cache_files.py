"""Durability, locks, and what the operating system refuses."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.errors import StoreFull, StoreLocked, TooManyOpenFiles, WriteFailed
from cache.places.files import canonical_json, digest_of_file, write_files
from cache.store import Store
from cache.writing.source_writer import SourceWriter
from tests import cache_toy as toy

ROOT = Path(__file__).parents[1]


def test_a_shard_is_durable_before_its_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is synced under a temporary name, renamed, its folder synced; only then the entry, the same way."""
    store = Store.create(tmp_path, toy.toy_spec())
    store.ensure_views(1)
    writer = SourceWriter(store)
    events: list[tuple[str, str]] = []

    def fsync(descriptor: int, real: Callable[[int], None] = os.fsync) -> None:
        real(descriptor)
        events.append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))

    def rename(self: Path, target: Path, real: Any = Path.rename) -> Path:
        events.append(("rename", str(target)))
        return real(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    writer.write_shard(0, 2, toy.source_arrays(store.spec, 0, 2))
    renames = [path for event, path in events if event == "rename"]
    assert len(renames) == 11 and renames[-1].endswith("manifest/source/view_0000/shard_000002.json")
    first = events.index(("rename", renames[0]))
    entry = events.index(("rename", renames[-1]))
    for target in renames[:-1]:
        folder, name = str(Path(target).parent), Path(target).name
        synced = [
            i for i, (event, path) in enumerate(events) if event == "sync" and path.startswith(f"{folder}/.{name}.")
        ]
        assert len(synced) == 1 and synced[0] < first, name
        at = events.index(("rename", target))
        assert ("sync", folder) in events[at:entry], folder
    assert ("sync", str(Path(renames[-1]).parent)) in events[entry:]


def test_writev_that_stops_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, buffers: real(fd, [buffers[0][: max(1, len(buffers[0]) // 2)]]))
    pieces = [b"", b"abc", b"", memoryview(b"defgh"), b"i"] * 300
    digests = write_files(tmp_path, {"a/b": pieces, "c": [b""]})
    assert (tmp_path / "a/b").read_bytes() == b"abcdefghi" * 300 and (tmp_path / "c").read_bytes() == b""
    assert digests == {name: digest_of_file(tmp_path / name) for name in ("a/b", "c")}


def test_refused_writes_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(code: int) -> Callable[..., int]:
        def writev(descriptor: int, buffers: Any) -> int:
            raise OSError(code, os.strerror(code))

        return writev

    monkeypatch.setattr(os, "writev", fail(errno.EIO))
    with pytest.raises(WriteFailed, match="Input/output error"):
        write_files(tmp_path, {"a": [b"x"], "b": [b"y"]})
    monkeypatch.setattr(os, "writev", fail(errno.EDQUOT))
    with pytest.raises(StoreFull, match=r"no space left below .*: 2 files of 2 bytes in all, [\d,]+ free"):
        write_files(tmp_path, {"a": [b"x"], "b": [b"y"]})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(WriteFailed, match=r"cannot write to the source of .*file"):
        Store.create(tmp_path / "file", toy.toy_spec())


def test_few_descriptors_are_made_do_with(tmp_path: Path) -> None:
    store = Store.create(tmp_path, toy.toy_spec(rows_per_shard=1, num_samples=40))
    toy.write_source(store, 1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(list(Path("/proc/self/fd").iterdir()))
    opened = Store.open(store.path)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 12, limits[1]))
        for sample in range(40):  # many more files than may be open
            np.testing.assert_array_equal(opened.pixels[sample, 0], toy.pixels(store.spec, sample, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        with pytest.raises(TooManyOpenFiles, match="Too many open files"):
            opened.labels["semseg"][0, 0]
        for take in (
            lambda: store.place.read("zarr.json"),
            lambda: store.place.digest("zarr.json"),
            store.lock("source").__enter__,
        ):
            with pytest.raises(TooManyOpenFiles, match="Too many open files"):
                take()
        with pytest.raises(OSError, match="Too many open files"):
            store.place.sizes()  # no folder is called empty
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


HOLD = """
import sys
from cache.store import Store
with Store.open(sys.argv[1]).lock("source"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_waits_or_refuses(tmp_path: Path) -> None:
    store = Store.create(tmp_path, toy.toy_spec())
    command = [sys.executable, "-c", HOLD, str(store.path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert holder.stdin and holder.stdout and holder.stdout.readline() == b"held\n"
    try:
        with pytest.raises(StoreLocked, match="another process works on source of"), store.lock("source", wait=False):
            pass
        with (
            store.lock("mini-dino", wait=False),
            store.lock("teachers/mini-dino", wait=False),
        ):  # nested; other parts are free
            pass
        said: list[str] = []

        def release(message: str) -> None:
            said.append(message)
            holder.kill()  # the kernel frees a killed process's lock

        with store.lock("source", on_wait=release):
            assert len(said) == 1 and "waiting for it to end" in said[0]
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()


RACE = """
import sys
from pathlib import Path
from cache.store import Store
from tests import cache_toy as toy
store = Store.create(Path(sys.argv[1]), toy.toy_spec())
with store.lock("source"):
    toy.write_source(store, 1, toy.INVALID)
for name, levels in (("mini-dino", toy.LEVELS), ("mini-clip", toy.OTHER_LEVELS)):
    with store.lock(name):
        toy.write_teacher(store, 1, name, levels)
"""


def test_two_processes_make_one_store(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACE, str(tmp_path / "both")]
    processes = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    toy.make_store(tmp_path / "alone", num_views=1)
    assert toy.tree(tmp_path / "both") == toy.tree(tmp_path / "alone")


def test_canonical_json_is_one_text() -> None:
    assert canonical_json({"b": 1, "a": [1.5, "é"]}) == '{"a":[1.5,"é"],"b":1}\n'.encode()
    with pytest.raises(ValueError):
        canonical_json(float("nan"))
