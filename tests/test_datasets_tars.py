"""Tars as they come: whole, cut, joined, appended to, with links and masks in them. Unpacking tells what is right."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache.store import Store
from sak_core.datasets import open_dataset
from sak_core.datasets.folder import ImageFolder
from sak_core.errors import DatasetError, UnreadableSample
from tests.conftest import sak
from tests.small_images import encoded, write_tar


def png(level: int, suffix: str = "png") -> bytes:
    return encoded(Image.new("RGB", (12, 10), (level, 255 - level, 7)), "jpeg" if suffix == "jpg" else suffix)


def link(name: str, target: str, kind: bytes) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


def three(path: Path) -> Path:
    return write_tar(path, [(f"{i}.png", png(i)) for i in range(3)])


def refused(root: Path, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        open_dataset("webdataset", "train", root)


def test_a_tar_that_was_cut_anywhere_is_refused(tmp_path):
    whole = three(tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        starts = [member.offset for member in archive] + [archive.offset]
    last = starts.pop()
    cuts = [*starts[1:], *(start + 100 for start in starts), *(start + 520 for start in starts), last, last + 511]
    for cut in cuts:
        (tmp_path / "a.tar").write_bytes(whole[:cut])
        refused(tmp_path, r"1 of 1 tars cannot be read to their ends")
    (tmp_path / "a.tar").write_bytes(whole[: last + 512])  # one of two blocks of the end mark: no member is missing
    assert len(open_dataset("webdataset", "train", tmp_path).ids) == 3


def test_bytes_behind_the_end_and_headers_that_are_none_are_refused(tmp_path):
    one, two = three(tmp_path / "one" / "a.tar"), write_tar(tmp_path / "two" / "b.tar", [("9.png", png(9))])
    joined = tmp_path / "joined"
    joined.mkdir()
    (joined / "c.tar").write_bytes(one.read_bytes() + two.read_bytes())
    refused(joined, r"c\.tar: more bytes follow its end mark")
    with tarfile.open(one) as archive:
        second = archive.getmembers()[1].offset
    spoilt = bytearray(one.read_bytes())
    spoilt[second + 150] ^= 255  # in the header's checksum
    (joined / "c.tar").write_bytes(spoilt)
    refused(joined, rf"c\.tar: what follows at byte {second} is no member")
    (joined / "c.tar").write_bytes(one.read_bytes() + bytes(100_000))
    assert len(open_dataset("webdataset", "train", joined).ids) == 3
    (joined / "d.tar.gz").write_bytes(b"\x1f\x8b")
    refused(joined, r"1 of 2 tars .*compressed(?s:.*)d\.tar\.gz")


def test_links_and_names_that_come_twice_are_as_unpacking_leaves_them(tmp_path):
    members = [
        ("./a/0.png", png(0)),
        link("hard.png", "a/0.png", tarfile.LNKTYPE),
        ("a/1.png", png(1)),
        link("a/soft.png", "1.png", tarfile.SYMTYPE),
        link("up/soft.png", "../a/soft.png", tarfile.SYMTYPE),
        ("a/0.png", png(2)),  # appended later: hard.png stays the earlier one
        link("late.png", "b/3.png", tarfile.SYMTYPE),
        ("b/3.png", png(3)),
    ]
    tar = write_tar(tmp_path / "tars" / "x.tar", members)
    data = open_dataset("webdataset", "train", tar.parent)
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "-xf", tar, "-C", unpacked], check=True)
    right = ImageFolder(unpacked, "train")
    assert {name.removeprefix("x.tar/").removeprefix("./") for name in data.ids} == set(right.ids)
    for i, name in enumerate(data.ids):
        twin = right.ids.index(name.removeprefix("x.tar/").removeprefix("./"))
        assert np.array_equal(data.load(i).image, right.load(twin).image), name
    assert len(set(data.ids)) == 7


def test_links_that_lead_nowhere_keep_their_row(tmp_path):
    write_tar(
        tmp_path / "x.tar",
        [
            ("0.png", png(0)),
            link("1.png", "/elsewhere/1.png", tarfile.SYMTYPE),
            link("2.png", "3.png", tarfile.SYMTYPE),
            link("3.png", "2.png", tarfile.SYMTYPE),
            link("4.png", "gone.png", tarfile.LNKTYPE),
        ],
    )
    data = open_dataset("webdataset", "train", tmp_path)
    assert len(data.ids) == 5 and data.load(0).image[0, 0, 0] == 0
    for i, target in enumerate(["/elsewhere/1.png", "[23].png", "[23].png", "gone.png"], 1):
        with pytest.raises(UnreadableSample, match=rf"x\.tar/{i}\.png: is a link to {target}, which leads to no file"):
            data.load(i)


def test_files_with_holes_are_refused(tmp_path):
    (tmp_path / "tars").mkdir()
    with (tmp_path / "0.png").open("wb") as sparse:
        sparse.write(png(0))
        sparse.truncate(1 << 20)
    subprocess.run(["tar", "-S", "-cf", tmp_path / "tars" / "x.tar", "-C", tmp_path, "0.png"], check=True)
    refused(tmp_path / "tars", r"0\.png is stored with holes")


MASKED = [
    *((f"{i}.{ending}", png(i, ending[-3:])) for i in range(3) for ending in ("jpg", "seg.png", "depth.png")),
    ("3.seg.png", png(3)),  # whose photograph is lost
    ("4.json", b"{}"),
    ("photo.v2.jpg", png(5, "jpg")),  # alone, and no mask anywhere
]


def test_masks_beside_photographs_are_no_inputs(tmp_path):
    """And both commands say what they leave alone."""
    write_tar(tmp_path / "t" / "x.tar", MASKED)
    done = sak("data", "check", tmp_path / "t", "--sheet", tmp_path / "s.png")
    assert "train: 4 samples, 4 without a fault" in done.stdout
    assert "left alone: 3 .depth.png, 4 .seg.png; masks, or of other formats (--images" in done.stdout
    arguments = ["cache", "--dataset", "webdataset", "--root", tmp_path / "t", "--split", "val", "--size", "16"]
    done = sak(*arguments, "--decoders", "0", "--out", tmp_path / "out", "--json")
    store = Store.open(json.loads(done.stdout)["store"])
    assert store.ids() == ["x.tar/0.jpg", "x.tar/1.jpg", "x.tar/2.jpg", "x.tar/photo.v2.jpg"]
    assert store.spec.dataset_info == {}  # the store of tars without masks is the one that it was
    assert "webdataset val: images left alone: 3 .depth.png, 4 .seg.png" in done.stderr


def test_images_that_are_asked_for_are_the_stores_own(tmp_path):
    """The endings go into the store, so that repair finds the same samples again."""
    write_tar(tmp_path / "t" / "x.tar", MASKED)
    arguments = ["cache", "--dataset", "webdataset", "--root", tmp_path / "t", "--split", "val", "--size", "16"]
    arguments += ["--decoders", "0", "--out", tmp_path / "out", "--images", "depth.png", "--json"]
    store = Store.open(json.loads(sak(*arguments).stdout)["store"])
    assert store.ids() == [f"x.tar/{i}.depth.png" for i in range(3)]
    assert store.spec.dataset_info == {"images": "depth.png"}
    shard = Path(str(store.path)) / "pixels" / "c.0.0.0.0.0"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    sak("repair", str(store.path), "--root", tmp_path / "t")
    assert shard.read_bytes() == whole


@pytest.mark.parametrize(
    ("images", "count"), [("jpg", 3), (".JPG, v2.jpg", 4), ("seg.png", 4), ("all", 11), ("json", 1), (None, 4)]
)
def test_endings_choose_the_images(tmp_path, images, count):
    write_tar(tmp_path / "x.tar", MASKED)
    data = open_dataset("webdataset", "train", tmp_path, images=images)
    assert len(data.ids) == count


def test_images_of_a_key_that_no_ending_tells_apart_are_asked_for(tmp_path):
    write_tar(tmp_path / "x.tar", [(f"{i}.{ending}", png(i)) for i in range(2) for ending in ("rgb.png", "seg.png")])
    refused(tmp_path, r"x\.tar: 0 has several images \(\.rgb\.png, \.seg\.png\)$")
    assert len(open_dataset("webdataset", "train", tmp_path, images="rgb.png").ids) == 2
    write_tar(tmp_path / "x.tar", [("0.jpg", png(0, "jpg")), ("0.png", png(0))])
    refused(tmp_path, r"x\.tar: 0 has several images \(\.jpg, \.png\)")
    with pytest.raises(DatasetError, match=r"no member .* has the ending tif; there are 1 \.jpg, 1 \.png"):
        open_dataset("webdataset", "train", tmp_path, images="tif")
    with pytest.raises(DatasetError, match="dataset 'folder' has one image a sample"):
        open_dataset("folder", "train", tmp_path, images="jpg")


def test_a_split_that_is_damaged_is_not_taken_for_one_that_is_not_there(tmp_path):
    three(tmp_path / "d" / "train.tar")
    val = three(tmp_path / "d" / "val.tar")
    val.write_bytes(val.read_bytes()[:1024])
    done = sak("data", "check", tmp_path / "d", "--sheet", tmp_path / "s.png", "--json", check=False)
    (problem,) = json.loads(done.stdout)["problems"]
    assert done.returncode == 1 and problem["split"] == "val" and "val.tar: it stops at byte 1024" in problem["what"]
