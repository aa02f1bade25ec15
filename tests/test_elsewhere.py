"""A store in other hands: workers that are spawned, a process that changes its folder, readers of plain Zarr."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from torch.utils.data import DataLoader, Dataset

from cache.format.entries import files_to_dict
from cache.format.manifest import CLOSED
from cache.format.seals import seal
from cache.format.spec import LevelSpec
from cache.maintenance.verification import verify_store
from cache.places.files import digest_of, readable_json
from cache.reading.arrays import FeatureArray
from cache.store import Store
from cache.writing.teacher_writer import TeacherWriter
from tests import cache_toy as toy


class Features(Dataset[torch.Tensor]):
    """A level of a store, as people wrap it."""

    def __init__(self, level: FeatureArray) -> None:
        self.level = level

    def __len__(self) -> int:
        return len(self.level)

    def __getitem__(self, sample: int) -> torch.Tensor:
        return torch.from_numpy(self.level[sample, 0])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return toy.make_store(tmp_path_factory.mktemp("toy"))


@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_a_level_is_read_by_workers_of_any_kind(store: Store, context: str) -> None:
    level = store.features("mini-dino", level=1)
    level[0, 0]  # open files and locks are this process's
    rows = DataLoader(Features(level), None, num_workers=1, multiprocessing_context=context, timeout=120)
    np.testing.assert_array_equal(torch.stack(list(rows)), level[:, 0])


def test_all_that_a_store_gives_can_be_pickled(store: Store) -> None:
    for given in (store.pixels, store.labels["semseg"], store.samples["size"], store.features("mini-dino", level=3)):
        index: Any = (slice(None), 1) if given.rows.array.has_views else slice(None)
        before = given[index]
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(given))[index], before)
    again = pickle.loads(pickle.dumps(store))
    assert again.spec == store.spec and again.ids() == store.ids()
    with store.lock("source"):  # what is held here is not held there
        other = pickle.loads(pickle.dumps(store))
        with other.lock("mini-dino", wait=False):
            pass


def test_a_relative_path_is_of_the_folder_it_was_opened_in(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store.path.parent)
    here = Store.open(store.name)
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(here.features("mini-dino", level=0)[3, 1], store.features("mini-dino", level=0)[3, 1])
    here.log({"event": "elsewhere"})
    assert not list(tmp_path.iterdir()) and here.path == store.path
    assert str(here) == store.name, "messages name it as the person did"
    assert pickle.loads(pickle.dumps(here)).path == store.path


# ---- plain Zarr ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Levels of unlike grids and widths by every kind of codec, predicted ones and class tokens among them."""
    store = toy.make_store(tmp_path_factory.mktemp("coded"))
    for name, codec in (("a", "klt"), ("b", "int4"), ("c", "klt+trellis")):
        levels = [LevelSpec(0, (4, 3), 8, codec), LevelSpec(1, (4, 3), 8, codec, predicts_from=0)]
        levels += [LevelSpec(2, (2, 2), 6, codec), LevelSpec(0, (1, 3), 8, "fp32", prefix=True)]
        toy.write_teacher(store, 1, name, levels)
    return store


def test_dimensions_are_named_and_do_not_clash(coded: Store) -> None:
    """What xarray asks of a group, and of a tree of groups: one size a name, and no name twice in an array."""
    group = zarr.open_group(coded.zarr(), mode="r")
    arrays = {path: node for path, node in group.members(max_depth=None) if isinstance(node, zarr.Array)}
    assert len(arrays) > 100
    sizes: dict[tuple[str, str], set[int]] = defaultdict(set)
    for path, array in arrays.items():
        names = array.metadata.dimension_names
        assert names is not None and len(set(names)) == len(names) == array.ndim and None not in names, path
        for name, size in zip(names, array.shape, strict=True):
            if name != "view":  # of which a teacher may have fewer
                sizes[path.rpartition("/")[0], name].add(size)
    for (group_path, name), found in sizes.items():
        above = [sizes.get((str(parent).removeprefix("."), name), set()) for parent in Path(group_path).parents]
        assert len(found.union(*above)) == 1, f"{group_path}: {name} has sizes {found} and, above, {above}"
    assert arrays["teachers/a/level_2"].metadata.dimension_names == (
        "view",
        "sample",
        "level_2_component",
        "level_2_cell",
    )


