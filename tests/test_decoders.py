"""Students whose tasks are decoded together: what their decoders read, their weights, predictions of any size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from sak_core.losses.step import task_losses
from sak_core.noise import RowNoise
from sak_core.student.config import StudentConfig
from sak_core.student.initial_weights import STAGE2_PARTS, load_student, load_vit
from sak_core.student.network import Experts, StudentNetwork
from sak_core.student.parts import count_parameters, freeze
from sak_core.student.pretrained import Student, save_pretrained
from sak_core.student.pretrained_config import PretrainedConfig, RefusedModel
from sak_core.student.stem import Stem, StemConfig
from tests import students
from tests.test_rivals import SMALL

NAMES = list(SMALL)


def student(name: str, **changes: object) -> StudentNetwork:
    return students.student(decoder=SMALL[name], **changes)


@pytest.mark.parametrize("name", NAMES)
def test_configurations_go_through_json(name: str) -> None:
    made = students.config(decoder=SMALL[name], stem=StemConfig("custom", (32, 48), 8, 16, 4, 2, drop_path=0.1))
    assert StudentConfig.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    # a student of before is described as before
    assert not {"decoder", "matches"} & set(students.config().to_dict())
    assert not {"drop_path", "class_token"} & set(students.config().to_dict()["stem"])
    with pytest.raises(ValueError, match="unknown decoder 'invtp'; did you mean invpt"):
        StudentConfig.from_dict({**made.to_dict(), "decoder": {"kind": "invtp"}})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("changes", [{}, {"router": "none"}, {"paths": False}, {"teachers": {}}])
def test_every_student_takes_a_decoder_and_all_of_it_learns(name: str, changes: dict) -> None:
    made = student(name, **changes)
    out = made(students.images(), generator=RowNoise(0, 0, torch.arange(2)))
    assert {t: tuple(o.shape) for t, o in out.outputs.items()} == {
        t.name: (2, t.channels, *students.SIZE) for t in students.TASKS
    }
    total, _ = task_losses(students.TASKS, {**out.outputs}, students.labels())
    if out.initial:
        total = total + task_losses(students.TASKS, out.initial, students.labels())[0]
    total.backward()
    parts = ("decoder.", "final_norm.", "routers.", "stem.vit.blocks")
    assert [n for n, p in made.named_parameters() if n.startswith(parts) and p.grad is None] == []
    assert count_parameters(made)["decoder"] == sum(
        p.numel() for n, p in made.named_parameters() if n.startswith(("decoder.", "final_norm."))
    )
    assert not len(made.heads)


def test_routers_stand_where_a_decoder_reads_a_task_s_own_levels() -> None:
    made = student("invpt").eval()
    assert {n.split(".")[1] for n, _ in made.routers.named_parameters()} == {"3"}
    out = made(students.images())
    weights = out.router_weights["depth"]
    assert [tuple(w.shape) for w in weights] == [(2, 3)] * 4
    # the first levels are the stem's alone, and are said to be
    assert all(torch.equal(w, torch.tensor([[1.0, 0.0, 0.0]] * 2)) for w in weights[:3])
    assert float(weights[3].min()) > 0 and weights[3].sum(1).tolist() == pytest.approx([1, 1])
    assert {n.split(".")[1] for n, _ in student("mlore").routers.named_parameters()} == {"0", "1", "2", "3"}


@pytest.mark.parametrize("name", NAMES)
def test_the_last_level_is_normalised_and_the_others_are_not(name: str) -> None:
    made = student(name, teachers={}).eval()
    seen: list = []
    assert made.decoder is not None
    made.decoder.register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
    out = made(students.images())
    with torch.no_grad():
        tokens = made.stem(students.images())[-1][:, 1:]
        normed = torch.nn.functional.layer_norm(tokens, (16,), made.final_norm.weight, made.final_norm.bias, 1e-6)
    torch.testing.assert_close(seen[0].shared[3].flatten(2).transpose(1, 2), normed)
    assert all(torch.equal(a, b) for a, b in zip(seen[0].shared[:3], out.stem[:3], strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_frozen_parts_from_stored_tokens_give_the_same_numbers(name: str) -> None:
    made = student(name).eval()
    live = made(students.images())
    with torch.no_grad():
        tokens = made.stem(students.images())
        stem = [tokens[i + 1][:, 1:] for i in made.levels]
        stored = made(Experts([stem, *made.path_features(tokens).values()], students.SIZE))
    for task in live.outputs:
        torch.testing.assert_close(live.outputs[task], stored.outputs[task])
    freeze(made, "routers")
    learns = {n.partition(".")[0] for n, p in made.named_parameters() if p.requires_grad}
    assert learns == {"routers", "decoder", "final_norm"}


@pytest.mark.parametrize("name", NAMES)
def test_a_distilled_student_takes_a_fresh_decoder(name: str) -> None:
    distilled = students.student(1, tasks=())
    made = student(name)
    before = {n: v.clone() for n, v in made.state_dict().items() if n.startswith(STAGE2_PARTS)}
    load_student(made, distilled.state_dict(), STAGE2_PARTS)
    after = made.state_dict()
    assert all(torch.equal(after[n], v) for n, v in before.items()) and "final_norm.weight" in before
    assert torch.equal(
        after["stem.vit.blocks.0.mlp.fc1.weight"], distilled.state_dict()["stem.vit.blocks.0.mlp.fc1.weight"]
    )


def test_a_vit_s_final_norm_and_missing_class_token(tmp_path: Path) -> None:
    vit = timm.create_model("vit_tiny_patch16_384", img_size=(32, 48), num_classes=0)
    torch.nn.init.normal_(vit.norm.weight)
    torch.nn.init.normal_(vit.cls_token)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    stem = Stem(StemConfig("vit_tiny_patch16_384", (32, 48), class_token=False))
    norm = torch.nn.LayerNorm(192, eps=1e-6)
    load_vit(stem, tmp_path / "vit.safetensors", norm)
    assert torch.equal(norm.weight, vit.norm.weight)
    assert stem.num_prefix == 0 and torch.equal(stem.vit.pos_embed, vit.pos_embed[:, 1:])
    assert stem(torch.zeros(1, 3, 32, 48))[-1].shape == (1, 6, 192)
    # a ViT without a final norm leaves it as it is
    bare = {name: value for name, value in vit.state_dict().items() if not name.startswith("norm.")}
    save_file(bare, tmp_path / "bare.safetensors")
    fresh = torch.nn.LayerNorm(192)
    load_vit(stem, tmp_path / "bare.safetensors", fresh)
    assert torch.equal(fresh.weight, torch.ones(192))


def test_stochastic_depth_leaves_branches_out_of_rows_by_their_names() -> None:
    torch.manual_seed(0)
    stem = Stem(StemConfig("custom", (32, 48), 8, 16, 4, 2, drop_path=0.5)).train()
    rates = [block.drop_path1.rate for block in stem.vit.blocks]
    assert rates == pytest.approx([0, 0.5 / 3, 1 / 3, 0.5])
    images = students.images(8)
    whole = stem(images, RowNoise(0, 1, torch.arange(8)))
    assert torch.equal(whole[-1], stem(images, RowNoise(0, 1, torch.arange(8)))[-1])
    torch.testing.assert_close(whole[-1][5:], stem(images[5:], RowNoise(0, 1, torch.arange(5, 8)))[-1])
    assert not torch.equal(whole[-1], stem(images, RowNoise(0, 2, torch.arange(8)))[-1])
    drop = stem.vit.blocks[3].drop_path2
    drop.noise = RowNoise(0, 1, torch.arange(4000))
    out = drop(torch.ones(4000, 3, 2))
    assert set(out.unique().tolist()) == {0.0, 2.0} and float(out.mean()) == pytest.approx(1, abs=0.05)
    assert torch.equal(stem.eval()(images)[-1], stem(images, RowNoise(0, 1, torch.arange(8)))[-1])


@pytest.mark.parametrize("name", NAMES)
def test_saved_students_predict_images_of_any_size(name: str, tmp_path: Path) -> None:
    made = student(name).eval()
    save_pretrained(made, PretrainedConfig(made.config), tmp_path)
    loaded = Student.from_pretrained(tmp_path)
    g = np.random.default_rng(0)
    sizes = [(32, 48), (20, 30), (70, 150), (48, 32)]
    images = [g.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    found = loaded.predict(images)
    assert [p["depth"].shape for p in found] == sizes and np.isfinite(found[2]["depth"]).all()
    with torch.no_grad():
        whole = made(torch.from_numpy(images[0])[None].permute(0, 3, 1, 2).float().div(127.5).sub(1)).outputs["depth"]
    np.testing.assert_allclose(found[0]["depth"], whole[0, 0].clamp_min(0), atol=1e-5)
    if name == "mlore":
        with pytest.raises(ValueError, match="takes 32x48 px alone"):
            loaded.predict(images, tile=64)
    config = json.loads((tmp_path / "config.json").read_text())
    config["student"]["decoder"]["width" if name == "mlore" else "embed"] = 10**7
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RefusedModel, match="decoder"):
        Student.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_gives_nearly_the_same(name: str) -> None:
    """Autocast, as training in bf16-mixed has it, and a student kept in fp16."""
    made = student(name).eval()
    images = students.images()
    with torch.no_grad():
        whole = made(images).outputs
        with torch.autocast("cpu", torch.bfloat16):
            mixed = made(images).outputs
        halved = made.half()(images.half()).outputs
    for task, output in whole.items():
        scale = float(output.abs().max())
        assert float((mixed[task].float() - output).abs().max()) < 0.2 * scale, task
        assert float((halved[task].float() - output).abs().max()) < 0.05 * scale, task
