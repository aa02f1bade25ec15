"""Weights from timm, from a distilled student and from the authors' release."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from sak_core.student.config import StudentConfig
from sak_core.student.initial_weights import load_student, load_vit
from sak_core.student.network import StudentNetwork
from sak_core.student.reference import export_reference, import_reference
from sak_core.student.reference_config import reference_config
from sak_core.student.stem import Stem, StemConfig
from sak_core.weights.positions import resample_positions
from tests import students
from tests.parity import student_for

FIXTURES = Path(__file__).parent / "fixtures" / "parity"


def case(name: str) -> dict:
    return json.loads((FIXTURES / f"{name}.json").read_text())


def empty_state(shapes: dict) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def published() -> StudentNetwork:
    return student_for(case("pascal-aligned"))


def test_every_published_name_is_known_and_round_trips(published):
    exported = export_reference(published)
    shapes = case("pascal-aligned")["shapes"]
    assert {name: list(value.shape) for name, value in exported.items()} == shapes
    again = StudentNetwork(published.config)
    assert import_reference(again, exported) == 2
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), published.state_dict().values(), strict=True)
    )


def test_stage_one_has_no_prefix_and_keeps_routers_and_heads(published):
    exported = export_reference(published, stage=1)
    assert not [n for n in exported if n.startswith(("backbone.", "mor.", "heads."))] and "vit.cls_token" in exported
    again = StudentNetwork(published.config)
    before = {n: v.clone() for n, v in again.state_dict().items() if n.startswith(("routers.", "heads."))}
    assert import_reference(again, exported) == 1
    after = again.state_dict()
    assert all(torch.equal(after[n], v) for n, v in before.items())
    assert torch.equal(after["paths.clip.adapters.3.up.weight"], exported["tsap.clip.3.up.weight"])


def test_missing_and_left_over_entries_are_named(published):
    exported = export_reference(published)
    del exported["backbone.tsap.sam.4.scale"]
    exported["backbone.extra"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"missing: backbone.tsap.sam.4.scale; left over: backbone.extra$"):
        import_reference(published, exported)
    exported = export_reference(published)
    exported["heads.sal.last_conv.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"heads.sal.last_conv.bias \(3,\) instead of \(2,\)"):
        import_reference(published, exported)


@pytest.mark.parametrize("name", ["pascal-aligned", "nyud-small"])
def test_the_student_is_read_off_the_checkpoint(name):
    made = case(name)
    found = reference_config(empty_state(made["shapes"]), tuple(made["image"]))
    expected = student_for(made)
    assert {n: v.shape for n, v in StudentNetwork(found).state_dict().items()} == {
        n: v.shape for n, v in expected.state_dict().items()
    }
    assert list(found.teachers) == list(made["teachers"]) and [t.name for t in found.tasks] == made["tasks"]
    assert [(t.kind, t.weight) for t in found.tasks] == [(t.kind, t.weight) for t in expected.config.tasks]


def test_image_size_is_asked_for_where_it_is_not_plain():
    shapes = case("nyud-small")["shapes"]
    with pytest.raises(ValueError, match="24 patches is not square: say the image size"):
        reference_config(empty_state(shapes))
    nyud = {**shapes, "backbone.vit.pos_embed": [1, 1009, 384]}
    assert reference_config(empty_state(nyud)).stem.image_size == (448, 576)
    square = {**shapes, "backbone.vit.pos_embed": [1, 577, 384]}
    assert reference_config(empty_state(square)).stem.image_size == (384, 384)
    with pytest.raises(ValueError, match="LoRA"):
        reference_config({"vit.base_model.model.pos_embed": torch.zeros(1)})


def test_a_stage_one_checkpoint_of_another_size_is_resampled(published):
    exported = export_reference(published, stage=1)
    wide = StudentNetwork(
        StudentConfig(
            stem=StemConfig("vit_small_patch16_384", (96, 128)),
            teachers=published.config.teachers,
            tasks=published.config.tasks,
        )
    )
    import_reference(wide, exported)
    expected = timm.layers.resample_abs_pos_embed(
        exported["vit.pos_embed"], [6, 8], num_prefix_tokens=1, antialias=False
    )
    torch.testing.assert_close(wide.state_dict()["stem.vit.pos_embed"], expected)


def test_what_the_release_cannot_express_is_refused():
    with pytest.raises(ValueError, match="students with paths"):
        export_reference(students.student(paths=False))
    with pytest.raises(ValueError, match="one level of a teacher for each of the student's, dino has others"):
        export_reference(students.student(teachers={"dino": (16, 16)}))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_timms_weights_load_into_the_stem(tmp_path, suffix):
    vit = timm.create_model("vit_tiny_patch16_384", img_size=64, num_classes=10)
    path = tmp_path / f"vit{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": vit.state_dict()}, path)
    else:
        save_file(vit.state_dict(), path)
    stem = Stem(StemConfig("vit_tiny_patch16_384", (64, 64))).eval()
    load_vit(stem, path)
    x = students.images(1, (64, 64))
    with torch.no_grad():
        maps = vit.eval().forward_intermediates(x, indices=[11], norm=False, intermediates_only=True)
        assert torch.equal(stem(x)[-1][:, 1:], maps[0].flatten(2).transpose(1, 2))
    other = Stem(StemConfig("vit_tiny_patch16_384", (96, 64)))
    load_vit(other, path)
    expected = timm.layers.resample_abs_pos_embed(vit.pos_embed, [6, 4], num_prefix_tokens=1, antialias=False)
    torch.testing.assert_close(other.vit.pos_embed, expected)
    small = Stem(StemConfig("vit_small_patch16_384", (64, 64)))
    with pytest.raises(ValueError, match=r"of another shape: cls_token \(1, 1, 192\) instead of \(1, 1, 384\)"):
        load_vit(small, path)
    with pytest.raises(FileNotFoundError, match="no weights file"):
        load_vit(small, tmp_path / "nothing.pth")


def test_positions_of_as_many_patches_on_another_grid_are_resampled(tmp_path):
    """6x6 and 4x9 patches are 36 both, as 384x384 px and 288x512 px have equally many."""
    square, wide = (StemConfig("custom", size, 8, 16, 4, 2) for size in ((48, 48), (32, 72)))
    distilled = students.student(tasks=(), stem=square)
    positions = distilled.stem.vit.pos_embed
    expected = resample_positions(positions, (6, 6), (4, 9))
    student = students.student(tasks=(), stem=wide)
    load_student(student, distilled.state_dict(), image_size=(48, 48))
    assert torch.equal(student.stem.vit.pos_embed, expected)
    load_student(student, distilled.state_dict(), image_size=(32, 72))  # made for this very size: kept as it is
    assert torch.equal(student.stem.vit.pos_embed, positions)
    save_file(distilled.stem.vit.state_dict(), tmp_path / "vit.safetensors")
    load_vit(student.stem, tmp_path / "vit.safetensors")  # published ViTs are square
    assert torch.equal(student.stem.vit.pos_embed, expected)
    import_reference(student, export_reference(student, stage=1))
    assert torch.equal(student.stem.vit.pos_embed, expected)


def test_a_distilled_student_starts_one_with_tasks_and_another_size():
    distilled = students.student(tasks=(), stem=StemConfig("custom", (32, 32), 8, 16, 4, 2))
    student = students.student(seed=1)
    heads = {n: v.clone() for n, v in student.state_dict().items() if n.startswith(("routers.", "heads."))}
    with pytest.raises(ValueError, match="missing: heads"):
        load_student(student, distilled.state_dict())
    load_student(student, distilled.state_dict(), fresh=("routers.", "heads."))
    after = student.state_dict()
    assert all(torch.equal(after[n], v) for n, v in heads.items())
    assert torch.equal(after["paths.dino.norms.0.weight"], distilled.state_dict()["paths.dino.norms.0.weight"])
    assert after["stem.vit.pos_embed"].shape == (1, 25, 16)
