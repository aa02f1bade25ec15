"""The house: imports run downwards only, and `sak --help` stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from pipeline.cli import sak

ROOT = Path(__file__).parents[1]
BELOW = {
    "pipeline": {"sak_core", "cache", "sak_common"},
    "sak_core": {"sak_common"},
    "cache": {"sak_common"},
    "sak_common": set(),
}

ORDER = {
    "cache": "errors faults draws < codecs places < format < calibration < reading < store "
    "< writing loading joined < maintenance",
    "sak_core": "errors labels noise png < images < boundary < metrics < tasks < views < interfaces < weights "
    "< miniature < datasets teachers < student < losses",
    "pipeline": "errors interrupts machine advice < console < pictures cluster < recipes < probes < runs "
    "< data boundary_scores results < extraction < training < studies miniature "
    "< maintenance export prediction < report < demo api "
    "< commands < cli < __main__",
}
"""The packages (and single files) of each floor, from the ground up; beside each other: neither imports the other."""


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


@pytest.mark.parametrize("floor", ORDER)
def test_packages_import_only_those_below(floor: str) -> None:
    """As on floors, so within one: `student` may import `tasks`, `tasks` never `student`."""
    height = {name: rank for rank, names in enumerate(ORDER[floor].split(" < ")) for name in names.split()}
    files = [path for path in (ROOT / floor).rglob("*.py") if path != ROOT / floor / "__init__.py"]
    here = {path: path.relative_to(ROOT / floor).with_suffix("").parts[0] for path in files}
    assert set(here.values()) == set(height), "a package without a place in the order, or a place without a package"
    for path in files:
        for name in imported(path):
            top, _, rest = name.partition(".")
            package = rest.partition(".")[0]
            if top == floor and package in height and package != here[path]:
                assert height[package] < height[here[path]], f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("floor", [*ORDER, "benchmarks", "tests"])
def test_files_can_be_read_in_one_sitting(floor: str) -> None:
    long = [path for path in (ROOT / floor).rglob("*.py") if len(path.read_text().splitlines()) > 400]
    assert not long


def test_no_imports_in_a_circle() -> None:
    """Imports within functions and for types count, too: what names each other is one idea cut in two."""
    files = {
        path: ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for top in BELOW
        for path in (ROOT / top).rglob("*.py")
    }
    modules = set(files.values())
    graph = {module: {name for name in imported(path) if name in modules} for path, module in files.items()}
    assert "sak_core.losses.rows" in graph["sak_core.losses.step"]
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("floor", ["cache", "sak_core", "sak_common"])
def test_the_lower_floors_know_no_command(floor: str) -> None:
    """Their errors say what and where; what to do on the command line is `pipeline.advice`'s to say."""
    commands = "|".join(sak.commands)
    command = re.compile(rf"\bsak ({commands})\b|\b(OUT|ROOT|SIZE)=|(^|\s)--[a-z]|\bulimit\b|same command")
    files = list((ROOT / floor).rglob("*.py"))
    assert files
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not command.search(node.value), f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}"


def test_training_never_imports_teachers() -> None:
    files = [path for package in ("training", "studies") for path in (ROOT / "pipeline" / package).glob("*.py")]
    assert len(files) > 20
    for path in files:
        where = path.relative_to(ROOT / "pipeline").as_posix()
        if where == "training/live.py":  # runs teachers in the step, where a recipe says source = "live"
            continue
        for name in imported(path):
            assert not name.startswith("sak_core.teachers"), f"{where} imports {name}"
            assert not name.startswith("pipeline.extraction.running"), f"{where} imports {name}"
            assert not name.startswith("pipeline.training.live") or where == "training/distill.py"


@pytest.mark.parametrize(
    "module",
    [
        "format.spec",
        "store",
        "writing.source_writer",
        "writing.teacher_writer",
        "reading.arrays",
        "loading.sampler",
        "maintenance.verification",
    ],
)
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