def test_zarr_python_lists_it_without_a_warning(coded: Store) -> None:
    """By its path, and as the store gives itself, which leaves out what is no Zarr in older stores, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in")  # of pcodec, whoever reads it
        coded.log({"event": "listed"})
        assert {name for name, _ in zarr.open_group(coded.path, mode="r").members(max_depth=None)} > {"manifest"}
        group = zarr.open_group(coded.zarr(), mode="r")
        assert {name for name, _ in group.members()} == {"labels", "pixels", "samples", "teachers", "views"}
        assert "teachers/a/level_2" in dict(group.members(max_depth=None))
        assert "mini-dino" in str(group.tree())


def without_names(path: Path) -> None:
    """Make a store's metadata what it was before calibrations had dimension names and others had unlike ones."""
    for folder in ("source", "teachers/mini-dino", "teachers/mini-clip"):
        for name in ("metadata", "calibration"):
            sealed = path / "manifest" / folder / f"{name}.json"
            if not sealed.exists():
                continue
            document = json.loads(sealed.read_text())
            del document["digest"]
            if name == "calibration":
                document["files"] = {file: of for file, of in document["files"].items() if "/error/" not in file}
            if document["files"].pop(CLOSED, None):
                (path / CLOSED).unlink()
            for array in document.get("arrays", {}).values():
                array["dims"] = [dim.rpartition("_")[2] for dim in array["dims"]]
            for file in document["files"]:
                if file.rpartition("/")[2] == "zarr.json":
                    plain = json.loads((path / file).read_text())
                    if "/calibration/" in file:
                        plain.pop("dimension_names", None)
                    elif "dimension_names" in plain:
                        of = document["arrays"][file.removesuffix("/zarr.json")]
                        lead = ["view", "sample"] if of["has_views"] else ["sample"]
                        plain["dimension_names"] = lead + of["dims"]
                    data = readable_json(plain)
                    (path / file).write_bytes(data)
                    document["files"][file] = files_to_dict({file: digest_of([data])})[file]
            sealed.write_bytes(seal(document))
    for error in path.glob("teachers/*/calibration/*/error"):
        shutil.rmtree(error)


def test_a_store_keeps_the_names_that_it_was_made_with(tmp_path: Path) -> None:
    """One from before is opened, grown, checked and repaired as it is."""
    store = toy.make_store(tmp_path, num_views=1)
    arrays = store.calibration("mini-dino")
    assert arrays is not None and "level_0/error" in arrays
    without_names(store.path)
    old = Store.create(tmp_path, toy.toy_spec())
    assert not verify_store(old.path)
    old.log({"event": "opened"})
    assert (old.path / "log.jsonl").is_file(), "where it always was"
    toy.write_source(old, 2, toy.INVALID)
    toy.write_teacher(old, 2)
    toy.write_teacher(old, 2, "mini-clip", toy.OTHER_LEVELS)
    assert not verify_store(old.path)
    plain = json.loads((old.path / "teachers/mini-dino/level_3/zarr.json").read_text())
    assert plain["dimension_names"] == ["view", "sample", "y", "x", "channel"] and plain["shape"][0] == 2
    before = toy.tree(old.path)
    for lost in ("level_1/mean/zarr.json", "level_1/covariance/c.0.0"):
        (old.path / "teachers/mini-dino/calibration" / lost).unlink()
    writer = TeacherWriter(old, {"name": "mini-dino", "weights": "sha256:00"}, toy.LEVELS)
    writer.write_calibration(arrays)
    assert toy.tree(old.path) == before
