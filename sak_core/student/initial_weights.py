"""Weights from elsewhere: timm's ViTs into the stem, a distilled student into one with tasks or of another
image size.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sak_core.student.lora import plain_name
from sak_core.student.network import StudentNetwork
from sak_core.student.stem import Stem, StemConfig, resample_positions
from sak_core.weights.hub import hub_or_local, hub_reason
from sak_core.weights.tensor_files import RefusedFile, check_finite, check_state, read_tensors

HUB = "hub"
_NOT_IN_STEM = ("norm.", "fc_norm.", "head.", "pre_logits.")
_POSITIONS = "pos_embed"


def load_vit(stem: Stem, source: Path | str) -> None:
    """Loads a timm ViT's weights into the stem; its final norm and classifier are left out.

    source: a state dict's file (.safetensors; .pth, .pt or .bin, read without unpickling; .npz as the AugReg
    authors ship them), or "hub" for the weights that timm downloads for the stem's name. Position embeddings
    are resampled. Raises ValueError naming what is missing, left over or of another shape, RefusedFile for a
    damaged or hostile file, FileNotFoundError without one.
    """
    state = _hub_state(stem.config) if source == HUB else _file_state(stem.config, Path(source))
    state = {name: value for name, value in state.items() if not name.startswith(_NOT_IN_STEM)}
    if _POSITIONS in state:
        state[_POSITIONS] = fit_positions(stem, state[_POSITIONS])
    own = stem.vit.state_dict()
    plain = {name: found for name in own if (found := plain_name(name))}
    wanted = {plain[name]: own[name] for name in plain}
    check_state(wanted, state, f"{source} does not fit the stem {stem.config.name}")
    stem.vit.load_state_dict({**own, **{name: state[found] for name, found in plain.items()}})


def load_student(
    student: StudentNetwork,
    state: Mapping[str, Tensor],
    fresh: tuple[str, ...] = (),
    image_size: tuple[int, int] | None = None,
) -> None:
    """Loads a student's weights, its position embedding resampled where the image size differs.

    image_size: (H, W) in px that `state` was made for; where no one says, see `fit_positions`.
    fresh: parts that keep their initial weights where `state` lacks them, such as ("routers.", "heads.")
    after stage 1. Raises ValueError naming what else is missing, left over or of another shape.
    """
    own = student.state_dict()
    given = dict(state)
    positions = f"stem.vit.{_POSITIONS}"
    if positions in given:
        grid = None if image_size is None else student.stem.grid(*image_size)
        given[positions] = fit_positions(student.stem, given[positions], grid)
    kept = {name: value for name, value in own.items() if name.startswith(fresh) and name not in given} if fresh else {}
    check_state(own, {**given, **kept}, "the weights do not fit the student")
    student.load_state_dict({**given, **kept})


def fit_positions(stem: Stem, position: Tensor, old: tuple[int, int] | None = None) -> Tensor:
    """A position embedding (1, prefix + n, C), one of h·w = n patches, for the stem's grid.

    old: its grid (h, w). None takes a square one, as published ViTs have, where n is a square number (384x384 px have
    as many patches as 288x512), and else the stem's own. Raises ValueError if n is of neither.
    """
    grid = (int(stem.vit.patch_embed.grid_size[0]), int(stem.vit.patch_embed.grid_size[1]))
    num_prefix = 0 if stem.vit.no_embed_class else stem.num_prefix
    patches = position.shape[1] - num_prefix
    if old is None:
        side = math.isqrt(max(patches, 0))
        old = (side, side) if side * side == patches else grid
    if patches < 1 or old[0] * old[1] != patches:
        raise ValueError(f"a position embedding of {patches} patches is neither square nor {old[0]}x{old[1]}")
    return resample_positions(position, old, grid, num_prefix)


def _hub_state(config: StemConfig) -> dict[str, Tensor]:
    import timm

    if config.name == "custom":
        raise ValueError("timm has no weights for a custom stem: give a file")
    try:
        with hub_or_local():
            state: dict[str, Tensor] = timm.create_model(config.name, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # timm passes on its hub's many kinds of network errors
        raise ValueError(
            f"no weights for {config.name}: the hub did not give them ({hub_reason(error)}). Run where the hub "
            "can be reached, or give a file (.safetensors, .pth or .npz)"
        ) from error
    return state


def _file_state(config: StemConfig, path: Path) -> dict[str, Tensor]:
    if path.suffix != ".npz":
        return read_tensors(path)
    import timm

    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    # at its own size: timm's reader would resample positions with antialias
    vit: Any = timm.create_model(config.name, num_classes=0)
    try:
        vit.load_pretrained(str(path))
    except Exception as error:  # damaged archives, pickled arrays (never opened), names that are not there
        raise RefusedFile(path, f"cannot be read as AugReg weights of {config.name}: {error}") from None
    state: dict[str, Tensor] = vit.state_dict()
    check_finite(path, state)
    return state
