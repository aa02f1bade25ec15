"""The worked pages of docs/, run from top to bottom as a reader would run them, each in an empty folder.

A block whose first line is a comment with a file's path is that file, and a `.py` beside the page's folder is then run;
other Python blocks are run as they are; lines of `console` blocks that begin with `$` go to a shell.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w./-]+\.(?:py|toml))\n")


def run(command: list[str] | str, folder: Path) -> str:
    """Run a command in the page's folder, with `sak` on the path."""
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command,
        shell=isinstance(command, str),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def work_through(page: str, folder: Path) -> list[str]:
    """Do all that the page says; what each command printed."""
    (folder / "bin").mkdir()
    sak = folder / "bin" / "sak"
    sak.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pipeline "$@"\n')
    sak.chmod(0o755)
    printed = []
    blocks = BLOCK.findall((ROOT / "docs" / page).read_text())
    assert {kind for kind, _ in blocks} <= {"python", "toml", "console"}
    for number, (kind, text) in enumerate(blocks):
        named = FILE.match(text)
        path = folder / (named[1] if named else f"block{number}.py")
        if kind == "console":
            lines = text.splitlines()
            assert lines and all(line.startswith("$ ") for line in lines)
            printed += [run(line[2:], folder) for line in lines]
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if kind == "python" and path.parent == folder:
            printed.append(run([sys.executable, path.name], folder))
    return printed


@pytest.mark.slow
def test_a_new_teacher(tmp_path):
    printed = work_through("new-teacher.md", tmp_path)
    (listed,) = [text for text in printed if "my_package.my_teacher:build" in text and "GFLOP" in text]
    assert "12x12,6x6,6x6" in listed and "BSD-3-Clause" in listed
    (info,) = [text for text in printed if "samples x" in text]
    assert (
        "my_package-my_teacher-build, RANDOM WEIGHTS: 8 of 8 rows committed (complete)" in info
        and "timm-mobilenetv3_small_100" in info
    )
    for run, matched in (("squeezed", [1, 2, 3]), ("matched", [0, 2, 3])):
        made = json.loads((tmp_path / "runs" / run / "model.json").read_text())["student"]
        assert made["matches"] == {"my_package-my_teacher-build": matched}


@pytest.mark.slow
def test_a_new_data_set(tmp_path):
    printed = work_through("new-dataset.md", tmp_path)
    assert any("no problems" in text and "depth (depth): 2 to 2.54" in text for text in printed)
    assert (tmp_path / "data-check.png").is_file()
    assert len(list((tmp_path / "features").glob("kitchens-*-64x96-*.zarr"))) == 2


@pytest.mark.slow
def test_a_new_task(tmp_path):
    printed = work_through("new-task.md", tmp_path)
    assert any("material: mIoU" in text and "depth: RMSE" in text for text in printed)


def test_a_new_decoder(tmp_path):
    (printed,) = work_through("new-decoder.md", tmp_path)
    assert "'decoder'" in printed and "'heads'" not in printed


@pytest.mark.slow
def test_a_backbone(tmp_path):
    printed = work_through("backbone.md", tmp_path)
    accuracy, constant = map(float, re.findall(r"\d\.\d+", printed[-1]))
    assert accuracy > constant + 0.1


@pytest.mark.slow
def test_from_python(tmp_path):
    printed = work_through("python.md", tmp_path)
    assert "('mini-dino',)" in printed[0] and "(12, 12, 128)" in printed[1] and "(96, 96)" in printed[3]
    assert (tmp_path / "predicted.png").is_file() and "torch.Size([16, 96, 96, 3])" in printed[-1]


def test_readme_leads_to_every_page():
    text = (ROOT / "README.md").read_text()
    for page in ("new-teacher", "new-task", "new-decoder", "new-dataset", "backbone", "python", "rivals", "report"):
        assert f"docs/{page}.md" in text


@pytest.mark.parametrize("page", sorted(Path("docs").rglob("*.md")), ids=str)
def test_lines_of_prose_end_before_120_characters(page: Path) -> None:
    """Tables and code may be longer; what is wide scrolls, and prose would not."""
    is_code, long = False, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        is_code ^= line.startswith("```")
        if len(line) > 120 and not is_code and not line.startswith(("|", "    ")):
            long.append(number)
    assert not long
