"""What a run's weights and its scores come from: digests of caches, and of the weights that it begins with or is scored
with. Results and scores keep theirs, so that what a cache made anew leaves out of date is not taken for an answer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cache.format.manifest import teacher_part
from cache.joined import shares
from cache.places.files import canonical_json, digest_of_file
from cache.store import Store
from pipeline import __version__
from pipeline.errors import UserError
from pipeline.recipes.arms import features_read, parts_read, teachers_read
from pipeline.recipes.config import Recipe
from pipeline.recipes.stores import Caches, digest, find_store, training_store
from pipeline.runs import checkpoint
from sak_common.differences import differences
from sak_core.student.initial_weights import stem_file
from sak_core.student.pretrained import WEIGHTS, student_folder

Origin = dict[str, Any]
"""JSON values by what they are of, see `origin_of_run` and `origin_of_scores`."""

CODE = "code"
"""Versions: of an origin, but no reason to compute anew what is finished."""

READ_AT = "read_at"


def origin_of_run(recipe: Recipe, features: Caches, stage1: Path | None = None) -> Origin:
    """What a run of `recipe` that begins with the run `stage1` computes its weights and its validation from.

    Returns:
        caches: store -> part -> digest of its files.
        facts: store -> digest of what it says of itself: labels, their coding, teachers.
        read_at: store -> its address with the commit, where it is read from the hub; another commit of the same digests
            changes nothing.
        validation: these, of the split that is scored.
        begins_with: digest of the weights file that training starts from.
        code: versions.

    Raises:
        UserError: a cache is not there, or not complete.
    """
    parts = parts_read(recipe)
    store = training_store(features, recipe, parts)
    origin = {
        **_read(store, parts, recipe.data.views, recipe.source == "live"),
        **_begins_with(recipe, stage1),
        CODE: {"sak": __version__, "torch": torch.__version__},
    }
    if (validated := validation_store(recipe, features)) is not None:
        origin["validation"] = _read(validated, validation_teachers(recipe), 1)
    return origin


def trained_from(recipe: Recipe, origin: Origin) -> Origin:
    """What of a run's origin its weights depend on: not the split that is only scored at the end."""
    return origin if recipe.validate_every else {key: value for key, value in origin.items() if key != "validation"}


def origin_of_scores(run: Path, store: Store, teachers: Sequence[str]) -> Origin:
    """What the scores of `run` on `store`, of which `teachers` are read, are computed from."""
    return {
        **_read(store, teachers, 1),
        "weights": _digest_of(checkpoint.scored_weights(run)),
        CODE: {"sak": __version__},
    }


def validation_store(recipe: Recipe, features: Caches) -> Store | None:
    """The store that a run of `recipe` is validated on, None where it never is; errors as `find_store`."""
    if recipe.validation is None or not is_validated(recipe):
        return None
    return find_store(features, recipe.validation, validation_teachers(recipe))


def is_validated(recipe: Recipe) -> bool:
    """Whether a run of `recipe` reads its validation split: stage 1 does not score its last step."""
    return recipe.validation is not None and (recipe.stage != "distill" or recipe.validate_every is not None)


def validation_teachers(recipe: Recipe) -> tuple[str, ...]:
    """The teachers whose cached features the validation of a recipe reads."""
    return teachers_read(recipe) if recipe.stage == "distill" else features_read(recipe)


def changes(saved: Mapping[str, Any], now: Mapping[str, Any], code: bool = False) -> list[str]:
    """Where what was made from `saved` is out of date `now`, in words; what only one of them knows is left aside.

    Args:
        code: whether versions of the code count.
    """
    found = _of_caches(saved, now)
    validations = (side.get("validation", {}) for side in (saved, now))
    found += [f"validation.{told}" for told in _of_caches(*validations)]
    shared = [key for key in ("begins_with", "weights", *([CODE] if code else [])) if key in saved and key in now]
    return found + _in_words(*({key: side[key] for key in shared} for side in (saved, now)))


def _of_caches(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    if "caches" not in saved or "caches" not in now:
        return []
    before, after = saved["caches"], now["caches"]
    if before.keys() != after.keys():
        return [f"caches: {', '.join(before)} against {', '.join(after)}"]
    if found := _in_words({"caches": before}, {"caches": after}):
        return found
    keys = ["facts"] if "facts" in saved and "facts" in now else []
    return _in_words(*({key: side[key] for key in keys} for side in (saved, now)))


def finished_from(run: Path) -> Mapping[str, Any]:
    """The origin of a finished run; of one whose results do not name it, that of its checkpoint, or nothing."""
    results = json.loads((run / "results.json").read_text())
    if "made_from" in results:
        found: Mapping[str, Any] = results["made_from"]
        return found
    last = checkpoint.find(run / checkpoint.LAST)
    return {"caches": checkpoint.read_state(last)["caches"]} if last else {}


def changed_caches(run: Path, recipe: Recipe, features: Caches) -> list[str]:
    """Where the caches that a finished run was trained on are no longer what they were, in words.

    Caches that are not there any more have nothing to be compared with.
    """
    try:
        parts = parts_read(recipe)
        store = training_store(features, recipe, parts)
    except UserError:
        return []
    return changes(finished_from(run), _read(store, parts, recipe.data.views, recipe.source == "live"))


def _begins_with(recipe: Recipe, stage1: Path | None) -> dict[str, str]:
    if stage1 is not None:
        return {"begins_with": _digest_of(checkpoint.scored_weights(stage1))}
    file = student_folder(recipe.init) / WEIGHTS if recipe.init else stem_file(recipe.student.stem.weights or "")
    # the hub's do not change under their name
    return {"begins_with": _digest_of(file)} if file.is_file() else {}


def _read(store: Store, parts: Sequence[str], views: int, is_live: bool = False) -> Origin:
    """What of an origin says which parts of a store were read (live, its pixels alone), and in how many views."""
    return {
        "caches": {store.name: digest(store, () if is_live else parts, views)},
        "facts": {store.name: _facts(store, parts)},
        **_read_at(store, parts),
    }


def _read_at(store: Store, teachers: Sequence[str]) -> dict[str, dict[str, str]]:
    """Where the store lies on the hub, and where those do that give only some of `teachers`."""
    found = {
        one.name if one is store or one is store.stores[0] else f"{one.name} ({', '.join(own)})": one.place.pinned
        for one, own in shares(store, teachers).items()
    }
    told = {name: address for name, address in found.items() if address}
    return {READ_AT: told} if told else {}


def addresses(origin: Mapping[str, Any]) -> dict[str, str]:
    """The stores of an origin that were read at a commit of the hub, with their addresses there."""
    return {**origin.get(READ_AT, {}), **origin.get("validation", {}).get(READ_AT, {})}


def _facts(store: Store, teachers: Sequence[str]) -> str:
    info = {teacher_part(name): store.teacher(name) for name in teachers}
    told = {
        "source": store.spec.to_dict(),
        **{part: [one.provenance, [level.to_dict() for level in one.levels]] for part, one in info.items()},
    }
    return hashlib.sha256(canonical_json(told)).hexdigest()


def _digest_of(path: Path) -> str:
    return digest_of_file(path).sha256


def _in_words(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [f"{key}: {_short(left)!r} against {_short(right)!r}" for key, left, right in differences(saved, now)]


def _short(value: Any) -> Any:
    """A digest by its first twelve digits, anything else as it is."""
    return value[:12] if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else value
