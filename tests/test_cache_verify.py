"""Damage: found, named, and kept away from readers; nothing else refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache.errors import CacheError, CorruptFile, StoreNotFound
from cache.loading.loader import Loader
from cache.maintenance.verification import Problem, verify_store
from cache.store import Store
from cache.writing.source_writer import SourceWriter
from tests import cache_toy as toy


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make_store(tmp_path_factory.mktemp("whole")).path


def test_a_whole_store_has_no_problems(whole: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert verify_store(whole, lambda done, total: seen.append((done, total))) == []
    assert toy.unlisted_files(whole) == []
    assert seen[-1][0] == seen[-1][1] == seen[0][1]
    with pytest.raises(StoreNotFound):
        verify_store(whole / "pixels")


@pytest.mark.parametrize(
    ("file", "byte", "rows"),
    [
        ("pixels/c.1.1.0.0.0", 130 * 2 + 7, (6,)),  # rows of 6*7*3 + 4 bytes
        ("pixels/c.1.1.0.0.0", 130 * 2 - 1, (5,)),  # the checksum of the row before
        ("pixels/c.1.1.0.0.0", -3, (4, 5, 6, 7)),  # the index's checksum
        ("pixels/c.1.1.0.0.0", -20, (4, 5, 6, 7)),  # the index
        ("teachers/mini-dino/level_3/c.0.3.0.0.0", 0, (12,)),
        ("views/box/c.1.2.0", 5, (8, 9, 10, 11)),
        ("labels/semseg/c.1.2.0.0", 5, (8,)),
    ],
)
def test_damaged_rows_are_named(store: Path, file: str, byte: int, rows: tuple[int, ...]) -> None:
    size = (store / file).stat().st_size
    toy.flip(store / file, byte % size, 3)
    (problem,) = verify_store(store)
    teacher = file.startswith("teachers")
    assert problem.part == ("teachers/mini-dino" if teacher else "source")
    assert problem.level == ("level_3" if teacher else file.split("/c.")[0])
    view, shard = map(int, file.split("/c.")[1].split(".")[:2])
    assert (problem.file, problem.view, problem.shard, problem.rows) == (file, view, shard, rows)
    assert f"view {view}, shard {shard}: {file}" in str(problem) and str(rows[0]) in str(problem)


def test_only_damaged_rows_are_refused(store: Path) -> None:
    toy.flip(store / "pixels/c.1.1.0.0.0", 130 * 2 + 7)
    opened = Store.open(store)
    with pytest.raises(CorruptFile, match=r"pixels/c\.1\.1\.0\.0\.0: sample 6, view 1 fails its crc32c"):
        opened.pixels[6, 1]
    for sample in set(range(13)) - {6}:
        opened.pixels[sample, 1]
    opened.pixels[6, 0]
    loader = Loader(opened, batch_size=4, num_views=2, shuffle=False)
    with pytest.raises(CorruptFile, match="sample 6, view 1"):
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            for _ in loader:
                pass


def test_a_damaged_index_refuses_its_shard_alone(store: Path) -> None:
    size = (store / "pixels/c.1.1.0.0.0").stat().st_size
    toy.flip(store / "pixels/c.1.1.0.0.0", size - 30)
    opened = Store.open(store)
    for sample in range(13):
        if sample // 4 == 1:
            with pytest.raises(CorruptFile, match="index fails its crc32c"):
                opened.pixels[sample, 1]
        else:
            opened.pixels[sample, 1]


def test_padding_between_rows_belongs_to_no_row(tmp_path: Path) -> None:
    from cache.format.spec import LevelSpec

    level = LevelSpec(0, (40, 30), 28, "fp16")
    store = toy.make_store(tmp_path, num_views=1)
    toy.write_teacher(store, 1, "wide", [level])
    toy.flip(store.path / "teachers/wide/level_0/c.0.0.0.0.0", 40 * 30 * 28 * 2 + 4 + 9)
    (problem,) = verify_store(store.path)
    assert "padding" in problem.what and problem.rows == ()
    for sample in range(4):
        Store.open(store.path).features("wide", 0)[sample, 0]


def test_truncated_and_missing_files(store: Path) -> None:
    (store / "labels/semseg/c.0.2.0.0").unlink()
    short = store / "teachers/mini-clip/level_0/c.1.0.0.0.0"
    short.write_bytes(short.read_bytes()[:-1])
    (store / "pixels/zarr.json").unlink()
    found = {problem.file: problem for problem in verify_store(store)}
    assert found["labels/semseg/c.0.2.0.0"].what == "it is missing"
    assert found["labels/semseg/c.0.2.0.0"].rows == (8, 9, 10, 11)
    assert found["teachers/mini-clip/level_0/c.1.0.0.0.0"].what == "it has 403 bytes, 404 were committed"
    assert set(found) == {"labels/semseg/c.0.2.0.0", "teachers/mini-clip/level_0/c.1.0.0.0.0", "pixels/zarr.json"}
    opened = Store.open(store)
    with pytest.raises(CorruptFile, match="cannot be opened"):
        opened.labels["semseg"][9, 0]
    with pytest.raises(CorruptFile, match="were committed"):
        opened.features("mini-clip", 0)[0, 1]


@pytest.mark.parametrize(
    ("file", "use"),
    [
        ("zarr.json", lambda path: Store.open(path)),
        ("teachers/mini-dino/zarr.json", lambda path: Store.open(path).features("mini-dino", 0)),
        ("teachers/mini-dino/calibration/level_1/min/c.0", lambda path: Store.open(path).features("mini-dino", 1)),
        ("manifest/source/metadata.json", lambda path: Store.open(path)),
        ("manifest/source/view_0001.json", lambda path: Store.open(path).pixels[0, 1]),
        ("manifest/teachers/mini-dino/calibration.json", lambda path: Store.open(path).features("mini-dino", 1)),
    ],
)
def test_damaged_metadata_is_refused_and_named(store: Path, file: str, use) -> None:  # type: ignore[no-untyped-def]
    size = (store / file).stat().st_size
    toy.flip(store / file, size // 2)
    with pytest.raises(CacheError, match=r"zarr\.json|c\.0|\.json"):
        use(store)
    problems = verify_store(store)
    assert [problem.file for problem in problems] == [file]
    assert problems[0].part == ("teachers/mini-dino" if "mini-dino" in file else "source")
    Store.open(store).pixels[0, 0] if file.startswith(("teachers", "manifest/teachers")) else None


def test_a_manifest_says_what_it_says_in_one_way_only(store: Path) -> None:
    path = store / "manifest/source/view_0000.json"
    path.write_text(path.read_text().replace('"view":0', '"view": 0'))
    assert [problem.file for problem in verify_store(store)] == ["manifest/source/view_0000.json"]
    other = store / "manifest/source/view_0001.json"
    path.write_bytes(other.read_bytes())  # whole, but in the wrong place
    with pytest.raises(CorruptFile, match="belongs to view 1, shards"):
        Store.open(store).pixels[0, 0]
    assert [problem.file for problem in verify_store(store)] == ["manifest/source/view_0000.json"]


def test_a_damaged_entry_refuses_its_shard_alone(tmp_path: Path) -> None:
    store = Store.create(tmp_path, toy.toy_spec())
    store.ensure_views(1)
    writer = SourceWriter(store)
    for shard in range(3):  # not complete, so each has an entry of its own
        writer.write_shard(0, shard, toy.source_arrays(store.spec, 0, shard))
    toy.flip(store.path / "manifest/source/view_0000/shard_000001.json", 40)
    opened = Store.open(store.path)
    opened.pixels[0, 0], opened.pixels[11, 0]
    with pytest.raises(CorruptFile, match=r"shard_000001\.json: this manifest file fails its own digest"):
        opened.pixels[4, 0]
    (problem,) = verify_store(store.path)
    assert (problem.file, problem.view, problem.shard) == ("manifest/source/view_0000/shard_000001.json", 0, 1)
    with pytest.raises(CorruptFile, match=r"shard_000001\.json"):
        SourceWriter(opened).pending(1)


def test_strangers_are_noted(store: Path) -> None:
    (store / "pixels/.c.0.9.0.0.0.123.tmp").write_bytes(b"x")
    (store / "notes.txt").write_text("mine")
    Store.open(store).log({"a": 1})
    assert toy.unlisted_files(store) == ["notes.txt", "pixels/.c.0.9.0.0.0.123.tmp"]
    assert verify_store(store) == []


def test_problems_read_well() -> None:
    problem = Problem("teachers/sam", "level_2", 1, 3, "teachers/sam/level_2/c.1.3.0.0.0", "rows fail", (7, 9))
    assert (
        str(problem)
        == "teachers/sam, level_2, view 1, shard 3: teachers/sam/level_2/c.1.3.0.0.0: rows fail (samples 7, 9)"
    )
