"""A student as ONNX and as a torch.export program: run where this project is not, with the student's outputs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.export import portable
from sak_core.student.pretrained import Student
from sak_core.student.pretrained_config import PretrainedConfig
from sak_core.student.stem import normalize
from tests import students
from tests.conftest import refusal, sak

SIZE = (96, 64)


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("portable") / "model"
    done = sak("export", trained, out, "--onnx", "--torch-export", "--size", "96x64", "--json")
    assert "largest difference to the student" in done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return out, result


def elsewhere(folder: Path, code: str, batch: int) -> dict[str, np.ndarray]:
    """Run `code` in `folder`, where this project cannot be imported; it saves its outputs by name."""
    rng = np.random.default_rng(9)
    np.save(folder / "pixels.npy", rng.integers(0, 256, (batch, *SIZE, 3), dtype=np.uint8))
    guard = "import sys; sys.modules.update(dict.fromkeys(['sak_core', 'pipeline', 'cache', 'timm']))\n"
    subprocess.run([sys.executable, "-c", guard + "import numpy as np\n" + code], cwd=folder, check=True)
    return dict(np.load(folder / "outputs.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 5])
def test_onnx_runs_elsewhere(batch: int, exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    import onnx

    out, result = exported
    assert result["onnx"]["largest_difference"] <= 1e-3
    model = onnx.load(out / "model.onnx")
    onnx.checker.check_model(model)
    assert (
        {entry.domain: entry.version for entry in model.opset_import}[""] == result["onnx"]["opset"] == portable.OPSET
    )
    found = elsewhere(
        tmp_path,
        "import onnxruntime\n"
        f"session = onnxruntime.InferenceSession({str(out / 'model.onnx')!r})\n"
        "names = [o.name for o in session.get_outputs()]\n"
        "np.savez('outputs.npz', **dict(zip(names, session.run(None, {'pixels': np.load('pixels.npy')}))))\n",
        batch,
    )
    check(out, tmp_path, found, result["onnx"]["outputs"])


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 5])
def test_the_program_runs_elsewhere(batch: int, exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, result = exported
    assert result["torch_export"]["largest_difference"] <= 1e-3
    names = result["torch_export"]["outputs"]
    found = elsewhere(
        tmp_path,
        "import torch\n"
        f"module = torch.export.load({str(out / 'model.pt2')!r}).module()\n"
        "with torch.no_grad():\n    outputs = module(torch.from_numpy(np.load('pixels.npy')))\n"
        f"np.savez('outputs.npz', **dict(zip({names!r}, [o.numpy() for o in outputs])))\n",
        batch,
    )
    check(out, tmp_path, found, names)


@torch.inference_mode()
def check(out: Path, folder: Path, found: dict[str, np.ndarray], names: list[str]) -> None:
    student = Student.from_pretrained(out).network
    expected = student(normalize(torch.from_numpy(np.load(folder / "pixels.npy")))).outputs
    assert list(expected) == names and set(found) == set(names)
    for name, output in expected.items():
        np.testing.assert_allclose(found[name], output.numpy(), atol=1e-3)


@pytest.mark.slow
def test_the_card_tells_of_the_files_and_no_path_leaves(exported: tuple[Path, dict[str, Any]]) -> None:
    out, result = exported
    card = (out / "README.md").read_text()
    assert f"ONNX, opset {portable.OPSET}" in card and "model.pt2" in card and "(batch, 96, 64, 3)" in card
    assert f"{result['onnx']['largest_difference']:.1e}" in card
    assert str(Path(__file__).parents[1]).encode() not in (out / "model.onnx").read_bytes()


@pytest.mark.parametrize("changes", [{"tasks": ()}, {"paths": False}, {"router": "token", "head": "linear"}], ids=str)
def test_other_students_export_too(changes: dict[str, Any], tmp_path: Path) -> None:
    student = students.student(**changes).eval()
    model = Student(student, PretrainedConfig(student.config))
    written = portable.write_program(model, tmp_path, students.SIZE)
    if changes == {"tasks": ()}:
        parts = ("stem", "dino", "clip")
        assert written["outputs"] == [f"{part}_{level}" for part in parts for level in range(4)]
    else:
        assert written["outputs"] == [task.name for task in students.TASKS]


def test_a_file_that_differs_is_refused_and_removed(tmp_path: Path) -> None:
    student = students.student().eval()
    model = portable.Portable(Student(student, PretrainedConfig(student.config)))
    path = tmp_path / "model.onnx"
    for wrong in (0.01, float("nan")):
        path.write_bytes(b"wrong")
        with pytest.raises(UserError, match="differs from the student by"):
            portable._check(model, path, students.SIZE, lambda p, wrong=wrong: [o.numpy() + wrong for o in model(p)])
        assert not path.exists()


def test_seconds_are_those_of_warm_calls(tmp_path: Path) -> None:
    """The first call of a batch size builds what later ones use again, and is no measure of them."""
    student = students.student().eval()
    model = portable.Portable(Student(student, PretrainedConfig(student.config)))
    seen: set[int] = set()

    def run(pixels: torch.Tensor) -> list[np.ndarray]:
        if len(pixels) not in seen:
            time.sleep(1.0)
        seen.add(len(pixels))
        time.sleep(0.03)
        return [output.numpy() for output in model(pixels)]

    told = portable._check(model, tmp_path / "model.onnx", students.SIZE, run)
    assert seen == set(portable.CHECKED_BATCHES) and 0.01 <= told["s_per_image"] < 0.2


def test_what_cannot_be_written_is_said(trained: Path, tmp_path: Path) -> None:
    said = refusal("export", trained, tmp_path / "out", "--onnx", "--size", "100")
    assert "multiples of the stem's patch of 8 px" in said
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['onnxruntime'] = None\n")
    said = refusal("export", trained, tmp_path / "out", "--onnx", env={"PYTHONPATH": str(tmp_path)})
    assert "pip install 'sak[onnx]'" in said
