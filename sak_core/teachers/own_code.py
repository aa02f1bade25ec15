"""Teachers from a user's own module, `my_module:build` or `my_package.my_module:build`: code that runs only when it is
allowed to.

`build(size, levels=None, weights=None, random_weights=False, seed=0)` returns a `Teacher`;
docs/new-teacher.md shows one.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
from dataclasses import replace
from pathlib import Path

from sak_core.errors import TeacherUnavailable
from sak_core.interfaces.teacher import Teacher, freeze
from sak_core.weights.teacher_weights import BuildOptions

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_own_code(name: str) -> bool:
    """Whether a teacher's name can be "module:function", of a package or by itself."""
    module, _, function = name.partition(":")
    return bool(_MODULE.fullmatch(module)) and function.isidentifier()


def build_own(name: str, options: BuildOptions) -> Teacher:
    """Import the module, from where Python finds it or from the working folder, and call its function.

    The spec's library becomes "code", its model the name with the digest of the module's file, so that features of
    changed code are refused where a store holds the former's.

    Raises:
        TeacherUnavailable: no such module or function, or what it gives is no `Teacher`.
    """
    module_name, _, function = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise TeacherUnavailable(
            f"{name}: {error}; the module must be importable from here or installed (or lie on PYTHONPATH)"
        ) from error
    build = getattr(module, function, None)
    if not callable(build):
        raise TeacherUnavailable(f"{name}: {module_name} has no function {function!r}")
    teacher = build(
        size=options.size,
        levels=options.levels,
        weights=options.weights,
        random_weights=options.random_weights,
        seed=options.seed,
    )
    if not isinstance(teacher, Teacher):
        raise TeacherUnavailable(f"{name} gave a {type(teacher).__name__}, not a sak_core.interfaces.teacher.Teacher")
    digest = hashlib.sha256(Path(inspect.getfile(module)).read_bytes()).hexdigest()
    teacher.spec = replace(teacher.spec, name=name, library="code", model=f"{name}@sha256:{digest}")
    return freeze(teacher)
