"""A recipe for the caches that are there: what `sak distill`, `finetune` and `ablate` use where none is named.

It is written as a file with comments, so that it can be kept and edited; one that was edited is left as it is.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.format.manifest import SOURCE, teacher_part
from cache.format.spec import SourceSpec
from cache.store import Store
from pipeline.console import say
from pipeline.errors import UserError
from pipeline.recipes.frozen import is_frozen_part
from pipeline.recipes.stores import Caches, each_place, joined, stores_below, with_images_first
from sak_common.names import part_name, unknown

EVALUATION = ("test", "val")
"""Splits that are scored and never trained on, the better one to compare arms by first."""
HEAD = "# Written by sak from the caches; edit it freely, an edited file is left as it is. Digest: "
MAX_TOKENS = 256
"""Of a view on a CPU, where a patch allows it."""

Asked = tuple[str, str, tuple[int, int]]
"""What a recipe says of a cache: data set, split, size."""


@dataclass(frozen=True)
class Source:
    """A cache to train on, the views that are complete, and the teachers that are complete in them.

    Attributes:
        stores: of one data set, split and size, a place each; all but teachers is read from the first.
    """

    stores: tuple[Store, ...]
    views: int
    teachers: tuple[str, ...]

    @property
    def store(self) -> Store:
        """The first."""
        return self.stores[0]

    @property
    def rows(self) -> int:
        """Valid samples."""
        return int(self.store.valid(self.views).sum())

    @property
    def size(self) -> str:
        """`HxW` in px."""
        height, width = self.store.spec.size
        return f"{height}x{width}"

    def table(self, views: bool = True) -> str:
        """As a recipe names it."""
        spec = self.store.spec
        shown = f", views = {self.views}" if views else ""
        return f'{{ dataset = "{spec.dataset}", split = "{spec.split}", size = "{self.size}"{shown} }}'


@dataclass(frozen=True)
class Choice:
    """What the caches allow.

    Attributes:
        distill: stage 1's cache.
        finetune: the labelled one of the same size, None where there is none.
        evaluation: labelled splits that are scored, by name.
    """

    distill: Source
    finetune: Source | None
    evaluation: dict[str, Source]

    @property
    def teachers(self) -> tuple[str, ...]:
        """The teachers to distil."""
        return self.distill.teachers

    @property
    def name(self) -> str:
        """What the recipe is called: the data set, the size and the teachers."""
        spec = self.distill.store.spec
        return part_name("-".join([spec.dataset, self.distill.size, *self.teachers]))


def choose(features: Caches, dataset: str | None = None) -> Choice:
    """What can be trained from the caches below `features`.

    Raises:
        UserError: nothing can, or several data sets lie there and `dataset` names none of them.
        StoresDiffer: what would be trained on lies in several places, with other rows.
    """
    places = {place: stores_below(place) for place in each_place(features)}
    below = ", ".join(map(str, places))
    names = sorted({store.spec.dataset for stores in places.values() for store in stores})
    if not names:
        raise UserError(f"no caches below {below}. Make one first: make cache TEACHER=dinov2")
    if dataset is None and len(names) > 1:
        raise UserError(
            f"caches of several data sets below {below}: {', '.join(names)}. "
            f"Choose one: DATASET={names[0]} (--dataset {names[0]}), or name a recipe"
        )
    if dataset is not None and dataset not in names:
        raise UserError(f"no cache of it below {below}: {unknown('data set', dataset, names)}")
    alike: dict[Asked, list[Store]] = {}
    for store in with_images_first([store for stores in places.values() for store in stores]):
        if store.spec.dataset == (dataset or names[0]):
            alike.setdefault(_asked(store.spec), []).append(store)
    sources = [_source(stores) for stores in alike.values()]
    training = [one for one in sources if one.store.spec.split not in EVALUATION]
    taught = [one for one in training if one.teachers]
    if not taught:
        held = ", ".join(dict.fromkeys(store.name for one in sources for store in one.stores))
        raise UserError(f"no training split below {below} holds a finished teacher ({held}): make cache TEACHER=...")
    distill = max(taught, key=lambda one: (len(one.teachers), one.rows))
    _refuse_several(places, distill)
    joined(distill.stores, distill.teachers, distill.views)
    _say_left_out(distill)
    fitting = [one for one in sources if one.store.spec.size == distill.store.spec.size and one.store.spec.labels]
    labelled = [one for one in fitting if one in training]
    scored = {one.store.spec.split: one for one in fitting if one.store.spec.split in EVALUATION}
    return Choice(distill, max(labelled, key=lambda one: one.rows) if labelled else None, scored)


def _source(stores: Sequence[Store]) -> Source:
    """Stores with the views in which the most teachers are complete, and of these views the most; without a complete
    teacher, as many as the first one's source has."""
    first, every = stores[0], tuple(stores)
    complete = next((v for v in range(first.num_views, 0, -1) if first.is_complete(SOURCE, v)), 0)
    found = [Source(every, views, _complete(every, _teachers(every), views)) for views in range(complete, 0, -1)]
    return max(found, key=lambda one: len(one.teachers), default=Source(every, complete, ()))


