"""`source = "live"`: the cached views bit for bit for V epochs, then views that nobody has seen, resumed exactly."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cache.loading.batch import Batch
from cache.loading.loader import Loader
from cache.store import Store, find_stores
from pipeline.errors import UserError
from pipeline.extraction import samples
from pipeline.training import fresh
from pipeline.training.fresh import FreshBatches
from pipeline.training.watch import Watch
from tests.conftest import answer, logged, refusal, sak, train
from tests.test_training import Killed

V = 2
"""Views that training is told of; the stores hold twice as many, to hold the fresh ones to."""
TASKS = ("semseg", "depth", "normals", "boundary")
SETTINGS = ["teachers=['mini-dino']", "source=live", "batch_size=4", "threads=1", "log_every=1"]


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 labelled rooms in 2 V views; mini-dino's features of them."""
    folder = tmp_path_factory.mktemp("rooms")
    sak("cache", "--split", "train", "--limit", "12", "--views", str(2 * V), "--threads", "1", "--decoders", "0",
        "--teacher", "mini-dino", "--out", folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory, images: Path) -> tuple[Path, Path]:
    """A folder of 9 photographs, the third of which cannot be read, and its cache in 2 V views with mini-dino."""
    root = tmp_path_factory.mktemp("photographs")
    for number, path in enumerate(sorted(p for p in images.rglob("*") if p.is_file())[:9]):
        (root / f"{number}{path.suffix}").write_bytes(path.read_bytes() if number != 2 else b"no image")
    features = tmp_path_factory.mktemp("features")
    sak("cache", "--dataset", "folder", "--root", root, "--size", "48", "--views", str(2 * V), "--threads", "1",
        "--decoders", "0", "--teacher", "mini-dino", "--out", features)  # fmt: skip
    return root, features


def the_store(features: Path) -> Store:
    (store,) = find_stores(features)
    return store


def epochs(batches: Loader | FreshBatches, count: int) -> Iterator[list[Batch]]:
    for epoch in range(count):
        batches.set_epoch(epoch)
        yield [batch.to("cpu") for batch in batches]


def numbers(batches: list[Batch]) -> list[tuple[list[int], list[int]]]:
    return [(batch.samples.tolist(), batch.views.tolist()) for batch in batches]


@pytest.mark.parametrize(("shuffle", "decoders"), [(True, 2), ("block", 0)])
def test_views_are_the_caches_and_never_come_again(shuffle: bool, decoders: int, rooms: Path) -> None:
    """Every row of 2 V epochs is what `sak cache` made of that view, labels too; the run knows of V views."""
    store = the_store(rooms)
    loader = Loader(store, (), TASKS, batch_size=4, num_views=V, seed=3, shuffle=shuffle, block_rows=4, buffer_rows=8)
    live = FreshBatches(loader, TASKS, decoders=decoders)
    cached = Loader(store, (), TASKS, batch_size=4, num_views=V, seed=3, shuffle=shuffle, block_rows=4, buffer_rows=8)
    seen: dict[int, list[int]] = {}
    for epoch, (made, read) in enumerate(zip(epochs(live, 2 * V), epochs(cached, 2 * V), strict=True)):
        assert len(made) == 3
        assert [batch.samples.tolist() for batch in made] == [batch.samples.tolist() for batch in read]
        assert (numbers(made) == numbers(read)) == (epoch < V)
        for batch in made:
            for i, (sample, view) in enumerate(zip(batch.samples.tolist(), batch.views.tolist(), strict=True)):
                seen.setdefault(sample, []).append(view)
                np.testing.assert_array_equal(batch.pixels[i].numpy(), store.pixels[sample, view])
                for task in TASKS:
                    expected = store.labels[task][sample, view]
                    assert batch.labels[task].numpy().dtype == expected.dtype
                    np.testing.assert_array_equal(batch.labels[task][i].numpy(), expected)
    assert len(seen) == 12 and all(sorted(views) == list(range(2 * V)) for views in seen.values())
    for sample in seen:
        pictures = {store.pixels[sample, view].tobytes() for view in range(2 * V)}
        assert len(pictures) == 2 * V, "views differ"


def test_a_position_goes_on_with_the_next_batch(rooms: Path) -> None:
    def batches() -> FreshBatches:
        loader = Loader(the_store(rooms), (), TASKS, batch_size=4, num_views=V, seed=3)
        return FreshBatches(loader, TASKS, decoders=0)

    whole, cut, resumed = batches(), batches(), batches()
    whole.set_epoch(V + 5)
    cut.set_epoch(V + 5)
    next(iter(cut))
    resumed.load_state_dict(json.loads(json.dumps(cut.state_dict())))
    assert resumed.epoch == V + 5
    for one, two in zip([*whole][1:], [*resumed], strict=True):
        assert (one.samples.tolist(), one.views.tolist()) == (two.samples.tolist(), [V + 5] * 4)
        assert torch.equal(one.pixels, two.pixels)
        assert all(torch.equal(one.labels[task], two.labels[task]) for task in TASKS)


