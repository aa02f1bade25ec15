"""Stores without pixels and labels: they say so, are read, copied and verified, and become whole byte for byte."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore

from cache.errors import BadInput, CorruptFile, LeftOut, RemadeDiffers
from cache.format.manifest import SOURCE
from cache.format.seals import seal
from cache.loading.loader import Loader
from cache.maintenance.left_out import missing_files, put_back
from cache.maintenance.metadata_repair import mend_metadata
from cache.maintenance.removal import drop_teacher, drop_views
from cache.maintenance.store_copy import copy_store, plan_copy, select
from cache.maintenance.verification import verify_store
from cache.places.local import LocalPlace
from cache.places.objects import ObjectPlace
from cache.places.place import Place
from cache.store import Store
from cache.writing.source_writer import SourceWriter
from tests import cache_toy as toy

LEFT_OUT = {"pixels", "labels/semseg", "labels/normals"}


def without_locks(path: Path) -> dict[str, bytes]:
    return {name: raw for name, raw in toy.tree(path).items() if not name.endswith("/lock")}


def without_pixels(store: Store, root: Place | Path) -> Store:
    return copy_store(plan_copy(store, root, select(store, pixels=False)))


def render(store: Store, invalid: dict[int, str] = toy.INVALID) -> None:
    writer = SourceWriter(store)
    for view, shard in missing_files(store):
        bad = {sample: why for sample, why in invalid.items() if sample in store.spec.rows(shard)}
        writer.write_shard(view, shard, toy.source_arrays(store.spec, view, shard), bad)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return toy.make_store(tmp_path_factory.mktemp("source"))


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(11, 15), st.integers(1, 6), st.integers(1, 2), st.booleans(), st.booleans())
def test_what_was_left_out_comes_back_byte_for_byte(
    num_samples: int, rows_per_shard: int, num_views: int, has_labels: bool, in_bucket: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fields = {} if has_labels else {"labels": {}}
        whole = toy.make_store(
            folder / "whole", num_views, num_samples=num_samples, rows_per_shard=rows_per_shard, **fields
        )
        there = ObjectPlace(MemoryStore(), "x/", "s3://bucket/x") if in_bucket else LocalPlace(folder / "there")
        features = without_pixels(whole, there)
        gone = {path for path in whole.part(SOURCE).metadata.arrays if path == "pixels" or path.startswith("labels/")}
        assert features.left_out == gone
        assert not [file for file in features.place.sizes() if file.rpartition("/")[0] in gone]
        assert verify_store(features.place) == [] and toy.unlisted_files(features.place) == []
        back = copy_store(plan_copy(features, folder / "back", select(features)))
        assert back.left_out == features.left_out
        render(back)
        put_back(back)
        assert without_locks(back.path) == without_locks(whole.path)
        assert Store.open(back.path).left_out == frozenset() and verify_store(back.path) == []


def test_it_is_read_without_images_and_says_what_is_missing(store: Store, tmp_path: Path) -> None:
    features = without_pixels(store, tmp_path)
    assert features.left_out == LEFT_OUT and features.ids() == store.ids() and features.invalid(2) == store.invalid(2)
    np.testing.assert_array_equal(features.samples["digest"][:], store.samples["digest"][:])
    np.testing.assert_array_equal(features.features("mini-dino", 1)[:, 1], store.features("mini-dino", 1)[:, 1])
    for read in (
        lambda: features.pixels,
        lambda: features.labels,
        lambda: Loader(features, ["mini-dino"], batch_size=2, num_views=1),
    ):
        with pytest.raises(
            LeftOut, match=r"features without the images: labels/normals, labels/semseg, pixels left out"
        ):
            read()
    group = zarr.open_group(features.zarr(), mode="r")  # a plain reader finds none, and not rows of zeros
    assert "pixels" not in group and "semseg" not in group["labels"] and "level_0" in group["teachers/mini-dino"]
    with pytest.raises(LeftOut):
        Store.create(tmp_path, store.spec)
    mark = "manifest/source/left_out.json"
    whole = (features.path / mark).read_bytes()
    toy.flip(features.path / mark, 20)
    assert mark in {problem.file for problem in verify_store(features.path)}
    assert mend_metadata(features.path) == ([mark], []) and (features.path / mark).read_bytes() == whole
    drop_teacher(features, "mini-clip")
    drop_views(features, 1)
    assert verify_store(features.path) == [] and Store.open(features.path).num_views == 1


def test_half_of_it_is_not_whole(store: Store, tmp_path: Path) -> None:
    features = without_pixels(store, tmp_path)
    SourceWriter(features).write_shard(0, 1, toy.source_arrays(store.spec, 0, 1), {4: "truncated"})
    assert (0, 1) not in missing_files(features) and len(missing_files(features)) == 7
    other = toy.source_arrays(store.spec, 0, 0)
    other["pixels"][0, 0, 0] ^= 1
    with pytest.raises(RemadeDiffers):
        SourceWriter(features).write_shard(0, 0, other)
    with pytest.raises(LeftOut):
        put_back(features)
    assert Store.open(features.path).left_out == LEFT_OUT and verify_store(features.path) == []


def test_features_are_added_to_the_same_images_alone(store: Store, tmp_path: Path) -> None:
    features = without_pixels(store, tmp_path / "features")
    mine = Store.create(tmp_path / "mine", store.spec)
    toy.write_source(mine, 2, toy.INVALID)
    added = copy_store(plan_copy(features, tmp_path / "mine", select(features)))
    assert without_locks(added.path) == without_locks(store.path)
    # more of the images than there are
    half = Store.create(tmp_path / "half", store.spec)
    toy.write_source(half, 1, toy.INVALID)
    with pytest.raises(LeftOut, match=str(features)):
        plan_copy(features, tmp_path / "half", select(features))
    with pytest.raises(LeftOut, match=str(tmp_path / "features")):
        plan_copy(store, tmp_path / "features", select(store))
    # other pixels under the same ids
    other = Store.create(tmp_path / "other", store.spec)
    toy.write_source(other, 2, {1: "another one is unreadable here"})
    with pytest.raises(BadInput, match=r"differ in view 0, samples 0 to 3: they were made from other images"):
        plan_copy(features, tmp_path / "other", select(features))


@pytest.mark.parametrize("arrays", [["samples/ids"], ["../pixels"], [3], "pixels", 3, None])
def test_nothing_else_can_be_left_out(arrays: object, store: Store, tmp_path: Path) -> None:
    features = without_pixels(store, tmp_path)
    document = {"format": 1, "part": "source", "arrays": arrays}
    (features.path / "manifest/source/left_out.json").write_bytes(seal(document))
    with pytest.raises(CorruptFile, match="not pixels and labels"):
        _ = Store.open(features.path).pixels
    assert "left_out.json" in {problem.file.rpartition("/")[2] for problem in verify_store(features.path)}