def _teachers(stores: Sequence[Store]) -> list[str]:
    return sorted({name for store in stores for name in store.teachers if _is_teacher(store, name)})


def _complete(stores: Sequence[Store], teachers: Sequence[str], views: int) -> tuple[str, ...]:
    return tuple(name for name in teachers if any(one.is_complete(teacher_part(name), views) for one in stores))


def _say_left_out(chosen: Source) -> None:
    """Name the teachers of a store that are not complete, and the views that only some of its teachers have."""
    store, teachers = chosen.store, chosen.teachers
    for name in _teachers(chosen.stores):
        if name not in teachers:
            say(f"{store.name}: {name} is not finished and is left out; the same `make cache` again finishes it")
    if more := _complete(chosen.stores, teachers, chosen.views + 1) if store.num_views > chosen.views else ():
        say(f"{store.name}: {chosen.views} views, which all teachers have; {', '.join(more)} would have more")


def _refuse_several(places: Mapping[Path | str, Sequence[Store]], chosen: Source) -> None:
    """Refuse a place with several stores of the same split at the same size: a recipe could mean any of them."""
    spec = chosen.store.spec
    for place, stores in places.items():
        alike = [one for one in stores if one in chosen.stores]
        if len(alike) > 1:
            names = "".join(f"\n  {one.name}  ({one.spec.num_samples} samples)" for one in alike)
            raise UserError(
                f"several caches of {spec.dataset}/{spec.split} at {chosen.size} below {place}, such as a trial with "
                f"LIMIT and the whole. Move or delete all but one of them, or cache below another folder (OUT=):{names}"
            )


def _asked(spec: SourceSpec) -> Asked:
    return spec.dataset, spec.split, spec.size


def _is_teacher(store: Store, name: str) -> bool:
    """Whether a part is a teacher, and no frozen part of this project's own student."""
    return not is_frozen_part(store.teacher(name).provenance.get("teacher", {}).get("name", name))


def recipe_text(choice: Choice, on_gpu: bool) -> str:
    """The recipe for `choice` as TOML with comments.

    Args:
        on_gpu: whether it will train on a GPU.
    """
    teachers = ", ".join(f'"{name}"' for name in choice.teachers)
    steps, batch = _steps(choice.distill.rows, on_gpu, stage1=True)
    lines = [
        f"# {choice.distill.store.name}: {choice.distill.rows} images, {choice.distill.views} views each",
        f"teachers = [{teachers}]",
        'arm = "sak"  # or many-to-one, multi-task, teacher:NAME: see docs/training.md',
        f"batch_size = {batch}",
        *(['precision = "bf16-mixed"'] if on_gpu else ["boundary = { thresholds = 19 }  # 99 as published; slower"]),
        "checkpoint_every = 100",
        "",
        *_stem(choice.distill.store.spec, on_gpu),
        "",
        "[distill]",
        f"data = {choice.distill.table()}",
        *_training(steps, choice.distill.rows, batch, on_gpu),
    ]
    if choice.finetune:
        few, batch = _steps(choice.finetune.rows, on_gpu, stage1=False)
        shared = set(choice.teachers) <= set(choice.finetune.teachers)
        lines += ["", "[finetune]", f"data = {choice.finetune.table()}"]
        if "val" in choice.evaluation:
            lines += ["# scored at the end; with every = 100 in between, too, and the best weights are kept"]
            lines += [f"validation = {choice.evaluation['val'].table(views=False)}"]
        lines += ["loss = { alpha = 1.0 }  # weight of the distillation loss beside the tasks'"] if shared else []
        lines += [] if shared else ["loss = { alpha = 0.0 }  # the teachers are not cached on this split"]
        lines += [f"batch_size = {batch}", *_training(few, choice.finetune.rows, batch, on_gpu)]
    body = "\n".join(lines) + "\n"
    return f"{HEAD}{_digest(body)}\n{body}"


