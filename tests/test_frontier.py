"""`sak frontier`: every figure that it prints, made again from the files that it saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

from pipeline.cli import sak
from tests.plain_klt import decode
from tests.trained_like import trained_like

ROWS, TOKENS, WIDTH = 96, 49, 48


def run(*arguments: str | Path) -> Any:
    done = CliRunner().invoke(sak, ["frontier", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["results"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[np.ndarray]]:
    """Folder, results by codec, and the two levels' features."""
    folder = tmp_path_factory.mktemp("frontier")
    levels = [trained_like(ROWS, TOKENS, WIDTH, level=level) for level in range(2)]
    for number, features in enumerate(levels):
        np.save(folder / f"{number}.npy", features)
    results = run(folder / "0.npy", folder / "1.npy", "--fidelity", "0.99", "--save", folder / "out", "--json")
    return folder / "out", {row["codec"]: row for row in results}, levels


def test_bits_and_cosine_follow_from_the_files(saved: tuple[Path, dict[str, Any], list[np.ndarray]]) -> None:
    out, results, levels = saved
    fitted = {"klt", "klt+pcodec", "klt+trellis"}
    assert set(results) == {"fp16", "bf16", "int8", "int4", *fitted, *(name + "+levels" for name in fitted)}
    for name, row in results.items():
        rows = np.load(out / name / "rows.npy")
        assert len(rows) == len(set(rows.tolist())) == ROWS // 2
        coded = sum(file.stat().st_size for file in (out / name / "coded").rglob("*") if file.is_file())
        assert row["bits"] == pytest.approx(8 * coded / (2 * len(rows) * TOKENS * WIDTH), rel=1e-9)
        cosines = []
        for number, features in enumerate(levels):
            decoded = torch.from_numpy(np.load(out / name / f"decoded-{number}.npy")).double()
            assert decoded.shape == (len(rows), TOKENS, WIDTH)
            true = torch.from_numpy(features[rows]).double()
            cosines.append(float(F.cosine_similarity(decoded, true, dim=-1).mean()))
        assert row["cosine"] == pytest.approx(min(cosines), abs=1e-9)
        if name.startswith("klt"):
            assert all(0.99 <= cosine < 0.992 for cosine in cosines), f"{name}: the smallest rate that reaches it"
        if name != "fp16":
            assert row["side_bytes"] <= 2 * 8 * WIDTH**2 + 1000


def test_what_packs_tighter_packs_tighter(saved: tuple[Path, dict[str, Any], list[np.ndarray]]) -> None:
    _, results, _ = saved
    bits = {name: row["bits"] for name, row in results.items()}
    assert bits["klt+pcodec"] < bits["int4"] < bits["int8"] < bits["fp16"]
    assert bits["klt+levels"] < bits["klt"] and bits["klt+pcodec+levels"] < bits["klt+pcodec"]
    assert bits["klt+trellis+levels"] < bits["klt+trellis"] < 1.003 * bits["klt+pcodec"], "small rows are rounded"


@pytest.mark.parametrize("name", ["klt", "klt+pcodec", "klt+trellis"])
def test_zarr_and_numpy_alone_decode(name: str, saved: tuple[Path, dict[str, Any], list[np.ndarray]]) -> None:
    zarr = pytest.importorskip("zarr")
    out = saved[0] / name
    with pytest.warns() if name != "klt" else np.errstate():  # zarr says that not every reader knows pcodec
        stored = zarr.open_array(out / "coded" / "level_1", mode="r")[...]
    assert stored.shape == (ROWS // 2, WIDTH, TOKENS) and stored.dtype == np.uint16
    side = {file.stem.removeprefix("level_1-"): np.load(file) for file in (out / "side").glob("level_1-*.npy")}
    np.testing.assert_allclose(side["basis"] @ side["basis"].T, np.eye(WIDTH), atol=1e-5)
    np.testing.assert_allclose(decode(stored, side), np.load(out / "decoded-1.npy"), atol=1e-3)


def test_sources_that_cannot_be_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", trained_like(8, 9, 16))
    np.save(tmp_path / "b.npy", trained_like(6, 9, 16))
    np.save(tmp_path / "flat.npy", np.zeros((4, 5), np.float32))
    np.save(tmp_path / "none.npy", np.zeros((4, 0, 5), np.float32))
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("no array")
    for arguments, message in (
        (("a.npy", "b.npy"), "levels of one teacher"),
        (("flat.npy",), "(rows, tokens, width)"),
        (("none.npy",), "(rows, tokens, width)"),
        (("objects.npy",), "no array that can be read"),
        (("text.npy",), "no array that can be read"),
        (("a.npy", "--teacher", "x", "--level", "0"), "go with a cache"),
    ):
        files = [str(tmp_path / part) if part.endswith(".npy") else part for part in arguments]
        done = CliRunner().invoke(sak, ["frontier", *files])
        assert done.exit_code and message in str(done.exception), done.output


def test_codecs_that_cannot_hold_the_features_are_left_out(tmp_path: Path) -> None:
    """A NaN is no JSON, and klt's word against one fidelity is no reason to hide all others' figures."""
    features = trained_like(8, 9, 16)
    features[..., 3] += 7e4
    features[:, 0, 5] = 1e7
    np.save(tmp_path / "a.npy", features)
    done = CliRunner().invoke(sak, ["frontier", str(tmp_path / "a.npy"), "--fidelity", "0.9999999", "--json"])
    assert done.exit_code == 0, done.output
    rows = {row["codec"]: row for row in json.loads(done.stdout, parse_constant=pytest.fail)["results"]}
    assert {"bf16", "int8"} <= set(rows) and not {"fp16", "klt"} & set(rows)
    assert "fp16 is left out: a feature is" in done.stderr and "use the codec bf16" in done.stderr
    assert "klt is left out: klt cannot reach" in done.stderr
