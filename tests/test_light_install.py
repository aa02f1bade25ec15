"""A training machine: an environment in which no teacher's library is installed trains from a copied cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import TINY

ABSENT = ("open_clip", "segment_anything", "transformers", "dask", "distributed", "peft", "accelerate")


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with all that this one has but the libraries of the extras `teachers` and `lora`."""
    folder = tmp_path_factory.mktemp("light")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.lower().startswith(ABSENT) and not entry.name.startswith("__editable__"):
            (site / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


@pytest.mark.slow
def test_it_trains_scores_predicts_and_exports(light: Path, features: Path, tmp_path: Path) -> None:
    copied = tmp_path / "features"
    shutil.copytree(features, copied)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}

    def run(*words: object, fails: bool = False) -> subprocess.CompletedProcess[str]:
        command = [str(light), "-m", "pipeline", *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
        assert bool(done.returncode) == fails, f"{command}\n{done.stderr}"
        return done

    listed = subprocess.run(
        [str(light), "-c", f"import importlib.util as u; print([n for n in {ABSENT} if u.find_spec(n)])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert listed.stdout.strip() == "[]"
    run("distill", *TINY)
    run("finetune", *TINY, "--set", "boundary.thresholds=2")
    (tuned,) = (tmp_path / "runs").glob("*-finetune-*")
    assert json.loads(run("evaluate", tuned, "--split", "test", "--json").stdout)["depth"]["RMSE"] > 0
    run("export", tuned, tmp_path / "exported")
    picture = Path(__file__).parents[1] / "docs" / "demo.png"
    run("predict", picture, "--model", tmp_path / "exported", "--out", tmp_path / "predicted", "--size", "96")
    assert (tmp_path / "predicted" / "contact-sheet.png").is_file()
    words = ("--size", "96", "--random-weights", "--limit", "1", "--out", tmp_path / "more")
    refused = run("cache", "--teacher", "clip", *words, "--dataset", "rooms", fails=True)
    assert refused.returncode == 2 and "sak[teachers]" in refused.stderr, refused.stderr
