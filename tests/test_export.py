"""A trained student leaves: to a folder, to a hub, and back through from_pretrained, through the command line."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cache.store import find_stores
from pipeline.runs import Places
from pipeline.training.evaluate import load_model
from sak_core.miniature.rooms.scene import render_scene
from sak_core.student.pretrained import ModelNotFound, Student
from sak_core.student.stem import normalize
from sak_core.tasks.outputs import readable
from tests import hub
from tests.conftest import TINY, refusal, sak


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    done = sak("export", trained, folder, "--json")
    assert json.loads(done.stdout)["folder"] == str(folder)
    return folder


def test_the_exported_student_is_the_runs(exported: Path, trained: Path, features: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    model, tasks = load_model(trained, Places(features, trained.parent))
    student = Student.from_pretrained(exported)
    store = find_stores(features, "rooms", "test")[0]
    pixels = torch.from_numpy(np.stack([store.pixels[i, 0] for i in range(3)]))
    with torch.inference_mode():
        expected = model(normalize(pixels)).outputs
    for row, found in enumerate(student.predict(list(pixels))):
        for task in tasks:
            np.testing.assert_allclose(found[task.name], readable(task, expected[task.name][row]), atol=1e-5)
    image = Image.fromarray(pixels[0].numpy())
    for task in tasks:
        np.testing.assert_allclose(
            student(image)[task.name], readable(task, expected[task.name][0]), rtol=1e-4, atol=1e-4
        )


def test_it_needs_neither_the_pipeline_nor_the_caches_nor_teachers(exported: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from sak_core.student import Student\n"
        f"found = Student.from_pretrained({str(exported)!r})(np.zeros((50, 70, 3), np.uint8))\n"
        "assert found['depth'].shape == (50, 70), found\n"
        "loaded = {name.partition('.')[0] for name in sys.modules} | "
        "{'teachers' for name in sys.modules if name.startswith('sak_core.teachers')}\n"
        "assert not loaded & {'pipeline', 'cache', 'teachers', 'zarr', 'open_clip', 'transformers'}, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)


def test_the_card_says_what_it_is_made_of(exported: Path, trained: Path) -> None:
    _, head, card = (exported / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "sak"
    for name in ("mini-dino", "mini-clip", "mini-sam"):
        assert f"| {name} " in card and "Apache-2.0" in card
    scores = json.loads((trained / "results.json").read_text())["validation"]
    assert f"{scores['semseg']['mIoU']:.4g}" in card and f"{scores['normals']['mErr']:.4g}" in card
    assert "rooms unlabelled" in card and "rooms train" in card and '"optimizer"' in card
    assert "random weights" not in card.lower()
    assert "/tmp" not in card, "no path of this machine leaves with the model"
    block = card.partition("```python\n")[2].partition("```")[0]
    Image.fromarray(render_scene(3, 0, (96, 96)).image).save(exported.parent / "photo.jpg")
    known = {"batch": torch.zeros(1, 96, 96, 3, dtype=torch.uint8)}
    with contextlib.chdir(exported.parent):  # whose folder `model` has the name that the card gives
        exec(compile(block, "card", "exec"), known)
    assert set(known["student"](known["image"])) == {task.name for task in known["student"].tasks}


def test_an_export_is_whole_and_everyones_to_read(exported: Path, trained: Path, tmp_path: Path) -> None:
    assert len({path.stat().st_mode for path in exported.iterdir()}) == 1
    assert len({path.stat().st_mode for path in (trained / "last").iterdir()}) == 1
    folder = Path(shutil.copytree(exported, tmp_path / "model"))
    for name in ("model.onnx", "model.onnx.data", "model.pt2"):
        (folder / name).write_bytes(b"of another student")
    sak("export", trained, folder)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}


def test_pil_images_are_seen_as_predict_sees_their_files(exported: Path, tmp_path: Path) -> None:
    student = Student.from_pretrained(exported)
    room = Image.fromarray(render_scene(3, 0, (48, 80)).image)
    grey = np.asarray(room.convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6
    room.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    clear = Image.fromarray(np.dstack([np.asarray(room), np.zeros((48, 80), np.uint8)]))
    for image, expected in (
        (Image.open(tmp_path / "turned.png"), room),
        (Image.fromarray(grey.astype(np.uint16) * 257), Image.fromarray(grey)),
        (clear, Image.new("RGB", (80, 48), "white")),
    ):
        found = student(image)["depth"]
        assert found.shape == (48, 80)
        np.testing.assert_array_equal(found, student(np.asarray(expected.convert("RGB")))["depth"])
    with pytest.raises(ValueError, match="floating-point"):
        student(Image.fromarray(np.ones((8, 8), np.float32)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFound, match=r"holds no config\.json"):
        Student.from_pretrained(tmp_path / "empty")


@pytest.mark.slow
def test_random_teachers_are_marked_wherever_the_model_goes(tmp_path: Path) -> None:
    places = ["--out", tmp_path / "features"]
    for split, samples in (("unlabelled", "8"), ("train", "8")):
        common = ["--split", split, "--limit", samples, "--views", "1", "--threads", "1", *places]
        sak("cache", "--teacher", "mini-dino", "--random-weights", *common)
    tiny = [*TINY, "--set", 'teachers=["mini-dino"]', "--set", "data.views=1", "--set", "batch_size=4"]
    sak("distill", "demo", "--run", tmp_path / "one", *places, *tiny)
    sak(
        "finetune", "demo", "--from", tmp_path / "one", "--run", tmp_path / "two", *places, *tiny,
        "--set", "validation.split=train",
    )  # fmt: skip
    done = sak("export", tmp_path / "two", tmp_path / "model")
    assert "random weights: mini-dino" in done.stderr
    card = (tmp_path / "model" / "README.md").read_text()
    assert "[!CAUTION]" in card and "**random weights** (random:0)" in card
    again = sak("export", tmp_path / "model", tmp_path / "copy")
    assert "random weights: mini-dino" in again.stderr
    assert Student.from_pretrained(tmp_path / "copy").config.random_weights == ("mini-dino",)


def test_a_distilled_student_is_a_backbone(trained: Path, tmp_path: Path) -> None:
    sak("export", "one", tmp_path / "model", "--runs", trained.parent)
    student = Student.from_pretrained(tmp_path / "model")
    assert student.tasks == ()
    maps = student.features(torch.zeros(2, 48, 96, 3, dtype=torch.uint8))
    assert set(maps) == {"stem", "mini-dino", "mini-clip", "mini-sam"}
    assert all(level.shape == (2, 96, 6, 12) for levels in maps.values() for level in levels)
    with pytest.raises(ValueError, match="distilled only"):
        student(np.zeros((8, 8, 3), np.uint8))


def test_push_and_load_by_id(exported: Path, trained: Path, tmp_path: Path) -> None:
    with hub.serve() as there:
        environment = there.environment(tmp_path / "home")
        pushed = sak("export", trained, tmp_path / "out", "--push", "me/rooms", "--json", env=environment)
        assert json.loads(pushed.stdout)["pushed"] == f"{there.address}/me/rooms"
        stored = there.repositories["me/rooms"]
        assert stored.keys() >= {"config.json", "model.safetensors", "README.md"} and there.private == {"me/rooms"}
        assert stored["model.safetensors"] == (exported / "model.safetensors").read_bytes()
        assert b'Student.from_pretrained("me/rooms")' in stored["README.md"]
        again = sak("export", "me/rooms", tmp_path / "again", env=environment)
        assert "config.json" in again.stderr
        assert (tmp_path / "again" / "model.safetensors").read_bytes() == stored["model.safetensors"]
        assert "me/romms" in refusal("export", "me/romms", tmp_path / "no", env=environment)
        environment["HF_TOKEN"] = "hf_wrong"
        said = refusal("export", trained, tmp_path / "out", "--push", "me/other", env=environment)
        assert "401" in said and "hf auth login" in said
        assert "me/other" not in there.repositories
        environment = there.environment(tmp_path / "home")
        public = sak("export", trained, tmp_path / "out", "--push", "me/open", "--public", env=environment)
        assert public.stdout.strip() == f"{there.address}/me/open" and "me/open" not in there.private


def test_an_unreachable_hub_is_said_at_once(tmp_path: Path) -> None:
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "no_proxy": "127.0.0.1"}
    said = refusal("export", "owner/model", tmp_path / "out", env=environment)
    assert "there is no folder owner/model, and the hub" in said


def test_what_cannot_be_exported_is_said(trained: Path, features: Path, tmp_path: Path) -> None:
    frozen = tmp_path / "frozen"
    sak("finetune", "demo", "--run", frozen, "--out", features, *TINY, "--set", "arm=teacher:mini-sam")
    said = refusal("export", frozen, tmp_path / "out")
    assert "teacher:mini-sam" in said and "takes no images" in said
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("keep me")
    assert "no earlier export" in refusal("export", trained, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["precious.txt"]
    with pytest.raises(ModelNotFound, match="is no folder of a saved student"):
        Student.from_pretrained(tmp_path / "nowhere" / "at" / "all")
