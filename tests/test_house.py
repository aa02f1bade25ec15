"""The house: imports run downwards only, and `sak --help` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW = {"pipeline": {"sak_core", "cache"}, "sak_core": set(), "cache": set()}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("floor", BELOW)
def test_imports_run_downwards_only(floor: str) -> None:
    files = list((ROOT / floor).rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            top = name.partition(".")[0]
            if top in BELOW and top != floor:
                assert top in BELOW[floor], f"{path.relative_to(ROOT)} imports {name}"


def test_no_imports_in_a_circle() -> None:
    """Imports within functions and for types count, too: what names each other is one idea cut in two."""
    files = {
        path: ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for top in BELOW
        for path in (ROOT / top).rglob("*.py")
    }
    modules = set(files.values())
    graph = {module: {name for name in imported(path) if name in modules} for path, module in files.items()}
    assert "sak_core.tasks" in graph["sak_core.losses.step"]
    # a student loads and tiles itself for who asks it to, and both are files of their own
    graph["sak_core.student.network"] -= {"sak_core.student.pretrained", "sak_core.student.tiling"}
    TopologicalSorter(graph).prepare()


def test_training_never_imports_teachers() -> None:
    files = [path for room in ("training", "studies") for path in (ROOT / "pipeline" / room).glob("*.py")]
    assert len(files) > 20
    for path in files:
        where = path.relative_to(ROOT / "pipeline").as_posix()
        if where == "training/live.py":  # runs teachers in the step, where a recipe says source = "live"
            continue
        for name in imported(path):
            assert not name.startswith("sak_core.teachers"), f"{where} imports {name}"
            assert not name.startswith("pipeline.extraction.running"), f"{where} imports {name}"
            assert not name.startswith("pipeline.training.live") or where == "training/distill.py"


@pytest.mark.parametrize("module", ["spec", "store", "writer", "teacher_writer", "reader", "sampler", "verify"])
def test_the_store_does_without_torch(module: str) -> None:
    code = f"import sys, cache.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, pipeline.cli as c; c.sak.main(['--help'], standalone_mode=False); "
        "heavy = {'torch', 'numpy', 'zarr', 'pydantic', 'rich', 'timm'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "distill" in done.stdout