def test_decoding_goes_on_over_the_edge_of_an_epoch(rooms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When an epoch's last batch is out, the next one's first rows are asked for; nothing is decoded twice."""
    loader = Loader(the_store(rooms), batch_size=4, num_views=V, seed=3)
    live = FreshBatches(loader, (), decoders=2)
    asked: list[tuple[int, int]] = []
    real = live._tasks

    def recorded(epoch: int, start: int) -> Iterator[object]:
        for task in real(epoch, start):
            asked.append((task.samples.start, *task.views))
            yield task

    monkeypatch.setattr(live, "_tasks", recorded)
    given: list[tuple[int, int]] = []
    for batches in epochs(live, 3):
        given += [row for samples, views in numbers(batches) for row in zip(samples, views, strict=True)]
        assert len(asked) > len(given)
    assert asked[: len(given)] == given


def test_an_image_is_digested_once_a_run(rooms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was compared needs no digest in later epochs; view 0, which the cache takes facts from, has it always."""
    digested: list[int] = []
    real = samples._content_digest
    monkeypatch.setattr(samples, "_content_digest", lambda image: digested.append(1) or real(image))
    live = FreshBatches(Loader(the_store(rooms), batch_size=4, num_views=1), (), decoders=0)
    for _ in epochs(live, 4):
        pass
    assert len(digested) == 12


def test_unreadable_images_are_left_out(photographs: tuple[Path, Path]) -> None:
    root, features = photographs
    store = the_store(features)
    assert np.flatnonzero(~store.valid(V)).tolist() == [2]
    live = FreshBatches(Loader(store, batch_size=2, num_views=V), (), root, decoders=0)
    for batches in epochs(live, V + 1):
        assert sorted(s for batch in batches for s in batch.samples.tolist()) == [0, 1, 3, 4, 5, 6, 7, 8]


def test_another_data_set_is_refused_and_a_spoilt_image_named(photographs: tuple[Path, Path], tmp_path: Path) -> None:
    root, features = photographs
    loader = Loader(the_store(features), batch_size=2, num_views=V)
    with pytest.raises(UserError, match=r"fresh views \(source = 'live'\) come from the data set: .*--root"):
        FreshBatches(loader, ())
    for path in root.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    spoilt = sorted(tmp_path.iterdir())[4]
    spoilt.write_bytes(bytes(spoilt.stat().st_size))
    with pytest.raises(UserError, match=rf"{spoilt.name} was readable when folder-.* and is no longer"):
        list(FreshBatches(loader, (), tmp_path, decoders=0))
    with Image.open(root / spoilt.name) as image:
        smaller = np.asarray(image.convert("RGB"))[::2, ::2]
    changed = spoilt.with_suffix(".bmp")
    Image.fromarray(smaller).save(changed)
    assert changed.stat().st_size <= spoilt.stat().st_size, "padded to the size of the file whose place it takes"
    spoilt.write_bytes(changed.read_bytes().ljust(spoilt.stat().st_size, b"\0"))
    changed.unlink()
    with pytest.raises(UserError, match=rf"{spoilt.name} is no longer the image that folder-.* was made from"):
        list(FreshBatches(loader, (), tmp_path, decoders=0))
    more = ["cache", "--dataset", "folder", "--root", tmp_path, "--size", "48", "--views", str(2 * V + 1), "--decoders",
            "0", "--out", features]  # fmt: skip
    assert f"{spoilt.name} is no longer the image" in refusal(*more)
    spoilt.unlink()
    with pytest.raises(UserError, match="no longer what the store was made from: num_samples was 9, is 8"):
        FreshBatches(loader, (), tmp_path)


# ---- through the command line and the training loop -----------------------------------------------------------------


def options(*settings: str) -> list[str]:
    return [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]


def steps(run: Path) -> list[int]:
    return [line["step"] for line in logged(run)]


def test_distilling_a_folder_live(photographs: tuple[Path, Path], tmp_path: Path) -> None:
    """Three epochs of four steps where two views are cached; `--root` says where the images are."""
    root, features = photographs
    data = "data={dataset='folder', split='train', size='48', views=2}"
    command = ["distill", "demo", "--out", features, "--run", tmp_path / "run"]
    settings = options(data, "batch_size=2", "steps=12")
    result = answer(*command, *settings, "--root", root)
    assert result["step"] == 12 and steps(tmp_path / "run") == list(range(1, 13))
    said = refusal(*command, *settings, "--set", "source=cache", "--root", root)
    assert "--root" in said and "source = 'live'" in said


def test_a_runs_processes_end_with_it(rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of a study whose last run was live waited for them for ever."""
    others = set(active_children())  # of loaders that earlier tests left to the garbage
    seen: list[int] = []
    real = FreshBatches.close

    def close(batches: FreshBatches) -> None:
        seen.append(len(set(active_children()) - others))
        real(batches)
        seen.append(len(set(active_children()) - others))

    monkeypatch.setattr(fresh, "num_decoders", lambda asked: 2)
    monkeypatch.setattr(FreshBatches, "close", close)
    data = "data={dataset='rooms', split='train', size='96x96', views=2}"
    train("distill", [*SETTINGS, data, "steps=2", "checkpoint_every=2"], rooms, tmp_path / "run")
    assert seen == [2, 0]


@pytest.mark.parametrize("stage", ["distill", pytest.param("finetune", marks=pytest.mark.slow)])
def test_killed_in_a_fresh_epoch_and_resumed_equals_uninterrupted(
    stage: str, rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps an epoch, two cached views: step 8 is the second of epoch 2, the first with fresh views."""
    monkeypatch.setattr(fresh, "num_decoders", lambda asked: 0)
    data = "data={dataset='rooms', split='train', size='96x96', views=2}"
    settings = [*SETTINGS, data, "steps=10", "checkpoint_every=1", "stage1=off"]
    views: list[list[int]] = []

    def trained(run: Path, kill_at: int | None = None) -> dict[str, torch.Tensor]:
        def add(watch: Watch, result: object, batch: Batch, **kwargs: bool) -> None:
            views.append(sorted(set(batch.views.tolist())))
            if len(views) == kill_at:
                raise Killed
            real(watch, result, batch, **kwargs)  # type: ignore[arg-type]

        real = Watch.add
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Watch, "add", add)
            train(stage, settings, rooms, run)
        return load_file(run / "last" / "model.safetensors")

    whole = trained(tmp_path / "whole")
    assert views[6:] == [[2], [2], [2], [3]] and all(max(seen) < V for seen in views[:6])
    views.clear()
    with pytest.raises(Killed):
        trained(tmp_path / "cut", kill_at=9)
    views.clear()
    resumed = trained(tmp_path / "cut")
    assert views == [[2], [3]], "one step is done again"
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_finetuning_live_through_the_command_line(rooms: Path, tmp_path: Path) -> None:
    """With no teacher in the step, too: what is live are the views."""
    data = "data={dataset='rooms', split='train', size='96x96', views=1}"
    settings = options(data, "steps=5", "loss.alpha=0", "stage1=off")
    recipe = tmp_path / "own.toml"
    shipped = (Path(__file__).parents[1] / "pipeline" / "recipes" / "demo.toml").read_text()
    recipe.write_text("\n".join(line for line in shipped.splitlines() if not line.startswith("validation")))
    sak("finetune", recipe, "--out", rooms, "--run", tmp_path / "run", *settings)
    assert steps(tmp_path / "run") == [1, 2, 3, 4, 5]


def test_a_studys_stages_may_read_two_data_sets(rooms: Path, photographs: tuple[Path, Path], tmp_path: Path) -> None:
    """Each folder is given by its data set's name, and what does not fit is said before anything runs."""
    root, features = photographs
    for store in (the_store(rooms), the_store(features)):
        (tmp_path / store.name).symlink_to(store.path)
    recipe, study = tmp_path / "two.toml", tmp_path / "study.toml"
    shipped = (Path(__file__).parents[1] / "pipeline" / "recipes" / "demo.toml").read_text()
    recipe.write_text("\n".join(line for line in shipped.splitlines() if not line.startswith(("data", "validation"))))
    recipe.write_text(
        recipe.read_text()
        .replace("[distill]", "[distill]\ndata = { dataset = 'folder', split = 'train', size = '48' }")
        .replace("[finetune]", "[finetune]\ndata = { dataset = 'rooms', split = 'train', size = '96x96' }")
    )
    study.write_text(
        f"recipe = '{recipe}'\narms = ['sak']\ntest = {{ dataset = 'rooms', split = 'train', size = '96x96' }}\n"
        "[set]\nteachers = ['mini-dino']\nsource = 'live'\nsteps = 2\nbatch_size = 2\nthreads = 1\ntasks = ['depth']\n"
    )
    command = ["ablate", study, "--out", tmp_path, "--runs", tmp_path / "runs"]
    for roots, reason in (
        ((), "come from the data set: .*--root"),
        (("--root", f"nyud={root}"), "unknown data set of live runs 'nyud'"),
        (("--root", f"folder={tmp_path}"), "come from the data set: .* holds no images"),
    ):
        said = refusal(*command, *roots, "--dry-run")
        assert re.search(reason, said), said
    table = answer(*command, "--root", f"folder={root}")
    assert [row["arm"] for row in table["rows"]] == ["constant", "sak"]
    assert steps(tmp_path / "runs" / "study" / "sak-seed0-distill") == [2]
