"""Teachers from transformers: exactly its own hidden states; its files load; no code from a hub is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sak_core.errors import TeacherUnavailable
from sak_core.teachers import build_teacher
from sak_core.weights.digests import state_digest
from sak_core.weights.teacher_weights import seeded
from tests.towers import IMAGENET, OPENAI, exactly, normalise, pixels


@torch.no_grad()
def test_a_transformers_model_from_a_folder(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14)
    with seeded(0):
        upstream = Dinov2Model(config).eval()
    upstream.save_pretrained(tmp_path)
    processor = {"image_processor_type": "BitImageProcessor", "image_mean": IMAGENET[0], "image_std": IMAGENET[1]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**processor, "resample": 3}))
    teacher = build_teacher(f"hf:{tmp_path}", (70, 83))
    assert teacher.spec.grid == (5, 6) and teacher.spec.levels == (0, 1, 2, 3)
    assert teacher.spec.weights == state_digest(upstream.state_dict())
    seen = pixels(70, 84)
    same = build_teacher(f"hf:{tmp_path}", (70, 84))
    states = upstream(normalise(seen, *IMAGENET), output_hidden_states=True).hidden_states
    exactly(same(seen), [s[:, 1:].transpose(1, 2).reshape(2, 32, 5, 6) for s in states[1:]])


@torch.no_grad()
def test_depth_anythings_own_file_loads_and_gives_its_encoder(tmp_path):
    """As transformers saves the whole model: the depth head is left alone."""
    from transformers import DepthAnythingForDepthEstimation

    from sak_core.teachers.depth_anything import configuration

    with seeded(1):
        upstream = DepthAnythingForDepthEstimation(configuration("Small")).eval()
    upstream.save_pretrained(tmp_path)
    teacher = build_teacher("depth-anything", (70, 98), weights=tmp_path / "model.safetensors")
    assert teacher.spec.grid == (5, 7) and teacher.spec.weights == state_digest(upstream.backbone.state_dict())
    seen = pixels(70, 98, 1)
    states = upstream.backbone(normalise(seen, *IMAGENET), output_hidden_states=True).hidden_states
    expected = [states[i + 1][:, 1:].transpose(1, 2).reshape(1, 384, 5, 7) for i in (2, 5, 8, 11)]
    exactly(teacher(seen), expected)


def hf_folder(folder: Path, model: torch.nn.Module) -> Path:
    model.save_pretrained(folder)
    settings = {"image_processor_type": "CLIPImageProcessor", "image_mean": OPENAI[0], "image_std": OPENAI[1]}
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "resample": 3}))
    return folder


@torch.no_grad()
def test_the_vision_tower_of_a_transformers_clip(tmp_path):
    """From its folder, and from the file of the whole model."""
    from transformers import CLIPConfig, CLIPModel

    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision |= {"image_size": 64, "patch_size": 16}
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 50,
    }
    with seeded(2):
        upstream = CLIPModel(CLIPConfig(vision_config=vision, text_config=text)).eval()
    hf_folder(tmp_path, upstream)
    for weights in (None, tmp_path / "model.safetensors"):
        teacher = build_teacher(f"hf:{tmp_path}", (64, 96), weights=weights)
        assert teacher.spec.grid == (4, 6) and teacher.spec.mean == pytest.approx(OPENAI[0])
        seen = pixels(64, 96, 1)
        states = upstream.vision_model(
            normalise(seen, *OPENAI), output_hidden_states=True, interpolate_pos_encoding=True
        ).hidden_states
        exactly(teacher(seen), [s[:, 1:].transpose(1, 2).reshape(1, 32, 4, 6) for s in states[1:]])


def test_a_hub_model_with_code_of_its_own_is_refused(tmp_path):
    """Its code is not run, whatever its configuration asks for."""
    (tmp_path / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TeacherUnavailable, match="contains custom code"):
        build_teacher(f"hf:{tmp_path}", (64, 64), random_weights=True)
    assert not (tmp_path / "ran").exists()
