"""Stores of the same rows, each with teachers of its own, read as one: the numbers of a store that holds them all."""

from __future__ import annotations

import json
import pickle
import shutil
import weakref
from pathlib import Path

import pytest
import torch

from cache.errors import SpecMismatch, StoresDiffer
from cache.joined import JoinedStore
from cache.loading.loader import Loader
from cache.store import Store
from cache.writing.source_writer import SourceWriter
from pipeline.errors import UserError
from pipeline.recipes.config import Data
from pipeline.recipes.stores import digest, find_store
from pipeline.runs.checkpoint import scored_weights
from sak_core.weights.tensor_files import read_tensors
from tests import cache_toy as toy
from tests.conftest import refusal, sak

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
    with pytest.raises(SpecMismatch) as caught:
        JoinedStore(other, {"mini-clip": clip})
    assert caught.value.field == field and str(clip) in str(caught.value)


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
