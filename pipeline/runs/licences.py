"""What licences of teachers and data sets allow: together no more than the strictest of them.

Whether a licence of weights binds what learned from their features is for lawyers; here the cautious reading is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from cache.format.spec import SourceSpec
from cache.store import Store
from pipeline.recipes.stores import row_of
from sak_core.datasets import DATASETS

Use = Literal["any use", "any use on conditions", "unknown", "non-commercial"]
ORDER: tuple[Use, ...] = ("any use", "any use on conditions", "unknown", "non-commercial")
"""From the freest to the strictest. What is unknown may be anything, but what is known to be non-commercial is so."""

_PERMISSIVE = re.compile(r"apache|\bmit\b|\bbsd|\bisc\b|unlicense|cc0|public domain", re.IGNORECASE)
_NON_COMMERCIAL = re.compile(
    r"non[- ]?commercial|\bnc\b|[-_]nc\b|[-_]nc[-_]|research[- ]only|academic|amlr|fair[- ]noncommercial", re.IGNORECASE
)
_CONDITIONAL = re.compile(
    r"dinov3|nvidia open model|apple sample code|openrail|llama|gemma|cc[- ]by|\bl?gpl|agpl|sam license|community",
    re.IGNORECASE,
)
_SENTENCES: dict[Use, str] = {
    "any use": "any use, commercial, too, with the notices that they ask for",
    "any use on conditions": "any use that keeps the conditions of the licences; read them",
    "unknown": "nothing that is certain, until the unknown licences have been looked up",
    "non-commercial": "non-commercial use alone",
}


def in_words(use: Use) -> str:
    """What may be done, as the end of a sentence."""
    return _SENTENCES[use]


_HANDED_ON = re.compile(r"\bcc[- ]by\b(?!.*\bnd\b)", re.IGNORECASE)
"""Licences on conditions that let everyone hand on what is made of a work."""


@dataclass(frozen=True)
class DataTerms:
    """The licence of a data set's images and labels.

    Attributes:
        may_share: whether they may be handed on; None where it is not known.
    """

    dataset: str
    licence: str
    may_share: bool | None


@dataclass(frozen=True)
class Terms:
    """What a student may be used for.

    Attributes:
        by: the teachers that decide it, with their licences; empty without teachers.
    """

    use: Use
    by: tuple[tuple[str, str], ...] = ()

    def sentence(self) -> str:
        """In words, with who decides it."""
        if not self.by:
            return "No teacher's licence binds this student."
        teachers = ", ".join(f"{name} ({licence})" for name, licence in self.by)
        return f"Its teachers' licences together allow {in_words(self.use)}. Strictest: {teachers}."


def use_of(licence: str) -> Use:
    """What a licence allows, by its name; "unknown" for a name that says nothing.

    >>> use_of("Apache-2.0"), use_of("CC-BY-NC-4.0"), use_of("DINOv3 License"), use_of("see the model's card")
    ('any use', 'non-commercial', 'any use on conditions', 'unknown')
    """
    if _NON_COMMERCIAL.search(licence):
        return "non-commercial"
    if _CONDITIONAL.search(licence):
        return "any use on conditions"
    return "any use" if _PERMISSIVE.search(licence) else "unknown"


def strictest(licences: Iterable[tuple[str, str]]) -> Terms:
    """What (teacher, licence) pairs allow together."""
    pairs = sorted(set(licences))
    if not pairs:
        return Terms("any use")
    use = max((use_of(licence) for _, licence in pairs), key=ORDER.index)
    return Terms(use, tuple(pair for pair in pairs if use_of(pair[1]) == use))


def allows_more(licence: str, terms: Terms) -> bool:
    """Whether a licence that a student is given allows what its teachers' do not."""
    return bool(terms.by) and ORDER.index(use_of(licence)) < ORDER.index(terms.use)


def data_terms(spec: SourceSpec, stated: str | None = None) -> DataTerms:
    """What is known of the images of a store.

    Args:
        stated: their licence, as whoever hands them on says.
    """
    row = DATASETS.get(row_of(spec))
    if stated is None:
        return DataTerms(spec.dataset, *((row.licence, row.may_share) if row else ("unknown", None)))
    is_free = use_of(stated) == "any use" or _HANDED_ON.search(stated) is not None
    return DataTerms(spec.dataset, stated, True if is_free else None)


def teachers_licences(store: Store) -> dict[str, str]:
    """The licences of the weights of a store's teachers, by their names."""
    made = {name: store.teacher(name).provenance.get("teacher", {}) for name in store.teachers}
    return {name: teacher.get("licence") or "unknown" for name, teacher in made.items()}
