"""`sak data check` as a person runs it: on whole copies, on damaged ones, on folders that are none."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.sheet import over
from sak_core.datasets.recognise import recognise
from sak_core.errors import DatasetError
from sak_core.tasks import Task
from tests.conftest import refusal, sak
from tests.small_images import encoded, write_tar

FIXTURES = Path(__file__).parent / "fixtures"


def check(*arguments: str | Path, code: int = 0) -> dict:
    done = sak("data", "check", *arguments, "--json", check=False)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def nyud(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / "layouts" / "nyud", tmp_path / "data" / "nyud"))


@pytest.mark.parametrize(
    ("folder", "name", "counts"),
    [
        ("layouts/nyud", "nyud", {"train": 2, "val": 1}),
        ("layouts/pascal-context", "pascal_context", {"train": 3, "val": 2}),
        ("webdataset", "webdataset", None),
        ("hf/parquet", "hugging_face", None),
        pytest.param("odsf", "folder", {"train": 9}, marks=pytest.mark.slow),
    ],
)
def test_a_whole_copy_has_no_problems(folder, name, counts, tmp_path):
    report = check(FIXTURES / folder, "--sheet", tmp_path / "sheet.png")
    assert report["dataset"] == name and report["problems"] == []
    seen = {split: told["samples"] for split, told in report["splits"].items()}
    assert seen and (counts is None or seen == counts)
    assert all(told["readable"] == told["samples"] for told in report["splits"].values())
    assert Image.open(report["sheet"]).size[0] > 144


def test_ranges_sizes_and_classes_are_the_files(tmp_path):
    root = FIXTURES / "layouts" / "nyud"
    told = check("nyud", "--root", root, "--split", "train", "--sheet", tmp_path / "s.png")["splits"]["train"]
    assert set(told) == {"samples", "readable", "sizes", "labels"}
    depths = np.concatenate([np.load(root / "depth" / f"{i}.npy").ravel() for i in ("0003", "0012")])
    assert told["labels"]["depth"]["range"] == pytest.approx([depths[depths > 0].min(), depths.max()])
    assert told["labels"]["depth"]["valid_share"] == pytest.approx((depths > 0).mean())
    grey = np.concatenate([np.array(Image.open(root / "segmentation" / f"{i}.png")).ravel() for i in ("0003", "0012")])
    pixels = np.bincount(grey, minlength=41)[1:]
    assert list(told["labels"]["semseg"]["pixels"].values()) == pixels.tolist()
    sizes = {Image.open(root / "images" / f"{i}.png").size[::-1] for i in ("0003", "0012")}
    assert {tuple(told["sizes"]["smallest"]), tuple(told["sizes"]["largest"])} == sizes


FAULTS = {
    "a missing file": (lambda r: (r / "depth" / "0001.npy").unlink(), "depth/0001.npy", "is missing: .*depth"),
    "another size": (
        lambda r: np.save(r / "depth" / "0001.npy", np.ones((3, 4), np.float32)),
        "depth/0001.npy",
        r"'depth' has shape \(3, 4\), but the image is 39x52 px: expected \(39, 52\)",
    ),
    "a class too many": (
        lambda r: Image.fromarray(np.full((39, 52), 41, np.uint8)).save(r / "segmentation" / "0001.png"),
        "segmentation/0001.png",
        r"holds 41: expected 0 \(no label\) to 40",
    ),
    "an index that would wrap around": (
        lambda r: Image.fromarray(np.full((39, 52), 257, np.uint16)).save(r / "segmentation" / "0001.png"),
        "segmentation/0001.png",
        "holds 257: expected 0",
    ),
    "millimetres": (
        lambda r: np.save(r / "depth" / "0001.npy", np.full((39, 52), 2500, np.float32)),
        "depth/0001.npy",
        "'depth' holds 2500 to 2500: expected metres",
    ),
    "a depth below zero": (
        lambda r: np.save(r / "depth" / "0001.npy", np.full((39, 52), -1, np.float32)),
        "depth/0001.npy",
        "'depth' holds -1 to -1: expected metres",
    ),
    "not a number": (
        lambda r: np.save(r / "depth" / "0001.npy", np.full((39, 52), np.nan, np.float32)),
        "depth/0001.npy",
        "holds NaN or infinite",
    ),
    "a truncated picture": (
        lambda r: (r / "images" / "0001.png").write_bytes((r / "images" / "0001.png").read_bytes()[:200]),
        "images/0001.png",
        "is damaged",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_file_and_what_was_expected(fault, nyud, tmp_path):
    damage, file, words = FAULTS[fault]
    damage(nyud)
    report = check(nyud, "--sheet", tmp_path / "sheet.png", "--split", "val", code=1)
    (problem,) = report["problems"]
    assert (problem["split"], problem["sample"]) == ("val", "0001")
    assert problem["file"] == str(nyud / file)
    assert re.search(words, problem["what"]), problem["what"]
    assert report["splits"]["val"]["readable"] == 0


def test_all_missing_files_and_a_missing_split_are_listed(nyud, tmp_path):
    for path in (nyud / "depth" / "0012.npy", nyud / "normals" / "0012.png", nyud / "gt_sets" / "val.txt"):
        path.unlink()
    done = sak("data", "check", nyud, "--sheet", tmp_path / "s.png", check=False)
    assert done.returncode == 1
    assert "3 problems" in done.stdout and "train: 2 samples, 1 without a fault" in done.stdout
    for name in ("depth/0012.npy: is missing", "normals/0012.png: is missing", "gt_sets/val.txt"):
        assert name in done.stdout


def test_wrong_roots_are_told_where_the_data_set_is(nyud, tmp_path):
    for arguments, words in (
        (["nyud", "--root", nyud.parent], f"did you mean {nyud}?"),
        (["nyud", "--root", nyud / "images"], f"did you mean {nyud}?"),
        (["nyud", "--root", tmp_path / "nowhere"], "no folder"),
        ([tmp_path / "nowhere"], f"no folder {tmp_path / 'nowhere'}"),
        ([nyud / "depth" / "0001.npy"], "is a file, a folder is needed"),
        (["nyudd"], "did you mean nyud"),
        (["nyud", "--root", nyud, "--split", "tset"], "split"),
    ):
        said = refusal("data", "check", *arguments)
        assert words in said, said


def test_a_folder_that_is_nothing_says_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DatasetError, match=r"gt_sets/ \(nyud\).*dataset\.toml"):
        recognise(tmp_path)


def test_a_described_folder_reports_every_split(tmp_path):
    root = tmp_path / "kitchens"
    for name, value in (("a", 1), ("b", 3)):
        for what in ("images", "semseg"):
            (root / what).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10), (value * 30, 0, 0)).save(root / "images" / f"{name}.png")
        Image.fromarray(np.full((10, 20), value, np.uint8)).save(root / "semseg" / f"{name}.png")
    (root / "train.txt").write_text("a\n")
    (root / "val.txt").write_text("b\n")
    (root / "dataset.toml").write_text(
        'images = "images/{id}.png"\n[splits]\ntrain = "train.txt"\nval = "val.txt"\n'
        '[tasks.semseg]\nkind = "classes"\nclasses = ["wall", "floor"]\nfiles = "semseg/{id}.png"\n'
    )
    report = check(root, "--sheet", tmp_path / "s.png", code=1)
    assert report["dataset"] == "labelled" and list(report["splits"]) == ["train", "val"]
    (problem,) = report["problems"]
    assert problem["file"].endswith("semseg/b.png") and "holds 3, beyond the 2 classes" in problem["what"]


def jpeg(size: tuple[int, int] = (12, 10)) -> bytes:
    return encoded(Image.new("RGB", size, (200, 100, 50)), "JPEG")


def test_odd_names_links_and_endings_are_found(tmp_path):
    root = tmp_path / "my photos" / "größe 大"
    root.mkdir(parents=True)
    for name in ("a b.JPG", "c.JpEg", ".hidden.jpg"):
        (root / name).write_bytes(jpeg())
    for name in ("d.HEIC", "e.heic", "f.tif", "notes.txt"):
        (root / name).write_bytes(b"not looked into")
    (root / "up").symlink_to(root.parent)
    (root / "twin.jpg").symlink_to("a b.JPG")
    (root / "gone.jpg").symlink_to("nowhere.jpg")
    report = check(tmp_path / "my photos", "--sheet", tmp_path / "s.png", code=1)
    assert report["dataset"] == "folder" and list(report["splits"]) == ["train"]
    assert (report["splits"]["train"]["samples"], report["splits"]["train"]["readable"]) == (4, 3)
    assert report["left_alone"] == {".tif": 1, ".heic": 2}
    (problem,) = report["problems"]
    assert problem["file"] == str(root / "gone.jpg") and "is missing" in problem["what"]


def test_tars_in_linked_folders_with_members_missing(tmp_path):
    shards = tmp_path / "elsewhere" / "SHARD-0.TAR"
    write_tar(
        shards, {"0.jpg": jpeg(), "0.json": b"{}", "1.txt": b"no image", "._0.jpg": b"macOS", "2.jpg": b""}.items()
    )
    root = tmp_path / "data"
    root.mkdir()
    (root / "part").symlink_to(shards.parent)
    report = check(root, "--sheet", tmp_path / "s.png", code=1)
    assert report["dataset"] == "webdataset" and report["splits"]["train"]["samples"] == 2
    (problem,) = report["problems"]
    assert problem["file"].endswith("part/SHARD-0.TAR/2.jpg") and "is empty" in problem["what"]
    write_tar(shards, [("0.json", b"{}")])
    said = refusal("data", "check", root)
    assert "hold no images" in said and "did you mean" not in said


def test_splits_of_rows_are_told_apart(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "data").mkdir()
    for split, side in (("train", 10), ("validation", 20)):
        images = pa.array([{"bytes": jpeg((side, 10)), "path": None}, {"bytes": None, "path": "x.jpg"}])
        pq.write_table(pa.table({"image": images}), tmp_path / "data" / f"{split}-00000-of-00001.PARQUET")
    report = check(tmp_path, "--sheet", tmp_path / "s.png", code=1)
    assert {split: told["sizes"]["largest"] for split, told in report["splits"].items()} == {
        "train": [10, 10],
        "val": [10, 20],
    }
    assert [(p["split"], p["sample"]) for p in report["problems"]] == [("train", "000000001"), ("val", "000000001")]
    assert all("has no image in it (path: x.jpg)" in p["what"] for p in report["problems"])


def test_described_files_with_upper_case_endings(tmp_path):
    for folder in ("images", "normals"):
        (tmp_path / folder).mkdir()
    for name in ("x 1", "ü"):
        (tmp_path / "images" / f"{name}.JPG").write_bytes(jpeg())
        Image.new("RGB", (12, 10), (128, 128, 255)).save(tmp_path / "normals" / f"{name}.PNG")
    (tmp_path / "dataset.toml").write_text(
        'images = "images/{id}.JPG"\n[tasks.normals]\nkind = "normals"\nfiles = "normals/{id}.PNG"\n'
    )
    report = check(tmp_path, "--sheet", tmp_path / "s.png")
    assert report["splits"]["train"]["labels"]["normals"]["range"] == pytest.approx([1 / 255, 1], abs=1e-6)


def test_labels_are_drawn_where_they_are():
    image = np.full((20, 30, 3), 100, np.uint8)
    semseg = np.full((20, 30), 255, np.uint8)
    semseg[5:9, 6:12] = 1
    drawn = over(Task("s", "classes", ("a", "b")), image, semseg)
    assert np.array_equal((drawn != image).any(axis=-1), semseg != 255)
    edge = np.zeros((20, 30), np.uint8)
    edge[10, 15] = 1
    changed = np.argwhere((over(Task("e", "boundary"), image, edge) != image).any(axis=-1))
    assert changed.min(0).tolist() == [9, 14] and changed.max(0).tolist() == [11, 16]


@pytest.mark.parametrize(
    "files,name",
    [
        (("a.jpg", "b.tar", "c.parquet"), "hugging_face"),
        (("a.jpg", "b.TAR"), "webdataset"),
        (("a.txt", "nested/a.PNG"), "folder"),
    ],
)
def test_a_folder_is_walked_once_to_recognise_it(
    files: tuple[str, ...], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks: list[Path] = []

    def walked(root: Path) -> Iterator[str]:
        walks.append(root)
        yield from files

    monkeypatch.setattr("sak_core.datasets.recognise.files_below", walked)
    assert recognise(tmp_path) == name
    assert walks == [tmp_path]
