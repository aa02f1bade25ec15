"""Stores of the same rows, each with teachers of its own, read as one: the numbers of a store that holds them all."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import sak as front
from cache.errors import StoresDiffer
from cache.format.entries import ViewEntries
from cache.joined import JoinedStore, check_same_rows
from cache.loading.loader import Loader
from cache.maintenance.store_copy import copy_store, plan_copy, select
from cache.places.files import FileDigest
from cache.store import Store, find_stores
from cache.writing.source_writer import SourceWriter
from pipeline.errors import UserError
from pipeline.maintenance.copy_caches import CopyRequest, copy
from pipeline.recipes.config import Data
from pipeline.recipes.stores import digest, find_store
from pipeline.runs.checkpoint import scored_weights
from sak_core.weights.tensor_files import read_tensors
from tests import cache_toy as toy
from tests.conftest import answer, refusal, sak

ROOT = Path(__file__).parents[1]
TEACHERS = ["mini-clip", "mini-dino"]


def source(root: Path, **fields: object) -> Store:
    store = Store.create(root, toy.toy_spec(**fields))
    toy.write_source(store, 2, toy.INVALID)
    return store


@pytest.fixture
def dino(tmp_path: Path) -> Store:
    store = source(tmp_path / "mine")
    toy.write_teacher(store, 2)
    return store


@pytest.fixture
def clip(tmp_path: Path) -> Store:
    store = source(tmp_path / "theirs")
    toy.write_teacher(store, 2, "mini-clip", toy.OTHER_LEVELS)
    return store


def data(*places: Path) -> Data:
    return Data(dataset="toy", split="train", views=2, out=tuple(map(str, places)))


def test_the_same_numbers_as_one_store(dino: Store, clip: Store, tmp_path: Path) -> None:
    whole = toy.make_store(tmp_path / "whole")
    joined = find_store(tmp_path / "mine", data(tmp_path / "theirs"), TEACHERS)
    assert joined.teachers == whole.teachers == TEACHERS and len(joined.stores) == 2
    assert digest(joined, TEACHERS, 2) == digest(whole, TEACHERS, 2)
    for store in (joined, pickle.loads(pickle.dumps(joined))):
        options = {"labels": ["semseg"], "batch_size": 4, "num_views": 2, "seed": 5, "pin": False}
        loaders = [Loader(one, TEACHERS, **options) for one in (store, whole)]
        assert loaders[0].state_dict() == loaders[1].state_dict()
        count = 0
        for one, other in zip(*loaders, strict=True):
            for left, right in zip(*(batch.to("cpu").features.values() for batch in (one, other)), strict=True):
                assert all(map(torch.equal, left, right))
            assert torch.equal(one.pixels, other.pixels) and torch.equal(one.samples, other.samples)
            count += 1
        assert count == len(loaders[0]) > 1


def test_a_store_that_is_let_go_of_is_gone(dino: Store, clip: Store) -> None:
    """At once, and its open files with it: thousands of stores come and go in a process."""
    store = JoinedStore(dino, {"mini-clip": clip})
    kept = [weakref.ref(one) for one in (store, Store.open(dino.path))]
    del store
    assert not any(one() for one in kept)


def test_a_teacher_is_read_where_it_is_whole(dino: Store, clip: Store, tmp_path: Path) -> None:
    half = source(tmp_path / "half")
    toy.write_teacher(half, 1)
    store = find_store(tmp_path / "half", data(tmp_path / "mine"), ["mini-dino"])
    assert isinstance(store, JoinedStore) and store.is_complete("teachers/mini-dino", 2)
    assert find_store(tmp_path / "mine", data(tmp_path / "half"), ["mini-dino"]).stores[0].path == dino.path
    with pytest.raises(UserError, match="has no teacher 'mini-sam'"):
        find_store(tmp_path / "mine", data(tmp_path / "theirs", tmp_path / "nowhere"), ["mini-sam"])


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"seed": 4}, "seed"),
        ({"policy": {"kind": "random-resized-crop", "scale": [0.4, 1.0]}}, "policy.scale"),
        ({"size": (6, 8)}, "size"),
        ({"num_samples": 12}, "num_samples"),
    ],
)
def test_what_differs_in_policy_is_named(fields: dict[str, object], field: str, clip: Store, tmp_path: Path) -> None:
    other = source(tmp_path / "other", **fields)
    with pytest.raises(StoresDiffer, match=rf": {re.escape(field)} is .* and ") as caught:
        JoinedStore(other, {"mini-clip": clip})
    assert str(clip) in str(caught.value) and str(other) in str(caught.value)


@pytest.mark.parametrize("array", ["samples/ids", "samples/digest", "views/box", "pixels"])
def test_which_rows_differ_is_named(array: str, clip: Store, tmp_path: Path) -> None:
    other = Store.create(tmp_path / "other", toy.toy_spec())
    other.ensure_views(1)
    writer = SourceWriter(other)
    for view, shard in writer.pending(1):
        arrays = toy.source_arrays(other.spec, view, shard)
        if shard == 1 and array == "samples/ids":
            arrays[array][1] = "another"
        elif shard == 1:
            arrays[array][1] = arrays[array][1] + 1
        bad = {sample: why for sample, why in toy.INVALID.items() if sample in other.spec.rows(shard)}
        writer.write_shard(view, shard, arrays, bad)
    with pytest.raises(StoresDiffer, match=f"{array}.* differs for .*image-5-é") as caught:
        JoinedStore(clip, {"mini-dino": other})
    assert ("another" in str(caught.value)) == (array == "samples/ids")


def test_distilled_from_two_places(small: Path, tmp_path: Path) -> None:
    """By the command line: one teacher here, another there, as from the one folder that has both."""
    theirs, whole = tmp_path / "theirs", tmp_path / "whole"
    same = ["--split", "unlabelled", "--limit", "18", "--views", "2", "--threads", "1", "--decoders", "0"]
    sak("cache", "--teacher", "mini-clip", *same, "--out", theirs)
    shutil.copytree(small, whole)
    sak("copy", theirs, whole)
    asked = ["--set", "steps=2", "--set", "batch_size=8", "--set", 'teachers=["mini-dino","mini-clip"]']
    alone = refusal("distill", "demo", *asked, "--out", small, "--run", tmp_path / "none")
    assert "has no teacher 'mini-clip'" in alone
    runs = {tmp_path / "one": ["--out", whole], tmp_path / "two": ["--out", small, "--out", theirs]}
    for run, places in runs.items():
        sak("distill", "demo", *asked, *places, "--run", run)
    one, two = (read_tensors(scored_weights(run)) for run in runs)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    first, second = (json.loads((run / "model.json").read_text()) for run in runs)
    assert first == second and len(first["teachers"]) == 2


# ---- every command that reads caches takes several places ------------------------------------------------------------


@pytest.fixture(scope="module")
def apart(module_folder: Path) -> tuple[Path, Path]:
    """Two folders beside "whole", which holds small caches with two teachers: the same with one teacher each."""
    for split, limit, views in (("train", 16, 2), ("val", 8, 1), ("test", 8, 1)):
        front.cache(
            "mini-clip,mini-dino", "rooms", split, limit=limit, views=views, decoders=0, out=module_folder / "whole"
        )
    for name, teachers in (("one", ("mini-dino",)), ("two", ("mini-clip",))):
        copy(CopyRequest(module_folder / "whole", module_folder / name, teachers=teachers))
    return module_folder / "one", module_folder / "two"


STUDY = """
recipe = "{recipe}"
arms = ["teacher:mini-clip", "{more}"]
test = {{ dataset = "rooms", split = "test", size = "96x96" }}
set = {{ steps = 2, batch_size = 8, tasks = ["depth"] }}
"""


def test_a_study_of_caches_in_two_places(apart: tuple[Path, Path], tmp_path: Path) -> None:
    """Named by --out, or by the recipe, which then says where the test split is, too."""
    one, two = apart
    study = tmp_path / "study.toml"
    study.write_text(STUDY.format(recipe="demo", more="multi-task"))
    lacking = refusal("ablate", study, "--out", one, "--runs", tmp_path)
    assert "has no teacher 'mini-clip' (it has mini-dino)" in lacking and "another --out" in lacking
    table = answer("ablate", study, "--out", one, "--out", two, "--runs", tmp_path / "runs")
    whole = front.ablate(study, out=one.parent / "whole", runs=tmp_path / "whole")
    assert len(table["rows"]) == 3 and not table["failed"]
    assert [row["scores"] for row in table["rows"]] == [row["scores"] for row in whole["rows"]]
    told = front.report("study", to=tmp_path / "report.html", out=apart, runs=tmp_path / "runs")
    assert "mini-clip" in json.dumps(told["tables"]) and not any("Not below" in remark for remark in told["remarks"])
    recipe = tmp_path / "mine.toml"
    recipe.write_text(f'out = ["{one}", "{two}"]\n{(ROOT / "pipeline/recipes/demo.toml").read_text()}')
    study.write_text(STUDY.format(recipe=recipe, more="multi-task"))
    planned = front.ablate(study, dry_run=True, out=tmp_path / "nothing", runs=tmp_path / "more")
    assert len(planned["runs"]) == 2


def test_what_is_wrong_with_several_places_is_said(apart: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = apart
    assert "a cache is written to one place" in refusal("plan", "--out", one, "--out", two)
    calls: list[Callable[[list[Path]], object]] = [
        lambda out: front.ablate("demo", out=out),
        lambda out: front.evaluate("run", out=out),
        lambda out: front.plan_training("demo", out=out),
        lambda out: front.recipe(out=out),
    ]
    for call in calls:
        with pytest.raises(UserError, match="tow: no such folder"):
            call([one, tmp_path / "tow"])
    with pytest.raises(UserError, match="no folder or address"):
        front.distill(out=[])
    front.cache("mini-clip", "rooms", "train", limit=8, views=2, decoders=0, out=tmp_path / "other")
    with pytest.raises(StoresDiffer, match="num_samples is 16 and 8"):
        front.distill(out=[one, tmp_path / "other"], runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists(), "no recipe is written for what cannot be"


def test_python_takes_several_places_and_a_recipe_of_its_own(apart: tuple[Path, Path], tmp_path: Path) -> None:
    """Without a recipe: what is written is for the teachers of all places."""
    where: dict[str, Any] = {"out": list(apart), "runs": tmp_path}
    few = {"steps": 2, "batch_size": 8, "tasks": ["depth"]}
    told = front.recipe(to=tmp_path / "written.toml", out=apart).read_text()
    assert 'teachers = ["mini-clip", "mini-dino"]' in told
    distilled = front.distill(overrides=few, **where)
    tuned = front.finetune(overrides=few, **where)
    for run in (distilled, tuned):
        made = json.loads((run.path / "model.json").read_text())["teachers"]
        assert sorted(one["name"] for one in made) == ["mini-clip", "mini-dino"]
    scored = front.evaluate(tuned.path, "val", **where)
    assert scored.scores["depth"]["RMSE"] > 0
    planned = front.plan_training(tmp_path / "written.toml", overrides=few, **where)
    assert planned["steps"] == 2 and planned["stored_bytes"] > 0
    runs = front.ablate(dry_run=True, **where)["runs"]
    assert any("teacher-mini-dino" in run for run in runs) and any("teacher-mini-clip" in run for run in runs)


def test_what_a_recipe_reads_is_copied_from_both(apart: tuple[Path, Path], tmp_path: Path) -> None:
    """A stage that reads fewer teachers than the other; and the rows of its probe."""
    one, two = apart
    recipe = tmp_path / "mine.toml"
    train = '{ dataset = "rooms", split = "train", size = "96x96", views = 2 }'
    recipe.write_text(
        f'out = ["{two}"]\nsteps = 2\n[distill]\nteachers = ["mini-dino", "mini-clip"]\ndata = {train}\n'
        'probe = { dataset = "rooms", split = "val", size = "96x96", every = 1 }\n'
        f'[finetune]\nteachers = ["mini-dino"]\ndata = {train}\n'
    )
    done = copy(CopyRequest(one, tmp_path / "copies", str(recipe)))["stores"]
    assert [list(store["teachers"]) for store in done] == [["mini-dino"], ["mini-clip"], []]
    assert [store.teachers for store in find_stores(tmp_path / "copies")] == [["mini-clip", "mini-dino"], []]
    with pytest.raises(UserError, match=r"unknown teacher that recipe .* reads 'mini-sam'"):
        copy(CopyRequest(one, tmp_path / "copies", str(recipe), ("mini-sam",)))


def test_rows_are_told_from_their_files(clip: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows in other bytes are the same; of pixels that are not here, the bytes decide."""
    other = source(tmp_path / "other")
    bare = copy_store(plan_copy(other, tmp_path / "bare", select(other, pixels=False)))
    real = ViewEntries.file

    def file(self: ViewEntries, shard: int, path: str) -> FileDigest:
        found = real(self, shard, path)
        return replace(found, sha256=f"{id(self)}") if path == "pixels" and shard == 1 else found

    monkeypatch.setattr(ViewEntries, "file", file)
    check_same_rows(other, clip)
    with pytest.raises(StoresDiffer, match="pixels in view 0 differs for folder/image-4"):
        check_same_rows(bare, clip)
