"""Hostile and damaged files of weights are refused with a reason by every entrance, and never executed."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.export.models import from_run
from pipeline.runs import checkpoint
from sak_core.errors import TeacherUnavailable
from sak_core.student.initial_weights import load_vit
from sak_core.student.pretrained import PretrainedConfig, Student, save_pretrained
from sak_core.student.pretrained_config import RefusedModel
from sak_core.student.stem import Stem
from sak_core.teachers import build_teacher
from sak_core.weights.tensor_files import RefusedFile, read_tensors
from tests import hostile, students
from tests.conftest import refusal
from tests.hostile import SAFETENSORS, TORCH

pytestmark = pytest.mark.filterwarnings("ignore")

Make = Callable[[Path, hostile.State], None]
CASES = [*((make, ".safetensors") for make in SAFETENSORS), *((make, ".pth") for make in TORCH)]
NAMES = [f"{make.__name__}{suffix}" for make, suffix in CASES]


REASONS = {
    "pickled.pth": "nothing in it was executed",
    "scripted.pth": "TorchScript",
    "other_content.pth": "holds no state dict",
    "a_list.pth": "holds a list",
    "huge_header.safetensors": "announces a header",
}


def bounded(use: Callable[[], object]) -> None:
    """Run `use` with 3 GB of address space above what is taken: whoever believes a header of 100 GB fails."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + 3_000_000_000, before[1]))
    try:
        use()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def refused(kind: type[Exception], path: Path, use: Callable[[], object], words: str | None = None) -> None:
    """That `use` raises `kind`, naming the file and not running out of memory, and that no foreign code ran."""
    with pytest.raises(kind, match=words) as caught:
        bounded(use)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) > len(str(path)) + 15, "a reason is given"
    assert not hostile.marker(path).exists(), "code in the file was executed"


