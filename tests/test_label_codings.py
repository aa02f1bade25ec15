"""Label codings as people have them: each is read as it is meant, or refused with what to say in `dataset.toml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sak_core.datasets import open_dataset
from sak_core.errors import DatasetError, UnreadableSample

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
ROWS = np.arange(24)[:, None] * np.ones((1, 32), np.int64)


def one_label(
    root: Path,
    task: str,
    label: np.ndarray | None,
    ending: str = "npy",
    top: str = "",
    orientation: int = 1,
    image: np.ndarray = IMAGE,
) -> Path:
    """A folder of one image with one label of the task "t", described by `task` and `top`."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(image).save(root / "images" / "a.png", exif=exif)
    path = root / "labels" / f"a.{ending}"
    if label is not None and ending == "npy":
        np.save(path, label)
    elif label is not None:
        Image.fromarray(label).save(path)
    text = f'{top}\nimages = "images/{{id}}.png"\n[tasks.t]\nfiles = "labels/{{id}}.{ending}"\n{task}\n'
    (root / "dataset.toml").write_text(text)
    return root


def read_one(*args: Any, **kwargs: Any) -> np.ndarray:
    return open_dataset("labelled", "train", one_label(*args, **kwargs)).load(0).labels["t"]


DEPTH = np.where(ROWS < 3, np.nan, 2.5)
NORMALS = np.where(ROWS[..., None] < 3, np.nan, np.array([0.0, 0.6, 0.8]))
KNOWN = ROWS >= 3
LOWEST = np.finfo(np.float32).min  # what GDAL writes where a float TIFF has no data


@pytest.mark.parametrize(
    ("label", "ending", "ignore"),
    [
        (DEPTH.astype(np.float16), "npy", "[nan]"),
        (DEPTH.astype(np.float32), "npy", "nan"),
        (DEPTH[..., None], "npy", "[nan]"),
        (DEPTH.astype(np.float32), "tif", "[0, nan]"),
        (np.where(KNOWN, 2.5, -np.inf), "npy", "[-inf]"),
        (np.where(KNOWN, 2.5, LOWEST).astype(np.float32), "tif", "[-3.4028234663852886e38]"),
        (np.where(KNOWN, 2.5, 0.1).astype(np.float32), "tif", "[0.1]"),
    ],
)
def test_what_is_not_known_in_floats(label: np.ndarray, ending: str, ignore: str, tmp_path: Path) -> None:
    found = read_one(tmp_path, f'kind = "depth"\nignore = {ignore}', label, ending)
    assert found.dtype == np.float32 and np.array_equal(found, np.where(KNOWN, np.float32(2.5), 255))


def test_normals_are_not_known_where_a_component_is_nan(tmp_path: Path) -> None:
    label = NORMALS.astype(np.float32)
    label[5, 6, 1] = np.nan
    found = read_one(tmp_path, 'kind = "normals"\nignore = [nan]', label)
    known = KNOWN.copy()
    known[5, 6] = False
    assert ((found == 255).all(-1) == ~known).all() and np.allclose(found[known], [0, 0.6, 0.8])


@pytest.mark.parametrize(
    ("task", "label", "words"),
    [
        ('kind = "depth"', DEPTH, r"a\.npy: holds NaN or infinite values; .*ignore = \[nan\]"),
        ('kind = "depth"\nignore = [nan]', np.where(KNOWN, 2.5, np.inf), r"ignore = \[nan\], or \[inf\]"),
        ('kind = "normals"\nignore = [0]', NORMALS, r"ignore = \[nan\]"),
        ('kind = "saliency"\nthreshold = 0.5', DEPTH, r"ignore = \[nan\]"),
        ('kind = "boundary"\nthreshold = 0.5', DEPTH, r"ignore = \[nan\]"),
        ('kind = "normals"', np.nan_to_num(NORMALS), r"normals of length 0; .*ignore = \[0\]"),
    ],
)
def test_floats_that_are_no_label_are_refused_with_what_to_say(
    task: str, label: np.ndarray, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UnreadableSample, match=words):
        read_one(tmp_path, task, label)


def test_saliency_is_not_known_where_it_is_nan(tmp_path: Path) -> None:
    found = read_one(tmp_path, 'kind = "saliency"\nthreshold = 0.5\nignore = [nan]', DEPTH)
    assert np.array_equal(found, np.where(KNOWN, 1, 255))


MASK = np.where(KNOWN, 0, 255).astype(np.uint8)
TWO = 'kind = "classes"\nclasses = ["a", "b"]\n'


