"""Panels to one HTML file that asks nothing of any other."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from pipeline.report.elements import Panel, tables_json

FOLDER = "page"


def page(title: str, made: str, footer: str, panels: Sequence[Panel]) -> str:
    """The page as HTML. Its policy allows no request, and no script but its own.

    Every table's numbers stand in the page as JSON, too, under "json-<table's id>".

    Args:
        made: a line below the title.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_file), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = _file("sort.js")
    return environment.get_template("page.html").render(
        title=title,
        made=made,
        footer=footer,
        panels=panels,
        style=_file("page.css"),
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data={id: script_safe(table) for id, table in tables_json(panels).items()},
        kind=lambda block: type(block).__name__,
    )


def script_safe(value: Any) -> str:
    """JSON that no text in it can break out of a script element with."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _file(name: str) -> str:
    return (resources.files("pipeline.report") / FOLDER / name).read_text(encoding="utf-8")
