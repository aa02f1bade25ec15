"""Writing and reading back: every row where it belongs, everything wrong refused in words."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.codecs import get_codec
from cache.errors import BadInput, NonFiniteFeature, NotCalibrated, SpecMismatch, StoreNotFound, UncommittedRow
from cache.format.layout import ALIGNED_ROW_BYTES, ArraySpec, shard_buffers
from cache.format.spec import LabelSpec, LevelSpec, SourceSpec, decode_ids, encode_ids, samples_digest
from cache.maintenance.verification import verify_store
from cache.store import Store, find_stores
from cache.writing.source_writer import SourceWriter, TeacherWriter
from sak_common.differences import first_difference
from sak_common.names import UnknownName
from tests import cache_toy as toy


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return toy.make_store(tmp_path_factory.mktemp("store"))


def test_every_row_is_where_it_belongs(store: Store) -> None:
    again = Store.open(store.path)
    assert again.spec == store.spec and again.num_views == 2 and again.teachers == ["mini-clip", "mini-dino"]
    for view in range(2):
        for sample in set(range(13)) - set(toy.INVALID):
            np.testing.assert_array_equal(again.pixels[sample, view], toy.pixels(store.spec, sample, view))
            for task in ("semseg", "normals"):
                label = again.labels[task][sample, view]
                assert label.dtype == store.spec.labels[task].dtype
                np.testing.assert_array_equal(label, toy.label(store.spec, task, sample, view))
            for teacher, levels in (("mini-dino", toy.LEVELS), ("mini-clip", toy.OTHER_LEVELS)):
                for level in levels:
                    decoded = again.features(teacher, level.level)[sample, view]
                    true = toy.features(level, sample, view)
                    assert decoded.dtype == np.float32
                    tolerance = {"fp32": 0, "fp16": 0.004, "bf16": 0.03, "int8": 0.2}[level.codec]  # int8 clips a few
                    assert np.abs(decoded - true).max() <= tolerance
                    stored = again.features(teacher, level.level).stored[sample, view]
                    made = again.features(teacher, level.level).constants
                    np.testing.assert_array_equal(stored, get_codec(level.codec).encode(true[None], made).stored[0])


def test_indexing_is_numpys(store: Store) -> None:
    whole = store.pixels[:, 1]
    assert whole.shape == (13, 6, 7, 3) and store.pixels.shape == (13, 2, 6, 7, 3) and len(store.pixels) == 13
    np.testing.assert_array_equal(store.pixels[3:11:2, 1], whole[3:11:2])
    np.testing.assert_array_equal(store.pixels[[5, 0, 12], 1], whole[[5, 0, 12]])
    np.testing.assert_array_equal(store.pixels[-1, 1], whole[-1])
    np.testing.assert_array_equal(store.pixels[np.array([], int), 1], whole[:0])
    assert store.views["box"][:, 0].shape == (13, 4) and store.views["flip"][3, 1] == 1
    assert store.samples["size"][7].tolist() == [107, 200]
    assert store.ids()[12] == "folder/image-12-é" and store.ids([2, 4]) == ["folder/image-2-é", "folder/image-4-é"]
    assert store.features("mini-dino", 3)[2:5, 0].shape == (3, 3, 2, 8)
    for index in (3, (1, 2, 3), ("a", 0), ([1.5], 0)):
        with pytest.raises(TypeError):
            store.pixels[index]
    with pytest.raises(IndexError, match="sample 13"):
        store.pixels[13, 0]
    with pytest.raises(IndexError, match="view 2"):
        store.pixels[0, 2]


def test_unreadable_samples_keep_filled_rows(store: Store) -> None:
    assert store.invalid(2) == toy.INVALID
    assert np.flatnonzero(~store.valid(2)).tolist() == [4, 10]
    assert store.samples["valid"][:].tolist() == [int(sample not in toy.INVALID) for sample in range(13)]
    for view in range(2):
        assert (store.pixels[4, view] == np.array([9, 8, 7])).all()
        assert (store.labels["semseg"][4, view] == 255).all() and (store.labels["normals"][10, view] == 255).all()
        assert not store.views["box"][10, view].any()


def test_unknown_names_meet_the_nearest(store: Store) -> None:
    with pytest.raises(UnknownName, match="did you mean mini-dino"):
        store.features("mini-dyno", 0)
    with pytest.raises(UnknownName, match="level of mini-dino"):
        store.features("mini-dino", 2)
    with pytest.raises(UnknownName, match="did you mean semseg"):
        store.labels["semsegs"]


def test_what_is_not_committed_is_named(tmp_path: Path) -> None:
    store = Store.create(tmp_path, toy.toy_spec())
    store.ensure_views(2)
    writer = SourceWriter(store)
    assert len(writer.pending(2)) == 8 and len(writer.pending(3)) == 12
    writer.write_shard(0, 1, toy.source_arrays(store.spec, 0, 1))
    assert writer.pending(1) == [(0, 0), (0, 2), (0, 3)]
    np.testing.assert_array_equal(store.pixels[5, 0], toy.pixels(store.spec, 5, 0))
    reader = Store.open(store.path)
    with pytest.raises(UncommittedRow, match=r"pixels: sample 8, view 0 \(shard 2\)"):
        reader.pixels[8, 0]
    with pytest.raises(UncommittedRow, match=r"samples/ids: sample 0"):
        reader.ids()
    writer.write_shard(0, 2, toy.source_arrays(store.spec, 0, 2))  # a reader sees what is committed later
    np.testing.assert_array_equal(reader.pixels[8, 0], toy.pixels(store.spec, 8, 0))
    teacher = TeacherWriter(store, {"name": "t"}, toy.OTHER_LEVELS)
    data = [np.zeros((4, 2, 2, 5), np.float32)]
    with pytest.raises(BadInput, match="write_calibration must come before"):
        teacher.write_shard(0, 1, data)
    with pytest.raises(NotCalibrated, match=r"t2 in .* is not calibrated yet"):
        TeacherWriter(store, {"name": "t2"}, [LevelSpec(0, (2, 2), 5, "int8")])
        store.features("t2", 0)
    teacher.write_calibration({})
    with pytest.raises(UncommittedRow, match="pixels: sample 0, view 0"):
        teacher.write_shard(0, 0, data)
    teacher.write_shard(0, 1, data)
    assert not store.is_complete("teachers/t", 1) and not store.is_complete("teachers/none", 1)


def test_a_writer_goes_by_a_calibration_that_another_committed_since(tmp_path: Path) -> None:
    store = Store.create(tmp_path, toy.toy_spec())
    toy.write_source(store, 1)
    early = TeacherWriter(store, {"name": "t", "weights": "sha256:00"}, toy.LEVELS)
    toy.write_teacher(store, 1, "t")
    rows = store.spec.rows(0)
    encoded = early.encode(0, rows, [np.stack([toy.features(level, s, 0) for s in rows]) for level in toy.LEVELS])
    assert encoded.rows == rows


def test_creating_again_opens_or_refuses(tmp_path: Path) -> None:
    store = Store.create(tmp_path, toy.toy_spec())
    before = toy.tree(store.path)
    assert Store.create(tmp_path, toy.toy_spec()).path == store.path
    assert toy.tree(store.path) == before
    for field, value, shown in (
        ("rows_per_shard", 8, "rows_per_shard = 4, asked for is 8"),
        ("dataset_info", {"pillow": "11"}, r"dataset_info.pillow = '\(nothing\)', asked for is '11'"),
        ("labels", {"semseg": LabelSpec("uint8")}, "labels.normals"),
        ("fill", (0, 0, 0), r"fill = \[9, 8, 7\], asked for is \[0, 0, 0\]"),
    ):
        with pytest.raises(SpecMismatch, match=shown):
            Store.create(tmp_path, toy.toy_spec(**{field: value}))
    other = Store.create(tmp_path, toy.toy_spec(seed=4))  # decides the rows: a store of its own
    assert other.path != store.path
    assert [s.path for s in find_stores(tmp_path, "toy", "train", (6, 7))] == sorted([store.path, other.path])
    assert find_stores(tmp_path, "toy", "val") == [] and len(find_stores(tmp_path)) == 2
    with pytest.raises(BadInput, match="not a folder"):
        find_stores(tmp_path / "nothing")
    with pytest.raises(StoreNotFound, match="nothing there"):
        Store.open(tmp_path / "nothing.zarr")
    (tmp_path / "empty.zarr" / "manifest").mkdir(parents=True)
    with pytest.raises(StoreNotFound, match="unfinished creation"):
        Store.open(tmp_path / "empty.zarr")


def test_the_digest_is_of_what_decides_the_rows() -> None:
    spec = toy.toy_spec()
    for field, value in (
        ("dataset", "toys"),
        ("split", "val"),
        ("size", (7, 6)),
        ("policy", {"kind": "pad"}),
        ("seed", 0),
        ("num_samples", 14),
        ("samples_digest", "cd"),
    ):
        assert toy.toy_spec(**{field: value}).digest != spec.digest, field
    assert toy.toy_spec(fill=(0, 0, 0)).digest == spec.digest
    names = ("dataset", "split", "size", "policy", "seed", "num_samples", "samples_digest")
    text = json.dumps({name: spec.to_dict()[name] for name in names}, sort_keys=True, separators=(",", ":")) + "\n"
    assert spec.digest == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert SourceSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert samples_digest(["a", "b"], [1, 2]) != samples_digest(["a", "b"], [1, 3]) != samples_digest(["ab"], [1])


def test_a_teacher_with_other_provenance_is_refused(store: Store) -> None:
    before = toy.tree(store.path)
    with pytest.raises(SpecMismatch, match=r"provenance.weights = 'sha256:00', asked for is 'sha256:11'"):
        TeacherWriter(store, {"name": "mini-dino", "weights": "sha256:11"}, toy.LEVELS)
    with pytest.raises(SpecMismatch, match=r"levels\[1\].codec = 'int8', asked for is 'fp16'"):
        levels = [toy.LEVELS[0], LevelSpec(1, (5, 4), 6, "fp16"), toy.LEVELS[2]]
        TeacherWriter(store, {"name": "mini-dino", "weights": "sha256:00"}, levels)
    with pytest.raises(BadInput, match="plain JSON"):
        TeacherWriter(store, {"name": "new", "when": np.float32(3)}, toy.LEVELS)
    with pytest.raises(BadInput, match="cannot name a folder"):
        TeacherWriter(store, {"name": "../new"}, toy.LEVELS)
    with pytest.raises(BadInput, match=r"level_0.*level_0"):
        TeacherWriter(store, {"name": "new"}, [toy.LEVELS[0], toy.LEVELS[0]])
    with pytest.raises(UnknownName, match="codec"):
        TeacherWriter(store, {"name": "new"}, [LevelSpec(0, (1, 1), 1, "fp61")])
    assert toy.tree(store.path) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": np.zeros((4, 6, 7, 3), np.float32)}, r"shard 1, pixels: float32 \(4, 6, 7, 3\) given, uint8"),
        ({"pixels": np.zeros((4, 7, 6, 3), np.uint8)}, r"uint8 \(4, 7, 6, 3\) given, uint8 \(4, 6, 7, 3\) needed"),
        ({"labels/semseg": None}, "labels/semseg: a numpy array is needed, not NoneType"),
        ({"labels/depth": np.zeros(4)}, "labels/depth not in this store"),
        ({"samples/ids": ["x"] * 3 + ["y" * 65]}, "takes 65 bytes; the store's id_width is 64"),
    ],
)
def test_wrong_source_arrays_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    store = Store.create(tmp_path, toy.toy_spec())
    store.ensure_views(1)
    writer = SourceWriter(store)
    arrays = toy.source_arrays(store.spec, 0, 1)
    with pytest.raises(BadInput, match=message):
        writer.write_shard(0, 1, {**arrays, **change})
    with pytest.raises(BadInput, match="pixels missing"):
        writer.write_shard(0, 1, {k: v for k, v in arrays.items() if k != "pixels"})
    with pytest.raises(BadInput, match="call ensure_views first"):
        writer.write_shard(1, 1, arrays)
    with pytest.raises(BadInput, match=r"invalid samples \[9\] are not in shard 1 \(4..7\)"):
        writer.write_shard(0, 1, arrays, {9: "why"})
    assert len(writer.pending(1)) == 4


@pytest.mark.parametrize(
    ("level", "value", "message"),
    [
        (0, np.nan, r"sample 5 \(folder/image-5-é\), view 1, level 0, channel 2, cell \(1, 3\): the value is nan"),
        (0, 70000.0, r"level 0, channel 2, cell \(1, 3\): the value is 70000.0; .*use the codec bf16"),
        (1, -np.inf, "level 1, channel 2"),
        (2, 3.4e38, "level 3, channel 2.*use the codec fp32"),
    ],
)
def test_bad_features_are_named(store: Store, level: int, value: float, message: str) -> None:
    writer = TeacherWriter(store, {"name": "mini-dino", "weights": "sha256:00"}, toy.LEVELS)
    levels = [np.ones((4, *spec.grid, spec.width), np.float32) for spec in toy.LEVELS]
    levels[level][1, 1, min(3, toy.LEVELS[level].grid[1] - 1), 2] = value
    before = toy.tree(store.path)
    with pytest.raises(NonFiniteFeature, match=message):
        writer.write_shard(1, 1, levels)
    levels[level] = levels[level].astype(np.float64)
    with pytest.raises(BadInput, match=f"level {toy.LEVELS[level].level}: float64 .* float32 .* needed"):
        writer.write_shard(1, 1, levels)
    with pytest.raises(BadInput, match="2 levels given, 3 needed"):
        writer.write_shard(1, 1, levels[:2])
    assert toy.tree(store.path) == before


def test_clipped_values_are_counted_and_kept(tmp_path: Path) -> None:
    store = Store.create(tmp_path, toy.toy_spec(num_samples=8))
    toy.write_source(store, 1)
    writer = TeacherWriter(store, {"name": "t"}, [LevelSpec(2, (1, 1), 3, "int8")])
    limits = {"level_2/min": np.float32([0, 0, 0]), "level_2/max": np.float32([1, 1, 1])}
    with pytest.raises(BadInput, match=r"level_2/max is missing; \(3,\) is needed"):
        writer.write_calibration({"level_2/min": limits["level_2/min"]})
    writer.write_calibration(limits)
    features = np.full((4, 1, 1, 3), 0.5, np.float32)
    assert writer.write_shard(0, 0, [features]) == {"level_2": 0}
    features[2:, 0, 0, 1] = 7
    assert writer.write_shard(0, 1, [features]) == {"level_2": 2}
    assert Store.open(store.path).part("teachers/t").view(0).clipped == {"teachers/t/level_2": [0, 2]}


def test_appended_views_equal_views_made_at_once(tmp_path: Path) -> None:
    whole = toy.make_store(tmp_path / "whole", num_views=4)
    grown = toy.make_store(tmp_path / "grown", num_views=1)
    early = {name: data for name, data in toy.tree(grown.path).items() if "/c." in name}
    grown = Store.open(grown.path)
    toy.write_source(grown, 4, toy.INVALID)
    assert grown.num_views == 4 and grown.teacher("mini-dino").num_views == 1
    toy.write_teacher(grown, 4)
    toy.write_teacher(grown, 4, "mini-clip", toy.OTHER_LEVELS)
    assert toy.tree(grown.path) == toy.tree(whole.path)
    assert early.items() <= toy.tree(whole.path).items() and early
    grown.ensure_views(2)  # fewer changes nothing
    assert grown.num_views == 4


def test_a_store_opened_before_it_grew_does_not_shrink_it(tmp_path: Path) -> None:
    first = Store.create(tmp_path, toy.toy_spec())
    second = Store.open(first.path)
    assert first.num_views == second.num_views == 0
    toy.write_source(first, 3)
    toy.write_source(second, 2)
    assert second.num_views == 3 and Store.open(first.path).num_views == 3
    second.pixels[0, 2]


def test_the_log_is_outside_of_the_store(store: Store) -> None:
    before = toy.tree(store.path)
    store.log({"stage": "prepare", "seconds": 1.5})
    store.log({"stage": "extract"})
    lines = (store.path / "manifest/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in lines] == ["prepare", "extract"]
    assert toy.tree(store.path) == before


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=9), max_size=9))
def test_ids_come_back(ids: list[str]) -> None:
    assert decode_ids(encode_ids(ids, 36)) == ids


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(plain, plain)
def test_a_difference_is_found_where_there_is_one(left: Any, right: Any) -> None:
    assert (first_difference(left, right) is None) == (
        json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
    )
    assert first_difference(left, left) is None


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(
    num_samples=st.integers(1, 9),
    rows_per_shard=st.integers(1, 5),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    num_views=st.integers(1, 3),
    labels=st.dictionaries(
        st.sampled_from(["semseg", "depth"]),
        st.builds(LabelSpec, st.sampled_from(["uint8", "float32"]), st.integers(0, 3)),
    ),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    width=st.integers(1, 7),
)
def test_stores_of_any_shape_read_back(
    num_samples: int,
    rows_per_shard: int,
    size: tuple[int, int],
    num_views: int,
    labels: dict[str, LabelSpec],
    grid: tuple[int, int],
    width: int,
) -> None:
    import zarr

    spec = toy.toy_spec(num_samples, rows_per_shard, size=size, labels=labels)
    level = LevelSpec(0, grid, width, "fp32")
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder), spec)
        toy.write_source(store, num_views)
        toy.write_teacher(store, num_views, "t", [level])
        group = zarr.open_group(store.path, mode="r")
        assert verify_store(store.path) == []
        for view in range(num_views):
            expected = np.stack([toy.pixels(spec, sample, view) for sample in range(num_samples)])
            np.testing.assert_array_equal(store.pixels[:, view], expected)
            np.testing.assert_array_equal(group["pixels"][view], expected)
            for task in labels:
                truth = np.stack([toy.label(spec, task, sample, view) for sample in range(num_samples)])
                np.testing.assert_array_equal(store.labels[task][:, view], truth)
                np.testing.assert_array_equal(group[f"labels/{task}"][view], truth)
            truth = np.stack([toy.features(level, sample, view) for sample in range(num_samples)])
            np.testing.assert_array_equal(store.features("t", 0)[:, view], truth)
            np.testing.assert_array_equal(group["teachers/t/level_0"][view], truth)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["uint8", "int8", "float16", "uint16", "float32", "int32"]),
    st.lists(st.integers(1, 5), max_size=3).map(tuple),
    st.integers(1, 6),
    st.data(),
)
def test_shards_hold_any_shape_and_type(
    dtype: str, row_shape: tuple[int, ...], per_shard: int, data: st.DataObject
) -> None:
    """The bytes that are written, taken apart by the format's own rules."""
    if data.draw(st.booleans()):
        row_shape = (*row_shape, ALIGNED_ROW_BYTES // max(1, int(np.prod(row_shape))) + 1)
    count = data.draw(st.integers(1, per_shard))
    rows = np.random.default_rng(count).integers(0, 100, (count, *row_shape)).astype(dtype)
    array = ArraySpec("a", dtype, row_shape, tuple("wxyz"[: len(row_shape)]))
    cut = data.draw(st.integers(0, count))
    parts = [part for part in (rows[:cut], rows[cut:]) if len(part)]
    raw = b"".join(bytes(buffer) for buffer in shard_buffers(array, parts, per_shard))
    assert len(raw) == array.file_bytes(count, per_shard)
    index = np.frombuffer(raw[-16 * per_shard - 4 : -4], "<u8").reshape(per_shard, 2)
    for row in range(per_shard):
        if row >= count:
            assert index[row].tolist() == [2**64 - 1] * 2
            continue
        start, num_bytes = map(int, index[row])
        back = np.frombuffer(raw[start : start + num_bytes - 4], dtype).reshape(row_shape)
        np.testing.assert_array_equal(back, rows[row])
        if rows[row].nbytes >= ALIGNED_ROW_BYTES:
            assert start % 4096 == 0
