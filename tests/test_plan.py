"""`sak plan`: its bytes are the run's own, a half-done store counts for what it lacks, and proposals fit."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from cache.errors import SpecMismatch
from cache.store import Store
from pipeline.extraction.caching import CacheRequest, dry_run, run_cache
from pipeline.extraction.plan import plan, plan_text
from pipeline.extraction.samples import DatasetRequest
from tests.conftest import sak

ARGUMENTS = ("--teacher", "mini-dino,mini-clip", "--split", "unlabelled", "--limit", "70", "--threads", "1")


def test_a_plan_states_what_the_run_then_writes(tmp_path: Path) -> None:
    arguments = (*ARGUMENTS, "--views", "2", "--codec", "int8", "--out", tmp_path / "made" / "here")
    planned = json.loads(sak("plan", *arguments, "--json").stdout)
    assert not list(tmp_path.iterdir()), "nothing is left of the measurement"
    assert planned["fits"] and planned["free_bytes"] > planned["pending_bytes"] and not planned["proposals"]
    assert planned["total_seconds"] == pytest.approx(sum(planned["seconds"].values()), abs=0.2) and planned["device"]
    assert set(planned["memory_bytes"]) == {"source", "mini-dino", "mini-clip"} == set(planned["measured_rows"])
    done = json.loads(sak("cache", *arguments, "--json").stdout)
    assert done["store"] == planned["store"] and done["rows"] == planned["rows"] == 140
    store = Store.open(done["store"])
    for part in planned["parts"]:
        for array, num_bytes in part["array_bytes"].items():
            written = sum(file.stat().st_size for file in Path(store.place.show(array)).glob("c.*"))
            assert num_bytes == pytest.approx(written, rel=0.02), array
    again = json.loads(
        sak("plan", *arguments[:-4], "--codec", "int8", "--out", arguments[-1], "--views", "3", "--json").stdout
    )
    assert [part["pending_rows"] for part in again["parts"]] == [70, 70, 70]
    assert again["pending_bytes"] < planned["pending_bytes"]


def request(out: Path, codec: str = "fp32", views: int = 3) -> CacheRequest:
    source = DatasetRequest("rooms", "unlabelled", limit=70)
    run = {"codec": codec, "threads": 1, "batch_size": 16}
    return CacheRequest(source, ("mini-dino",), views, out, run, decoders=0)


@pytest.mark.parametrize(
    ("free", "kinds"), [(40_000_000, {"--views", "--codec", "--grid"}), (10_000_000, {"--views", "--codec"})]
)
def test_what_is_proposed_fits(free: int, kinds: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")
    asked = request(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, free))
    made = plan(asked)
    assert not made["fits"] and "DOES NOT FIT" in plan_text(made)
    assert {proposal["change"].split()[0] for proposal in made["proposals"]} == kinds
    for proposal in made["proposals"]:
        assert proposal["change"] in plan_text(made)
        options = dict(zip(*[iter(proposal["change"].split())] * 2, strict=True))
        grid = tuple(map(int, options["--grid"].split("x"))) if "--grid" in options else None
        run = {**asked.run, "codec": options.get("--codec", "fp32"), "grid": grid}
        changed = replace(asked, views=int(options.get("--views", 3)), run=run)
        assert dry_run(changed)["pending_bytes"] == proposal["pending_bytes"] <= free


def test_what_a_store_has_cannot_be_planned_otherwise(tmp_path: Path) -> None:
    run_cache(request(tmp_path, "fp16", 1))
    with pytest.raises(SpecMismatch, match=r"levels\[0\].codec = 'fp16', asked for is 'int8'"):
        plan(request(tmp_path, "int8", 1))
