"""`sak plan`: its bytes are the run's own, a half-done store counts for what it lacks, and proposals fit."""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cache.errors import SpecMismatch
from cache.format.spec import LevelSpec
from cache.store import Store
from pipeline.errors import UserError
from pipeline.extraction import sampling
from pipeline.extraction.caching import dry_run, run_cache
from pipeline.extraction.plan import plan, plan_text
from pipeline.extraction.request import CacheRequest, TeacherOptions
from pipeline.extraction.samples import DatasetRequest
from tests.conftest import answer

ARGUMENTS = ("--teacher", "mini-dino,mini-clip", "--split", "unlabelled", "--limit", "70", "--threads", "1")


@pytest.mark.parametrize(
    ("codec", "within"),
    # one of them with decoding processes, which are seconds of imports a command and change no byte
    [
        pytest.param("int8", 0.02, marks=pytest.mark.slow),
        ("klt --decoders 0", 0.1),
        pytest.param("klt+pcodec --predict-levels --decoders 0", 0.1, marks=pytest.mark.slow),
    ],
)
def test_a_plan_states_what_the_run_then_writes(codec: str, within: float, tmp_path: Path) -> None:
    coding = ("--codec", *codec.split())
    arguments = (*ARGUMENTS, "--views", "2", *coding, "--out", tmp_path / "made" / "here")
    planned = answer("plan", *arguments)
    assert not list(tmp_path.iterdir()), "nothing is left of the measurement"
    assert planned["fits"] and planned["free_bytes"] > planned["pending_bytes"] and not planned["proposals"]
    assert planned["total_seconds"] == pytest.approx(sum(planned["seconds"].values()), abs=0.2) and planned["device"]
    assert set(planned["memory_bytes"]) == {"source", "mini-dino", "mini-clip"} == set(planned["measured_rows"])
    done = answer("cache", *arguments)
    assert done["store"] == planned["store"] and done["rows"] == planned["rows"] == 140
    store = Store.open(done["store"])
    for part in planned["parts"]:
        for array, num_bytes in part["array_bytes"].items():
            written = sum(file.stat().st_size for file in Path(store.place.show(array)).glob("c.*"))
            assert num_bytes == pytest.approx(written, rel=within), array
    num_made = len(list((tmp_path / "made").rglob("*"))) - 1
    assert num_made <= planned["pending_files"] <= 1.3 * num_made
    again = answer("plan", *ARGUMENTS, *coding, *arguments[-2:], "--views", "3")
    assert [part["pending_rows"] for part in again["parts"]] == [70, 70, 70]
    a_view = sum(sum(part["array_bytes"].values()) for part in again["parts"]) / 3
    assert again["pending_bytes"] == pytest.approx(a_view, rel=0.02), "calibrations are there already"


def request(out: Path, codec: str = "fp32", views: int = 3) -> CacheRequest:
    source = DatasetRequest("rooms", "unlabelled", limit=70)
    options = TeacherOptions(codec=codec, threads=1)
    return CacheRequest(source, ("mini-dino",), views, out, options, decoders=0)


@pytest.mark.parametrize(
    ("free", "kinds"),
    [
        (40_000_000, {"--views", "--codec", "--grid"}),
        pytest.param(10_000_000, {"--views", "--codec"}, marks=pytest.mark.slow),
    ],
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
        run = replace(asked.options, codec=options.get("--codec", "fp32"), grid=grid)
        changed = replace(asked, views=int(options.get("--views", 3)), options=run)
        assert proposal["pending_bytes"] + proposal["margin_bytes"] <= free
        if "klt" not in run.codec:
            assert dry_run(changed)["pending_bytes"] == proposal["pending_bytes"] and not proposal["margin_bytes"]
            continue
        out = tmp_path / proposal["change"]
        run_cache(replace(changed, features=out))
        written = sum(path.stat().st_size for path in out.rglob("c.*"))
        assert written == pytest.approx(proposal["pending_bytes"], rel=0.1) and written <= free


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_is_refused_by_what_coding_leaves_not_by_the_most_that_it_can(
    workers: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = namedtuple("usage", "total used free")
    asked = replace(request(tmp_path, "klt", 1), workers=workers)
    assert dry_run(asked)["pending_bytes"] > 10_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 2_500_000))
    with pytest.raises(UserError, match="sak plan"):
        run_cache(asked)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 6_000_000))
    run_cache(asked)
    assert sum(path.stat().st_size for path in tmp_path.rglob("c.*")) < 6_000_000


def test_what_a_store_has_cannot_be_planned_otherwise(tmp_path: Path) -> None:
    run_cache(request(tmp_path, "fp16", 1))
    with pytest.raises(SpecMismatch, match=r"levels\[0\].codec = 'fp16', asked for is 'int8'"):
        plan(request(tmp_path, "int8", 1))


@pytest.mark.parametrize(
    ("device", "row_s", "codec", "rows"),
    [("cpu", 13.0, "fp16", 2), ("cpu", 0.8, "fp16", 6), ("cpu", 13.0, "klt", 32), ("cuda", 0.5, "fp16", 16)],
)
def test_a_slow_teacher_is_measured_on_few_rows(
    device: str, row_s: float, codec: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of 16 at 13 s a row, set up, timed, calibrated and extracted, made a plan of a quarter of an hour."""
    clock = [0.0]
    monkeypatch.setattr(sampling.time, "monotonic", lambda: clock[0])

    class Slow:
        request = SimpleNamespace(batch_size=16, compile=False)
        levels = (LevelSpec(0, (1, 1), 4, codec),)

        def forward(self, pixels: np.ndarray) -> None:
            clock[0] += row_s * len(pixels)

    Slow.device = torch.device(device)
    store = SimpleNamespace(pixels=np.zeros((16, 1, 2, 2, 3), np.uint8), spec=SimpleNamespace(num_samples=16))
    assert sampling.warmed_up(Slow(), store, 1000) == (rows, 0.0)