def _stem(views: SourceSpec, on_gpu: bool) -> list[str]:
    size = views.size
    if on_gpu and not any(side % 16 for side in size):
        return [
            "[student.stem]",
            'name = "vit_small_patch16_384"  # a timm ViT',
            '# weights = "hub"  # or a .safetensors file: better than from noise, where you have them',
        ]
    fits = [patch for patch in (8, 14, 16, 32) if not any(side % patch for side in size)]
    if not fits:
        raise UserError(
            f"views of {size[0]}x{size[1]} px: no patch of 8, 14, 16 or 32 px divides both sides, so no stem fits; "
            "cache at another SIZE, or write a recipe with a patch of your own"
        )
    patch = next((p for p in fits if size[0] * size[1] <= MAX_TOKENS * p * p), fits[-1])
    has_seen = views.dataset == "rooms" and patch == 8
    return [
        "[student.stem]  # a narrow ViT",
        'name = "custom"',
        'weights = "mini-vit"  # ships: it has seen rooms, and no label' if has_seen else "# trained from noise",
        f"patch_size = {patch}  # px",
        "width = 96",
        "depth = 6",
        "heads = 3",
    ]


def _steps(rows: int, on_gpu: bool, stage1: bool) -> tuple[int, int]:
    """Steps and batch size: 30 epochs (20 of stage 2), between bounds that suit the device."""
    batch = max(1, min(64 if on_gpu else 16, rows))
    low, high = ((200, 50_000) if on_gpu else (100, 600)) if stage1 else ((100, 10_000) if on_gpu else (60, 200))
    epochs = 30 if stage1 else 20
    return min(max(math.ceil(epochs * rows / batch), low), high), batch


def _training(steps: int, rows: int, batch: int, on_gpu: bool) -> list[str]:
    return [
        f"steps = {steps}  # {steps * batch / max(rows, 1):.1f} epochs",
        f"optimizer = {{ lr = {'5e-4' if on_gpu else '2e-3'}, weight_decay = 0.01, clip = 1.0 }}  # clip: largest norm",
        f'schedule = {{ kind = "cosine", warmup_steps = {max(steps // 20, 1)} }}',
    ]


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def is_edited(text: str) -> bool:
    """Whether a recipe's file is no longer as it was written here."""
    first, _, body = text.partition("\n")
    return first != HEAD + _digest(body)


def write_recipe(features: Caches, path: Path | None = None, dataset: str | None = None) -> Path:
    """Write the recipe for the caches below `features`, and say what was chosen.

    Args:
        path: `runs/<data set>-<size>-<teachers>.toml` when None. A file that was edited is left as it is and used.

    Returns:
        Its path.

    Raises:
        UserError: as `choose` does.
    """
    choice = choose(features, dataset)
    return save_recipe(choice, path or Path("runs") / f"{choice.name}.toml")


def save_recipe(choice: Choice, path: Path) -> Path:
    """As `write_recipe`, of what was chosen already."""
    import torch

    text = recipe_text(choice, torch.cuda.is_available())
    if path.exists() and is_edited(path.read_text()):
        say(f"{path}: edited, used as it is; remove it to have it written anew")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    unnamed = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # others that begin with this one may read it
    unnamed.write_text(text)
    unnamed.replace(path)
    tasks = ""
    if choice.finetune:
        where = "it" if choice.finetune == choice.distill else choice.finetune.store.name
        tasks = f", then trains {', '.join(choice.finetune.store.spec.labels)} on {where}"
    say(
        f"{path}, written for the caches that are there: distils {', '.join(choice.teachers)} from "
        f"{choice.distill.store.name}{tasks}. Edit it to change the choice"
    )
    return path


def missing_labels(choice: Choice) -> str:
    """What to do where stage 2 has no labels."""
    spec = choice.distill.store.spec
    return (
        f"fine-tuning needs labels, and no cache of {spec.dataset} at {choice.distill.size} has any. Describe yours in "
        "a dataset.toml beside the images (docs/new-dataset.md), then: make cache DATASET=labelled ROOT=FOLDER "
        f"SIZE={choice.distill.size} TEACHER={','.join(choice.teachers)}"
    )
