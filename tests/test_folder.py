"""A folder of real photographs through the command line: good files, bad files, real towers untrained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from cache.store import Store
from tests.conftest import refusal, sak


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of scikit-image's photographs in nested folders and formats, and three files that cannot be read."""
    root = tmp_path_factory.mktemp("photographs")
    (root / "animals" / "cats").mkdir(parents=True)
    Image.fromarray(data.chelsea()).save(root / "animals" / "cats" / "chelsea.jpg")
    Image.fromarray(data.coffee()).save(root / "coffee.png")
    Image.fromarray(data.astronaut()).save(root / "astronaut.webp")
    whole = (root / "animals" / "cats" / "chelsea.jpg").read_bytes()
    (root / "truncated.jpg").write_bytes(whole[: len(whole) // 3])
    (root / "empty.png").write_bytes(b"")
    (root / "text.jpg").write_text("not an image")
    return root


def cache_folder(photographs: Path, out: Path, *extra: str) -> dict[str, object]:
    done = sak("cache", "--dataset", "folder", "--root", photographs, "--out", out, "--decoders", "0", "--json", *extra)
    result: dict[str, object] = json.loads(done.stdout)
    assert ("unreadable" in done.stderr) == bool(result["invalid"])
    return result


def test_bad_files_keep_their_rows_and_are_listed(photographs: Path, tmp_path: Path) -> None:
    result = cache_folder(photographs, tmp_path, "--teacher", "mini-sam", "--size", "64x96", "--views", "2")
    assert set(result["invalid"]) == {"truncated.jpg", "empty.png", "text.jpg"}  # type: ignore[call-overload]
    store = Store.open(str(result["store"]))
    assert store.ids() == sorted(store.ids())
    assert [store.ids(i)[0] for i in np.flatnonzero(store.valid(2))] == [
        "animals/cats/chelsea.jpg",
        "astronaut.webp",
        "coffee.png",
    ]
    assert store.pixels[1, 1].shape == (64, 96, 3)
    assert store.features("mini-sam", level=3)[1, 1].shape == (8, 12, 128)


def test_a_teacher_without_weights_says_how_to_get_them(photographs: Path, tmp_path: Path) -> None:
    options = ["--root", photographs, "--out", tmp_path, "--size", "64", "--views", "1", "--decoders", "0"]
    said = refusal("cache", "--teacher", "dinov2-small", "--dataset", "folder", *options, env={"HF_HUB_OFFLINE": "1"})
    assert "--weights" in said and "--random-weights" in said


def test_an_untrained_tower_is_marked_wherever_it_is_used(photographs: Path, tmp_path: Path) -> None:
    result = cache_folder(
        photographs, tmp_path, "--teacher", "dinov2-small", "--size", "96", "--views", "1", "--random-weights",
        "--grid", "4x4",
    )  # fmt: skip
    store = Store.open(str(result["store"]))
    assert store.features("dinov2-small", level=0)[1, 0].shape == (4, 4, 384)
    assert "RANDOM WEIGHTS" in sak("info", result["store"]).stdout  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_real_base_towers_have_the_grids_they_should(photographs: Path, tmp_path: Path) -> None:
    result = cache_folder(
        photographs, tmp_path, "--teacher", "dinov2,clip,sam", "--views", "1", "--random-weights", "--batch-size", "1",
        "--limit", "2",
    )  # fmt: skip
    store = Store.open(str(result["store"]))
    assert store.spec.size == (384, 384)
    grids = {name: store.level(name, 3).grid for name in ("dinov2", "clip", "sam")}
    assert grids == {"dinov2": (27, 27), "clip": (24, 24), "sam": (64, 64)}
    for name in grids:
        features = store.features(name, level=3)[0, 0]
        assert features.shape[-1] == 768
        assert np.isfinite(features).all() and features.std() > 0
