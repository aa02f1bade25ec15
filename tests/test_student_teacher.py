"""A distilled student teaches the next: its outputs are cached as teachers, and compared with as such."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.store import Store, find_stores
from pipeline.errors import UserError
from pipeline.extraction.student_teacher import build_student_teacher
from pipeline.recipes.automatic import choose
from pipeline.recipes.frozen import cached_name, is_frozen_part
from sak_core.student.config import StudentConfig
from sak_core.student.network import StudentNetwork
from sak_core.student.pretrained import PretrainedConfig, Student, save_pretrained
from sak_core.student.stem import StemConfig
from tests.conftest import logged, refusal, sak

ABOUT = {
    "teachers": [
        {"name": name, "library": "x", "model": "x", "weights": weights, "licence": licence}
        for name, weights, licence in (("one", "sha256:1", "CC-BY-NC-4.0"), ("two", "random:0", "MIT"))
    ]
}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported student of two teachers, never trained, made for views of 64x64 px."""
    torch.manual_seed(3)
    stem = StemConfig("custom", (64, 64), patch_size=16, width=32, depth=4, heads=2)
    network = StudentNetwork(StudentConfig(stem, {"one": 24, "two": (8, 8, 8)}, levels=(0, 2)))
    folder = tmp_path_factory.mktemp("large") / "big.student"
    save_pretrained(network, PretrainedConfig(network.config, ("two",), ABOUT), folder)
    return folder


@pytest.mark.parametrize("output", ["stem", "one", "two"])
def test_an_output_is_what_the_student_itself_gives(large: Path, output: str) -> None:
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    teacher = build_student_teacher(f"student:{large}#{output}", (64, 64))
    with torch.no_grad():
        wanted = Student.from_pretrained(large).features(pixels)[output]
    found = teacher(pixels)
    assert len(found) == len(wanted) == len(teacher.spec.widths) == 2
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert teacher.spec.licence == "CC-BY-NC-4.0", "no freer than what it learned from"


def test_weights_are_those_of_the_output_alone(large: Path) -> None:
    digests = {name: build_student_teacher(f"student:{large}#{name}", (64, 64)).spec.weights for name in ("one", "two")}
    assert digests["one"] != digests["two"]


def test_an_output_that_is_not_there_is_named(large: Path) -> None:
    with pytest.raises(UserError, match="unknown output of the student 'three'; known: stem, one, two"):
        build_student_teacher(f"student:{large}#three", (64, 64))


def test_an_output_is_a_teacher_and_no_frozen_part() -> None:
    assert not is_frozen_part("student:runs/a.b#dinov2") and is_frozen_part("student:runs/a.b")
    assert cached_name("student:runs/a.b#dinov2") == "student-a-b-dinov2"
    assert cached_name("student:lab/eupe#stem") == "student-eupe-stem"


def test_a_large_student_teaches_a_small_one(large: Path, tmp_path: Path) -> None:
    """The command line, views of another size than the student was made for: both its outputs, then the small one."""
    teachers = f"student:{large}#one,student:{large}#stem"
    asked = ["--split", "unlabelled", "--limit", "8", "--views", "1", "--size", "96", "--decoders", "0"]
    done = sak("cache", "--teacher", teachers, *asked, "--grid", "3x3", "--threads", "1", "--out", tmp_path)
    assert "learned from teachers with random weights: two" in done.stderr
    store = Store.open(find_stores(tmp_path, "rooms", "unlabelled")[0].path)
    names = ["student-big-student-one", "student-big-student-stem"]
    assert sorted(store.teachers) == names
    info = store.teacher(names[0])
    assert [level.grid for level in info.maps] == [(3, 3)] * 2 and info.provenance["notes"]["num_blocks"] == 4
    row = store.features(names[0], 0)[0, 0]
    assert np.isfinite(row).all() and row.std() > 0
    assert sorted(choose(tmp_path, "rooms").teachers) == names, "a recipe is written with them"
    settings = [
        f"teachers={names}", "data={dataset='rooms', split='unlabelled', size='96x96', views=1}", "steps=2",
        "batch_size=4", "log_every=1", "threads=1", "student.stem.depth=4", "student.stem.weights=''",
    ]  # fmt: skip
    asked_of_it = [word for setting in settings for word in ("--set", setting)]
    sak("distill", "demo", "--out", tmp_path, "--run", tmp_path / "small", *asked_of_it)
    assert all(line["student-big-student-one_level1"] > 0 for line in logged(tmp_path / "small"))
    learned = json.loads((tmp_path / "small" / "model.json").read_text())["teachers"]
    assert {teacher["licence"] for teacher in learned} == {"CC-BY-NC-4.0"}
    said = refusal("cache", "--teacher", f"student:{large}#one", *asked, "--levels", "1", "--out", tmp_path)
    assert "what the student taps, here levels 0,2; leave --levels out" in said