def test_an_explicit_ignore_decides_alone(tmp_path: Path) -> None:
    silent = read_one(tmp_path / "silent", TWO, MASK, "png")
    said = read_one(tmp_path / "said", TWO + "ignore = [255]", MASK, "png")
    assert np.array_equal(silent, MASK) and np.array_equal(said, MASK)
    for ignore in ("[]", "[7]"):
        with pytest.raises(UnreadableSample, match=r"holds 255, beyond the 2 classes .*`ignore`"):
            read_one(tmp_path / "refused", f"{TWO}ignore = {ignore}", MASK, "png")
    names = ", ".join(f'"{n}"' for n in range(255))
    counted = f'kind = "classes"\nclasses = [{names}]\noffset = -1\nignore = [0]'
    assert np.array_equal(read_one(tmp_path / "all", counted, MASK, "png"), np.where(KNOWN, 255, 254))
    far = read_one(tmp_path / "far", 'kind = "depth"\nignore = [0]', MASK, "png")
    assert (far[KNOWN] == 255).all() and (far[~KNOWN] != 255).all() and np.allclose(far, 255)


@pytest.mark.parametrize(
    ("classes", "words"), [('["crack"]', "'crack' is the only class"), ('["a", "b", "a"]', "class 'a' comes twice")]
)
def test_class_names_that_tell_nothing_apart_are_refused(classes: str, words: str, tmp_path: Path) -> None:
    root = one_label(tmp_path, f'kind = "classes"\nclasses = {classes}', MASK, "png")
    with pytest.raises(DatasetError, match=rf"dataset\.toml, \[tasks\.t\]: {words}"):
        open_dataset("labelled", "train", root)


@pytest.mark.parametrize("kind", [TWO, 'kind = "saliency"', 'kind = "boundary"'])
def test_labels_of_a_lossy_format_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UnreadableSample, match=r"a\.jpg: is JPEG, which changes the numbers"):
        read_one(tmp_path, kind, MASK, "jpg")


def test_a_lossy_mask_is_read_by_half_of_its_range(tmp_path: Path) -> None:
    found = read_one(tmp_path, 'kind = "saliency"\nthreshold = 128', MASK, "jpg")
    assert np.array_equal(found[5:], MASK[5:] > 0) and np.array_equal(found[:2], MASK[:2] > 0)


HALF = (ROWS < 6).astype(np.uint8)


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_labels_of_turned_images_lie_as_the_description_says(orientation: int, tmp_path: Path) -> None:
    """Each label is the image's red channel, so it says itself whether it lies on its image."""
    stored = np.repeat(HALF[..., None], 3, axis=-1)
    turn = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270"}
    turn |= {7: "TRANSVERSE", 8: "ROTATE_90"}
    upright = np.asarray(Image.fromarray(HALF).transpose(Image.Transpose[turn[orientation]]))
    for labels_as, label in (("stored", HALF), ("shown", upright)):
        root = one_label(tmp_path / labels_as, TWO, label, "png", f'labels_as = "{labels_as}"', orientation, stored)
        sample = open_dataset("labelled", "train", root).load(0)
        assert np.array_equal(sample.labels["t"], label) and np.array_equal(sample.image[..., 0], label)
        assert dict(open_dataset("labelled", "train", root).info).get("labels_as") == {"stored": "stored"}.get(
            labels_as
        )


@pytest.mark.parametrize(("orientation", "side"), [(3, 32), (2, 32), (6, 24), (8, 24)])
def test_labels_of_turned_images_that_may_lie_either_way_are_refused(
    orientation: int, side: int, tmp_path: Path
) -> None:
    with pytest.raises(UnreadableSample, match=rf'EXIF orientation is {orientation}; say .*labels_as = "stored"'):
        read_one(tmp_path, TWO, HALF[:, :side], "png", "", orientation, IMAGE[:, :side])


def test_the_shape_of_a_label_may_say_how_it_lies(tmp_path: Path) -> None:
    assert read_one(tmp_path / "shown", TWO, HALF.T.copy(), "png", "", 6).shape == (32, 24)
    with pytest.raises(UnreadableSample, match="the shape that the image has as stored: its EXIF orientation is 6"):
        read_one(tmp_path / "stored", TWO, HALF, "png", "", 6)
    with pytest.raises(UnreadableSample, match=r"\(32, 24\) \(the image's transposed\), but the image is 24x32"):
        read_one(tmp_path / "transposed", TWO, HALF.T.copy(), "png")


@pytest.mark.parametrize(
    ("top", "task", "words"),
    [
        ('labels_as = "upright"', "", "labels_as 'upright' must be one of shown, stored"),
        ("", 'optional = "yes"', "optional must be true or false, not 'yes'"),
        ("", 'ignore = ["nan"]', "ignore holds 'nan': stored values are numbers"),
        ("", "ignore = [true]", "ignore holds True"),
    ],
)
def test_wrong_settings_of_labels_are_named(top: str, task: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=words):
        open_dataset("labelled", "train", one_label(tmp_path, TWO + task, HALF, "png", top))
