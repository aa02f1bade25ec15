"""Training from a raw fp32 cache equals training on views made anew with the teachers in the step, step for step, in
the first V epochs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import UserError
from sak_core.miniature.network import WEIGHTS_DIR
from tests.conftest import logged, sak, train

STEPS = ["steps=6", "batch_size=8", "threads=1", "log_every=1", "teachers=['mini-dino', 'mini-sam']"]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 24 samples in two views, with two teachers' features in float32, one of them on a coarser grid."""
    folder = tmp_path_factory.mktemp("exact")
    place = ["--split", "train", "--limit", "24", "--views", "2", "--codec", "fp32", "--threads", "1", "--out", folder]
    sak("cache", *place, "--teacher", "mini-dino")
    sak("cache", *place, "--teacher", "mini-sam", "--grid", "6x6")
    return folder


@pytest.mark.parametrize(("arm", "stage"), [("sak", "distill"), ("teachers", "finetune"), ("sak", "finetune")])
def test_live_equals_the_cache(arm: str, stage: str, exact: Path, tmp_path: Path) -> None:
    """Two epochs of three steps: stage 1, and stage 2 for frozen features and beside the task losses."""
    data = "data={dataset='rooms', split='train', size='96x96', views=2}"
    for source in ("cache", "live"):
        settings = [*STEPS, data, f"arm={arm}", f"source={source}", "stage1=off"]
        train(stage, settings, exact, tmp_path / source)
    for cached, live in zip(logged(tmp_path / "cache"), logged(tmp_path / "live"), strict=True):
        assert cached.keys() == live.keys()
        for name in cached:
            assert live[name] == pytest.approx(cached[name], rel=1e-5), f"step {cached['step']}, {name}"


def test_a_teacher_that_is_not_the_cached_one_is_refused(exact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from cache.store import find_stores
    from pipeline.training import live

    def other(request: object, size: tuple[int, int]) -> object:
        return real(replace(request, random_weights=True), size)

    real = live.start_teacher
    monkeypatch.setattr(live, "start_teacher", other)
    with pytest.raises(UserError, match=r"mini-dino was cached with weights = 'sha256:.*but here it has 'random:0'"):
        live.start_teachers(find_stores(exact, "rooms", "train")[0], ["mini-dino"], torch.device("cpu"))


def test_teachers_of_a_file_are_built_from_it_again(tmp_path: Path) -> None:
    state, file = load_file(WEIGHTS_DIR / "mini-dino.safetensors"), tmp_path / "mine.safetensors"
    name = next(name for name in state if name.endswith("mask_token"))
    save_file({**state, name: state[name] + 1}, file)
    where = ("--out", tmp_path / "features")
    sak("cache", *where, "--split", "train", "--limit", "8", "--views", "1", "--threads", "1",
        "--teacher", "mini-dino", "--weights", file)  # fmt: skip
    data = "data={dataset='rooms', split='train', size='96x96', views=1}"
    train = ["distill", "demo", *where, "--runs", tmp_path / "runs"]
    for assignment in (data, "teachers=['mini-dino']", "steps=2", "batch_size=4", "threads=1"):
        train += ["--set", assignment]
    live, weights = ("--set", "source=live"), ("--weights", f"mini-dino={file}")
    refused = sak(*train, *live, check=False)
    assert refused.returncode and "mini-dino was cached with weights = 'sha256:" in refused.stderr
    assert "--weights" in refused.stderr
    sak(*train, *live, *weights)
    pointless = sak(*train, *weights, "--dry-run", check=False)
    assert pointless.returncode and "is for source = 'live'" in pointless.stderr
