"""WebDataset tars, Hugging Face datasets on disk, ImageNet: as their own libraries wrote them.

The fixtures were written by webdataset 1.0.2's ShardWriter and by datasets 5.2.0's save_to_disk and to_parquet.
"""

from __future__ import annotations

import io
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache.format.spec import encode_ids
from sak_core.datasets import open_dataset
from sak_core.errors import DatasetError, UnreadableSample
from sak_core.views.view import EVALUATION, STAGE1
from tests.small_images import encoded

FIXTURES = Path(__file__).parent / "fixtures"


def picture(i: int) -> np.ndarray:
    """Image i of the fixtures."""
    y, x = np.mgrid[: 10 + i, :12]
    return np.stack([y * 9 + i * 20, x * 7, 200 - y * 3 - x], -1).astype(np.uint8)


def test_webdataset_tars():
    data = open_dataset("webdataset", "train", FIXTURES / "webdataset")
    assert list(data.ids) == [
        "train-000.tar/shelf/000.png",
        "train-000.tar/shelf/001.jpg",
        "train-001.tar/shelf/002.png",
    ]
    assert np.array_equal(data.load(0).image, picture(0))
    assert np.abs(data.load(1).image.astype(int) - picture(1)).max() < 25  # a JPEG
    assert np.array_equal(data.load(2).image, picture(2))
    assert data.fingerprints[2] == len(encoded(picture(2)))
    assert (data.policy, data.tasks) == (STAGE1, ())
    again = pickle.loads(pickle.dumps(data))
    assert np.array_equal(again.load(2).image, picture(2))
    val = open_dataset("webdataset", "val", FIXTURES / "webdataset")
    assert list(val.ids) == ["val-000.tar/004.png"] and val.policy == EVALUATION
    with pytest.raises(DatasetError, match="train, val, none of test"):
        open_dataset("webdataset", "test", FIXTURES / "webdataset")


