"""Depth Anything V2 through transformers: the DINOv2 encoder as it was fine-tuned for relative depth.

Its configuration is written here, so that weights from a file, or none, do without the hub.
"""

from __future__ import annotations

from typing import Any

import torch

from sak_core.names import UnknownName, unknown
from sak_core.teachers.base import Teacher
from sak_core.teachers.hf import hf_teacher
from sak_core.teachers.weights import BuildOptions, hub, load_exactly, read_state, seeded

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
        name: the teacher's. model: "Small", "Base" or "Large".

    Raises:
        UnknownName: another size.
        TeacherUnavailable: the hub or the file does not give the weights.
    """
    from transformers import AutoModelForDepthEstimation, Dinov2Backbone

    if model not in SIZES:
        raise UnknownName(unknown("size of Depth Anything", model, SIZES))
    if options.from_hub:
        with hub(name):
            whole = AutoModelForDepthEstimation.from_pretrained(
                hub_id(model), trust_remote_code=False, weights_only=True, dtype=torch.float32
            )
        net: Any = whole.backbone
    else:
        with seeded(options.seed):
            net = Dinov2Backbone(_config(model))  # type: ignore[no-untyped-call]
    if options.weights is not None:
        state = read_state(options.weights)
        tower = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
        load_exactly(net, tower or state, options.weights)
    return hf_teacher(name, hub_id(model), net, options, MEAN, STD, "bicubic", licence)


def _config(size: str) -> Any:
    from transformers import Dinov2Config

    row = SIZES[size]
    return Dinov2Config(
        hidden_size=row["hidden_size"],
        num_hidden_layers=row["num_hidden_layers"],
        num_attention_heads=row["num_attention_heads"],
        image_size=518,
        patch_size=14,
        out_indices=list(row["stages"]),
        reshape_hidden_states=False,
    )
