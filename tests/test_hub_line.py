"""Caches on the Hugging Face hub, given and used through the commands: runs, reports, joins, published features."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np

from cache.maintenance.verification import verify_store
from cache.places.addresses import as_place
from cache.store import Store, find_stores
from pipeline import api
from pipeline.maintenance.store_card import is_ours
from pipeline.recipes.config import load_recipe
from pipeline.recipes.stores import at_commits, commits_now, find_store
from pipeline.runs.origin import _read_at
from tests import cache_toy as toy
from tests import hub
from tests.conftest import sak
from tests.hub import ADDRESS, Hub


def test_a_cache_is_given_and_used(small: Path, tmp_path: Path) -> None:
    with hub.serve() as there:
        environment = there.environment(tmp_path / "home")
        address = "hf://datasets/me/rooms-dino"
        killed = sak("copy", small, address, env={**environment, "SAK_FAULT": "compact:1"}, check=False)
        assert killed.returncode == -signal.SIGKILL and there.sent
        before = set(there.sent)
        there.sent.clear()
        copied = json.loads(sak("copy", small, address, "--json", env=environment).stdout)
        [store] = [one["copy"] for one in copied["stores"]]
        assert not before & set(there.sent), "what the killed one had sent is not sent again"
        commit = there.data["me/rooms-dino"].head
        info = sak("info", store, env=environment).stdout
        assert f"read at {address}@{commit}/" in info
        run = tmp_path / "run"
        where = ("--out", address, "--run", run, "--runs", tmp_path)
        sak("distill", *where, "--set", "steps=1", "--set", "batch_size=4", env=environment)
        read_at = f"{address}@{commit}/{store.rpartition('/')[2]}"
        results, lineage = (json.loads((run / name).read_text()) for name in ("results.json", "model.json"))
        assert list(results["made_from"]["read_at"].values()) == [read_at]
        assert [data["read_at"] for data in lineage["data"]] == [read_at]
        assert read_at in (run / "README.md").read_text()
        sak("export", run, tmp_path / "exported", env=environment)
        assert f"Read at `{read_at}`" in (tmp_path / "exported" / "README.md").read_text()
        sak("report", run, "--features", address, "--out", tmp_path / "report.html", env=environment)
        assert f"at these commits: {read_at}" in (tmp_path / "report.html").read_text()
        [recipe] = tmp_path.glob("*.toml")  # that training wrote for what lies there
        sak("copy", address, tmp_path / "back", "--recipe", recipe, env=environment)
        assert hub.files_of(find_stores(tmp_path / "back")[0]) == hub.files_of(find_stores(small)[0])
        refused = sak("cache", "--teacher", "mini-dino", "--limit", "2", "--out", address, env=environment, check=False)
        assert refused.returncode == 2 and "write to a folder, then copy it there" in refused.stderr
        assert there.data["me/rooms-dino"].head == commit


def test_places_of_a_recipe_are_read_at_one_commit_that_is_told(
    given: Hub,
    local: Store,
    tmp_path: Path,
) -> None:
    """Also where pixels are of another store than a teacher: of which commit its features were must be told."""
    mine = Store.create(tmp_path, local.spec)
    toy.write_source(mine, 2, toy.INVALID)
    commit = given.data["me/toy"].head
    asked = load_recipe("demo", "finetune", {"out": [ADDRESS], "data": {"dataset": "toy", "split": "train"}})
    recipe = at_commits(asked, commits_now())
    assert recipe.out == recipe.data.out == recipe.validation.out == (f"{ADDRESS}@{commit}",)
    given.data["me/toy"].commit({"README.md": b"newer"})
    data = recipe.data.model_copy(update={"size": None})
    store = find_store(tmp_path, data, ["mini-dino"])
    address = f"{ADDRESS}@{commit}/{local.name}"
    assert _read_at(store, ["mini-dino"]) == {"read_at": {f"{local.name} (mini-dino)": address}}
    assert _read_at(find_store(f"{ADDRESS}@{commit}", data), []) == {"read_at": {local.name: address}}
    assert _read_at(find_store(tmp_path, data), []) == {}


def test_a_join_onto_the_hub_is_committed(there: Hub, tmp_path: Path) -> None:
    """What was rendered waited for a commit that never came, and the command said that the store was whole."""
    api.cache((), "rooms", "train", limit=4, views=1, size=32, decoders=0, out=tmp_path / "own")
    api.publish(tmp_path / "own", tmp_path / "there", pixels=False, confirm=lambda question: True)
    (done,) = api.join(tmp_path / "there", out=ADDRESS)["stores"]
    (mine,), (store,) = find_stores(tmp_path / "own"), find_stores(ADDRESS)
    assert is_ours(as_place(ADDRESS).read("README.md").decode()), "its card came along"
    assert done["joined"] and not store.left_out and verify_store(store.place) == []
    np.testing.assert_array_equal(store.pixels[3, 0], mine.pixels[3, 0])


def test_features_are_published_without_images_and_a_card(there: Hub, local: Store) -> None:
    for licence in ("CC-BY-4.0", None):  # what was stated once is read from the card
        done = api.publish(local.path, ADDRESS, pixels=False, data_licence=licence, confirm=lambda question: True)
        assert (
            done["card"] == f"{ADDRESS}/README.md"
            and {"of": "images of toy", "licence": "CC-BY-4.0"} in done["licences"]
        )
    (store,) = find_stores(ADDRESS)
    assert "pixels" in store.left_out and verify_store(store.place) == [] and store.ids() == local.ids()
