"""State dicts of the authors' release (innovator-zero/SAK), read into this project's student and written
back.

The release names the tapped block in its keys, this project the level; the rest is a renaming. Stage 1
checkpoints hold the backbone alone, without the `backbone.` prefix and without routers and heads; stage 2
checkpoints hold everything.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sak_core.stem import Stem, resample_positions
from sak_core.student import Student

_ROUTER_PARTS = {"hidden": "0", "norm": "1", "gates": "3"}
_HEAD_PARTS = {"linears": "linears", "fuse": "linear_fuse.0", "norm": "linear_fuse.1", "last": "last_conv"}


def reference_names(student: Student, *, stage: int = 2) -> dict[str, str]:
    """The release's name of every entry of the student's state dict (for stage 1: of all but routers and
    heads).

    Raises ValueError for students that the release cannot express: many-to-one, another head, another kind of
    router.
    """
    if (
        not student.config.paths
        or student.config.head != "sak"
        or student.config.router not in ("mor", "none")
    ):
        raise ValueError("the release knows students with paths, head 'sak' and router 'mor' or 'none' only")
    prefix = "" if stage == 1 else "backbone."
    names = {}
    for name in student.state_dict():
        new = _reference_name(name, student.levels)
        if new.startswith(("mor.", "heads.")) and stage == 1:
            continue
        names[name] = new if new.startswith("heads.") else prefix + new
    return names


def import_reference(student: Student, state: Mapping[str, Tensor]) -> int:
    """Loads a state dict of the release into `student` and returns its stage, 1 or 2.

    Position embeddings of another size are resampled (their old grid is taken as square). After a stage 1
    checkpoint routers and heads keep the weights they had. Raises ValueError naming what is missing, left
    over or of another shape.
    """
    stage = 2 if any(name.startswith("backbone.") for name in state) else 1
    names = reference_names(student, stage=stage)
    missing = sorted(set(names.values()) - set(state))
    left_over = sorted(set(state) - set(names.values()))
    if missing or left_over:
        raise ValueError(
            "the checkpoint does not fit the student: "
            + "; ".join(
                f"{what}: {_listed(keys)}"
                for what, keys in (("missing", missing), ("left over", left_over))
                if keys
            )
        )
    own = student.state_dict()
    loaded = {name: state[reference] for name, reference in names.items()}
    if "stem.vit.pos_embed" in loaded:
        loaded["stem.vit.pos_embed"] = fit_positions(student.stem, loaded["stem.vit.pos_embed"])
    wrong = [
        f"{names[name]} is {tuple(value.shape)}, the student's {tuple(own[name].shape)}"
        for name, value in loaded.items()
        if value.shape != own[name].shape
    ]
    if wrong:
        raise ValueError(f"the checkpoint does not fit the student: {_listed(wrong)}")
    student.load_state_dict({**own, **loaded})
    return stage


def export_reference(student: Student, *, stage: int = 2) -> dict[str, Tensor]:
    """The student's weights under the release's names; stage 1 leaves routers and heads out."""
    own = student.state_dict()
    return {
        reference: own[name].detach().clone()
        for name, reference in reference_names(student, stage=stage).items()
    }


def read_reference(path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint file of the release (plain, or under the key "model"). Never unpickles
    objects.

    Raises ValueError if the file holds anything but tensors there.
    """
    content: Any = torch.load(path, map_location="cpu", weights_only=True)
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict: expected names and tensors, plain or under 'model'")
    return state


def fit_positions(stem: Stem, position: Tensor) -> Tensor:
    """A position embedding (1, prefix + n, C) of a square grid, or of the stem's own, for the stem's grid."""
    grid = tuple(stem.vit.patch_embed.grid_size)
    num_prefix = 0 if stem.vit.no_embed_class else stem.num_prefix
    tokens = position.shape[1] - num_prefix
    if tokens == grid[0] * grid[1]:
        return position
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(
            f"a position embedding of {tokens} patches is neither square nor the stem's {grid[0]}x{grid[1]}"
        )
    return resample_positions(position, (side, side), grid, num_prefix)


def _reference_name(name: str, levels: tuple[int, ...]) -> str:
    part, rest = name.split(".", 1)
    if part == "stem":
        return rest
    owner, rest = rest.split(".", 1)
    if part == "paths":
        inner, rest = rest.split(".", 1)
        index, rest = rest.split(".", 1)
        if inner == "adapters":
            return f"tsap.{owner}.{index}.{rest}"
        return f"out_norms.{levels[int(index)]}_{owner}.{rest}"
    if part == "aligners":
        index, rest = rest.split(".", 1)
        return f"ts_aligners.{levels[int(index)]}_{owner}.{rest}"
    if part == "routers":
        index, inner, rest = rest.split(".", 2)
        return f"mor.{levels[int(index)]}_{owner}.router.module.{_ROUTER_PARTS[inner]}.{rest}"
    inner, rest = rest.split(".", 1)
    return f"heads.{owner}.{_HEAD_PARTS[inner]}.{rest}"


def _listed(items: list[str], most: int = 8) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
