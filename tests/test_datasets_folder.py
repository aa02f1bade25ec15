"""Folders of images: every format as RGB, every bad file named with its reason."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

from sak_common.names import UnknownName
from sak_core.datasets import DATASETS, open_dataset
from sak_core.errors import DatasetError, UnreadableSample
from sak_core.images import read_image
from sak_core.interfaces.dataset import Sample, check_labels
from sak_core.tasks import Task
from sak_core.views.view import EVALUATION, STAGE1, apply_view, draw_view
from tests.small_images import encoded, png_of

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"


def gradient(height: int = 20, width: int = 30) -> np.ndarray:
    """Smooth RGB, so that lossy formats keep it."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 8 + 20, x * 6 + 10, 200 - y * 3 - x], axis=-1).astype(np.uint8)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """The photographs that scikit-image's wheel holds, nested, in three formats."""
    root = tmp_path / "photographs"
    (root / "b" / "c").mkdir(parents=True)
    names = sorted(p.name for p in PHOTOGRAPHS.iterdir() if p.suffix in (".png", ".jpg"))
    assert len(names) >= 5
    for i, name in enumerate(names):
        (root / ("", "b", "b/c")[i % 3] / name).write_bytes((PHOTOGRAPHS / name).read_bytes())
    Image.fromarray(gradient()).save(root / "b" / "Z.WEBP", lossless=True)
    return root


def test_photographs(photographs):
    data = open_dataset("folder", "train", photographs)
    found = sorted(p.relative_to(photographs).as_posix() for p in photographs.rglob("*") if p.is_file())
    assert list(data.ids) == found and "b/Z.WEBP" in found
    assert list(data.fingerprints) == [(photographs / name).stat().st_size for name in found]
    assert data.default_size == (384, 384) and data.tasks == () and data.policy == STAGE1
    assert open_dataset("folder", "test", photographs).policy == EVALUATION
    for i, name in enumerate(found):
        image = data.load(i).image
        with Image.open(photographs / name) as source:
            assert image.shape == (source.height, source.width, 3) and image.dtype == np.uint8
            if source.mode == "RGB":
                assert np.array_equal(image, np.asarray(source))
            elif source.mode == "L":
                assert np.array_equal(image, np.repeat(np.asarray(source)[..., None], 3, -1))
        view = draw_view(data.policy, 0, i, 0, image.shape[:2], (64, 64))
        pixels, _ = apply_view(data.policy, view, image, {}, {}, (64, 64))
        assert pixels.std() > 0
    again = pickle.loads(pickle.dumps(data))  # as a worker process gets it
    assert again.ids == data.ids


def test_ids_are_sorted_and_stable(tmp_path):
    for name in ("b.png", "B.jpg", "a/z.jpeg", "a.png", "a/.hidden.png", ".hidden/x.png", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    assert list(open_dataset("folder", "train", tmp_path).ids) == ["B.jpg", "a.png", "a/z.jpeg", "b.png"]
    assert list(open_dataset("folder", "train", tmp_path, limit=2).ids) == ["B.jpg", "a.png"]


def test_links_are_followed_once(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "1.png").write_bytes(b"x")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(outside)
    (outside / "back").symlink_to(root)  # a loop
    (root / "gone.png").symlink_to(tmp_path / "nowhere.png")
    data = open_dataset("folder", "train", root)
    assert list(data.ids) == ["gone.png", "link/1.png"] and list(data.fingerprints) == [0, 1]
    with pytest.raises(UnreadableSample, match="No such file"):
        data.load(0)


def test_names_that_are_no_utf8(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff.png"
    try:
        with open(name, "wb") as stream:  # noqa: PTH123
            Image.fromarray(gradient()).save(stream, "png")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    data = open_dataset("folder", "train", tmp_path)
    assert list(data.ids) == ["\\xff.png"]
    assert np.array_equal(data.load(0).image, gradient())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, orientation):
    upright = gradient()
    # how a camera that is held so stores the scene, by the EXIF standard's table
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "x.png"), upright)


