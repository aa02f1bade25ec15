"""Frozen parts read from the cache: what a run does not train is cached like a teacher, and not run in its steps.

`sak cache --teacher stem:RECIPE` keeps every block's tokens of a stem, `student:RUN` the maps of a distilled
student's stem and paths. A recipe with `frozen = "stem:RECIPE"` then trains adapters, routers and heads without
running a ViT, one with `frozen = "student:RUN"` routers and heads alone. `student:RUN#dinov2`, one output of a student,
is no frozen part but a teacher of the next student.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from cache.loading.batch import Batch
from cache.store import Store
from pipeline.errors import UserError
from pipeline.recipes.config import Recipe
from sak_common.names import part_name
from sak_core.student.decoder import to_tokens
from sak_core.student.network import Experts, StemTokens, StudentNetwork
from sak_core.student.parts import FROZEN_PARTS
from sak_core.student.stem import normalize
from sak_core.weights.digests import state_digest

STEM, STUDENT = "stem:", "student:"
PREFIXES = {STEM: "adapters", STUDENT: "routers"}
"""What a cached part's name begins with, and what trains on it (`trains` of a recipe)."""


def is_own(name: str) -> bool:
    """Whether a teacher's name asks for this project's own stem or student."""
    return name.startswith(tuple(PREFIXES))


def is_output(name: str) -> bool:
    """Whether a teacher's name asks for one output of a student, `student:RUN#dinov2`: a teacher like any other."""
    return name.startswith(STUDENT) and "#" in name


def is_frozen_part(name: str) -> bool:
    """Whether a teacher's name asks for what a run may keep frozen, and no run is compared with."""
    return is_own(name) and not is_output(name)


def cached_name(name: str) -> str:
    """The folder of a part in a store: `stem:runs/x` is `stem-x`, `student:runs/x#dinov2` is `student-x-dinov2`."""
    kind, _, source = name.partition(":")
    return part_name(f"{kind}:{Path(source).name.removesuffix('.toml')}")


def frozen_part(recipe: Recipe) -> str | None:
    """The cached part that takes the frozen parts' place in a run of `recipe`, None where they run live.

    Raises:
        UserError: it is not one that the recipe's `trains` leaves frozen.
    """
    if recipe.frozen is None:
        return None
    kind = next((trains for prefix, trains in PREFIXES.items() if recipe.frozen.startswith(prefix)), None)
    if kind is None or is_output(recipe.frozen):
        raise UserError(f"frozen = {recipe.frozen!r}: expected stem:RECIPE, stem:RUN or student:RUN")
    if recipe.trains != kind:
        raise UserError(f"frozen = {recipe.frozen!r} goes with trains = {kind!r}, not {recipe.trains!r}")
    if recipe.source == "live":
        raise UserError("source = 'live' runs everything in the step: leave `frozen` out")
    if recipe.student.adapter == "lora":
        raise UserError("adapter = 'lora' changes the stem's blocks and must run them: leave `frozen` out")
    return cached_name(recipe.frozen)


def frozen_digest(model: StudentNetwork, kind: str) -> str:
    """Digest of the weights that stay under `trains = kind`: what a cached part must have been made with."""
    state = {n: v for n, v in model.state_dict().items() if n.startswith(FROZEN_PARTS[kind])}
    return state_digest(state)


def check_frozen(recipe: Recipe, store: Store, model: nn.Module) -> None:
    """Check that the cached part was made with the very weights that `model` keeps frozen.

    Raises:
        UserError: it was not, or the recipe's arm has no student.
    """
    name = frozen_part(recipe)
    if name is None:
        return
    if not isinstance(model, StudentNetwork):
        raise UserError(f"frozen = {recipe.frozen!r} needs an arm with a student, not {recipe.arm}")
    made_with = store.teacher(name).provenance["teacher"]["weights"]
    if made_with != frozen_digest(model, recipe.trains):
        raise UserError(
            f"{store.name}: {name} was cached with other weights than this run keeps frozen. Cache it from what the "
            f"run starts from: sak cache --teacher {recipe.frozen.partition(':')[0] if recipe.frozen else ''}:RUN"
        )


def student_input(recipe: Recipe, batch: Batch) -> Tensor | StemTokens | Experts:
    """What a student is given for a batch: its normalised pixels, or what the frozen parts gave for them."""
    name = frozen_part(recipe)
    if name is None or name not in batch.features:
        return normalize(batch.pixels)
    size = (batch.pixels.shape[1], batch.pixels.shape[2])
    maps = [to_tokens(level) for level in batch.features[name]]
    if name in batch.prefixes:
        return StemTokens([torch.cat(pair, 1) for pair in zip(batch.prefixes[name], maps, strict=True)], size)
    experts = 1 + len(recipe.teachers)
    levels = len(maps) // experts
    return Experts([maps[first : first + levels] for first in range(0, len(maps), levels)], size)
