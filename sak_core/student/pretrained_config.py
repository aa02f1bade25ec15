"""`config.json` of a saved student: read strictly, with bounds, since it may come from anyone."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sak_common.errors import SakError
from sak_core.student.config import StudentConfig
from sak_core.tasks import TASK_NAME

FORMAT = 1
STEM_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)?")
"""timm's own names; its prefixes that make it read elsewhere (`hf-hub:`, `local-dir:`) do not match."""
PART_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,127}")
MOST = {"image_size": 8192, "patch_size": 256, "width": 16384, "depth": 256, "heads": 256}
MOST_PARTS = 64
"""Of teachers, of tasks and of levels."""


class RefusedModel(SakError, ValueError):
    """A saved student that is damaged, hostile or of another format. The message names the file and says why."""


@dataclass(frozen=True)
class PretrainedConfig:
    """What `config.json` holds.

    Attributes:
        format: of this file.
        student: the network.
        random_weights: teachers it learned from that were never trained.
        about: where it comes from, for the model card (arm, teachers, data, recipe, scores); nothing depends on it.
    """

    student: StudentConfig
    random_weights: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> str:
        """The file's text; `parse_config` reads it back."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "format": self.format,
            "student": self.student.to_dict(),
            "random_weights": list(self.random_weights),
            "about": self.about,
        }


def parse_config(path: Path) -> PretrainedConfig:
    """Read a `config.json`.

    Raises:
        RefusedModel: a key is unknown, or a value of another kind or implausible.
    """
    try:
        raw = path.read_bytes()
        config = TypeAdapter(PretrainedConfig).validate_json(raw, strict=True)
        written = config.to_dict()
        unknown = _unknown(json.loads(raw), written)
    except ValidationError as error:
        first = error.errors()[0]
        raise RefusedModel(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RefusedModel(f"{path} cannot be read: {error}") from None
    if config.format != FORMAT:
        raise RefusedModel(f"{path} is of format {config.format}, this version reads {FORMAT}")
    if unknown:
        raise RefusedModel(f"{path}: unknown {', '.join(unknown[:5])}")
    check_plausible(path, config.student)
    return config


def check_plausible(path: Path, student: StudentConfig) -> None:
    """Check that an honest file, `path`, may describe this student.

    Raises:
        RefusedModel: none does.
    """
    if wrong := _implausible(student):
        raise RefusedModel(f"{path}: {wrong}")


def _unknown(found: Any, known: Any, where: str = "") -> list[str]:
    """Dotted keys of `found` that `known` does not have. What an older file lacks has its default, as it had then."""
    if not isinstance(found, dict) or not isinstance(known, dict) or where == "about.":
        return []
    keys = [f"{where}{key}" for key in sorted(set(found) - set(known))]
    for key in sorted(set(found) & set(known)):
        keys += _unknown(found[key], known[key], f"{where}{key}.")
    return keys


def _implausible(student: StudentConfig) -> str | None:
    """Why no honest file describes this student, or None: sizes beyond all bounds, names that lead elsewhere."""
    stem = student.stem
    if not STEM_NAME.fullmatch(stem.name):
        return f"stem {stem.name!r} is no name of a timm model"
    for key, value in (
        *(("image_size", side) for side in stem.image_size),
        *((key, getattr(stem, key)) for key in ("patch_size", "width", "depth", "heads")),
    ):
        if value is not None and not 1 <= value <= MOST[key]:
            return f"stem.{key} is {value}, expected 1..{MOST[key]}"
    if stem.width is not None and stem.heads is not None and stem.width % stem.heads:
        return f"stem.width {stem.width} is no multiple of its {stem.heads} heads"
    for what, names, pattern in (
        ("teacher", list(student.teachers), PART_NAME),
        ("task", [task.name for task in student.tasks], TASK_NAME),
    ):
        if len(names) > MOST_PARTS:
            return f"{len(names)} {what}s, expected at most {MOST_PARTS}"
        for name in names:
            if not pattern.fullmatch(name) or ".." in name:
                return f"{what} {name!r} is no name that could be a file's"
    for name, widths in student.teachers.items():
        listed = (widths,) if isinstance(widths, int) else widths
        if len(listed) > MOST_PARTS or not all(1 <= width <= MOST["width"] for width in listed):
            return f"teacher {name} has implausible widths"
    if strangers := set(student.class_tokens) - set(student.teachers):
        return f"class tokens of {min(strangers)!r}, which is no teacher of the student"
    decoder = asdict(student.decoder) if student.decoder else {}
    for key, value in decoder.items():
        sizes = value if isinstance(value, tuple) else (value,)
        if len(sizes) > MOST_PARTS or not all(isinstance(n, str) or 0 <= n <= MOST["width"] for n in sizes):
            return f"decoder.{key} is {value}, expected 0..{MOST['width']}"
    if student.levels is not None and len(student.levels) > MOST_PARTS:
        return f"{len(student.levels)} levels, expected at most {MOST_PARTS}"
    return None
