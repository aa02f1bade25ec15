"""How to read a level of features with zarr-python and numpy alone: a few lines, for whoever has not this package."""

from __future__ import annotations

from cache.format.manifest import teacher_part
from cache.format.spec import LevelSpec
from cache.store import Store

_RAW = """\
features = group["{array}"][0, 0].astype("float32")  # of view 0, sample 0: (h, w, C)"""

_BF16 = """\
features = (group["{array}"][0, 0].astype("uint32") << 16).view("float32")  # of view 0, sample 0: (h, w, C)"""

_INT8 = """\
low, high = (group["calibration/{array}/" + name][:].astype("float64") for name in ("min", "max"))
features = (group["{array}"][0, 0] + 128.0) * (high - low) / 255 + low  # of view 0, sample 0: (h, w, C)"""

_INT4 = """\
stored, t = group["{array}"][0, 0], group["calibration/{array}"]
channels = numpy.stack([stored & 15, stored >> 4], -1).reshape({height}, {width}, -1)[..., :{channels}]
features = (channels * t["step"][:] + t["low"][:]) @ t["rotation"][:] + t["centre"][:]  # of view 0, sample 0"""

_KLT = """\
u, t = group["{array}"][0, 0].astype("int64"), group["calibration/{array}"]
values = numpy.where(u % 2, -(u + 1) // 2, u // 2) * (t["step"][:] * t["gain"][:])[:, None]
features = values.T @ t["basis"][:] + t["offset"][:]  # of view 0, sample 0: (h * w, C)"""

_KLT_GRID = """\
u, t = group["{array}"][0, 0].astype("int64"), group["calibration/{array}"]
values = numpy.where(u % 2, -(u + 1) // 2, u // 2) * (t["step"][:] * t["gain"][:])[:, None]
at = sorted((v * {width} + x * {height}, v, x) for v in range({height}) for x in range({width}))
cells = numpy.stack([numpy.outer(t["dct_y"][v], t["dct_x"][x]).ravel() for _, v, x in at])
features = (values @ cells).T @ t["basis"][:] + t["offset"][:]  # of view 0, sample 0: (h * w, C)"""

_STORED = """\
stored = group["{array}"][0, 0]  # of view 0, sample 0: integers of {codec}, decoded as docs/cache-format.md says"""

_PATTERNS = {
    **dict.fromkeys(("fp32", "fp16"), _RAW),
    "bf16": _BF16,
    "int8": _INT8,
    "int4": _INT4,
    **dict.fromkeys(("klt", "klt+pcodec"), _KLT),
}


def readable_level(store: Store, teacher: str) -> LevelSpec:
    """The level of a teacher that is read as an example: the deepest that is decoded without a lower one and without a
    trellis, or else the shallowest."""
    maps = store.teacher(teacher).maps
    plain = [level for level in maps if _pattern(store, teacher, level) != _STORED]
    return plain[-1] if plain else maps[0]


def plain_reader(store: Store, teacher: str) -> str:
    """Python source that reads sample 0, view 0 of `readable_level`, in the folder that holds the store."""
    level = readable_level(store, teacher)
    pattern = _pattern(store, teacher, level)
    height, width = level.grid
    code = pattern.format(array=level.array, height=height, width=width, channels=level.width, codec=level.codec)
    group = f'group = zarr.open_group("{store.name}/{teacher_part(teacher)}", mode="r")'
    return "\n".join([*(["import numpy"] if "numpy." in pattern else []), "import zarr", "", group, code])


def _pattern(store: Store, teacher: str, level: LevelSpec) -> str:
    pattern = _STORED if level.predicts_from is not None else _PATTERNS.get(level.codec, _STORED)
    if pattern != _KLT:
        return pattern
    committed = store.part(teacher_part(teacher)).calibration() or {}
    is_transformed = f"{teacher_part(teacher)}/calibration/{level.array}/dct_y/zarr.json" in committed
    return _KLT_GRID if is_transformed else _KLT
