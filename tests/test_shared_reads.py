"""One read, many students: side by side as alone, bit for bit, also after a kill; one store read once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cache.errors import StateMismatch
from cache.loading.loader import Loader
from cache.store import find_stores
from pipeline.errors import UserError
from pipeline.recipes.config import load_recipe
from pipeline.runs import Places
from pipeline.training.distill import distill
from pipeline.training.shared_reads import Share, run_sharing
from tests.conftest import sak

STUDY = (
    'recipe = "demo"\narms = ["single-task", "multi-task", "teacher:mini-sam", "many-to-one", "sak"]\n'
    'set = { steps = 3, batch_size = 16, checkpoint_every = 2, tasks = ["semseg", "depth"], '
    '"student.stem.depth" = 4, "student.stem.weights" = "" }\n'
    'test = { dataset = "rooms", split = "test", size = "96x96" }\n'
    '[[variations]]\nname = "dropping"\nset = { loss.drop_teachers = 0.5 }\n'
)


def assert_equal_runs(one: Path, other: Path) -> None:
    names = sorted(path.relative_to(one) for path in one.glob("**/last/*.safetensors"))
    assert names and names == sorted(path.relative_to(other) for path in other.glob("**/last/*.safetensors"))
    for name in names:
        left, right = load_file(one / name), load_file(other / name)
        assert left.keys() == right.keys()
        for key, tensor in left.items():
            assert torch.equal(tensor, right[key]), f"{name} {key}"


@pytest.mark.slow
def test_a_study_side_by_side_is_the_study_alone_bit_for_bit(features: Path, tmp_path: Path) -> None:
    path = tmp_path / "four.toml"
    path.write_text(STUDY)
    alone, together = tmp_path / "alone", tmp_path / "together"
    first = sak("ablate", path, "--json", "--out", features, "--runs", alone)
    second = sak("ablate", path, "--json", "--out", features, "--runs", together, "--share-reads", "3")
    assert second.stderr.count("side by side, from one read") == 3
    assert_equal_runs(alone / "four", together / "four")
    rows = [json.loads(done.stdout)["rows"] for done in (first, second)]
    assert [row["scores"] for row in rows[0]] == [row["scores"] for row in rows[1]]


def recipes(**changes: object) -> list[tuple[str, object]]:
    base = {
        "steps": 4,
        "batch_size": 16,
        "student.stem.depth": 4,
        "student.stem.weights": "",
        "checkpoint_every": 2,
        **changes,
    }
    return [(arm, load_recipe("demo", "distill", {**base, "arm": arm})) for arm in ("sak", "many-to-one")]


def side_by_side(features: Path, folder: Path, **changes: object) -> None:
    from pipeline.training.devices import Execution

    places = Places(features, folder)

    def work(arm: str, recipe: object):
        def train(share: Share) -> dict:
            return distill(recipe, folder / arm, places, Execution(share=share))

        return train

    run_sharing([work(arm, recipe) for arm, recipe in recipes(**changes)], 1)


def test_runs_that_stopped_at_other_places_are_brought_level(features: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    side_by_side(features, whole)
    arm, recipe = recipes()[0]
    with pytest.raises(KeyError):
        distill(recipe, cut / arm, Places(features, cut), failing_after(3))
    assert (cut / arm / "last" / "state.json").exists(), "saved after step 2"
    side_by_side(features, cut)
    assert_equal_runs(whole, cut)


def failing_after(batches: int):
    """An execution whose loader breaks."""
    from pipeline.training.devices import Execution

    class Breaking:
        def __init__(self, loader: Loader) -> None:
            self.loader = loader

        def __getattr__(self, name: str) -> object:
            return getattr(self.loader, name)

        def __len__(self) -> int:
            return len(self.loader)

        def __iter__(self):
            for number, batch in enumerate(self.loader):
                if number == batches - 1:
                    raise KeyError("a disk fails")
                yield batch

    return Execution(share=Breaking)


def test_one_that_fails_leaves_the_others_alone(features: Path, tmp_path: Path) -> None:
    places = Places(features, tmp_path)
    (_, good), (_, bad) = recipes()
    from pipeline.training.devices import Execution

    broken = bad.model_copy(update={"optimizer": bad.optimizer.model_copy(update={"lr": 1e30}), "log_every": 1})
    broken = broken.model_copy(update={"schedule": broken.schedule.model_copy(update={"warmup_steps": 0})})
    works = [
        lambda share: distill(broken, tmp_path / "bad", places, Execution(share=share)),
        lambda share: distill(good, tmp_path / "good", places, Execution(share=share)),
    ]
    with pytest.raises(UserError, match="step "):
        run_sharing(works, 1)
    assert (tmp_path / "good" / "results.json").exists() and not (tmp_path / "bad" / "results.json").exists()


def test_only_the_same_rows_are_read_together(features: Path) -> None:
    store = find_stores(features, "rooms", "train")[0]
    one = Loader(store, ["mini-sam"], batch_size=8, num_views=2)
    two = Loader(store, ["mini-dino"], ["depth"], batch_size=8, num_views=2)
    batch = next(iter(Loader.union([one, two])))
    assert set(batch.features) == {"mini-sam", "mini-dino"} and set(batch.labels) == {"depth"}
    assert torch.equal(batch.samples, next(iter(one)).samples)
    with pytest.raises(StateMismatch, match=r"sampler.seed = 0 and 1"):
        Loader.union([one, Loader(store, batch_size=8, num_views=2, seed=1)])
