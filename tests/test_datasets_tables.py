"""Hugging Face datasets as other tools leave them: plain columns of bytes, the cache of load_dataset, saved indices."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cache.store import Store
from sak_core.datasets import open_dataset
from sak_core.errors import DatasetError, UnreadableSample
from sak_core.interfaces.dataset import Dataset
from tests.conftest import answer, sak
from tests.small_images import encoded

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

FIXTURES = Path(__file__).parent / "fixtures"


def png(level: int) -> bytes:
    return encoded(Image.new("RGB", (12, 10), (level, 0, 0)))


PLAIN = [png(i) for i in range(4)]
STRUCTS = [{"bytes": content, "path": None} for content in PLAIN]


def levels(data: Dataset) -> list[int]:
    return [int(data.load(i).image[0, 0, 0]) for i in range(len(data.ids))]


def opened(root: Path, split: str = "train", images: str | None = None) -> Dataset:
    return open_dataset("hugging_face", split, root, images=images)


def write_stream(path: Path, table: Any, rows: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def describe(folder: Path, **counts: int) -> None:
    splits = {name: {"name": name, "num_examples": count} for name, count in counts.items()}
    (folder / "dataset_info.json").write_text(json.dumps({"splits": splits or None}))


@pytest.mark.parametrize(
    "columns",
    [
        {"key": ["a", "b", "c", "d"], "jpg": pa.array(PLAIN, pa.binary())},
        {"image": pa.array(PLAIN, pa.large_binary()), "other": pa.array(PLAIN, pa.binary())},
        {"image": pa.array(STRUCTS, pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())]))},
        {"png": pa.array(PLAIN, pa.binary_view())},
        {"photo": STRUCTS, "thumbnail": pa.array(PLAIN, pa.binary())},
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
def test_columns_of_bytes_are_images(tmp_path, columns, kind):
    table = pa.table(columns)
    if kind == "parquet":
        pq.write_table(table, tmp_path / "train.parquet")
    elif kind == "stream":
        write_stream(tmp_path / "train.arrow", table)
    else:
        with pa.ipc.new_file(str(tmp_path / "train.arrow"), table.schema) as writer:
            writer.write_table(table)
    data = opened(tmp_path)
    assert levels(data) == [0, 1, 2, 3]
    if kind != "parquet":
        assert data.fingerprints == [len(content) for content in PLAIN]


def test_the_column_is_chosen_by_an_option(tmp_path):
    pq.write_table(pa.table({"left": PLAIN, "right": PLAIN[::-1], "text": ["a"] * 4}), tmp_path / "0.parquet")
    with pytest.raises(DatasetError, match="several columns of images: left, right"):
        opened(tmp_path)
    assert levels(opened(tmp_path, images="right")) == [3, 2, 1, 0]
    for name in ("text", "middle"):
        with pytest.raises(DatasetError, match=rf"no column of images '{name}'; columns: left \(binary\), right"):
            opened(tmp_path, images=name)
    arguments = ["cache", "--dataset", "hugging_face", "--root", tmp_path, "--split", "val", "--size", "16", "--json"]
    done = sak(*arguments, "--images", "right", "--decoders", "2", "--out", tmp_path / "out")
    store = Store.open(json.loads(done.stdout)["store"])
    assert [int(store.pixels[i, 0][8, 8, 0]) for i in range(4)] == [3, 2, 1, 0]


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("chosen", [None, "photos"])
@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([STRUCTS], pa.list_(IMAGE)), "list<item: struct<bytes: binary, path: string>>"),
        (pa.array([PLAIN], pa.large_list(pa.binary())), "large_list<item: binary>"),
        (pa.array([{"image": STRUCTS[0]}]), "struct<image: struct<bytes: binary, path: "),
    ],
)
def test_images_in_lists_or_in_other_features_are_refused_by_their_columns(tmp_path, column, kind, chosen):
    """Which of a row's images is the input, no option says."""
    write_stream(tmp_path / "train.arrow", pa.table({"photos": column}))
    with pytest.raises(DatasetError, match=rf"no column of images.*; columns: photos \({re.escape(kind)}"):
        opened(tmp_path, images=chosen)


