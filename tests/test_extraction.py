"""`sak cache` as a person runs it: decoding, disk, waiting, interruption, dry runs, views added later."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections import Counter, namedtuple
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cache.store import Store, find_stores
from pipeline.errors import UserError
from pipeline.extraction import prepare, samples
from pipeline.extraction.caching import run_cache
from pipeline.extraction.request import CacheRequest, TeacherOptions
from pipeline.extraction.samples import DatasetRequest
from tests.cache_toy import content, tree
from tests.conftest import sak, start, wait_until

ROOMS = ["--split", "unlabelled", "--limit", "80", "--threads", "1"]


def cache(out: Path, *extra: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return sak("cache", "--out", out, *ROOMS, *extra, check=check)


class Counted:
    """A data set that counts how often each sample is decoded."""

    def __init__(self, dataset: Any) -> None:
        self._dataset, self.loads = dataset, Counter[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def load(self, index: int) -> Any:
        self.loads[index] += 1
        return self._dataset.load(index)


TEACHER = ("--teacher", "mini-dino")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Four views made at once."""
    out = tmp_path_factory.mktemp("undisturbed")
    cache(out, *TEACHER, "--views", "4", "--decoders", "0")
    made = content(out)
    shutil.rmtree(out)
    return made


@pytest.mark.parametrize(("memory", "loads"), [(prepare.MEMORY_BYTES, 1), (1, 3)])
def test_a_sample_is_decoded_once_for_all_views_that_memory_holds(
    memory: int, loads: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    request = DatasetRequest("rooms", "train", limit=70)
    opened: list[Counted] = []

    def open_counted(*args: Any, **kwargs: Any) -> Counted:
        opened.append(Counted(real(*args, **kwargs)))
        return opened[-1]

    plain = prepare.prepare(request, tmp_path / "plain", 3, decoders=2)
    real = samples.open_dataset
    monkeypatch.setattr(samples, "open_dataset", open_counted)
    monkeypatch.setattr(prepare, "MEMORY_BYTES", memory)
    store = prepare.prepare(request, tmp_path / "counted", 3, decoders=0)
    counts = sum((dataset.loads for dataset in opened), Counter[int]())
    assert set(counts.values()) == {loads} and len(counts) == 70
    assert tree(store.path) == tree(plain.path), "processes and memory change no byte"


def test_views_added_later_are_the_views_made_at_once(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    cache(tmp_path, *TEACHER, "--views", "2", "--decoders", "0")
    first = {name: data for name, data in content(tmp_path).items() if "/c." in name}
    cache(tmp_path, *TEACHER, "--views", "4", "--decoders", "0")
    assert content(tmp_path) == undisturbed
    assert first.items() <= undisturbed.items() and len(first) < sum("/c." in name for name in undisturbed)


def test_a_dry_run_states_the_bytes_that_a_run_writes(tmp_path: Path) -> None:
    arguments = ("--teacher", "mini-dino,mini-clip", "--views", "2", "--codec", "bf16", "--grid", "4x5")
    planned = json.loads(cache(tmp_path, *arguments, "--dry-run", "--json").stdout)
    assert not list(tmp_path.iterdir()) and planned["rows"] == 160
    assert [part["part"] for part in planned["parts"]] == ["source", "teachers/mini-dino", "teachers/mini-clip"]
    cache(tmp_path, *arguments)
    store = Store.open(planned["store"])
    for part in planned["parts"]:
        assert part["rows"] == part["pending_rows"] == 160
        for array, num_bytes in part["array_bytes"].items():
            files = (store.path / array).glob("c.*")
            assert num_bytes == sum(file.stat().st_size for file in files), array
    again = json.loads(cache(tmp_path, *arguments, "--dry-run", "--json").stdout)
    assert again["pending_bytes"] == 0 and [part["pending_rows"] for part in again["parts"]] == [0, 0, 0]
    on_disk = sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file())
    assert planned["pending_bytes"] == pytest.approx(on_disk, rel=0.03)


def request(out: Path, teachers: Sequence[str], views: int) -> CacheRequest:
    source = DatasetRequest("rooms", "unlabelled", limit=70)
    return CacheRequest(source, tuple(teachers), views, out, TeacherOptions(threads=1), decoders=0)


def test_the_disk_must_hold_what_is_still_to_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = run_cache(request(tmp_path, ["mini-dino"], 2))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1_000_000))
    assert run_cache(request(tmp_path, ["mini-dino"], 2)) == {**done, "timings": {}}, "nothing is left to write"
    short = r"pixels, labels and features need [\d.]+ .B more, but the disk of .* has 1\.0 MB free"
    with pytest.raises(UserError, match=short):
        run_cache(request(tmp_path, ["mini-dino"], 3))
    assert Store.open(done["store"]).num_views == 2, "said before anything is prepared"
    # the source of two teachers fits, the second teacher does not: said before the first one runs
    with pytest.raises(UserError, match="pixels, labels and features need"):
        run_cache(request(tmp_path, ["mini-dino", "mini-clip"], 2))
    assert Store.open(done["store"]).teachers == ["mini-dino"]


@pytest.mark.parametrize("part", [pytest.param("source", marks=pytest.mark.slow), "teachers/mini-dino"])
def test_a_second_process_says_what_it_waits_for(part: str, tmp_path: Path) -> None:
    arguments = ("--teacher", "mini-dino", "--views", "1", "--decoders", "0")
    cache(tmp_path, *arguments)
    store = find_stores(tmp_path)[0]
    with store.lock(part):
        process = start("cache", "--out", tmp_path, *ROOMS, *arguments)
        assert process.stderr is not None
        for line in process.stderr:
            if "another process works on" in line:
                assert part.rpartition("/")[2] in line and "waiting for it to end" in line
                break
        else:
            pytest.fail("it did not say that it waits")
        assert process.poll() is None
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


@pytest.mark.parametrize(
    ("stage", "decoders"),
    [
        pytest.param("source", "2", marks=pytest.mark.slow),
        pytest.param("source", "0", marks=pytest.mark.slow),
        ("mini-dino", "0"),
    ],
)
def test_ctrl_c_leaves_no_traceback_and_a_store_that_goes_on(
    stage: str, decoders: str, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    arguments = (*TEACHER, "--views", "4", "--decoders", decoders)
    process = start("cache", "--out", tmp_path, *ROOMS, *arguments)
    written = {"source": "*.zarr/pixels/c.*", "mini-dino": "*.zarr/teachers/mini-dino/level_0/c.*"}[stage]
    wait_until(lambda: any(tmp_path.glob(written)), process)
    os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches the decoding processes too
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err and "goes on where it stopped" in err
    assert undisturbed.keys() - content(tmp_path).keys(), "it stopped in the middle"
    cache(tmp_path, *arguments)
    assert content(tmp_path) == undisturbed
