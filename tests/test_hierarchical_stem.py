"""Stems of shrinking stages: timm's own maps on one grid, timm's weights, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from sak_common.names import UnknownName
from sak_core.student.hierarchical_stem import HierarchicalStem, build_stem
from sak_core.student.initial_weights import load_stem
from sak_core.student.network import StudentNetwork
from sak_core.student.parts import count_parameters
from sak_core.student.stem import StemConfig, normalize
from sak_core.student.tiling import predict_raw
from tests.conftest import sak
from tests.students import TASKS, config

SIZE = (64, 96)
NAMES = ("convnext_atto", "swin_s3_tiny_224")


def stem(name: str = "convnext_atto") -> HierarchicalStem:
    torch.manual_seed(0)
    built = build_stem(StemConfig(name, SIZE))
    assert isinstance(built, HierarchicalStem)
    return built.eval()


def pixels(size: tuple[int, int] = SIZE) -> torch.Tensor:
    return torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_stages_are_timms_on_the_grid_of_16_px(name: str) -> None:
    built = stem(name)
    # timm's own extractor of features, which names "stages.0" "stages_0", and its own normalisation of the same pixels
    sized = {"img_size": SIZE} if name.startswith("swin") else {}
    model = timm.create_model(name, features_only=True, **sized).eval()
    state = built.backbone.state_dict()
    stages = ("stages_", "layers_", "stem_")
    own = {key: key.replace("_", ".", 1) if key.startswith(stages) else key for key in model.state_dict()}
    model.load_state_dict({key: state[found] for key, found in own.items()})
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    maps = model((pixels().permute(0, 3, 1, 2) / 255 - mean) / std)
    if name.startswith("swin"):
        maps = [x.permute(0, 3, 1, 2) for x in maps]
    tokens = built(normalize(pixels()))
    assert len(tokens) == 5 and {tuple(x.shape) for x in tokens} == {(2, 24, built.width)}
    expected = [
        F.adaptive_avg_pool2d(maps[0], (4, 6)),
        F.adaptive_avg_pool2d(maps[1], (4, 6)),
        maps[2],
        F.interpolate(maps[3], scale_factor=2, mode="bilinear"),
    ]
    for level, x in enumerate(expected):
        projected = built.projections[level](built.norms[level](x.flatten(2).mT))
        torch.testing.assert_close(tokens[level + 1], projected, rtol=1e-4, atol=1e-4)
    assert torch.equal(tokens[0], tokens[1])


@pytest.mark.parametrize("name", NAMES)
def test_a_student_without_paths_trains_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    student = StudentNetwork(config(stem=StemConfig(name, SIZE), paths=False, router="none")).train()
    out = student(normalize(pixels()))
    assert [tuple(x.shape) for x in out.aligned["dino"]] == [(2, width, 4, 6) for width in (20, 20, 24, 24)]
    assert set(out.outputs) == {task.name for task in TASKS}
    loss = sum(x.square().mean() for x in (*out.outputs.values(), *(y for maps in out.aligned.values() for y in maps)))
    loss.backward()
    assert [n for n, p in student.named_parameters() if p.grad is None] == []
    assert set(count_parameters(student)) == {"stem", "aligners", "heads", "total"}


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_images_of_other_sizes_are_padded_and_tiled(name: str) -> None:
    torch.manual_seed(0)
    student = StudentNetwork(config(stem=StemConfig(name, SIZE), teachers={}, paths=False)).eval()
    (found,) = predict_raw(student, [pixels((70, 130))[0]], tile=64, batch_size=4)
    assert found["depth"].shape == (1, 70, 130)


def test_timms_weights_load_from_a_file_and_others_are_named(tmp_path: Path) -> None:
    model = timm.create_model("convnext_atto", num_classes=3)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, tmp_path / "convnext.safetensors")
    built = stem()
    before = built.projections[0].weight.clone()
    assert load_stem(built, tmp_path / "convnext.safetensors") == ""
    assert torch.equal(built.backbone.stages[3].blocks[0].mlp.fc1.weight, model.stages[3].blocks[0].mlp.fc1.weight)
    assert torch.equal(built.projections[0].weight, before)
    with pytest.raises(ValueError, match="stages"):
        load_stem(stem("swin_s3_tiny_224"), tmp_path / "convnext.safetensors")


def test_what_it_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="no blocks of one width"):
        StudentNetwork(config(stem=StemConfig("convnext_atto", SIZE)))
    with pytest.raises(ValueError, match="48x64 px is no multiple of 32"):
        stem().grid(48, 64)
    with pytest.raises(ValueError, match="is no ViT"):
        build_stem(StemConfig("convnext_atto", SIZE, drop_path=0.1))
    with pytest.raises(UnknownName, match="convnext_atto"):
        build_stem(StemConfig("convnext_ato", SIZE))
    with pytest.raises(ValueError, match="expected timm's ConvNeXt or Swin"):
        build_stem(StemConfig("swinv2_cr_tiny_224", SIZE))


RECIPE = """
tasks = ["semseg", "depth"]
teachers = ["mini-dino", "mini-clip"]
batch_size = 8
steps = 2
threads = 1
[student.stem]
name = "convnext_atto"
[distill]
data = { dataset = "rooms", split = "train", size = "96x96" }
optimizer = { lr = 1e-3 }
[finetune]
data = { dataset = "rooms", split = "train", size = "96x96" }
optimizer = { lr = 1e-3 }
"""


def test_both_arms_train_predict_and_export_through_the_commands(features: Path, tmp_path: Path) -> None:
    (tmp_path / "atto.toml").write_text(RECIPE)
    (tmp_path / "shapes.toml").write_text(
        f'recipe = "{tmp_path / "atto.toml"}"\narms = ["multi-task", "many-to-one"]\n'
        'test = { dataset = "rooms", split = "test", size = "96x96" }\n'
    )
    done = sak("ablate", tmp_path / "shapes.toml", "--json", "--out", features, "--runs", tmp_path)
    assert [row["arm"] for row in json.loads(done.stdout)["rows"]] == ["constant", "multi-task", "many-to-one"]
    run = tmp_path / "shapes" / "many-to-one-seed0-finetune"
    sak("export", run, tmp_path / "student", "--torch-export")
    Image.fromarray(pixels((80, 110))[0].numpy()).save(tmp_path / "photo.png")
    sak("predict", tmp_path / "photo.png", "--model", tmp_path / "student", "--out", tmp_path / "out", "--raw")
    assert np.load(tmp_path / "out" / "raw" / "photo.npz")["depth"].shape == (80, 110)
    refused = sak("distill", tmp_path / "atto.toml", "--out", features, "--run", tmp_path / "x", check=False)
    assert "no blocks of one width" in refused.stderr and "Traceback" not in refused.stderr
