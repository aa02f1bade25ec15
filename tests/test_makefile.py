"""Every variable of the Makefile reaches `sak` as one argument, whatever is in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ODD = """it's "one" $HOME `x` word"""
CACHE = ["--teacher", "--dataset", "--split", "--codec", "--grid", "--out", "--size", "--views", "--levels", "--limit",
         "--root", "--weights"]  # fmt: skip


def arguments(target: str, tmp_path: Path, **variables: str) -> list[str]:
    """What `make target VARIABLE=value ...` hands to `sak`."""
    shown = tmp_path / "shown.py"
    shown.write_text("import json, sys; print(json.dumps(sys.argv[1:]))")
    given = [f"{name}={value.replace('$', '$$')}" for name, value in variables.items()]  # make's own escape
    there = ["-o", ".venv/.installed", "-o", ".venv/.installed-light"]
    command = ["make", "-s", *there, target, f"SAK={sys.executable} {shown}", *given]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "HOME": "/h"}
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def values(names: str, word: str) -> dict[str, str]:
    return {name: f"{name} {word}" for name in names.split()}


@pytest.mark.parametrize("word", ["photos", "a  b", ODD])
@pytest.mark.parametrize(
    ("target", "names", "right"),
    [
        (
            "cache",
            "TEACHER DATASET SPLIT CODEC GRID OUT SIZE VIEWS LEVELS LIMIT ROOT WEIGHTS",
            ["cache", *(word for option in CACHE for word in (option, option[2:].upper()))],
        ),
        ("plan", "TEACHER ROOT", [
            "plan", "--teacher", "TEACHER", "--dataset", "=rooms", "--split", "=train", "--codec", "=fp16", "--grid",
            "=native", "--out", "=features", "--root", "ROOT",
        ]),
        ("check-data", "ROOT", ["data", "check", "ROOT"]),
        ("check-data", "ROOT DATASET", ["data", "check", "DATASET", "--root", "ROOT"]),
        ("distill", "RECIPE OUT ROOT DEVICES",
         ["distill", "RECIPE", "--out", "OUT", "--root", "ROOT", "--devices", "DEVICES"]),
        ("finetune", "RECIPE OUT FROM ROOT DEVICES",
         ["finetune", "RECIPE", "--out", "OUT", "--from", "FROM", "--root", "ROOT", "--devices", "DEVICES"]),
        ("ablate", "STUDY WORKERS SHARE_READS OUT DEVICES", [
            "ablate", "STUDY", "--workers", "WORKERS", "--share-reads", "SHARE_READS", "--out", "OUT",
            "--devices", "DEVICES",
        ]),
        ("report", "STUDY TO OUT", ["report", "STUDY", "--out", "TO", "--features", "OUT"]),
        ("report", "STUDY", ["report", "STUDY", "--out", "=report.html", "--features", "=features"]),
        ("evaluate", "RUN SPLIT OUT", ["evaluate", "RUN", "--split", "SPLIT", "--out", "OUT"]),
        ("evaluate", "RUN", ["evaluate", "RUN", "--split", "=test", "--out", "=features"]),
        ("predict", "SOURCE MODEL TO", ["predict", "SOURCE", "--model", "MODEL", "--out", "TO"]),
        ("predict", "SOURCE MODEL", ["predict", "SOURCE", "--model", "MODEL", "--out", "=predictions"]),
        ("export", "RUN TO", ["export", "RUN", "TO"]),
        ("export", "RUN", ["export", "RUN", "=exported"]),
    ],
)  # fmt: skip
def test_each_variable_is_one_argument(target: str, names: str, right: list[str], word: str, tmp_path: Path) -> None:
    """Capitals in `right` stand for a variable's value, "=" for one that is not given."""
    wanted = [f"{part} {word}" if part.isupper() else part.removeprefix("=") for part in right]
    assert arguments(target, tmp_path, **values(names, word)) == wanted


def test_the_home_folder_and_further_options(tmp_path: Path) -> None:
    """Shells that leave a ~ behind = alone leave it to make's."""
    done = arguments("predict", tmp_path, SOURCE="~/my photos", MODEL="a~/b", ARGS="--tile 32 --task 'my task'")
    assert done == [
        *("predict", "/h/my photos", "--model", "a~/b", "--out", "predictions"),
        *("--tile", "32", "--task", "my task"),
    ]