@pytest.mark.parametrize(("make", "suffix"), CASES, ids=NAMES)
def test_the_reader_refuses(make: Make, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    make(path, {"a": torch.ones(40)})
    refused(RefusedFile, path, lambda: read_tensors(path), REASONS.get(f"{make.__name__}{suffix}"))


@pytest.mark.parametrize("make", [hostile.pickled, hostile.bare_pickle], ids=lambda make: make.__name__)
def test_the_hostile_files_are_hostile(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    make(path, {"a": torch.ones(1)})
    import pickle

    if make is hostile.pickled:
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert hostile.marker(path).exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_honest_files_are_read(suffix: str, tmp_path: Path) -> None:
    state = {"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.randn(6, dtype=torch.bfloat16)}
    hostile.honest(tmp_path / f"w{suffix}", state)
    found = read_tensors(tmp_path / f"w{suffix}")
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize(("make", "suffix"), CASES, ids=NAMES)
def test_teachers_refuse(make: Make, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    make(path, {"cls_token": torch.ones(1, 1, 192)})
    name = "timm:vit_tiny_patch16_224"
    refused(TeacherUnavailable, path, lambda: build_teacher(name, (224, 224), weights=path))


@pytest.mark.parametrize(("make", "suffix"), CASES, ids=NAMES)
def test_stems_refuse(make: Make, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    stem = Stem(students.config().stem)
    before = {name: value.clone() for name, value in stem.state_dict().items()}
    make(path, stem.vit.state_dict())
    refused(RefusedFile, path, lambda: load_vit(stem, path))
    assert all(torch.equal(before[name], value) for name, value in stem.state_dict().items())


@pytest.fixture()
def saved(tmp_path: Path) -> Path:
    student = students.student()
    save_pretrained(student, PretrainedConfig(student.config), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("make", SAFETENSORS, ids=lambda make: make.__name__)
def test_saved_students_refuse(make: Make, saved: Path) -> None:
    path = saved / "model.safetensors"
    make(path, read_tensors(path))
    refused(RefusedFile, path, lambda: Student.from_pretrained(saved))


def test_saved_students_refuse_other_shapes_and_names(saved: Path) -> None:
    path = saved / "model.safetensors"
    state = read_tensors(path)
    hostile.honest(path, {**state, "stem.vit.cls_token": torch.ones(1, 1, 17)})
    other = r"cls_token \(1, 1, 17\) instead of \(1, 1, 16\)"
    refused(RefusedModel, saved, lambda: Student.from_pretrained(saved), other)
    hostile.honest(path, {**state, "../../etc/passwd": torch.ones(1)})
    refused(RefusedModel, saved, lambda: Student.from_pretrained(saved), "left over: ../../etc/passwd")
    del state["stem.vit.cls_token"]
    hostile.honest(path, state)
    refused(RefusedModel, saved, lambda: Student.from_pretrained(saved), "missing: stem.vit.cls_token")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(format=2), "format 2"),
        (lambda c: c.update(auto_map={"AutoModel": "evil.py"}), "auto_map"),
        (lambda c: c.update(student="evil"), "student"),
        (lambda c: c["student"]["stem"].update(depth=10**9), "depth is 1000000000"),
        (lambda c: c["student"]["stem"].update(width=10**9, heads=1), "width is 1000000000"),
        (lambda c: c["student"]["stem"].update(image_size=[10**6, 10**6]), "image_size"),
        (lambda c: c["student"]["stem"].update(width="16"), "stem.width"),
        (lambda c: c["student"]["stem"].update(patch_size=0), "patch_size is 0"),
        (
            lambda c: c["student"].update(stem={**NAMED, "name": "hf-hub:someone/else", "image_size": [32, 32]}),
            "no name of a timm model",
        ),
        (
            lambda c: c["student"].update(stem={**NAMED, "name": "local-dir:/tmp", "image_size": [32, 32]}),
            "no name of a timm model",
        ),
        (lambda c: c["student"]["tasks"][0].update(name="../../escape"), "no name that could be a file's"),
        (lambda c: c["student"]["tasks"][0].update(name="/etc/cron.d/x"), "no name that could be a file's"),
        (lambda c: c["student"]["tasks"][0].update(kind="os.system"), "unknown kind"),
        (lambda c: c["student"]["teachers"].update({"../x": 12}), "no name that could be a file's"),
        (lambda c: c["student"]["teachers"].update({"dino": 10**12}), "implausible widths"),
        (lambda c: c["student"].update(head="evil"), "evil"),
        (lambda c: c["student"].update(levels=[3, 99]), "levels"),
        (lambda c: c["student"].update(code="import os"), "unknown student.code"),
        (lambda c: c["student"]["stem"].update(code="import os"), "unknown student.stem.code"),
        (lambda c: c.pop("student"), "student: Field required"),
    ],
)
def test_hostile_configurations_are_refused(change: Callable, words: str, saved: Path) -> None:
    path = saved / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    refused(RefusedModel, saved, lambda: Student.from_pretrained(saved), words)


NAMED = {"patch_size": None, "width": None, "depth": None, "heads": None, "checkpointing": False}


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "null", "[]", '{"format": 1}', "\0", '{"format": NaN}'])
def test_damaged_configurations_are_refused(text: str, saved: Path) -> None:
    (saved / "config.json").write_text(text)
    refused(RefusedModel, saved, lambda: Student.from_pretrained(saved))


def run_checkpoint(folder: Path) -> tuple[Path, torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    checkpoint.save(
        folder, checkpoint.Trainable(model, optimizer), {"step": 1, "seconds": 0.5, "recipe": {}, "loader": {}}
    )
    return folder, model, optimizer


@pytest.mark.parametrize("file", ["model", "optimizer", "random"])
@pytest.mark.parametrize("make", SAFETENSORS, ids=lambda make: make.__name__)
def test_run_checkpoints_refuse(make: Make, file: str, tmp_path: Path) -> None:
    folder, model, optimizer = run_checkpoint(tmp_path / "last")
    path = folder / f"{file}.safetensors"
    make(path, {"a": torch.ones(4)} if file == "random" else read_tensors(path))
    weight, rng = model.weight.detach().clone(), torch.get_rng_state()
    refused(UserError, path, lambda: checkpoint.restore(folder, checkpoint.Trainable(model, optimizer)))
    assert torch.equal(model.weight, weight) and torch.equal(torch.get_rng_state(), rng), "nothing was loaded"


@pytest.mark.parametrize(
    ("file", "state", "words"),
    [
        ("model", {"weight": torch.ones(9, 8), "bias": torch.ones(8)}, r"weight \(9, 8\) instead of \(8, 8\)"),
        ("optimizer", {"0.exp_avg": torch.ones(9)}, r"0.exp_avg is \(9,\), expected \(8, 8\)"),
        ("optimizer", {"7.exp_avg": torch.ones(8)}, "of none of its 2 parameters"),
        ("optimizer", {"../../x.exp_avg": torch.ones(8)}, "of none of its 2 parameters"),
        ("random", {"cpu": torch.zeros(7, dtype=torch.uint8)}, "holds no random state"),
        ("random", {"cpu": torch.zeros(len(torch.get_rng_state()))}, "delete .* to start anew|random state"),
    ],
)
def test_run_checkpoints_that_do_not_fit_are_refused(
    file: str, state: hostile.State, words: str, tmp_path: Path
) -> None:
    folder, model, optimizer = run_checkpoint(tmp_path / "last")
    hostile.honest(folder / f"{file}.safetensors", state)
    weight = model.weight.detach().clone()
    with pytest.raises(UserError, match=f"(?i){words}"):
        checkpoint.restore(folder, checkpoint.Trainable(model, optimizer))
    assert torch.equal(model.weight, weight)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "{}", '{"step": "one"}'])
def test_damaged_states_are_refused(text: str, tmp_path: Path) -> None:
    folder, model, optimizer = run_checkpoint(tmp_path / "last")
    (folder / "state.json").write_text(text)
    refused(
        UserError, folder / "state.json", lambda: checkpoint.restore(folder, checkpoint.Trainable(model, optimizer))
    )


def test_the_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    hostile.pickled(path, {"a": torch.ones(1)})
    said = refusal(
        "cache", "--teacher", "timm:vit_tiny_patch16_224", "--weights", path, "--dataset", "rooms", "--limit", "1",
        "--split", "test", "--out", tmp_path / "features",
    )  # fmt: skip
    assert "nothing in it was executed" in said
    assert not hostile.marker(path).exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "hf-hub:someone/else"}, "no name of a timm model"),
        ({"depth": 10**9}, "depth is"),
        ({"width": "x"}, ""),
    ],
    ids=str,
)
def test_hostile_runs_are_refused(change: dict[str, object], words: str, tmp_path: Path) -> None:
    student = students.config().to_dict()
    student["stem"].update(change)
    if "name" in change:
        student["stem"].update(patch_size=None, width=None, depth=None, heads=None)
    facts = {"arm": "sak", "student": student, "stem_weights": None}
    (tmp_path / "model.json").write_text(json.dumps(facts))
    refused(UserError, tmp_path / "model.json", lambda: from_run(tmp_path), words or None)
