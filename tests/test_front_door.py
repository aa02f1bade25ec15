"""What a newcomer types: the commands in their order without a recipe, and `import sak`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import sak as front
from pipeline import cli, console
from pipeline.advice import explain
from pipeline.errors import UserError
from pipeline.recipes.automatic import choose, is_edited, write_recipe
from pipeline.recipes.config import load_recipe
from pipeline.results import CacheResult, RunResult, ScoreResult
from sak_common.errors import SakError
from tests.conftest import TINY, program, refusal, sak

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache, as `make cache TEACHER=mini-dino` leaves it, but small."""
    features = tmp_path_factory.mktemp("front") / "features"
    sak("cache", "--teacher", "mini-dino", "--limit", "32", "--views", "2", "--decoders", "0", "--out", features)
    return features


def test_the_commands_in_their_order(small: Path, tmp_path: Path) -> None:
    at = ("--out", small, "--runs", tmp_path / "runs")
    distilled = sak("distill", *at, *TINY)
    assert "mini-dino from rooms-train-96x96-" in distilled.stderr
    finetuned = sak("finetune", *at, *TINY, "--json")
    run = tmp_path / "runs" / "rooms-96x96-mini-dino-finetune-sak-seed0"
    assert (run / "results.json").is_file() and json.loads(finetuned.stdout)["stage"] == "finetune"
    assert "200 samples" in refusal("ablate", *at, "--dry-run") and len(list(small.iterdir())) == 1


def test_a_study_of_what_is_there(features: Path, tmp_path: Path) -> None:
    planned = sak("ablate", "--out", features, "--runs", tmp_path, "--dry-run", "--json")
    names = {Path(run).name.rpartition("-seed0")[0] for run in json.loads(planned.stdout)["runs"]}
    arms = {f"teacher-mini-{name}" for name in ("dino", "clip", "sam")} | {"multi-task", "many-to-one", "sak"}
    assert names == arms
    (written,) = tmp_path.glob("*-study.toml")
    again = sak("ablate", written, "--out", features, "--runs", tmp_path, "--dry-run", "--json")
    assert again.stdout == planned.stdout


def test_the_recipe_is_one_that_loads_and_an_edited_one_is_kept(features: Path, tmp_path: Path) -> None:
    path = write_recipe(features, tmp_path / "mine.toml")
    assert not is_edited(path.read_text())
    distill, finetune = load_recipe(str(path), "distill"), load_recipe(str(path), "finetune")
    assert distill.data.split == "unlabelled" and distill.teachers == ("mini-clip", "mini-dino", "mini-sam")
    assert finetune.data.split == "train" and finetune.validation and finetune.validation.split == "val"
    assert distill.steps > distill.schedule.warmup_steps and finetune.loss.alpha == 1
    path.write_text(path.read_text().replace("depth = 6", "depth = 5"))
    assert load_recipe(str(write_recipe(features, path)), "distill").student.stem.depth == 5


