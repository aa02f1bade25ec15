"""What cannot be asked of a teacher ends in a sentence before anything is run, not in a traceback or in waste."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.extraction.caching import start_teachers
from pipeline.extraction.plan import _coarser
from pipeline.extraction.prepare import source_spec
from pipeline.extraction.request import CacheRequest, TeacherOptions
from pipeline.extraction.samples import DatasetRequest
from sak_core.teachers import build_teacher
from tests.conftest import refusal


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--levels", "99"], "error: levels of mini-dino must ascend within 0..3 (4 blocks), got 99"),
        (
            ["--weights", "x.pth", "--random-weights"],
            "error: either weights from x.pth or random weights, not both",
        ),
        (["--device", "gpu"], "error: --device gpu: torch knows no such device; use auto, cpu, cuda or cuda:1"),
        (["--grid", "7x6"], "error: --grid 7x6: level 0 of mini-dino has 6x6 cells"),
        (["--grid", "6x64"], "ask for 6x6 or less, or leave --grid out"),
        (["--size", "4"], "error: rooms are rendered at 8 pixels a side or more, not at 4x4"),
    ],
)
@pytest.mark.parametrize("command", ["cache", "plan"])
def test_a_sentence_not_a_traceback(command: str, options: list[str], sentence: str, tmp_path: Path) -> None:
    size = [] if "--size" in options else ["--size", "48"]
    asked = ["--teacher", "mini-dino", "--split", "val", "--limit", "2", *size, "--out", tmp_path, *options]
    assert sentence in refusal(command, *asked)
    assert not list(tmp_path.iterdir()), "nothing is prepared first"


def test_levels_of_other_libraries_too() -> None:
    said = refusal("cache", "--teacher", "timm:test_vit", "--random-weights", "--levels", "0,99", "--limit", "1")
    assert "error: levels of timm:test_vit must ascend within 0.." in said


def request(teachers: tuple[str, ...], grid: tuple[int, int] | None) -> CacheRequest:
    options = TeacherOptions(grid=grid, random_weights=True, threads=1)
    return CacheRequest(DatasetRequest("rooms", "val", (96, 128), limit=2), teachers, 1, "features", options)


def test_a_grid_is_held_to_the_coarsest_level() -> None:
    """A CNN's deepest level would be repeated where its shallower ones are averaged."""
    cells = build_teacher("timm:resnet18", (96, 128), random_weights=True).spec.level_grids()
    assert cells[-1] == (3, 4)
    (running,) = start_teachers(request(("timm:resnet18",), (3, 4)))
    assert {level.grid for level in running.levels} == {(3, 4)}
    with pytest.raises(Exception, match=r"--grid 3x5: level 3 of timm:resnet18 has 3x4 cells.* ask for 3x4 or less"):
        start_teachers(request(("timm:resnet18",), (3, 5)))


def test_no_grid_is_proposed_that_would_be_refused() -> None:
    asked = request(("mini-dino", "timm:vit_wee_patch16_reg1_gap_256"), None)
    teachers = start_teachers(asked)
    proposed = _coarser(source_spec(asked.source.open(), asked.source), teachers)
    assert proposed and max(proposed) == (6, 8)
    start_teachers(request(asked.teachers, proposed[0]))
