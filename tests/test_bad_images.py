"""Every image that a folder may hold, through the command line; features that no number format holds."""

from __future__ import annotations

import errno
import json
import os
import resource
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from skimage import data

import pipeline.extraction.extract
import pipeline.extraction.running
from cache.errors import NonFiniteFeature
from cache.loading.loader import Loader
from cache.maintenance.verification import verify_store
from cache.store import Store
from pipeline.extraction.prepare import Source
from pipeline.extraction.request import TeacherRequest
from pipeline.extraction.running import start_teacher
from sak_core.datasets.folder import ImageFolder, files_below
from sak_core.datasets.labels import read_array, read_mat
from sak_core.datasets.tars import read_members
from sak_core.errors import DatasetError
from sak_core.images import MAX_PIXELS, read_image
from sak_core.interfaces.teacher import Teacher
from sak_core.teachers import build_teacher
from tests.conftest import refusal, sak
from tests.small_images import png_of

GOOD = (
    "cmyk.jpg",
    "exif.jpg",
    "grey.png",
    "long.png",
    "one.png",
    "palette.png",
    "plain.png",
    "sixteen.png",
    "wrong.jpg",
)
BAD = {
    "bomb.png": "refused before decoding",
    "empty.png": "empty",
    "text.jpg": "not an image",
    "truncated.jpg": "damaged",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    cat = Image.fromarray(data.chelsea()).resize((90, 60))
    cat.save(root / "plain.png")
    cat.convert("CMYK").save(root / "cmyk.jpg")
    cat.quantize(32).save(root / "palette.png")
    cat.convert("L").save(root / "grey.png")
    grey16 = np.asarray(cat.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey16).save(root / "sixteen.png")
    cat.save(root / "wrong.png")
    (root / "wrong.png").rename(root / "wrong.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned left: shown by turning right
    cat.transpose(Image.Transpose.ROTATE_90).save(root / "exif.jpg", exif=exif, quality=95)
    cat.crop((0, 0, 1, 1)).save(root / "one.png")
    cat.resize((600, 30)).save(root / "long.png")
    whole = (root / "cmyk.jpg").read_bytes()
    (root / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "empty.png").write_bytes(b"")
    (root / "text.jpg").write_text("not an image at all")
    (root / "bomb.png").write_bytes(png_of(60_000, 60_000))
    return root


def arguments(folder: Path, out: Path) -> list[str]:
    return ["cache", "--dataset", "folder", "--root", str(folder), "--split", "val", "--size", "32", "--teacher",
            "mini-dino", "--decoders", "0", "--threads", "1", "--out", str(out)]  # fmt: skip


@pytest.fixture(scope="module")
def store(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str]:
    out = tmp_path_factory.mktemp("out")
    done = sak(*arguments(folder, out), "--json")
    return Store.open(json.loads(done.stdout)["store"]), done.stderr


def test_unreadable_images_are_listed_with_reasons_and_left_out(store: tuple[Store, str]) -> None:
    opened, said = store
    ids = opened.ids()
    assert sorted(ids) == sorted([*GOOD, *BAD])
    reasons = {ids[sample]: why for sample, why in opened.invalid(1).items()}
    assert set(reasons) == set(BAD)
    for name, words in BAD.items():
        assert words in reasons[name]
        assert f"{name}: {reasons[name]}" in said
        sample = ids.index(name)
        assert not opened.samples["valid"][sample]
        assert (opened.pixels[sample, 0] == np.array(opened.spec.fill, np.uint8)).all()
    loader = Loader(opened, ["mini-dino"], batch_size=4, num_views=1, drop_last=False)
    seen = [int(s) for batch in loader for s, weight in zip(batch.samples, batch.weights, strict=True) if weight]
    assert sorted(seen) == [sample for sample, name in enumerate(ids) if name in GOOD]


def test_every_kind_of_good_image_is_seen_as_it_is(store: tuple[Store, str]) -> None:
    opened, _ = store
    pixels = {name: opened.pixels[sample, 0].astype(int) for sample, name in enumerate(opened.ids())}
    sizes = {name: opened.samples["size"][sample].tolist() for sample, name in enumerate(opened.ids())}
    plain = pixels["plain.png"]
    assert np.array_equal(pixels["wrong.jpg"], plain)
    for name, most in (("cmyk.jpg", 6), ("palette.png", 12), ("exif.jpg", 4)):
        assert np.abs(pixels[name] - plain).mean() < most
    assert sizes["exif.jpg"] == [60, 90]
    assert np.abs(pixels["grey.png"] - pixels["sixteen.png"]).max() <= 1
    middle = pixels["grey.png"][12:20, 12:20]  # the rest may be padding, which has a colour
    assert (middle[..., 0] == middle[..., 2]).all() and middle.std() > 5
    assert (sizes["one.png"], sizes["long.png"]) == ([1, 1], [30, 600])
    assert verify_store(opened.path) == []


def test_strict_stops_instead(folder: Path, tmp_path: Path) -> None:
    said = refusal(*arguments(folder, tmp_path), "--strict")
    assert "bomb.png" in said and "--strict" in said


@pytest.mark.parametrize(
    ("codec", "value", "words"),
    [
        ("fp16", float("nan"), "the value is nan"),
        ("bf16", float("inf"), "the value is inf"),
        ("fp16", 7e4, "bf16"),
    ],
)
@pytest.mark.parametrize("when", ["calibration", "extraction"])
def test_features_that_cannot_be_stored_are_refused_by_name(
    codec: str,
    value: float,
    words: str,
    when: str,
    store: tuple[Store, str],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One cell of one level of `long.png` is spoilt, in the calibration pass already or only afterwards."""
    sak(*arguments(folder, tmp_path)[:-2], "--out", str(tmp_path), "--teacher", "")
    opened = Store.open(next(tmp_path.glob("*.zarr")))
    sample = opened.ids().index("long.png")
    wanted = opened.pixels[sample, 0]
    calls = {"left": 0 if when == "calibration" else 2}  # of calibration: the rows to fit, the rows to measure

    def spoil(teacher: Teacher) -> Teacher:
        forward = teacher.forward

        def spoilt(pixels: torch.Tensor) -> list[torch.Tensor]:
            maps = [level.clone() for level in forward(pixels)]
            calls["left"] -= 1
            for row in range(len(pixels)):
                if calls["left"] < 0 and np.array_equal(pixels[row].numpy(), wanted):
                    maps[2][row, 5, 1, 3] = value
            return maps

        teacher.forward = spoilt  # type: ignore[method-assign]
        return teacher

    monkeypatch.setattr(
        pipeline.extraction.running, "build_teacher", lambda *a, **options: spoil(build_teacher(*a, **options))
    )
    running = start_teacher(TeacherRequest("mini-dino", codec=codec, threads=1), opened.spec.size)
    with pytest.raises(NonFiniteFeature) as refused:
        pipeline.extraction.extract.extract(Source(opened, 1), running)
    message = str(refused.value)
    assert f"sample {sample} (long.png), view 0, level 2, channel 5, cell (1, 3)" in message and words in message
    assert verify_store(opened.path) == []


def test_a_picture_is_refused_for_the_number_of_pixels_that_is_named() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None and MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS  # from where on Pillow does


def test_a_file_that_the_process_cannot_open_now_is_not_called_bad(folder: Path, tmp_path: Path) -> None:
    """Else its row would be marked invalid for ever, for a limit of the process."""
    np.save(tmp_path / "depth.npy", np.ones((2, 2), np.float32))
    savemat(tmp_path / "parts.mat", {"anno": 1})
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(folder / "plain.png", "plain.png")
    member = read_members(tmp_path / "images.tar")[0]
    reads: list[Callable[[], object]] = [
        lambda: read_image(folder / "plain.png"),
        lambda: read_array(tmp_path / "depth.npy"),
        lambda: read_mat(tmp_path / "parts.mat", "anno"),
        member.read,
        lambda: list(files_below(folder)),
    ]
    for read in reads:
        read()  # what they import is there
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        for read in reads:
            with pytest.raises(OSError, match="Too many open files"):
                read()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "plain.png").symlink_to(folder / "plain.png")
    listed = os.scandir

    def refused(path: str) -> object:
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DatasetError, match=r"locked cannot be listed \(Permission denied\)"):
        ImageFolder(tmp_path, "train")