def test_what_cannot_be_chosen_is_said(small: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no caches below .*make cache TEACHER="):
        choose(tmp_path / "none")
    with pytest.raises(UserError, match="unknown data set 'room'; did you mean rooms"):
        choose(small, "room")
    two = tmp_path / "features"
    shutil.copytree(small, two)
    images = tmp_path / "photos"
    images.mkdir()
    room = next(iter(ROOT.glob("docs/demo.png")))
    for number in range(8):
        shutil.copy(room, images / f"{number}.png")
    options = ("--dataset", "folder", "--root", images, "--size", "96", "--views", "1", "--decoders", "0", "--out", two)
    sak("cache", "--teacher", "mini-sam", *options)
    said = refusal("distill", "--out", two)
    assert "folder, rooms" in said and "--dataset folder" in said
    at = ("--dataset", "folder", "--out", two, "--runs", tmp_path / "runs")
    sak("distill", *at, *TINY)
    said = refusal("finetune", *at)
    assert "dataset.toml" in said and "needs labels" in said


def test_more_teachers_count_for_more_than_more_views(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A second teacher that was cached in fewer views was left out without a word."""
    both = tmp_path / "features"
    shutil.copytree(small, both)
    sak("cache", "--teacher", "mini-sam", "--limit", "32", "--views", "1", "--decoders", "0", "--out", both)
    chosen = choose(both)
    assert chosen.teachers == ("mini-dino", "mini-sam") and chosen.distill.views == 1
    assert "1 views, which all teachers have; mini-dino would have more" in capsys.readouterr().err


def test_a_trial_beside_the_whole_is_refused_before_a_recipe_is_written(small: Path, tmp_path: Path) -> None:
    two = tmp_path / "features"
    shutil.copytree(small, two)
    sak("cache", "--teacher", "mini-dino", "--limit", "8", "--views", "2", "--decoders", "0", "--out", two)
    said = refusal("distill", "--out", two, "--runs", tmp_path / "runs")
    assert "(8 samples)" in said and "(32 samples)" in said
    assert "Move or delete all but one" in said and not (tmp_path / "runs").exists()


def test_results_are_short_where_they_are_shown() -> None:
    tuned = RunResult(
        Path("runs/a"), {"step": 8, "seconds": 2.5, "parameters": 1_500_000, "made_from": {"x": "y" * 99}}
    )
    assert repr(tuned) == "RunResult(runs/a: step 8, 2.5 s, 1.50 M parameters)"
    scored = ScoreResult(Path("runs/a"), {"depth": {"RMSE": 0.5, "details": {"per_image": {"0": 0.5}}}})
    assert scored.scores == {"depth": {"RMSE": 0.5}} and repr(scored) == "ScoreResult(runs/a: depth: RMSE 0.5)"
    cached = CacheResult("features/a.zarr", 8, 2, ("mini-dino",), {"x": "why"}, {}, {"mini-dino": {"seconds": 1}})
    assert repr(cached) == "CacheResult(features/a.zarr: 8 rows, mini-dino, 1 samples invalid)"


def test_a_notebook_keeps_one_line_a_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Told by what IPython offers; stderr is shown as errors are there, so that messages must not go to it."""
    shown: list[str] = []

    class Line:
        def update(self, data: dict[str, str], raw: bool) -> None:
            shown[-1] = data["text/plain"]

    def display(data: dict[str, str], raw: bool, display_id: bool) -> Line:
        shown.append(data["text/plain"])
        return Line()

    shell = SimpleNamespace(kernel=object())
    module = SimpleNamespace(get_ipython=lambda: shell, display=SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", module.display)
    with console.progress("a", 4, "rows", 1) as advance:
        assert shown == ["a: 1/4 rows"]
        advance(1, note="loss 0.5")
        advance(2)
    console.say("said")
    console.warn("beware")
    assert len(shown) == 1 and shown[0].startswith("a: 4/4 rows") and shown[0].endswith("loss 0.5")
    assert capsys.readouterr() == ("said\n", "warning: beware\n")
    error = SakError("wrong")
    error.add_note("do this")
    assert error._render_traceback_() == ["SakError: wrong", "do this"]


def test_errors_from_python_say_what_to_do(tmp_path: Path) -> None:
    """As on the command line: the extra of what is not installed, and what mends a store."""
    code = (
        "import sys; sys.modules['open_clip'] = None; import sak\n"
        f"sak.cache('clip', size=96, random_weights=True, limit=1, out={str(tmp_path)!r})"
    )
    done = program(code)
    assert done.returncode and "-m pip install 'sak[teachers]'" in done.stderr


def test_help_lists_every_command_by_the_step_it_serves() -> None:
    text = CliRunner().invoke(cli.sak, ["--help"]).output
    for title, commands in cli.SECTIONS.items():
        assert f"{title}:" in text
        for command, line in commands.items():
            assert f"  {command.name}" in text and line in text
    assert set(cli.sak.commands) == {command.name for commands in cli.SECTIONS.values() for command in commands}


def test_import_sak_is_light_and_has_all_names() -> None:
    code = (
        "import sys, sak; heavy = {'torch', 'zarr', 'click', 'numpy'} & set(sys.modules); "
        "print(sorted(heavy), sorted(dir(sak)) == sorted([*sak.__all__, '__version__']))"
    )
    assert program(code).stdout.split("\n")[0] == "[] True" or subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.startswith("[] True")
    for name in front.__all__:
        assert callable(getattr(front, name))
    with pytest.raises(AttributeError, match="no attribute 'cash'"):
        front.cash  # noqa: B018
    with pytest.raises(SakError, match="leave VIEWS out"):
        front.cache("mini-dino", "rooms", "val", views=2)


@pytest.mark.parametrize("name", ["cache.py", "pipeline.py"])
def test_a_users_own_file_that_hides_a_package_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("")
    code = f"import sys; sys.path.append({str(ROOT)!r}); import sak"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and f"Python finds {tmp_path / name}" in done.stderr and "Rename" in done.stderr


def test_a_library_that_is_not_installed_is_named_with_its_extra() -> None:
    for module, extra in (("open_clip", "teachers"), ("transformers.models", "teachers"), ("peft", "lora")):
        said = explain(ModuleNotFoundError(f"No module named {module!r}", name=module))
        assert said and f"{sys.executable} -m pip install 'sak[{extra}]'" in said
    assert explain(ModuleNotFoundError("No module named 'pipelines'", name="pipelines")) is None
