"""Strict models of what is read from TOML files: a wrong key is an error that names the right one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import UserError
from sak_common.names import unknown

Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def validated(
    model: type[Model], table: Mapping[str, Any], where: str, moved: Mapping[str, str] = MappingProxyType({})
) -> Model:
    """`table` as a `model`.

    Args:
        moved: keys that the model once had, and where they stand now.

    Raises:
        UserError: keys are unknown, missing or of the wrong kind. The message begins with `where` and names each, with
            the nearest right one.
    """
    try:
        return model.model_validate(table)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            if key in moved and item["type"] in ("extra_forbidden", "model_type"):
                lines.append(f"{key} is {moved[key]} now")
            elif item["type"] == "missing":
                lines.append(f"{key} is missing")
            elif item["type"] == "extra_forbidden":
                lines.append(f"unknown key {key!r}{_nearest_key(model, item['loc'])}")
            elif item["type"] == "literal_error":
                allowed = re.findall(r"'([^']*)'", item["ctx"]["expected"])
                lines.append(unknown(key, str(item["input"]), allowed))
            elif item["type"] == "tuple_type":
                # A list of tables has brackets of its own in TOML, which are easily forgotten.
                brackets = f"write [[{key}]] over each" if isinstance(item["input"], dict) else "write [...]"
                lines.append(f"{key}: a list is expected: {brackets} (got {item['input']!r})")
            else:
                lines.append(f"{key}: {item['msg']} (got {item['input']!r})")
        raise UserError(f"{where}: " + "; ".join(lines)) from None


def _nearest_key(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """`; did you mean ...` for the key at `location`, by the fields of the model that refused it."""
    fields = model.model_fields
    for part in location[:-1]:
        annotation = fields[str(part)].annotation if str(part) in fields else None
        options = [annotation, *getattr(annotation, "__args__", ())]
        inner = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not inner:
            return ""
        fields = inner[0].model_fields
    near = difflib.get_close_matches(str(location[-1]), fields, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else f"; known keys: {', '.join(fields)}"
