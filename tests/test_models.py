"""Checkpoints of the authors' release, there and back, and parameters by part, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.export.params import recipe_parameters
from pipeline.recipes.config import load_recipe
from pipeline.runs import Places
from pipeline.training.distill import distill
from sak_core.student.pretrained import Student
from sak_core.student.reference import export_reference
from tests.conftest import answer, refusal, sak
from tests.parity import student_for

FIXTURES = Path(__file__).parent / "fixtures" / "parity"


def reference(tmp_path: Path, stage: int) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint as the release saves it, of the fixtures' student."""
    state = export_reference(student_for(json.loads((FIXTURES / "pascal-aligned.json").read_text())), stage=stage)
    path = tmp_path / f"stage{stage}.pth"
    torch.save({"model": state} if stage == 1 else state, path)
    return path, state


@pytest.mark.slow
def test_both_stages_go_there_and_back(tmp_path: Path) -> None:
    for stage, name in ((1, "distill"), (2, "finetune")):
        path, state = reference(tmp_path, stage)
        out, back = tmp_path / name, tmp_path / f"{name}.pth"
        found = answer("import-reference", path, out)
        assert found["stage"] == name and found["teachers"] == ["dinov2", "clip", "sam"]
        assert answer("export-reference", out, back)["entries"] == len(state)
        again = torch.load(back, weights_only=True)
        assert again.keys() == state.keys()
        assert all(torch.equal(again[key], state[key]) for key in state)
    weights = Student.from_pretrained(tmp_path / "finetune").network.state_dict()
    assert torch.equal(weights["routers.sal.0.gates.bias"], state["backbone.mor.2_sal.router.module.3.bias"])


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    path, state = reference(tmp_path, 2)
    del state["backbone.tsap.sam.4.scale"]
    state["backbone.extra"] = torch.zeros(1)
    torch.save(state, path)
    said = refusal("import-reference", path, tmp_path / "out")
    assert "missing: backbone.tsap.sam.4.scale" in said and "left over: backbone.extra" in said
    assert not (tmp_path / "out").exists()
    torch.save({"model": FIXTURES}, path)
    assert str(path) in refusal("import-reference", path, tmp_path / "out")


def test_parameters_are_counted_by_part(features: Path, tmp_path: Path) -> None:
    def counts(*arguments: str | Path) -> dict[str, Any]:
        found: dict[str, Any] = answer("params", *arguments, "--out", features)
        return found

    whole = counts("demo")
    assert set(whole) == {"stem", "paths", "aligners", "routers", "heads", "total", "trained", "macs"}
    assert whole["total"] == whole["trained"] == sum(whole[part] for part in list(whole)[:5])
    # a path is seven adapters (96 -> 24 -> 96 and a scale) and four norms
    assert whole["paths"] == 3 * (7 * (96 * 24 + 24 + 24 * 96 + 96 + 1) + 4 * 192)
    macs = whole["macs"]
    assert macs["total"] == sum(count for part, count in macs.items() if part != "total")
    # 6 adapters' pairs of layers a path see 12 x 12 tokens and the class token, the seventh the embedding alone
    assert macs["paths"] == 3 * 7 * 2 * 96 * 24 * 145
    assert counts("demo", "--set", "trains=routers")["trained"] == whole["routers"] + whole["heads"]
    none = tmp_path / "none"
    done = sak("params", "demo", "--out", none, "--json")
    assert json.loads(done.stdout) == whole, "without a cache as with it"
    assert "no cache of rooms" in done.stderr and "instead" in done.stderr
    for arm, stage in (("single-task", None), ("teacher:mini-sam", None), ("sak", "distill")):
        there, not_there = (recipe_parameters("demo", stage, {"arm": arm}, Places(at)) for at in (features, none))
        assert there == not_there
    paper = recipe_parameters("paper-nyud", None, {}, Places(none))
    assert paper["paths"] == 3 * (13 * (768 * 192 + 192 + 192 * 768 + 768 + 1) + 4 * 2 * 768)
    invpt, mlore = (recipe_parameters(f"paper-{arm}-nyud", None, {}, Places(none)) for arm in ("invpt", "mlore"))
    for rival in (invpt, mlore):
        assert set(rival) == {"stem", "decoder", "total", "trained", "macs"} == {*rival["macs"], "trained", "macs"}
    # InvPT's published cost is 98.0 M, 6.6 M of them never used, as is a convolution of 5.4 of its 246 x 10^9
    assert invpt["decoder"] / 1e6 == pytest.approx(98.0 - 6.6, abs=0.1)
    unused = 576 * 1024 * 9 * 28 * 36
    assert (invpt["macs"]["decoder"] + unused) / 1e9 == pytest.approx(246, abs=0.5)
    said = refusal("params", "demo", "--set", 'teachers=["timm-resnet18"]', "--out", none)
    assert "make cache" in said and "timm-resnet18" in said
    recipe = load_recipe("demo", "distill", {"steps": 1, "batch_size": 8})
    distill(recipe, tmp_path / "run", Places(features, tmp_path))
    assert "stem" in sak("params", tmp_path / "run").stdout
    assert counts(tmp_path / "run")["total"] == whole["total"] - whole["routers"] - whole["heads"]