def test_modes_become_rgb(tmp_path):
    rgb = gradient()
    image = Image.fromarray(rgb)
    grey = np.asarray(image.convert("L"))

    def reread(name: str, picture: Image.Image, **options) -> np.ndarray:
        picture.save(tmp_path / name, **options)
        return read_image(tmp_path / name)

    assert np.array_equal(reread("grey.png", image.convert("L"))[..., 1], grey)
    assert np.array_equal(reread("grey_alpha.png", image.convert("LA"))[..., 2], grey)
    assert np.array_equal(reread("opaque.png", image.convert("RGBA")), rgb)
    palette = image.quantize(64)
    assert np.array_equal(reread("palette.png", palette), np.asarray(palette.convert("RGB")))
    assert set(np.unique(reread("bits.png", image.convert("1")))) == {0, 255}
    cmyk = reread("cmyk.jpg", image.convert("CMYK"), quality=100, subsampling=0)
    assert np.abs(cmyk.astype(int) - rgb).max() < 12
    jpeg = reread("rgb.jpg", image, quality=100, subsampling=0)
    assert np.abs(jpeg.astype(int) - rgb).max() < 6

    deep = np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
    seen = reread("deep.png", Image.fromarray(deep))
    assert np.array_equal(seen[..., 0], np.rint(deep / 257)) and (seen[..., 0] == seen[..., 2]).all()

    clear = np.dstack([rgb, np.zeros((20, 30), np.uint8)])
    clear[:, :10, 3] = 255
    seen = reread("clear.png", Image.fromarray(clear))
    assert np.array_equal(seen[:, :10], rgb[:, :10]) and (seen[:, 10:] == 255).all()

    palette.info["transparency"] = 0
    assert reread("palette_clear.png", palette, transparency=0).shape == (20, 30, 3)


def test_bad_files_are_named_with_their_reason(tmp_path):
    good = encoded(np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8), "jpeg")
    png = encoded(gradient(90, 90))
    broken = bytearray(png)
    broken[len(broken) // 2] ^= 0xFF
    bad = {
        "empty.png": (b"", "empty"),
        "text.jpg": (b"this is no image", "not an image"),
        "cut.jpg": (good[: len(good) // 2], "truncated"),
        "cut.png": (png[:200], "damaged"),
        "flipped.png": (bytes(broken), "damaged"),
        "bomb.png": (png_of(60_000, 60_000), "refused before decoding"),
        "large.png": (png_of(15_000, 14_000), "refused before decoding"),
        "short.png": (png_of(20, 20, b"\0" * 30), "damaged"),
    }
    for name, (content, _) in bad.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "good.jpg").write_bytes(good)
    os.mkfifo(tmp_path / "pipe.png")
    data = open_dataset("folder", "train", tmp_path)
    for i, name in enumerate(data.ids):
        if name == "good.jpg":
            assert data.load(i).image.shape == (80, 80, 3)
            continue
        reason = bad[name][1] if name in bad else "not a regular file"
        with pytest.raises(UnreadableSample, match=reason) as caught:
            data.load(i)
        assert caught.value.path == str(tmp_path / name)
        sent = pickle.loads(pickle.dumps(caught.value))  # between processes
        assert (sent.path, sent.reason) == (caught.value.path, caught.value.reason)


def test_floats_and_deep_integers_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "f.tiff")
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(tmp_path / "i.tiff")
    with pytest.raises(UnreadableSample, match="floating-point"):
        read_image(tmp_path / "f.tiff")
    with pytest.raises(UnreadableSample, match="70000"):
        read_image(tmp_path / "i.tiff")


def test_wrong_roots_and_names(tmp_path):
    with pytest.raises(DatasetError, match="no folder"):
        open_dataset("folder", "train", tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="holds no images"):
        open_dataset("folder", "train", tmp_path)
    (tmp_path / "x.png").write_bytes(b"x")
    with pytest.raises(DatasetError, match="is a file"):
        open_dataset("folder", "train", tmp_path / "x.png")
    with pytest.raises(DatasetError, match="lies in a folder"):
        open_dataset("folder", "train")
    with pytest.raises(UnknownName, match="did you mean folder"):
        open_dataset("foldr", "train", tmp_path)
    with pytest.raises(UnknownName, match="did you mean train"):
        open_dataset("folder", "trian", tmp_path)
    with pytest.raises(DatasetError, match="limit 0"):
        open_dataset("folder", "train", tmp_path, limit=0)


def test_labels_are_checked():
    task, depth = Task("semseg", "classes", ("a", "b")), Task("depth", "depth")
    image = np.zeros((4, 5, 3), np.uint8)
    right = {"semseg": np.zeros((4, 5), np.uint8), "depth": np.zeros((4, 5), np.float32)}
    assert check_labels(Sample(image, right), (task, depth), "x").labels is right
    for wrong, words in (
        ({**right, "semseg": np.zeros((5, 4), np.uint8)}, r"\(5, 4\).*4x5"),
        ({**right, "depth": np.zeros((4, 5))}, "float64"),
        ({"semseg": right["semseg"]}, "no label 'depth'"),
        ({**right, "semseg": np.full((4, 5), 2, np.uint8)}, r"holds 2: expected 0\.\.1, or 255"),
    ):
        with pytest.raises(UnreadableSample, match=words):
            check_labels(Sample(image, wrong), (task, depth), "x")


def test_every_dataset_opens_without_torch():
    """Worker processes stay light."""
    import subprocess
    import sys

    script = (
        "import sys, sak_core.datasets, sak_core.interfaces.dataset, sak_core.datasets.folder, sak_core.views.view\n"
        "import sak_core.miniature.rooms.scene\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert {"rooms", "folder"} <= set(DATASETS)