def cached(root: Path) -> Path:
    """A folder as `load_dataset("me/pets")` leaves it, after a `map`; train in two files."""
    folder = root / "me___pets" / "default" / "0.0.0" / "0f1e"
    write_stream(folder / "pets-train-00000-of-00002.arrow", pa.table({"image": STRUCTS[:3]}))
    write_stream(folder / "pets-train-00001-of-00002.arrow", pa.table({"image": STRUCTS[3:]}))
    write_stream(folder / "pets-test.arrow", pa.table({"image": STRUCTS[2:]}))
    write_stream(folder / "cache-0123456789abcdef.arrow", pa.table({"indices": pa.array([0], pa.uint64())}))
    describe(folder, train=4, test=2)
    return folder


def test_the_cache_of_load_dataset_is_read_whole(tmp_path):
    folder = cached(tmp_path)
    assert levels(opened(tmp_path)) == [0, 1, 2, 3] and levels(opened(folder, "test")) == [2, 3]
    with pytest.raises(DatasetError, match="test, train, none of val"):
        opened(tmp_path, "val")
    report = answer("data", "check", tmp_path, "--sheet", tmp_path / "s.png")
    assert {split: told["samples"] for split, told in report["splits"].items()} == {"train": 4, "test": 2}
    (folder / "pets-train-00000-of-00002.arrow").unlink()
    with pytest.raises(DatasetError, match=r"lacks 1 of the 2 files pets-train-\*-of-00002 \(number 0\)"):
        opened(tmp_path)
    (folder / "pets-train-00001-of-00002.arrow").rename(folder / "pets-train.arrow")
    with pytest.raises(DatasetError, match=r"tells of 4 rows in train, the files beside it hold 1"):
        opened(tmp_path)


def test_several_data_sets_in_one_cache_are_not_mixed(tmp_path):
    folder = cached(tmp_path)
    shutil.copytree(folder, folder.with_name("2d3c"))
    with pytest.raises(DatasetError, match=r"holds several data sets, give the folder of one: .*0f1e, .*2d3c"):
        opened(tmp_path)
    assert len(opened(folder).ids) == 4


def test_an_arrow_stream_that_was_cut_or_joined_is_refused(tmp_path):
    """pyarrow reads a stream that ends between two batches as a shorter one."""
    path = write_stream(tmp_path / "train.arrow", pa.table({"image": PLAIN}), rows=1)
    whole = path.read_bytes()
    shorter = 0
    for cut in range(8, len(whole), 8):
        path.write_bytes(whole[:cut])
        with contextlib.suppress(pa.ArrowException, OSError):
            shorter += pa.ipc.open_stream(pa.memory_map(str(path))).read_all().num_rows <= 4
        with pytest.raises(DatasetError, match=r"cannot read .*train\.arrow"):
            opened(tmp_path)
    assert shorter == 5
    path.write_bytes(whole + whole)
    with pytest.raises(DatasetError, match=rf"{len(whole)} bytes follow the end of its stream at byte {len(whole)}"):
        opened(tmp_path)


def test_images_that_lie_outside_of_the_table(tmp_path):
    """As load_dataset leaves a folder of images: their absolute paths."""
    outside = tmp_path / "photo.png"
    outside.write_bytes(png(9))
    paths = [str(outside), str(tmp_path / "gone.png"), "photo.png"]
    write_stream(tmp_path / "d" / "train.arrow", pa.table({"image": [{"bytes": None, "path": path} for path in paths]}))
    data = opened(tmp_path / "d")
    assert data.load(0).image[0, 0, 0] == 9 and data.fingerprints == [len(png(9)), 0, 0]
    for i in (1, 2):
        with pytest.raises(UnreadableSample, match=rf"row {i}: has no image in it \(path: {paths[i]}\)"):
            data.load(i)


