"""Weights from elsewhere: timm's models into the stem, a distilled student into one with tasks or of another
image size.
"""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sak_core.miniature.network import STEM, shipped_weights
from sak_core.student.hierarchical_stem import AnyStem, HierarchicalStem
from sak_core.student.lora import plain_name
from sak_core.student.network import StudentNetwork
from sak_core.student.stem import Stem, StemConfig
from sak_core.weights.hub import hub_or_local, hub_reason
from sak_core.weights.positions import resample_positions
from sak_core.weights.prefixes import find_state
from sak_core.weights.tensor_files import Misfit, RefusedFile, check_finite, check_state

HUB = "hub"
STAGE2_PARTS = ("routers.", "heads.", "decoder.", "final_norm.")
"""Begins of the names of what stage 1 does not have."""
_NOT_IN_STEM = ("norm.", "fc_norm.", "head.", "pre_logits.")
_FINAL_NORM = ("norm.weight", "norm.bias")
_POSITIONS = "pos_embed"


def load_stem(stem: AnyStem, source: Path | str, final_norm: nn.LayerNorm | None = None) -> str:
    """`load_vit`, and likewise into a hierarchical stem, whose norms and linear layers after each stage keep their
    initial weights: its `source` is "hub" or a file with timm's names.
    """
    if isinstance(stem, Stem):
        return load_vit(stem, source, final_norm)
    if source == HUB:
        stem.backbone.load_state_dict(_fitted_backbone(stem, _hub_state(stem.config)))
        return ""
    found = find_state(Path(source), partial(_fitted_backbone, stem), f"the stem {stem.config.name}")
    stem.backbone.load_state_dict(found.value)
    return found.where


def _fitted_backbone(stem: HierarchicalStem, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of timm's model that a hierarchical stem keeps.

    Raises:
        Misfit: `state` is no such model's.
    """
    given = {name: value for name, value in state.items() if not name.startswith(_NOT_IN_STEM)}
    check_state(stem.backbone.state_dict(), given)
    return given


def load_vit(stem: Stem, source: Path | str, final_norm: nn.LayerNorm | None = None) -> str:
    """Loads a timm ViT's weights into the stem; its classifier is left out, and its final norm unless `final_norm`
    asks for it, which keeps its weights where the ViT has none.

    Position embeddings are resampled.

    Args:
        source: a state dict's file (.safetensors; .pth, .pt or .bin, read without unpickling; .npz as the AugReg
            authors ship them), FILE::KEY where several of its state dicts would fit, "hub" for the weights that timm
            downloads for the stem's name, or "mini-vit" for the stem of `rooms` that ships.

    Returns:
        Wrapper and prefix that the weights' names had in the file, "" where they had none.

    Raises:
        ValueError: entries are missing, left over or of another shape; they are named.
        RefusedFile: the file is damaged or hostile.
        FileNotFoundError: there is none.
    """
    if source == HUB:
        _load(stem, final_norm, _fitted(stem, _hub_state(stem.config)))
        return ""
    path = stem_file(source)
    if path.suffix == ".npz":
        _load(stem, final_norm, _fitted(stem, _augreg_state(stem.config, path)))
        return ""
    found = find_state(path, partial(_fitted, stem), f"the stem {stem.config.name}")
    _load(stem, final_norm, found.value)
    return found.where


def stem_file(source: Path | str) -> Path:
    """The file that `source` names: "mini-vit" is the stem that ships."""
    return shipped_weights(STEM.name) if source == STEM.name else Path(source)


def _fitted(stem: Stem, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The stem's entries, by their names without LoRA, and those of the final norm of a ViT's `state`.

    Raises:
        Misfit: it is no such ViT's.
    """
    given = {name: value for name, value in state.items() if not name.startswith(_NOT_IN_STEM)}
    if stem.vit.cls_token is None and "cls_token" in given:  # its position is the first
        given = {name: value for name, value in given.items() if name != "cls_token"}
        given[_POSITIONS] = given[_POSITIONS][:, 1:]
    wanted = {found: value for name, value in stem.vit.state_dict().items() if (found := plain_name(name))}
    if _POSITIONS in given and given.keys() == wanted.keys():
        try:
            given[_POSITIONS] = fit_positions(stem, given[_POSITIONS])
        except ValueError as error:
            raise Misfit(str(error), wanted.keys(), ()) from None
    check_state(wanted, given)
    width = (stem.width,)
    return given | {name: state[name] for name in _FINAL_NORM if name in state and state[name].shape == width}


def _load(stem: Stem, final_norm: nn.LayerNorm | None, given: Mapping[str, Tensor]) -> None:
    if final_norm is not None and all(name in given for name in _FINAL_NORM):
        final_norm.load_state_dict({name.removeprefix("norm."): given[name] for name in _FINAL_NORM})
    own = stem.vit.state_dict()
    stem.vit.load_state_dict({**own, **{name: given[found] for name in own if (found := plain_name(name))}})


def load_student(
    student: StudentNetwork,
    state: Mapping[str, Tensor],
    fresh: tuple[str, ...] = (),
    image_size: tuple[int, int] | None = None,
) -> None:
    """Loads a student's weights, its position embedding resampled where the image size differs.

    Args:
        image_size: (H, W) in px that `state` was made for; where no one says, see `fit_positions`.
        fresh: parts that keep their initial weights where `state` lacks them, such as `STAGE2_PARTS` after stage 1.

    Raises:
        ValueError: other entries are missing, left over or of another shape; they are named.
    """
    own = student.state_dict()
    given = dict(state)
    positions = f"stem.vit.{_POSITIONS}"
    if positions in given and isinstance(student.stem, Stem):
        grid = None if image_size is None else student.stem.grid(*image_size)
        given[positions] = fit_positions(student.stem, given[positions], grid)
    kept = {name: value for name, value in own.items() if name.startswith(fresh) and name not in given} if fresh else {}
    check_state(own, {**given, **kept}, "the weights do not fit the student")
    student.load_state_dict({**given, **kept})


def fit_positions(stem: Stem, position: Tensor, old: tuple[int, int] | None = None) -> Tensor:
    """A position embedding (1, prefix + n, C), one of h·w = n patches, for the stem's grid.

    Args:
        old: its grid (h, w). None takes a square one, as published ViTs have, where n is a square number (384x384 px
            have as many patches as 288x512), and else the stem's own.

    Raises:
        ValueError: n is that of neither.
    """
    grid = (int(stem.vit.patch_embed.grid_size[0]), int(stem.vit.patch_embed.grid_size[1]))
    num_prefix = 0 if stem.vit.no_embed_class else stem.num_prefix
    patches = position.shape[1] - num_prefix
    if old is None:
        side = math.isqrt(max(patches, 0))
        old = (side, side) if side * side == patches else grid
    if patches < 1 or old[0] * old[1] != patches:
        raise ValueError(f"a position embedding of {patches} patches is neither square nor {old[0]}x{old[1]}")
    return resample_positions(position, old, grid)


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


def _augreg_state(config: StemConfig, path: Path) -> dict[str, Tensor]:
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
