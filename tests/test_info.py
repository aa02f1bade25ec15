"""Every word of `sak info` against what is known of the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache.store import Store
from sak_core.teachers import build_teacher
from tests.conftest import answer, in_a_terminal, sak
from tests.small_images import NUM_IMAGES, cache_arguments


@pytest.fixture(scope="module")
def path(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    sak(*cache_arguments(images, out, teachers=["mini-dino"], views=2))
    sak(*cache_arguments(images, out, teachers=["mini-clip"], views=1), "--random-weights", "--grid", "2x2")
    return next(out.glob("*.zarr"))


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_info_is_true(path: Path) -> None:
    info = answer("info", path)
    assert (info["dataset"], info["split"], info["size"]) == ("folder", "train", [32, 32])
    assert (info["samples"], info["views"], info["rows"], info["labels"]) == (NUM_IMAGES, 2, 2 * NUM_IMAGES, [])
    assert info["bytes"] == size(path)
    assert info["invalid"] == {f"{NUM_IMAGES - 1:04d}.png": "is not an image of a format that Pillow knows"}
    source = info["source"]
    assert (source["committed_rows"], source["pending_shards"]) == (2 * NUM_IMAGES, 0)
    parts = sum(size(path / part) for part in ("pixels", "samples", "views"))
    assert source["bytes"] == parts + (path / "zarr.json").stat().st_size
    dino, clip = info["teachers"]["mini-dino"], info["teachers"]["mini-clip"]
    assert (dino["committed_rows"], dino["pending_shards"], dino["views"]) == (2 * NUM_IMAGES, 0, 2)
    assert (clip["committed_rows"], clip["pending_shards"], clip["views"]) == (NUM_IMAGES, 2, 1)
    assert dino["bytes"] == size(path / "teachers/mini-dino")
    assert (dino["random_weights"], clip["random_weights"]) == (False, True)
    assert clip["provenance"]["teacher"]["weights"] == "random:0"
    spec = build_teacher("mini-dino", size=(32, 32)).spec
    assert dino["provenance"]["teacher"] == spec.to_dict()
    assert [level["codec"] for level in dino["levels"]] == ["int8"] * 4
    assert [level["grid"] for level in clip["levels"]] == [[2, 2]] * 4
    assert set(dino["fidelity"]) == {f"level_{number}" for number in range(4)}
    for name, figures in dino["fidelity"].items():
        assert 0.999 < figures["centred_cosine"] <= figures["cosine"] < 1
        assert 0 < figures["relative_mse_median"] < figures["relative_mse_worst"] < 0.1
        stored = Store.open(path).calibration("mini-dino")
        assert stored is not None and list(figures.values()) == stored[f"{name}/fidelity"].tolist()
    clipped = [Store.open(path).part("teachers/mini-dino").view(view).clipped for view in range(2)]
    for name, count in dino["clipped"].items():
        assert count == sum(sum(view[f"teachers/mini-dino/{name}"]) for view in clipped) > 0


def test_info_reads_well(path: Path) -> None:
    text = sak("info", path).stdout
    for words in (
        f"folder train: {NUM_IMAGES} samples x 2 views of 32x32 px",
        "labels: none",
        f"source: {2 * NUM_IMAGES} of {2 * NUM_IMAGES} rows committed (complete)",
        "unreadable, left out of training: 1\n    0069.png: is not an image",
        f"mini-dino: {2 * NUM_IMAGES} of {2 * NUM_IMAGES} rows committed (complete)",
        f"mini-clip, RANDOM WEIGHTS: {NUM_IMAGES} of {2 * NUM_IMAGES} rows committed (2 shards to come)",
        "weights random:0",
        "averaged to 2x2 cells",
        "fp32, batches of 16, on ",
        "1 thread; torch ",
        "level_3: 4x4x128 int8, token cosine 0.999",
        "with the mean removed 0.999",
        "values clipped",
    ):
        assert words in text


def test_random_weights_are_red_on_a_terminal(path: Path) -> None:
    assert "\x1b[31m, RANDOM WEIGHTS\x1b[0m" in in_a_terminal("info", path)


def test_a_half_finished_store_says_how_far_it_is(images: Path, tmp_path: Path) -> None:
    sak(*cache_arguments(images, tmp_path), env={"SAK_FAULT": "write:2"}, check=False)
    (path,) = tmp_path.glob("*.zarr")
    info = answer("info", path)
    dino = info["teachers"]["mini-dino"]
    assert 0 < dino["committed_rows"] < info["rows"] and dino["pending_shards"] == 3
    assert "3 shards to come" in sak("info", path).stdout