def saved(folder: Path, indices: list[int] | None) -> Path:
    """As `save_to_disk` of datasets 1 wrote a data set that `select` or `shuffle` had made."""
    write_stream(folder / "dataset.arrow", pa.table({"image": STRUCTS}))
    state = {"_data_files": [{"filename": "dataset.arrow"}], "_indices_data_files": None}
    if indices is not None:
        write_stream(folder / "indices.arrow", pa.table({"indices": pa.array(indices, pa.uint64())}))
        state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (folder / "state.json").write_text(json.dumps(state))
    return folder


@pytest.mark.parametrize(("indices", "rows"), [([3, 1], [3, 1]), ([2, 2, 0], [2, 2, 0]), (None, [0, 1, 2, 3])])
def test_saved_indices_choose_the_rows(tmp_path, indices, rows):
    data = opened(saved(tmp_path, indices))
    assert levels(data) == rows and list(data.ids) == [f"{i:09d}" for i in range(len(rows))]
    assert data.fingerprints == [len(PLAIN[row]) for row in rows]
    sheet = ["--sheet", tmp_path / "s.png", "--json"]
    report = json.loads(sak("data", "check", tmp_path, *sheet).stdout)
    assert report["splits"]["train"]["samples"] == len(rows)


def test_indices_that_are_wrong_are_refused(tmp_path):
    saved(tmp_path, [0, 4])
    with pytest.raises(DatasetError, match="its indices name row 4 of 4"):
        opened(tmp_path)
    (tmp_path / "indices.arrow").unlink()
    with pytest.raises(DatasetError, match=r"cannot read the indices in .*indices\.arrow"):
        opened(tmp_path)


def test_splits_saved_one_by_one_keep_their_indices(tmp_path):
    """Without the dataset_dict.json that tells of all splits: their files are not taken for load_dataset's."""
    saved(tmp_path / "train", [3, 1])
    saved(tmp_path / "test", [0])
    assert (levels(opened(tmp_path)), levels(opened(tmp_path, "test"))) == ([3, 1], [0])
    nested = tmp_path / "deeper"
    saved(nested / "a" / "train", [3, 1])
    describe(nested / "a" / "train")
    with pytest.raises(DatasetError, match=r"save_to_disk wrote .*deeper/a/train: give that folder"):
        opened(nested)


def test_null_rows_keep_their_place(tmp_path):
    pq.write_table(pa.table({"image": pa.array([PLAIN[1], None], pa.binary())}), tmp_path / "train.parquet")
    data = opened(tmp_path)
    assert np.array_equal(data.load(0).image[0, 0], [1, 0, 0])
    with pytest.raises(UnreadableSample, match="row 1: has no image in it"):
        data.load(1)


def test_files_that_are_missing_by_their_own_count_are_named(tmp_path: Path) -> None:
    for number in (0, 2):
        pq.write_table(pa.table({"image": STRUCTS}), tmp_path / f"train-0000{number}-of-00003-{number}af.parquet")
    pq.write_table(pa.table({"image": STRUCTS}), tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(DatasetError, match=r"lacks 1 of the 3 files train-\*-of-00003 \(number 1\): get them"):
        opened(tmp_path)
    assert len(opened(tmp_path, "test").ids) == 4
    pq.write_table(pa.table({"image": STRUCTS}), tmp_path / "train-00001-of-00003-1af.parquet")
    assert len(opened(tmp_path).ids) == 12


def test_a_file_is_of_one_split(tmp_path: Path) -> None:
    """That of its name, or else of the nearest folder: what is tested on is never trained on."""
    for path in ("train-test-split/train/0.parquet", "train-test-split/test/0.parquet", "train/my-val.parquet"):
        (tmp_path / "good" / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"image": STRUCTS}), tmp_path / "good" / path)
    for split in ("train", "val", "test"):
        assert len(opened(tmp_path / "good", split).ids) == 4
    (tmp_path / "both").mkdir()
    pq.write_table(pa.table({"image": STRUCTS}), tmp_path / "both" / "test-train-000.parquet")
    with pytest.raises(DatasetError, match=r"test-train-000\.parquet may be of train or of test: rename it"):
        opened(tmp_path / "both")
