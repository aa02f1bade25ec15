"""A model by parts: how many parameters each has, and which of them a run trains."""

from torch import nn

from sak_common.names import UnknownName, unknown

PARTS: dict[str, tuple[str, ...]] = {
    "stem": ("stem",),
    "paths": ("paths",),
    "aligners": ("aligners", "class_aligners", "projector_norms", "norms", "projectors"),
    "routers": ("routers",),
    "heads": ("heads",),
    "decoder": ("decoder", "final_norm"),
}
"""Parts of a student (or of a feature model, whose norms and projectors stand for aligners) and their submodules."""

TRAINS: dict[str, tuple[str, ...]] = {
    "all": ("stem", "paths", "aligners", "routers", "heads", "decoder"),
    "adapters": ("paths", "aligners", "routers", "heads", "decoder"),
    "routers": ("routers", "heads", "decoder"),
}
"""What a run trains, by name: everything; all but the stem; routers and heads (or the decoder in their place) alone."""


FROZEN_PARTS: dict[str, tuple[str, ...]] = {"adapters": ("stem.",), "routers": ("stem.", "paths.")}
"""What a run that trains less than all keeps as it is and may read from a cache: beginnings of parameters' names."""


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters a part, parts without any left out, and their sum as "total".

    Raises:
        ValueError: a parameter belongs to no part.
    """
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        counts[_part(name)] += parameter.numel()
    counts = {part: count for part, count in counts.items() if count}
    return {**counts, "total": sum(counts.values())}


def freeze(model: nn.Module, trains: str) -> None:
    """Lets only the parts that `trains` names learn; the others' parameters no longer require gradients.

    Raises:
        ValueError: there is no such part.
    """
    if trains not in TRAINS:
        raise UnknownName(unknown("trained part", trains, TRAINS))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_part(name) in TRAINS[trains])


def _part(name: str) -> str:
    if ".lora_" in name:
        return "paths"
    first = name.partition(".")[0]
    for part, modules in PARTS.items():
        if first in modules:
            return part
    raise ValueError(f"parameter {name} belongs to no part of {', '.join(PARTS)}")
