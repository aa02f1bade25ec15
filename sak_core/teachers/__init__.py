"""Teachers by name: one row each; a row's library is imported when the teacher is built.

Besides the rows, any model of a library goes by "LIBRARY:MODEL": `timm:resnet50`,
`open_clip:ViT-B-32/openai`, `sam:vit_l`, `hf:facebook/dinov2-small`. A user's own is "my_module:build" or
"my_package.my_module:build", and runs only where code is allowed to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name

from sak_common.names import UnknownName, unknown
from sak_core.errors import OwnCode, PerhapsOwnCode
from sak_core.interfaces.teacher import Teacher
from sak_core.teachers.own_code import build_own, is_own_code
from sak_core.weights.teacher_weights import BuildOptions


@dataclass(frozen=True)
class TeacherRow:
    """Where a teacher's network comes from.

    Attributes:
        library: a key of `_BUILDERS`, "miniature" or "code".
        model: its id there.
        licence: of the weights.
    """

    library: str
    model: str
    licence: str


def _dinov2(size: str, registers: bool = False) -> TeacherRow:
    kind = "_reg4" if registers else ""
    return TeacherRow("timm", f"vit_{size}_patch14{kind}_dinov2.lvd142m", "Apache-2.0")


def _dinov3(size: str) -> TeacherRow:
    return TeacherRow("timm", f"vit_{size}_patch16_dinov3.lvd1689m", "DINOv3 License")


def _c_radio(model: str) -> TeacherRow:
    # timm's NaFlex form keeps RADIO's position grid and resamples it as RADIO does, at any size
    return TeacherRow("timm", f"naflexvit_{model}.c_radio", "NVIDIA Open Model License")


TEACHERS: dict[str, TeacherRow] = {
    "mini-dino": TeacherRow("miniature", "mini-dino", "Apache-2.0"),
    "mini-clip": TeacherRow("miniature", "mini-clip", "Apache-2.0"),
    "mini-sam": TeacherRow("miniature", "mini-sam", "Apache-2.0"),
    "dinov2": _dinov2("base"),
    "dinov2-small": _dinov2("small"),
    "dinov2-base": _dinov2("base"),
    "dinov2-large": _dinov2("large"),
    "dinov2-giant": _dinov2("giant"),
    "dinov2-reg": _dinov2("base", registers=True),
    "dinov2-reg-small": _dinov2("small", registers=True),
    "dinov2-reg-base": _dinov2("base", registers=True),
    "dinov2-reg-large": _dinov2("large", registers=True),
    "dinov2-reg-giant": _dinov2("giant", registers=True),
    "dinov3": _dinov3("base"),
    "dinov3-small": _dinov3("small"),
    "dinov3-base": _dinov3("base"),
    "dinov3-large": _dinov3("large"),
    "dinov3-huge": _dinov3("huge_plus"),
    "clip": TeacherRow("open_clip", "ViT-B-16-quickgelu/openai", "MIT"),
    "clip-base": TeacherRow("open_clip", "ViT-B-16-quickgelu/openai", "MIT"),
    "clip-large": TeacherRow("open_clip", "ViT-L-14-quickgelu/openai", "MIT"),
    "openclip": TeacherRow("open_clip", "ViT-B-16/laion2b_s34b_b88k", "MIT"),
    "openclip-large": TeacherRow("open_clip", "ViT-L-14/laion2b_s32b_b82k", "MIT"),
    "dfn-clip": TeacherRow("open_clip", "ViT-B-16-quickgelu/dfn2b", "Apple Sample Code License"),
    "dfn-clip-large": TeacherRow("open_clip", "ViT-L-14-quickgelu/dfn2b", "Apple Sample Code License"),
    "siglip": TeacherRow("open_clip", "ViT-B-16-SigLIP/webli", "Apache-2.0"),
    "siglip-large": TeacherRow("open_clip", "ViT-L-16-SigLIP-384/webli", "Apache-2.0"),
    "siglip2": TeacherRow("open_clip", "ViT-B-16-SigLIP2/webli", "Apache-2.0"),
    "siglip2-large": TeacherRow("open_clip", "ViT-L-16-SigLIP2-384/webli", "Apache-2.0"),
    "sam": TeacherRow("sam", "vit_b", "Apache-2.0"),
    "sam-base": TeacherRow("sam", "vit_b", "Apache-2.0"),
    "sam-large": TeacherRow("sam", "vit_l", "Apache-2.0"),
    "sam-huge": TeacherRow("sam", "vit_h", "Apache-2.0"),
    "c-radio": _c_radio("base_patch16_radio_v3"),
    "c-radio-base": _c_radio("base_patch16_radio_v3"),
    "c-radio-large": _c_radio("large_patch16_radio_v3"),
    "c-radio-so400m": _c_radio("so400m_patch16_radio_v4"),
    "c-radio-huge": _c_radio("huge_patch16_radio_v4"),
    "c-radio-giant": _c_radio("giant_patch16_radio_v3"),
    "depth-anything": TeacherRow("depth_anything", "Small", "Apache-2.0"),
    "depth-anything-small": TeacherRow("depth_anything", "Small", "Apache-2.0"),
    "depth-anything-base": TeacherRow("depth_anything", "Base", "CC-BY-NC-4.0"),
    "depth-anything-large": TeacherRow("depth_anything", "Large", "CC-BY-NC-4.0"),
}
"""All teachers, one row each."""


LIBRARIES = {
    "timm": "timm_models:build_timm",
    "open_clip": "open_clip_models:build_open_clip",
    "sam": "sam:build_sam",
    "hf": "hf:build_hf",
}
"""Libraries whose models go by "LIBRARY:MODEL": the function that builds a teacher, imported when one is built."""

_BUILDERS = {**LIBRARIES, "depth_anything": "depth_anything:build_depth_anything"}


def find_teacher(name: str) -> TeacherRow:
    """The row of a teacher, or one made for "LIBRARY:MODEL" or for a user's own.

    Raises:
        UnknownName: there is none.
    """
    if name in TEACHERS:
        return TEACHERS[name]
    library, colon, model = name.partition(":")
    if library not in LIBRARIES and is_own_code(name):
        return TeacherRow("code", name, "")
    if colon and library not in LIBRARIES:
        raise UnknownName(unknown("teacher library", library, LIBRARIES))
    if colon and not model:
        raise UnknownName(f"teacher {name!r} names no model after the colon")
    if not colon:
        raise UnknownName(
            f"{unknown('teacher', name, TEACHERS)}; any model of {', '.join(LIBRARIES)} goes by LIBRARY:MODEL"
        )
    return TeacherRow(library, model, "")


def check_teacher(name: str, allow_code: bool = False) -> None:
    """Check that there is such a teacher, and that it may run.

    Raises:
        UnknownName: there is none; it offers the nearest names.
        TeacherUnavailable: it is code of the user's own that is not allowed to run.
    """
    if find_teacher(name).library != "code" or allow_code:
        return
    module = name.partition(":")[0]
    if "." in module:
        raise OwnCode(f"teacher {name!r} is code of your own")
    raise PerhapsOwnCode(unknown("teacher library", module, LIBRARIES))


def build_teacher(
    name: str,
    size: tuple[int, int],
    levels: Sequence[int] | None = None,
    weights: Path | None = None,
    random_weights: bool = False,
    seed: int = 0,
    allow_code: bool = False,
    prefix: bool = False,
) -> Teacher:
    """Build a teacher, in evaluation mode, without gradients.

    Args:
        name: a key of `TEACHERS`, "LIBRARY:MODEL", or "my_module:build" (of a package: "my_package.my_module:build").
        size: (H, W) of the views it will be given, px.
        levels: indices of the tapped blocks, ascending; the teacher's own by default (the ends of its quarters).
        weights: a file, instead of the library's hub.
        random_weights: an untrained network, drawn from `seed`.
        allow_code: whether a user's own module may be imported and run.
        prefix: whether class and register tokens follow the maps, where the network has some (`Teacher.num_prefix`).

    Raises:
        UnknownName: no such teacher.
        BadTeacherOptions: levels it does not have, two sources of weights.
        TeacherUnavailable: no weights; the message says how to get them. Or code that is not allowed to run.
    """
    check_teacher(name, allow_code)
    row = find_teacher(name)
    options = BuildOptions(size, levels, weights, random_weights, seed, prefix)
    if row.library == "code":
        return build_own(row.model, options)
    if row.library == "miniature":
        from sak_core.miniature.network import build_miniature

        return build_miniature(row.model, size, levels, weights, random_weights, seed)
    teacher: Teacher = resolve_name(f"{__name__}.{_BUILDERS[row.library]}")(name, row.model, options, row.licence)
    return teacher
