"""SAK from Python: `sak.cache`, `sak.distill`, `sak.finetune`, ... and `sak.Store`, `sak.Loader`, `sak.Student`.

    import sak

    cached = sak.cache("mini-dino", "rooms")
    run = sak.distill()

Names are imported when they are first used. Each function does what the command of its name does: same checks, errors
as exceptions (`sak.SakError`), results as plain objects.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

_OURS = ("cache", "pipeline", "sak_common", "sak_core")

for _name in _OURS:
    _found = find_spec(_name)
    _origin = None if _found is None else _found.origin
    if _origin is None or Path(_origin).resolve().parent.parent != Path(__file__).resolve().parent:
        raise ImportError(
            f"sak needs its own package {_name!r}, but Python finds {_origin or 'none'}. "
            "Rename that file or folder, or run from another directory."
        )

if TYPE_CHECKING:
    from cache.loading.loader import Loader
    from cache.store import Store
    from pipeline.api import (
        ablate,
        cache,
        distill,
        evaluate,
        export,
        finetune,
        join,
        plan,
        plan_training,
        predict,
        publish,
        recipe,
        report,
    )
    from sak_common.errors import SakError
    from sak_core.student import Student

_WHERE = {
    **dict.fromkeys(
        (
            *("ablate", "cache", "distill", "evaluate", "export", "finetune", "join", "plan"),
            *("plan_training", "predict", "publish", "recipe", "report"),
        ),
        "pipeline.api",
    ),
    "Loader": "cache.loading.loader",
    "SakError": "sak_common.errors",
    "Store": "cache.store",
    "Student": "sak_core.student",
}

__all__ = [
    "Loader",
    "SakError",
    "Store",
    "Student",
    "ablate",
    "cache",
    "distill",
    "evaluate",
    "export",
    "finetune",
    "join",
    "plan",
    "plan_training",
    "predict",
    "publish",
    "recipe",
    "report",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("pipeline").__version__
    if name not in _WHERE:
        raise AttributeError(f"module 'sak' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
