"""The whole line through the command line, as a person would run it, without the teachers' libraries."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from cache.store import Store, find_stores
from tests.conftest import TINY, answer, cache_split, refusal, sak


def test_distill_finetune_evaluate_without_teachers(
    features: Path, no_teachers: dict[str, str], tmp_path: Path
) -> None:
    places = ["--out", features, "--runs", tmp_path]
    first = answer("distill", "demo", *places, *TINY, env=no_teachers)
    assert first["arm"] == "sak" and first["parameters"] > 0
    second = answer("finetune", "demo", *places, *TINY, env=no_teachers)
    assert set(second["validation"]) == {"semseg", "parts", "saliency", "depth", "normals", "boundary"}
    assert second["stage1"] == "demo-distill-sak-seed0"
    scores = answer("evaluate", "demo-finetune-sak-seed0", *places, env=no_teachers)
    assert 0 <= scores["semseg"]["mIoU"] <= 100
    again = sak("finetune", "demo", *places, *TINY, env=no_teachers)
    assert "already fine-tuned" in again.stderr
    assert "loss.alpha: 1.0 against 0.5" in refusal("finetune", "demo", *places, *TINY, "--set", "loss.alpha=0.5")


def test_ablate_without_teachers_skips_what_is_finished(
    features: Path, no_teachers: dict[str, str], tmp_path: Path
) -> None:
    study = tmp_path / "tiny.toml"
    study.write_text(
        'recipe = "demo"\narms = ["multi-task", "teacher:mini-sam", "teachers", "sak"]\n'
        'set = { steps = 2, batch_size = 8 }\ntest = { dataset = "rooms", split = "test", size = "96x96" }\n'
        '[[variations]]\nname = "no router"\narm = "sak"\nset = { "student.router" = "none" }\n'
    )
    places = ["--out", features, "--runs", tmp_path / "runs"]
    planned = answer("ablate", study, "--dry-run", *places)["runs"]
    assert sum("distill" in run for run in planned) == 1, "a router changes nothing of stage 1"
    result = answer("ablate", study, *places, env=no_teachers)
    labels = [row["arm"] for row in result["rows"]]
    assert labels == ["constant", "multi-task", "teacher:mini-sam", "teachers", "sak", "no router"]
    assert result["rows"][1]["gain_percent"]["mean"] == 0
    again = sak("ablate", study, "--json", *places, env=no_teachers)
    assert json.loads(again.stdout) == result
    assert again.stderr.count("finished earlier, skipped") == 6
    assert "steps/s" not in again.stderr
    for name in ("table.md", "table.csv", "table.json"):
        assert (tmp_path / "runs" / "tiny" / name).is_file()


def test_a_store_opens_in_plain_zarr_and_in_three_lines(features: Path) -> None:
    store = Store.open(find_stores(features, "rooms", "train")[0].path)
    level = store.features("mini-dino", level=2)
    plain = zarr.open_array(store.path / "teachers" / "mini-dino" / "level_2", mode="r")
    np.testing.assert_array_equal(level[5, 1], np.asarray(plain[1, 5], np.float32))
    pixels = zarr.open_array(store.path / "pixels", mode="r")
    np.testing.assert_array_equal(store.pixels[5, 1], pixels[1, 5])


def test_cached_features_are_the_teachers_own(features: Path) -> None:
    import torch

    from sak_core.teachers import build_teacher

    store = find_stores(features, "rooms", "test")[0]
    teacher = build_teacher("mini-sam", size=(96, 96))
    with torch.inference_mode():
        expected = teacher(torch.from_numpy(np.stack([store.pixels[i, 0] for i in range(16)])))
    for level, maps in enumerate(expected):
        found = np.stack([store.features("mini-sam", level=level)[i, 0] for i in range(16)])
        np.testing.assert_allclose(found, maps.permute(0, 2, 3, 1).numpy(), rtol=1e-3, atol=1e-3)


def test_info_and_verify(features: Path) -> None:
    store = find_stores(features, "rooms", "val")[0].path
    info = answer("info", store)
    assert set(info["teachers"]) == {"mini-dino", "mini-clip", "mini-sam"}
    assert all(t["pending_shards"] == 0 and t["fidelity"] for t in info["teachers"].values())
    assert answer("verify", store)["problems"] == []


def test_verify_finds_a_flipped_bit(tmp_path: Path) -> None:
    cache_split(tmp_path, "val", "--teacher", "mini-clip")
    store = find_stores(tmp_path, "rooms", "val")[0].path
    shard = next(
        p for p in sorted((store / "teachers/mini-clip/level_1").rglob("*")) if p.is_file() and p.name != "zarr.json"
    )
    raw = bytearray(shard.read_bytes())
    raw[1000] ^= 4
    shard.write_bytes(raw)
    done = sak("verify", store, check=False)
    assert done.returncode == 1
    assert "mini-clip" in done.stdout and "level_1" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["cache", "--teacher", "mini-dion"], "did you mean mini-dino"),
        (["cache", "--dataset", "room"], "did you mean rooms"),
        (["cache", "--split", "tests"], "did you mean test"),
        (["cache", "--codec", "fp61"], "did you mean fp16"),
        (["cache", "--split", "test", "--views", "4"], "one padded evaluation view"),
        (["cache", "--dataset", "folder"], "ROOT"),
        (["cache", "--dataset", "folder", "--root", "/nonexistent"], "/nonexistent"),
        (["distill", "demo", "--out", "/nonexistent"], "no cache of rooms/unlabelled"),
        (["distill", "demo", "--set", "arm=multi-task", "--out", "/nonexistent"], "distils nothing"),
        (["info", "/nonexistent.zarr"], "/nonexistent.zarr"),
    ],
)
def test_bad_requests_end_in_one_clear_line(arguments: list[str], hint: str, tmp_path: Path) -> None:
    if arguments[0] == "cache":
        arguments = [*arguments, "--out", str(tmp_path)]
    assert hint in refusal(*arguments)


def test_another_setting_is_refused_by_name_with_both_values(tmp_path: Path) -> None:
    cache_split(tmp_path, "val", "--teacher", "mini-dino")
    said = refusal(
        "cache", "--teacher", "mini-dino", "--split", "val", "--limit", "16", "--views", "1", "--out", tmp_path,
        "--threads", "1", "--batch-size", "4",
    )  # fmt: skip
    assert "batch_size" in said and "16" in said and "4" in said


def test_too_small_a_disk_is_said_before_the_teacher_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import shutil
    from collections import namedtuple

    from pipeline.errors import UserError
    from pipeline.extraction.amounts import check_disk

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 1000))
    with pytest.raises(UserError, match=r"need 5\.0 kB more, but the disk of .* has 1\.0 kB free"):
        check_disk(tmp_path / "not" / "yet", 5000, "features")
