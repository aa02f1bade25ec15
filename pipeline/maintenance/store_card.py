"""The card of published stores: what they hold, made from what and by which weights, how to read them, licences."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import DatasetCardData

from cache.codecs.fidelity import Fidelity
from cache.format.manifest import FOLDER
from cache.places.addresses import folder_of
from cache.places.place import Place
from cache.store import Store, find_stores
from pipeline import PAPER
from pipeline.console import amount, table, warn
from pipeline.errors import UserError
from pipeline.maintenance.plain_reading import plain_reader, readable_level
from pipeline.recipes.stores import random_teachers
from pipeline.runs.licences import DataTerms, Terms, data_terms, in_words, strictest, teachers_licences, use_of
from sak_common.errors import SakError

CARD = "README.md"
OTHER_CARD = "STORES.md"
"""Where the card goes beside a README that somebody else has written."""

_MARK = re.compile(r"<!-- sak publish: (\{.*\}) -->\n\Z")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_ON_THE_HUB = frozenset({"apache-2.0", "mit", "bsd-3-clause", "cc0-1.0"})
"""Licences that allow any use, as the hub calls them; what is not on its list is "other" there."""
_LARGEST = "1M<n<10M"


def write_card(place: Place, stated: Mapping[str, str]) -> str:
    """Write the card of the stores in the folder `place` beside them; returns its file's name, as of `card_name`.

    Args:
        stated: licences of images, by a store's name.
    """
    name, stores = card_name(place), find_stores(place)
    terms = {store.name: data_terms(store.spec, stated.get(store.name)) for store in stores}
    place.write({name: [store_card(place, stores, terms).encode()]}, replace=True)
    return name


def card_name(place: Place) -> str:
    """The file that a card may be written to in the folder `place`: what people wrote, or changed, is left as it is.

    Raises:
        UserError: there is none.
    """
    for name in (CARD, OTHER_CARD):
        if is_ours(_text(place, name)):
            return name
    raise UserError(
        f"{place.show(CARD)} and {OTHER_CARD} beside it were both written or changed by hand, so that there is no room "
        "for a card: move one of them away"
    )


def carry_card(stores: Sequence[Store], target: Place) -> None:
    """Give copies of `stores` in the folder `target` the card that these were published with, if they were.

    It is written anew: of the stores that are there, under the licences that were stated. A README beside a store that
    people wrote or changed goes along as it is. What there is no room for is said.
    """
    published = dict(_cards_beside(stores))
    for folder, texts in published.items():
        readme, there = texts[CARD], _text(target, CARD)
        if is_ours(readme) or readme == there:
            continue
        if there:
            warn(f"{target.show(CARD)} is left as it is; another one belongs to the copies: {folder.show(CARD)}")
        else:
            target.write({CARD: [readme.encode()]}, replace=True)
    if published:
        try:
            write_card(target, stated_beside(stores) | stated_licences(target))
        except SakError as error:  # also of another store there, which is no fault of the copies
            warn(f"no card is written: {error}")
        target.finish()


def _cards_beside(stores: Sequence[Store]) -> Iterator[tuple[Place, dict[str, str]]]:
    """The folders that `stores` lie in, of those that were published, with the texts of both files of a card."""
    folders = {folder.shown: folder for store in stores if (folder := folder_of(store.place)) is not None}
    for folder in folders.values():
        try:
            texts = {name: _text(folder, name) for name in (CARD, OTHER_CARD)}
        except OSError as error:  # also a link, which may lead anywhere
            warn(f"the card of {folder.shown} stays behind, if it has one: {error}")
            continue
        if any(map(_mark, texts.values())):
            yield folder, texts


def is_ours(card: str) -> bool:
    """Whether a card is as `write_card` wrote it, or not there."""
    return not card or _mark(card).get("sha256") == _digest(_MARK.sub("", card))


def stated_licences(place: Place) -> dict[str, str]:
    """The licences of images that whoever published stores into `place` stated, by a store's name."""
    return _stated({name: _text(place, name) for name in (CARD, OTHER_CARD)})


def stated_beside(stores: Sequence[Store]) -> dict[str, str]:
    """As `stated_licences`, of the folders that `stores` lie in."""
    return {name: licence for _, texts in _cards_beside(stores) for name, licence in _stated(texts).items()}


