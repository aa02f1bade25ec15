"""`sak verify --live`: what is stored is what the teacher gives; whatever changed since is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import pipeline.extraction.running
from cache.store import Store
from pipeline.maintenance.recheck import draw_rows, recheck
from sak_core.interfaces.teacher import Teacher
from sak_core.miniature.network import WEIGHTS_DIR
from sak_core.teachers import build_teacher
from tests import cache_toy as toy
from tests.conftest import answer, refusal, sak
from tests.small_images import NUM_IMAGES, cache_arguments


@pytest.fixture(scope="module")
def path(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Views of 36 px, which the teachers resize to 40."""
    out = tmp_path_factory.mktemp("out")
    arguments = cache_arguments(images, out, views=2)
    arguments[arguments.index("--size") + 1] = "36"
    sak(*arguments)
    return next(out.glob("*.zarr"))


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mini-dino's weights, one tensor moved."""
    state = load_file(WEIGHTS_DIR / "mini-dino.safetensors")
    name = next(name for name in state if name.endswith("mask_token"))
    state[name] = state[name] + 1
    file = tmp_path_factory.mktemp("weights") / "other.safetensors"
    save_file(state, file)
    return file


def test_a_sound_store_agrees(path: Path) -> None:
    result = answer("verify", path, "--live", "9")
    assert result["problems"] == []
    assert set(result["live"]) == {"mini-dino", "mini-sam"}
    for teacher in result["live"].values():
        assert len({tuple(row) for row in teacher["rows"]}) == 9
        assert not teacher["problems"] and not teacher["differences"]
        assert [level["level"] for level in teacher["levels"]] == [0, 1, 2, 3]
        assert all(level["cosine"] > 0.999 and level["centred_cosine"] > 0.998 for level in teacher["levels"])
    assert "9 rows computed again agree" in sak("verify", path, "--live", "9").stdout


def test_other_weights_are_named(path: Path, other_weights: Path) -> None:
    done = sak("verify", path, "--live", "2", "--json", "--weights", f"mini-dino={other_weights}", check=False)
    live = json.loads(done.stdout)["live"]
    assert done.returncode == 1
    assert [difference["field"] for difference in live["mini-dino"]["differences"]] == ["teacher.weights"]
    assert "teacher.weights was 'sha256:" in live["mini-dino"]["problems"][0]
    assert live["mini-sam"]["problems"] == []
    assert "does not say whose" in refusal("verify", path, "--live", "2", "--weights", other_weights)


def changed(**fields: object) -> Callable[[Teacher], Teacher]:
    def change(teacher: Teacher) -> Teacher:
        teacher.spec = replace(teacher.spec, **fields)  # type: ignore[arg-type]
        for name in ("mean", "std"):
            setattr(teacher, name, torch.tensor(getattr(teacher.spec, name)).view(1, 3, 1, 1))
        return teacher

    return change


@pytest.mark.parametrize(
    ("fields", "change"),
    [
        ("teacher.mean", changed(mean=(0.4, 0.4, 0.4))),
        ("teacher.std", changed(std=(0.5, 0.5, 0.5))),
        ("teacher.interpolation", changed(interpolation="bicubic")),
        ("teacher.grid", changed(grid=(4, 4))),
        ("teacher.grid teacher.input_size", changed(input_size=(32, 32), grid=(4, 4))),
    ],
)
def test_changed_preprocessing_is_named(
    fields: str, change: Callable[[Teacher], Teacher], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        pipeline.extraction.running, "build_teacher", lambda *a, **options: change(build_teacher(*a, **options))
    )
    for teacher in recheck(Store.open(path), 3).values():
        assert [difference["field"] for difference in teacher["differences"]] == fields.split()
        assert teacher["problems"][0].startswith(f"{fields.split()[0]} was ")


@pytest.mark.parametrize("what", ["mean", "net"])
def test_a_change_that_provenance_does_not_show_is_found_in_the_numbers(
    what: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(teacher: Teacher) -> Teacher:
        if what == "mean":
            teacher.mean += 0.5
        else:
            with torch.no_grad():
                next(parameter for parameter in teacher.parameters() if parameter.ndim > 1).mul_(1.2)
        return teacher

    monkeypatch.setattr(
        pipeline.extraction.running, "build_teacher", lambda *a, **options: change(build_teacher(*a, **options))
    )
    for teacher in recheck(Store.open(path), 6).values():
        assert not teacher["differences"]
        assert "level 0: the stored features have a token cosine of 0." in teacher["problems"][0]


def test_a_damaged_store_is_repaired_before_it_is_recomputed(images: Path, tmp_path: Path) -> None:
    sak(*cache_arguments(images, tmp_path, teachers=["mini-clip"], views=1))
    (path,) = tmp_path.glob("*.zarr")
    toy.flip(path / "pixels/c.0.0.0.0.0", 7)
    done = sak("verify", path, "--live", "4", "--json", check=False)
    assert done.returncode == 1
    assert "live" not in json.loads(done.stdout)


def test_rows_are_drawn_from_valid_committed_ones(path: Path) -> None:
    store = Store.open(path)
    rows = draw_rows(store, "mini-dino", 10_000, np.random.default_rng(0))
    assert rows == [(sample, view) for view in range(2) for sample in range(NUM_IMAGES - 1)]
    few = draw_rows(store, "mini-dino", 4, np.random.default_rng(1))
    assert {(view, sample // 64) for sample, view in few} == {(0, 0), (0, 1), (1, 0), (1, 1)}
