"""Frozen parts from the cache: the same numbers as running them live on the same pixels, and refusals in words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from safetensors.torch import load_file

from cache.loading.loader import Loader
from cache.store import Store, find_stores
from pipeline.errors import UserError
from pipeline.recipes.config import load_recipe, parse_set
from pipeline.runs import Places
from pipeline.studies.estimate import estimate
from pipeline.studies.jobs import Job
from pipeline.training.distill import distill
from tests.conftest import answer, cache_split, logged, refusal, sak

STEPS = ["--set", "steps=4", "--set", "batch_size=8", "--set", "log_every=1", "--set", "tasks=['semseg', 'depth']"]


@pytest.fixture(scope="module")
def places(features: Path, module_folder: Path) -> tuple[Path, Path]:
    """Caches with frozen parts at full precision, and a folder with a distilled run that they belong to."""
    caches, runs = module_folder / "features", module_folder / "runs"
    shutil.copytree(features, caches)
    cache_split(caches, "unlabelled", "--teacher", "stem:demo", "--codec", "fp32")
    common = ["--out", caches, *STEPS, "--set", "trains=adapters"]
    sak("distill", "demo", "--run", runs / "live", *common)
    sak("distill", "demo", "--run", runs / "cached", *common, "--set", "frozen=stem:demo")
    both = f"stem:{runs / 'live'},student:{runs / 'live'}"
    cache_split(caches, "train", "--teacher", both, "--codec", "fp32")
    return caches, runs


def assert_same(a: Path, b: Path) -> None:
    """The same losses at every step, and weights that moved alike."""
    for left, right in zip(logged(a), logged(b), strict=True):
        assert left == pytest.approx(right, rel=1e-5, abs=1e-6)
    one, other = (load_file(run / "last" / "model.safetensors") for run in (a, b))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-3, atol=2e-5, msg=name)


def test_distilling_on_a_cached_stem_equals_running_it(places: tuple[Path, Path]) -> None:
    _, runs = places
    assert_same(runs / "live", runs / "cached")


@pytest.mark.parametrize(
    ("trains", "part"), [pytest.param("adapters", "stem", marks=pytest.mark.slow), ("routers", "student")]
)
def test_fine_tuning_on_cached_parts_equals_running_them(places: tuple[Path, Path], trains: str, part: str) -> None:
    caches, runs = places
    common = ["finetune", "demo", "--from", runs / "live", "--out", caches, *STEPS, "--set", f"trains={trains}"]
    live, cached = runs / f"{trains}-live", runs / f"{trains}-cached"
    sak(*common, "--run", live)
    sak(*common, "--run", cached, "--set", f"frozen={part}:{runs / 'live'}")
    assert_same(live, cached)
    scores = [json.loads((run / "results.json").read_text())["validation"]["depth"]["RMSE"] for run in (live, cached)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4), "scored live on pixels, both"


def test_the_arrays_are_named_as_documented(places: tuple[Path, Path]) -> None:
    caches, _ = places
    store = Store.open(find_stores(caches, "rooms", "unlabelled")[0].path)
    info = store.teacher("stem-demo")
    assert [level.level for level in info.maps] == list(range(7)), "x_0 and six blocks"
    prefix = zarr.open_array(store.path / "teachers" / "stem-demo" / "level_3_prefix", mode="r")
    named = ("view", "sample", "level_3_prefix_token", "level_3_prefix_channel")
    assert prefix.shape == (2, 48, 1, 96) and prefix.metadata.dimension_names == named
    read = store.features("stem-demo", 3, prefix=True)
    assert read.row_shape == (1, 96)
    np.testing.assert_array_equal(read[5, 1], prefix[1, 5])
    batch = next(iter(Loader(store, ["stem-demo"], prefixes=["stem-demo"], batch_size=4, num_views=2)))
    rows = zip(batch.samples.tolist(), batch.views.tolist(), strict=True)
    decoded = batch.to("cpu").prefixes["stem-demo"][3]
    np.testing.assert_array_equal(decoded.numpy(), np.stack([read[sample, view] for sample, view in rows]))
    verified = answer("verify", store.path, "--live", "3")
    assert verified["problems"] == [] and verified["live"]["stem-demo"]["problems"] == []


def test_a_frozen_run_is_measured_before_a_study(places: tuple[Path, Path], tmp_path: Path) -> None:
    caches, runs = places
    frozen = {"trains": "routers", "frozen": f"student:{runs / 'live'}", "steps": 60, "batch_size": 8}
    recipe = load_recipe("demo", "finetune", frozen)
    job = Job("frozen", 0, recipe, tmp_path / "study" / "run", stage1=runs / "live")
    found = estimate([job], Places(caches, tmp_path), 1)
    assert found["steps"] == 60 and 0 < found["seconds"] < 600 and not list(tmp_path.iterdir())
    gone = Job("gone", 0, recipe.model_copy(update={"frozen": "student:nowhere"}), tmp_path / "study" / "other")
    assert estimate([gone], Places(caches, tmp_path), 1)["seconds"] is None


def test_other_weights_and_mismatched_keys_are_refused(places: tuple[Path, Path], tmp_path: Path) -> None:
    caches, runs = places

    def refused(*changes: str) -> str:
        recipe = load_recipe("demo", "distill", parse_set([*changes, "batch_size=8"]))
        with pytest.raises(UserError) as caught:
            distill(recipe, tmp_path / "-".join(changes).replace("/", "-"), Places(caches, runs))
        return str(caught.value)

    assert "was cached with other weights" in refused("trains=adapters", "frozen=stem:demo", "student.stem.weights=''")
    assert "goes with trains = 'adapters'" in refused("frozen=stem:demo")
    assert "expected stem:RECIPE" in refused("trains=adapters", "frozen=demo")
    assert "no teacher 'stem-other'" in refused("trains=adapters", "frozen=stem:other")


def test_what_a_part_takes_is_said_before(places: tuple[Path, Path], tmp_path: Path) -> None:
    done = cache_split(tmp_path, "val", "--teacher", "stem:demo", "--codec", "fp32", "--dry-run", "--json")
    part = next(part for part in json.loads(done.stdout)["parts"] if "stem-demo" in part["part"])
    tokens = 7 * (12 * 12 + 1)
    assert part["pending_bytes"] >= 16 * tokens * 96 * 4
    unknown = cache_split_fails(tmp_path, "student:nowhere")
    assert "no finished run nowhere" in unknown


@pytest.mark.parametrize("option", [["--levels", "0,3"], ["--random-weights"], ["--weights", "x.pth"], ["--grid", "4"]])
def test_what_a_part_has_no_use_for_is_refused(option: list[str], tmp_path: Path) -> None:
    told = cache_split_fails(tmp_path, "stem:demo", *option)
    assert "stem:demo: " in told and f"leave {option[0]} out" in told


def cache_split_fails(features: Path, teacher: str, *options: str) -> str:
    asked = ["--split", "val", "--limit", "4", "--out", features, "--teacher", teacher, *options]
    said = refusal("cache", *asked)
    return said
