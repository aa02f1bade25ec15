"""Depth Anything V2 through transformers: the DINOv2 encoder as it was fine-tuned for relative depth.

Its configuration is written here, so that weights from a file, or none, do without the hub.
"""

from __future__ import annotations

from typing import Any

import torch

from sak_common.names import UnknownName, unknown
from sak_core.interfaces.teacher import Teacher
from sak_core.teachers.hf import hf_teacher, model_without_hub, tower_of
from sak_core.weights.teacher_weights import BuildOptions, hub

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

SIZES: dict[str, dict[str, Any]] = {
    "Small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "stages": (3, 6, 9, 12)},
    "Base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "stages": (3, 6, 9, 12)},
    "Large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "stages": (5, 12, 18, 24)},
}
"""The three encoders, by the word in the hub's id; stages: blocks (from 1) that its own depth head reads."""


def hub_id(size: str) -> str:
    """Where the hub keeps the weights of a size."""
    return f"depth-anything/Depth-Anything-V2-{size}-hf"


def build_depth_anything(name: str, model: str, options: BuildOptions, licence: str = "") -> Teacher:
    """Build a teacher from an encoder of Depth Anything V2.

    Args:
        name: the teacher's.
        model: "Small", "Base" or "Large".

    Raises:
        UnknownName: another size.
        TeacherUnavailable: the hub or the file does not give the weights.
    """
    from transformers import DepthAnythingForDepthEstimation

    if model not in SIZES:
        raise UnknownName(unknown("size of Depth Anything", model, SIZES))
    weights_from = ""
    if options.from_hub:
        with hub(name):
            whole = DepthAnythingForDepthEstimation.from_pretrained(
                hub_id(model), weights_only=True, dtype=torch.float32
            )
    else:
        whole, weights_from = model_without_hub(DepthAnythingForDepthEstimation, configuration(model), options)
    net = tower_of(whole)
    teacher = hf_teacher(name, hub_id(model), net, options, MEAN, STD, "bicubic", licence)
    teacher.weights_from = weights_from
    return teacher


def configuration(size: str) -> Any:
    """The whole model's: the encoder's, and a depth head that no teacher runs."""
    from transformers import DepthAnythingConfig, Dinov2Config

    row = dict(SIZES[size])
    stages = list(row.pop("stages"))
    row |= {"image_size": 518, "patch_size": 14, "out_indices": stages, "reshape_hidden_states": False}
    encoder = Dinov2Config(**row)
    return DepthAnythingConfig(backbone_config=encoder)
