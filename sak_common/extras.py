"""Which extra of this package brings a module that is not installed."""

from __future__ import annotations

import shlex
import sys

_MODULES = {
    "teachers": ("open_clip", "segment_anything", "transformers", "dask", "distributed"),
    "lora": ("peft",),
    "data": ("pyarrow",),
    "objects": ("obstore",),
    "video": ("av",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
}


def extra_of(module: str | None) -> str | None:
    """The extra that brings `module` ("transformers" -> "teachers"), None where none does.

    >>> extra_of("transformers.models"), extra_of("numpy")
    ('teachers', None)
    """
    top = (module or "").partition(".")[0]
    return next((extra for extra, modules in _MODULES.items() if top in modules), None)


def how_to_install(extra: str) -> str:
    """The command that adds an extra to the environment that runs: ``.venv/bin/python -m pip install 'sak[onnx]'``."""
    return f"{shlex.quote(sys.executable)} -m pip install 'sak[{extra}]'"
