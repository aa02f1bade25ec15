"""What was made from labels, features or weights that are others now is no answer: said, or computed anew."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from cache.loading.batch import Batch
from cache.loading.loader import Loader
from cache.store import find_stores
from pipeline.errors import UserError
from pipeline.extraction.contents import check_contents
from pipeline.extraction.files import RECORD
from pipeline.extraction.prepare import prepare
from pipeline.extraction.samples import DatasetRequest, Task, make_blocks
from pipeline.recipes.config import load_recipe
from pipeline.runs import read_results
from pipeline.runs.origin import changed_caches, changes
from pipeline.training.fresh import FreshBatches
from tests.conftest import TINY, answer, cache_split, refusal, sak
from tests.fields import cache_fields, make_fields, write_recipe, write_study


def test_corrected_labels_are_never_answered_with_the_old_model_or_score(tmp_path: Path) -> None:
    root, features = make_fields(tmp_path / "data", crops=False), tmp_path / "features"
    cache_fields(root, features)
    recipe = write_recipe(tmp_path, 'validation = { dataset = "fields", split = "val", size = "64x64" }')
    study, places = write_study(tmp_path, recipe), ["--out", features, "--runs", tmp_path / "runs"]
    run = tmp_path / "runs/wrong"
    sak("finetune", recipe, "--run", run, *places)
    assert answer("evaluate", run, "--split", "val", *places)["semseg"]["mIoU"] == 50
    sak("ablate", study, *places)
    assert "already scored" in sak("evaluate", run, "--split", "val", *places).stderr

    make_fields(root, crops=True)
    shutil.rmtree(features)
    cache_fields(root, features)  # files are as large as they were, so the stores have the same names
    scored = sak("evaluate", run, "--split", "val", "--json", *places)
    assert "scored anew on val" in scored.stderr and "trained on a cache that has been made anew" in scored.stderr
    assert json.loads(scored.stdout)["semseg"]["mIoU"] == pytest.approx(35.35, abs=0.01)  # 2896 of 4096 px are soil
    said = refusal("finetune", recipe, "--run", run, *places)
    assert "made from something else" in said
    assert "caches.fields-train-64x64" in said and "validation.caches.fields-val" in said
    mixed = sak("ablate", study, *places, check=False)
    assert mixed.returncode == 2 and "would mix what does not belong together" in mixed.stderr
    assert "multi-task-seed0-finetune" in mixed.stderr and "|" not in mixed.stdout
    shutil.rmtree(tmp_path / "runs/study/multi-task-seed0-finetune")
    assert "35." in sak("ablate", study, *places).stdout


def test_a_description_that_weighs_a_task_otherwise_is_another_origin(tmp_path: Path) -> None:
    """The bytes of the store are the same, and the training is not."""
    root, features = make_fields(tmp_path / "data", crops=True), tmp_path / "features"
    cache_fields(root, features)
    recipe, places = write_recipe(tmp_path), ["--out", features, "--run", tmp_path / "run"]
    sak("finetune", recipe, *places)
    shutil.rmtree(features)
    (root / "dataset.toml").write_text((root / "dataset.toml").read_text() + "weight = 7\n")
    cache_fields(root, features)
    said = refusal("finetune", recipe, *places)
    assert "made from something else" in said and "facts.fields" in said


def test_each_size_and_each_state_of_the_weights_has_its_own_score(features: Path, tmp_path: Path) -> None:
    places = ["--out", tmp_path / "features", "--runs", tmp_path]
    shutil.copytree(features, tmp_path / "features")
    cache_split(tmp_path / "features", "test", "--size", "64x64")
    run = tmp_path / "r"
    settings = ["--set", 'arm="multi-task"', "--set", 'tasks=["depth"]', *TINY]
    sak("finetune", "demo", *settings, "--run", run, *places)
    study = tmp_path / "s.toml"
    for size in ("96x96", "64x64"):
        study.write_text(
            'recipe = "demo"\narms = ["multi-task"]\nset = { steps = 4, batch_size = 8, tasks = ["depth"] }\n'
            f'test = {{ dataset = "rooms", split = "test", size = "{size}" }}\n'
        )
        sak("ablate", study, *places)
    folder = tmp_path / "s/multi-task-seed0-finetune"
    scores = [json.loads((folder / f"scores-rooms-test-{s}.json").read_text()) for s in ("96x96", "64x64")]
    assert scores[0]["scores"] != scores[1]["scores"]
    for size, one in zip(("96x96", "64x64"), scores, strict=True):
        assert all(f"rooms-test-{size}-" in name for name in one["made_from"]["caches"])

    first = answer("evaluate", run, *places)["depth"]
    weights = run / "last/model.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(weights).items()}, weights)
    scored = sak("evaluate", run, "--json", *places)
    assert "scored anew on test: weights:" in scored.stderr
    assert json.loads(scored.stdout)["depth"]["RMSE"] != first["RMSE"]


def test_a_file_that_kept_its_size_is_looked_into_where_its_times_differ(tmp_path: Path) -> None:
    root, features = make_fields(tmp_path / "data", crops=False), tmp_path / "features"
    cache_fields(root, features)
    (train,) = find_stores(features, "fields", "train")
    before = (train.path / RECORD).read_bytes()
    assert len(before) == 8 * 5
    os.utime(root / "labels/2.npy", ns=(0, 0))  # another time, the same content
    touched = cache_fields(root, features)[0]
    assert "may be older than 1 of its samples' files" in touched.stderr
    assert (train.path / RECORD).read_bytes() != before
    assert "older than" not in cache_fields(root, features)[0].stderr, "its times are known now"
    make_fields(root, crops=True)
    for done, split in zip(cache_fields(root, features, check=False), ("train", "val"), strict=True):
        assert done.returncode == 2 and f"is no longer the semseg label that fields-{split}" in done.stderr
        assert "remove" in done.stderr
    assert sak("verify", train.path).returncode == 0, "the record is no part of what is verified"


def test_a_store_without_times_is_compared_whole_once(tmp_path: Path) -> None:
    """As stores of older versions, and copies, are."""
    root, features = make_fields(tmp_path / "data", crops=False), tmp_path / "features"
    cache_fields(root, features)
    (train,) = find_stores(features, "fields", "train")
    (train.path / RECORD).unlink()
    assert "keeps no times of its files" in cache_fields(root, features)[0].stderr
    (train.path / RECORD).unlink()
    make_fields(root, crops=True)
    assert cache_fields(root, features, check=False)[0].returncode == 2


def test_an_image_that_kept_its_size_and_its_modification_time_is_found(tmp_path: Path) -> None:
    """As from an archive that gives all its files one time."""
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(3):
        Image.fromarray(np.full((32, 32, 3), n, np.uint8)).save(folder / f"{n}.bmp")
        (folder / f"{n}.bmp").rename(folder / f"{n}.png")  # as large whatever it shows
        os.utime(folder / f"{n}.png", ns=(10**18, 10**18))
    request = DatasetRequest("folder", "val", (32, 32), folder)
    prepare(request, tmp_path / "features", 1, decoders=0)
    Image.fromarray(np.full((32, 32, 3), 99, np.uint8)).save(folder / "1.png", "BMP")
    os.utime(folder / "1.png", ns=(10**18, 10**18))
    with pytest.raises(UserError, match=r"1\.png is no longer the image that folder-val"):
        prepare(request, tmp_path / "features", 1, decoders=0)


def test_labels_of_live_views_are_held_to_the_store_too(tmp_path: Path) -> None:
    root, features = make_fields(tmp_path / "data", crops=False), tmp_path / "features"
    request = DatasetRequest("labelled", "train", (64, 64), root)
    store = prepare(request, features, 1, decoders=0)
    (block,) = make_blocks(request, store.spec, [Task(range(2), (0,))], 0)
    check_contents(store, block)
    make_fields(root, crops=True)
    (block,) = make_blocks(request, store.spec, [Task(range(2), (0,))], 0)
    with pytest.raises(UserError, match="semseg label"):
        check_contents(store, block)


def test_a_run_that_goes_on_in_views_of_its_own_is_held_to_the_stores_labels(tmp_path: Path) -> None:
    root, features = make_fields(tmp_path / "data", crops=False), tmp_path / "features"
    store = prepare(DatasetRequest("labelled", "train", (64, 64), root), features, 1, decoders=0)

    def resumed() -> list[Batch]:
        live = FreshBatches(Loader(store, batch_size=2, num_views=1), ("semseg",), root, decoders=0)
        live.set_epoch(3)
        return list(live)

    for batch in resumed():
        assert set(batch.views.tolist()) == {3}
    make_fields(root, crops=True)
    with pytest.raises(UserError, match=f"semseg label of .* is no longer the semseg label that {store.name}"):
        resumed()


def test_another_stage_1_and_another_teacher_are_named(features: Path, trained: Path, tmp_path: Path) -> None:
    """A run that began with other weights than are asked for, and heads that would read another network's features."""
    other = tmp_path / "other"
    sak("distill", "demo", "--out", features, "--run", other, *TINY, "--set", "optimizer.lr=1e-5")
    asked = ["--out", features, "--run", trained, *TINY]
    assert "begins_with" in refusal("finetune", "demo", "--from", other, *asked)
    assert "already fine-tuned" in sak("finetune", "demo", "--from", trained.parent / "one", *asked).stderr
    recipe = load_recipe("demo", "finetune", {"steps": 4, "batch_size": 8})
    assert changed_caches(trained, recipe, features) == []
    origin = read_results(trained)["made_from"]
    assert changes(origin, {**origin, "code": {"sak": "9"}}) == [], "a newer version makes nothing old"


def test_heads_that_would_read_another_networks_features_are_refused(tmp_path: Path) -> None:
    features, recipe = tmp_path / "features", tmp_path / "r.toml"
    cache_split(features, "train", "--teacher", "mini-dino")
    cache_split(features, "test", "--teacher", "mini-dino", "--random-weights")
    recipe.write_text(
        'arm = "teacher:mini-dino"\nteachers = ["mini-dino"]\ntasks = ["depth"]\nbatch_size = 8\nthreads = 1\n'
        '[finetune]\nsteps = 2\ndata = { dataset = "rooms", split = "train", views = 2 }\n'
    )
    places = ["--out", features, "--runs", tmp_path]
    sak("finetune", recipe, "--run", tmp_path / "run", *places)
    said = refusal("evaluate", tmp_path / "run", *places)
    assert "mini-dino is not the same teacher in rooms-train" in said
    assert "weights is" in said
    sak("drop", find_stores(features, "rooms", "train")[0].path, "--teacher", "mini-dino", "--yes")
    cache_split(features, "train", "--teacher", "mini-dino", "--random-weights")
    assert "its heads read other features now" in refusal("evaluate", tmp_path / "run", *places)
