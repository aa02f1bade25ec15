"""The list of teachers, teachers of one's own, and untrained ones in red."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from sak_core.errors import TeacherUnavailable
from sak_core.teachers import TEACHERS, build_teacher
from sak_core.teachers.facts import known_facts, measure
from tests.conftest import SIZES, TINY, answer, cache_split, in_a_terminal, refusal, sak
from tests.towers import OPENAI, pixels

# --- the list


def test_the_list_tells_of_every_row():
    rows = answer("teachers")
    assert [row["name"] for row in rows] == list(TEACHERS)
    by_name = {row["name"]: row for row in rows}
    dinov2 = by_name["dinov2"]
    assert dinov2["levels"] == [2, 5, 8, 11] and dinov2["widths"] == [768] * 4 and dinov2["grids"] == [[27, 27]] * 4
    assert dinov2["input_size"] == [378, 378] and dinov2["native_size"] == [518, 518]
    assert by_name["sam"]["native_size"] == [1024, 1024] and by_name["sam"]["grids"] == [[64, 64]] * 4
    assert by_name["clip"]["mean"] == pytest.approx(OPENAI[0]) and by_name["siglip"]["mean"] == [0.5] * 3
    assert all(row["licence"] and row["parameters"] > 0 and row["flops"] > 0 for row in rows)
    families = ("dinov2-reg-giant", "clip-large", "openclip", "dfn-clip-large", "siglip2", "sam-huge", "dinov3-large")
    assert {*families, "c-radio", "depth-anything"} <= by_name.keys()


@pytest.mark.slow
def test_the_lists_facts_are_the_networks():
    """Of every row, measured anew: built without memory or weights."""
    assert {facts["name"]: facts for facts in known_facts()} == {name: measure(name) for name in TEACHERS}


def test_costs_are_those_of_a_pass_that_computes():
    from torch.utils.flop_counter import FlopCounterMode

    teacher = build_teacher("timm:resnet18", (96, 64), random_weights=True)
    with FlopCounterMode(display=False) as counter:
        teacher(pixels(96, 64, 1))
    facts = measure("timm:resnet18", (96, 64))
    assert facts["flops"] == counter.get_total_flops()
    assert facts["parameters"] == sum(p.numel() for p in teacher.parameters())


def test_the_list_measures_others_and_refuses_unknown_ones():
    done = sak("teachers", "timm:resnet18", "mini-sam", "--size", "64x96")
    assert "timm:resnet18" in done.stdout and "16x24,8x12,4x6,2x3" in done.stdout and "2/2 teachers" in done.stderr
    assert "did you mean dinov2" in refusal("teachers", "dinvo2")


# --- one's own

OWN = '''
import torch
from sak_core.interfaces.teacher import Teacher, TeacherSpec, fit_to_patch


class Means(Teacher):
    """Means of cells, as two levels."""

    def features(self, images):
        cells = torch.nn.functional.avg_pool2d(images, 8)
        return [cells, cells * FACTOR]


FACTOR = 2


def build(size, levels=None, weights=None, random_weights=False, seed=0):
    seen = fit_to_patch(size, 8)
    return Means(TeacherSpec(
        name="means", library="", model="", weights="sha256:none", mean=(0.5,) * 3, std=(0.5,) * 3,
        interpolation="bilinear", patch=8, input_size=seen, grid=(seen[0] // 8, seen[1] // 8), widths=(3, 3),
        levels=(0, 1), licence="mine",
    ))


def no_teacher(**options):
    return torch.nn.Identity()
'''


@pytest.fixture
def own(tmp_path: Path) -> dict[str, str]:
    """An environment in which `my_package.my_teacher` can be imported."""
    package = tmp_path / "code" / "my_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "my_teacher.py").write_text(OWN)
    return {"PYTHONPATH": str(package.parent)}


def cache(teacher: str, out: Path, env: dict[str, str], *more: str, check: bool = True):
    options = ["--split", "val", "--limit", "2", "--out", str(out), "--threads", "1", "--decoders", "0"]
    return sak("cache", "--teacher", teacher, *options, *more, env=env, check=check)


def test_a_teacher_of_ones_own_runs_only_when_allowed_and_is_in_the_provenance(own, tmp_path):
    name, out = "my_package.my_teacher:build", tmp_path / "features"
    refused = cache(name, out, own, check=False)
    assert refused.returncode == 2 and "--allow-code lets it run" in refused.stderr
    assert not list(out.glob("*/teachers/*"))
    cache(name, out, own, "--allow-code")
    (store,) = out.iterdir()
    (told,) = answer("info", store)["teachers"].values()
    spec = told["provenance"]["teacher"]
    assert spec["library"] == "code" and spec["name"] == name
    assert spec["model"].startswith(f"{name}@sha256:") and len(spec["model"]) == len(name) + 8 + 64
    refused = sak("verify", store, "--live", "2", env=own, check=False)
    assert refused.returncode == 1 and "--allow-code lets it run" in refused.stdout
    assert "2 rows computed again agree" in sak("verify", store, "--live", "2", "--allow-code", env=own).stdout
    # other code is another teacher
    path = Path(own["PYTHONPATH"]) / "my_package" / "my_teacher.py"
    path.write_text(OWN.replace("FACTOR = 2", "FACTOR = 3"))
    changed = cache(name, out, own, "--allow-code", check=False)
    assert changed.returncode == 2 and "model" in changed.stderr and "Traceback" not in changed.stderr


def test_a_plain_module_is_taken(own, tmp_path):
    """A file by itself, without a package."""
    (Path(own["PYTHONPATH"]) / "my_teacher.py").write_text(OWN)
    name, out = "my_teacher:build", tmp_path / "features"
    refused = cache(name, out, own, check=False)
    assert refused.returncode == 2 and "if it is code of your own, --allow-code lets it run" in refused.stderr
    cache(name, out, own, "--allow-code")
    (store,) = out.iterdir()
    (told,) = answer("info", store)["teachers"].values()
    assert told["provenance"]["teacher"]["model"].startswith("my_teacher:build@sha256:")
    assert "2 rows computed again agree" in sak("verify", store, "--live", "2", "--allow-code", env=own).stdout
    misspelt = cache("tim:resnet18", out, own, "--random-weights", check=False)
    assert misspelt.returncode == 2 and "did you mean timm" in misspelt.stderr
    absent = cache("my_techer:build", out, own, "--allow-code", check=False)
    assert absent.returncode == 2 and "No module named 'my_techer'" in absent.stderr


def test_what_is_wrong_with_code_of_ones_own_is_said(own, monkeypatch):
    monkeypatch.syspath_prepend(own["PYTHONPATH"])
    for name, words in (
        ("my_package.nothing:build", r"No module named 'my_package\.nothing'"),
        ("my_package.my_teacher:biuld", "has no function 'biuld'"),
        ("my_package.my_teacher:no_teacher", "gave a Identity, not a"),
    ):
        with pytest.raises(TeacherUnavailable, match=words):
            build_teacher(name, (64, 64), allow_code=True)
    assert measure("my_package.my_teacher:build", (64, 64), allow_code=True)["grids"] == [[8, 8], [8, 8]]
    for module in ("my_package", "my_package.my_teacher"):
        monkeypatch.delitem(sys.modules, module)


# --- untrained teachers


@pytest.mark.slow
def test_random_weights_are_red_wherever_they_are_used(tmp_path):
    out, runs = tmp_path / "features", tmp_path / "runs"
    for split in SIZES:
        cache_split(out, split, "--teacher", "mini-dino", "--random-weights")
    red = "\033[31m"
    places = ["--out", out, "--runs", runs]
    options = ["--set", 'arm="teacher:mini-dino"', *TINY, "--run", runs / "r"]
    assert f"{red}r: mini-dino ran with RANDOM WEIGHTS" in in_a_terminal("finetune", "demo", *options, *places)
    assert f"{red}r: mini-dino ran with RANDOM WEIGHTS" in in_a_terminal("evaluate", runs / "r", *places)
    assert json.loads((runs / "r" / "results.json").read_text())["random_weights"] == ["mini-dino"]