def test_names_in_tars_that_are_no_utf8_can_be_stored(tmp_path):
    content = (FIXTURES / "webdataset" / "train-000.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(content)) as whole, tarfile.open(tmp_path / "a.tar", "w") as named:
        member = next(member for member in whole if member.name.endswith(".png"))
        data = whole.extractfile(member)
        member.name = "caf\udce9.png"  # 0xe9, as Latin-1 has it
        named.addfile(member, data)
    found = open_dataset("webdataset", "train", tmp_path)
    assert list(found.ids) == ["a.tar/caf\\xe9.png"]
    assert encode_ids(found.ids, 32).shape == (1, 32)
    assert np.array_equal(found.load(0).image, picture(0))


def test_damaged_tars_are_named(tmp_path):
    with pytest.raises(DatasetError, match=r"no \.tar files"):
        open_dataset("webdataset", "train", tmp_path)
    whole = (FIXTURES / "webdataset" / "train-001.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(b"x" * 1024)
    (tmp_path / "b.tar").write_bytes(whole)
    (tmp_path / "c.tar").write_bytes(whole[: len(whole) // 4])  # as a broken download leaves it
    with pytest.raises(DatasetError, match=r"2 of 3 tars (?s:.*)a\.tar: invalid header(?s:.*)c\.tar: "):
        open_dataset("webdataset", "train", tmp_path)
    (tmp_path / "b.tar").unlink()
    (tmp_path / "c.tar").unlink()
    (tmp_path / "a.tar").write_bytes(whole)
    data = open_dataset("webdataset", "train", tmp_path)  # no tar names a split: all are in each
    assert list(data.ids) == ["a.tar/shelf/002.png"]
    member = data._members[0]
    (tmp_path / "a.tar").write_bytes(whole[: member.offset + 20])  # cut after it was indexed
    with pytest.raises(UnreadableSample, match=r"a\.tar/shelf/002\.png: is truncated: 20 of"):
        data.load(0)
    broken = bytearray(whole)
    broken[member.offset : member.offset + member.size] = b"?" * member.size
    (tmp_path / "a.tar").write_bytes(broken)
    with pytest.raises(UnreadableSample, match="not an image"):
        data.load(0)


@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_hugging_face_datasets(kind):
    pytest.importorskip("pyarrow")
    data = open_dataset("hugging_face", "train", FIXTURES / "hf" / kind)
    order = [3, 0, 1, 2] if kind == "saved" else [0, 1, 2, 3]  # saved with its rows reordered
    assert list(data.ids) == [f"{i:09d}" for i in range(4)]
    for row, i in enumerate(order):
        assert np.array_equal(data.load(row).image, picture(i))
    val = open_dataset("hugging_face", "val", FIXTURES / "hf" / kind)
    assert len(val.ids) == 1 and np.array_equal(val.load(0).image, picture(4))
    assert np.array_equal(pickle.loads(pickle.dumps(data)).load(3).image, picture(order[3]))
    if kind == "saved":
        assert data.fingerprints[0] == len(encoded(picture(order[0])))
    else:
        file = FIXTURES / "hf" / kind / "data" / "train-00000-of-00002.parquet"
        assert data.fingerprints[0] == file.stat().st_size
    with pytest.raises(DatasetError, match="test"):
        open_dataset("hugging_face", "test", FIXTURES / "hf" / kind)


def test_one_saved_split(tmp_path):
    pytest.importorskip("pyarrow")
    shutil.copytree(FIXTURES / "hf" / "saved" / "validation", tmp_path / "x")
    assert np.array_equal(open_dataset("hugging_face", "train", tmp_path / "x").load(0).image, picture(4))


def test_wrong_hugging_face_folders(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    with pytest.raises(DatasetError, match=r"no \.parquet files"):
        open_dataset("hugging_face", "train", tmp_path)
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(DatasetError, match=r"cannot read .*train\.parquet"):
        open_dataset("hugging_face", "train", tmp_path)
    pq.write_table(pa.table({"text": ["a"]}), path)
    with pytest.raises(DatasetError, match="no column of images; columns: text"):
        open_dataset("hugging_face", "train", tmp_path)
    images = [{"bytes": b"?", "path": None}, {"bytes": None, "path": "/elsewhere/x.png"}]
    pq.write_table(pa.table({"a": images, "b": images}), path)
    with pytest.raises(DatasetError, match="several columns of images: a, b"):
        open_dataset("hugging_face", "train", tmp_path)
    pq.write_table(pa.table({"a": images, "image": images}), path)
    data = open_dataset("hugging_face", "train", tmp_path)
    with pytest.raises(UnreadableSample, match=r"train\.parquet row 0: is not an image"):
        data.load(0)
    with pytest.raises(UnreadableSample, match="row 1: has no image in it"):
        data.load(1)
    saved = tmp_path / "saved"
    shutil.copytree(FIXTURES / "hf" / "saved", saved)
    (saved / "train" / "data-00001-of-00002.arrow").write_bytes(b"\xff\xff\xff\xff")
    with pytest.raises(DatasetError, match=r"data-00001-of-00002\.arrow"):
        open_dataset("hugging_face", "train", saved)
    (saved / "train" / "state.json").write_text("[]")
    with pytest.raises(DatasetError, match=r"state\.json"):
        open_dataset("hugging_face", "train", saved)


@pytest.mark.parametrize("inner", ["", "ILSVRC/Data/CLS-LOC"])
def test_imagenet(tmp_path, inner):
    for name in ("train/n01/n01_1.JPEG", "train/n02/n02_1.JPEG", "val/ILSVRC2012_val_1.JPEG"):
        path = tmp_path / inner / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(1)).save(path, "jpeg")
    data = open_dataset("imagenet", "train", tmp_path)
    assert (data.name, list(data.ids)) == ("imagenet", ["n01/n01_1.JPEG", "n02/n02_1.JPEG"])
    assert data.policy == STAGE1 and data.default_size == (384, 384)
    assert data.load(1).image.shape == (11, 12, 3)
    assert open_dataset("imagenet", "val", tmp_path).policy == EVALUATION
    shutil.rmtree(tmp_path / inner / "val")
    with pytest.raises(DatasetError, match="not laid out as ImageNet"):
        open_dataset("imagenet", "val", tmp_path)
