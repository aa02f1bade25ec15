"""Teachers and views taken out of a store: asked first, killed anywhere, and back again byte for byte."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from cache.errors import BadInput, StoreLocked
from cache.maintenance.removal import drop_teacher, drop_views
from cache.maintenance.verification import verify_store
from cache.store import Store
from pipeline.extraction.stored_fidelity import STAGE, logged_fidelity
from sak_common.names import UnknownName
from tests import cache_toy as toy
from tests.cache_toy import unlisted_files
from tests.conftest import answer, program, refusal, sak
from tests.small_images import cache_arguments


def test_a_dropped_teacher_leaves_nothing_and_comes_back_the_same(
    images: Path, whole: Path, store: Path, tmp_path: Path
) -> None:
    done = answer("drop", store, "--teacher", "mini-dino", "--yes")
    assert done["teachers"] == ["mini-sam"] and done["bytes"] > 100_000
    assert verify_store(store) == [] and unlisted_files(store) == []
    without = tmp_path / "without"
    sak(*cache_arguments(images, without, teachers=["mini-sam"]))
    assert toy.content(store) == toy.content(next(without.glob("*.zarr")))
    sak(*cache_arguments(images, tmp_path))
    assert toy.content(store) == toy.content(whole)


def test_what_was_measured_of_a_dropped_teacher_is_not_told_of_the_next(store: Path) -> None:
    opened = Store.open(store)
    for teacher in ("mini-dino", "mini-sam"):
        opened.log({"stage": STAGE, "teacher": teacher, "rows": 3, "levels": {}})
    sak("drop", store, "--teacher", "mini-dino", "--yes")
    assert logged_fidelity(opened, "mini-dino") is None
    assert logged_fidelity(opened, "mini-sam") == {"rows": 3, "levels": {}}
    sak("drop", store, "--teacher", "mini-sam", "--views", "1", "--yes")
    assert logged_fidelity(opened, "mini-sam"), "its other rows are there"


def test_dropped_views_come_back_the_same(images: Path, whole: Path, store: Path, tmp_path: Path) -> None:
    done = sak("drop", store, "--views", "1", "--yes")
    assert "dropped view 1 of pixels, labels and all teachers" in done.stdout
    assert verify_store(store) == [] and unlisted_files(store) == []
    one = tmp_path / "one"
    sak(*cache_arguments(images, one, views=1))
    assert toy.content(store) == toy.content(next(one.glob("*.zarr")))
    assert Store.open(store).num_views == 1
    sak(*cache_arguments(images, tmp_path))
    assert toy.content(store) == toy.content(whole)


def test_a_teachers_last_views_alone(whole: Path, store: Path) -> None:
    sak("drop", store, "--teacher", "mini-sam", "--views", "1", "--yes")
    opened = Store.open(store)
    assert verify_store(store) == [] and opened.num_views == 2
    assert opened.teacher("mini-sam").num_views == 1 and opened.teacher("mini-dino").num_views == 2
    opened.features("mini-sam", 0)[0, 0]
    with pytest.raises(IndexError):
        opened.features("mini-sam", 0)[0, 1]


def test_it_asks_first_and_says_what_it_would_do(store: Path) -> None:
    before = toy.tree(store)
    done = sak("drop", store, "--teacher", "mini-dino", check=False)
    assert done.returncode == 2 and "--yes" in done.stderr
    assert "drop teacher mini-dino of" in done.stderr and "MB?" in done.stderr
    would = answer("drop", store, "--views", "1", "--dry-run")
    assert would["dry_run"] and would["bytes"] > 100_000
    for arguments, message in (
        ([], "say what to drop"),
        (["--views", "2", "--yes"], "has 2 views"),
        (["--teacher", "mini-dion", "--yes"], "did you mean mini-dino"),
    ):
        assert message in refusal("drop", store, *arguments)
    assert toy.tree(store) == before


def test_a_damaged_teacher_can_be_dropped(images: Path, whole: Path, store: Path, tmp_path: Path) -> None:
    (store / "teachers/mini-dino/zarr.json").unlink()
    (store / "manifest/teachers/mini-dino/metadata.json").write_text("{}")
    sak("drop", store, "--teacher", "mini-dino", "--yes")
    assert verify_store(store) == []
    sak(*cache_arguments(images, tmp_path))
    assert toy.content(store) == toy.content(whole)


DROP = """
import os, sys
from cache.maintenance.removal import drop_teacher, drop_views
from cache.store import Store
os.fsync = lambda descriptor: None
store = Store.open(sys.argv[1])
drop_views(store, int(sys.argv[2])) if sys.argv[2].isdigit() else drop_teacher(store, sys.argv[2])
"""


@pytest.mark.parametrize(
    ("what", "num_faults"),
    [("mini-dino", 2), ("1", 9)],  # of views: three in each of two teachers and the source
)
def test_killed_anywhere_it_leaves_a_store_and_goes_on(what: str, num_faults: int, tmp_path: Path) -> None:
    whole = toy.make_store(tmp_path / "whole", num_views=2)
    expected = tmp_path / "expected"
    if what == "1":
        toy.make_store(expected, num_views=1)
    else:
        other = Store.create(expected, toy.toy_spec())
        toy.write_source(other, 2, toy.INVALID)
        toy.write_teacher(other, 2, "mini-clip", toy.OTHER_LEVELS)
    for fault in range(1, num_faults + 1):
        path = Path(shutil.copytree(whole.path, tmp_path / f"{fault}" / whole.name))
        assert program(DROP, path, what, env={"SAK_FAULT": f"drop:{fault}"}).returncode == -signal.SIGKILL
        assert verify_store(path) == []
        opened = Store.open(path)
        opened.pixels[0, 0], opened.features("mini-clip", 0)[0, 0]
        resumed = Path(shutil.copytree(path, tmp_path / f"{fault}" / "again" / whole.name))
        if fault == num_faults and what == "1":  # everything but the last metadata is done: the command says so
            assert "has 1 views now" in refusal("drop", path, "--views", "1", "--yes")
        else:
            assert program(DROP, path, what).returncode == 0
        assert toy.content(path) == toy.content(next(expected.glob("*.zarr")))
        toy.make_store(resumed.parent, num_views=2)  # or extraction goes on instead
        assert toy.content(resumed) == toy.content(whole.path)


def test_what_cannot_be_dropped_is_refused(tmp_path: Path) -> None:
    store = toy.make_store(tmp_path)
    with pytest.raises(BadInput, match="at least one"):
        drop_views(store, 0)
    with pytest.raises(UnknownName, match="mini-dino"):
        drop_teacher(store, "mini-dion")
    held = Store.open(store.path).lock("mini-dino")
    with held, pytest.raises(StoreLocked, match="another process works on teachers/mini-dino"):
        drop_teacher(store, "mini-dino")
    assert verify_store(store.path) == []