def _stated(texts: Mapping[str, str]) -> dict[str, str]:
    found: dict[Any, Any] = {}
    for name in (OTHER_CARD, CARD):
        images = _mark(texts[name]).get("images")
        found |= images if isinstance(images, Mapping) else {}
    # anyone may have written it, and it is shown
    return {str(store): text for store, licence in found.items() if (text := str(licence)).isprintable()}


def _mark(card: str) -> dict[str, Any]:
    """What the last line of a card says; nothing where it is not as `store_card` writes it."""
    found = _MARK.search(card)
    try:
        return dict(json.loads(found[1])) if found else {}
    except (ValueError, RecursionError):
        return {}


def store_card(place: Place, stores: Sequence[Store], terms: Mapping[str, DataTerms]) -> str:
    """The card as Markdown with the hub's YAML head; a last line, which Markdown hides, says what was stated."""
    licences = [pair for store in stores for pair in licence_pairs(store, terms[store.name])]
    together = strictest(licences)
    samples = sum(store.spec.num_samples for store in stores)
    only = {licence for _, licence in licences}
    teachers = sorted({name for store in stores for name in store.teachers})
    free = next(iter(only)).lower() if len(only) == 1 and {licence.lower() for licence in only} <= _ON_THE_HUB else None
    data = DatasetCardData(
        license=free or "other",
        license_name=None if free else f"teachers-and-data-{together.use.replace(' ', '-')}",
        pretty_name=", ".join(dict.fromkeys(f"{store.spec.dataset} {store.spec.split}" for store in stores)),
        size_categories=[next((words for most, words in _SIZES if samples < most), _LARGEST)],
        task_categories=["image-feature-extraction"],
        tags=["knowledge-distillation", "features", "zarr", *teachers],
        viewer=False,  # nothing of it is a table
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        "# Cached features of vision foundation models",
        "Multi-level features that frozen teachers gave for every view of every image, as plain "
        f"[Zarr v3](https://zarr.dev): a student learns from them ([SAK]({PAPER})), and no teacher need run again.",
        *(part for store in stores for part in _store(place, store)),
        "## Licences",
        licence_table(licences),
        together_sentence(together),
        *(_images(store, terms[store.name]) for store in stores),
        "## Citation",
        "Cite the data set and the teachers by their own papers, and the method that these features were made for:",
        _CITATION,
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    own = {store.name: terms[store.name] for store in stores if terms[store.name] != data_terms(store.spec)}
    stated = {name: stated_terms.licence for name, stated_terms in own.items()}
    mark = {"images": stated, "sha256": _digest(text)}
    hidden = json.dumps(mark, sort_keys=True).replace(">", r"\u003e")  # what is stated must not end the comment
    return f"{text}<!-- sak publish: {hidden} -->\n"


def licence_pairs(store: Store, terms: DataTerms) -> list[tuple[str, str]]:
    """(what, licence) of a store's images and of each of its teachers' weights."""
    teachers = [(f"weights of {name}", licence) for name, licence in teachers_licences(store).items()]
    return [(f"images of {terms.dataset}", terms.licence), *teachers]


def licence_table(pairs: Sequence[tuple[str, str]]) -> str:
    """(what, licence) pairs side by side with what each lets others do."""
    rows = [[what, licence, in_words(use_of(licence))] for what, licence in dict.fromkeys(pairs)]
    return table(["of", "licence", "lets others do"], rows)


def together_sentence(together: Terms) -> str:
    """What licences together allow, and which decides it."""
    names = ", ".join(f"{what} ({licence})" for what, licence in together.by)
    return f"Together they allow {in_words(together.use)}. Strictest: {names}."


def images_of(store: Store) -> str:
    """What of its images a store is made of: its pixels, and labels where it has some."""
    return "pixels and labels" if store.spec.labels else "pixels"


def _text(place: Place, name: str) -> str:
    try:  # a web server's list has nothing beside the stores
        return place.read(name).decode(errors="replace")
    except FileNotFoundError:
        return ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _store(place: Place, store: Store) -> list[str]:
    """A store's own part of the card."""
    spec, sizes = store.spec, store.place.sizes()
    height, width = spec.size
    where = store.name if "://" not in place.shown else store.place.shown
    source = [size for file, size in sizes.items() if not file.startswith(("teachers/", f"{FOLDER}/"))]
    lines = [
        f"- Images: {spec.dataset} {spec.split}, {spec.num_samples:,}"
        + (f" (of these unreadable: {unreadable})" if (unreadable := len(store.invalid(store.num_views))) else ""),
        f"- Views: {store.num_views} an image, {height}x{width} px, `{spec.policy.get('kind')}`, seed {spec.seed}",
        f"- Labels: {', '.join(spec.labels) or 'none'}",
        f"- Bytes: {amount(sum(sizes.values()))} in all, {amount(sum(source))} of them "
        f"{'ids, digests of images and views' if store.left_out else f'{images_of(store)}, ids and views'}",
    ]
    return [
        f"## {store.name}",
        "\n".join(lines),
        _left_out(where, store),
        _random(store),
        _levels(store, sizes),
        _reading(where, store),
        f"`sak verify {where}` checks every byte by the digests that the store holds.",
    ]


def _left_out(where: str, store: Store) -> str:
    if not store.left_out:
        return ""
    return (
        f"**The {images_of(store)} are not here.** Whoever has {store.spec.dataset} renders the same views again, held "
        f"to the digests that are kept here:\n\n    sak join {where} --root DIR --out features"
    )


def _random(store: Store) -> str:
    names = random_teachers(store, store.teachers)
    return f"> [!CAUTION]\n> **Random weights:** {', '.join(names)} had never been trained." if names else ""


def _levels(store: Store, sizes: Mapping[str, int]) -> str:
    rows = []
    for name in store.teachers:
        info = store.teacher(name)
        made: Mapping[str, Any] = info.provenance.get("teacher", {})
        measured = store.calibration(name, [f"{level.array}/fidelity" for level in info.levels]) or {}
        for level in info.levels:
            # of prefix tokens, which are kept as they are, there is none
            known = measured.get(f"{level.array}/fidelity")
            figures = None if known is None else Fidelity.from_array(known)
            array = f"teachers/{name}/{level.array}"
            rows.append(
                [
                    name,
                    f"{made.get('library', '')} {made.get('model', '')}".strip() or "-",
                    f"`{str(made.get('weights', '-'))[:23]}`",
                    level.array,
                    f"{level.grid[0]}x{level.grid[1]}x{level.width}",
                    level.codec,
                    "-" if level.fidelity is None else str(level.fidelity),
                    "-" if figures is None else f"{figures.cosine:.6f}, {figures.centred_cosine:.6f}",
                    amount(sum(size for file, size in sizes.items() if file.startswith(f"{array}/"))),
                ]
            )
    columns = ["teacher", "from", "weights", "level", "grid", "codec", "promised", "token cosine", "bytes"]
    if not rows:
        return ""
    return (
        table(columns, rows) + "\n\nToken cosine: of decoded features against the teacher's own, on rows that nothing "
        "was fitted on; the second with the mean of every channel removed."
    )


def _reading(where: str, store: Store) -> str:
    """How to read a level, with this package and without."""
    if not store.teachers:
        return ""
    name = store.teachers[0]
    level = readable_level(store, name)
    ours = [
        "from cache import Store",
        "",
        f'level = Store.open("{where}").features("{name}", level={level.level})',
        "features = level[0, 0]  # of sample 0, view 0: float32 (h, w, C)",
    ]
    return (
        "With this package:\n\n```python\n"
        + "\n".join(ours)
        + f"\n```\n\nWith any reader of Zarr, of a copy in this folder:\n\n```python\n{plain_reader(store, name)}\n```"
    )


def _images(store: Store, terms: DataTerms) -> str:
    """What of the images came along, and what their licence says to that."""
    if store.left_out:
        return ""
    told = {
        True: "its licence lets them go along",
        False: "its licence does not let them be handed on to just anyone",
        None: "whether they may be handed on is not known",
    }
    return f"{store.name} holds {images_of(store)} of {terms.dataset}: {told[terms.may_share]}."


_CITATION = f"""```bibtex
@inproceedings{{lu2025sak,
  title = {{Swiss Army Knife: Synergizing Biases in Knowledge from Vision Foundation Models for Multi-Task Learning}},
  author = {{Lu, Yuxiang and Cao, Shengcao and Wang, Yu-Xiong}},
  booktitle = {{International Conference on Learning Representations}},
  year = {{2025}},
  url = {{{PAPER}}}
}}
```"""
