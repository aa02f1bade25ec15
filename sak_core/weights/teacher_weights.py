"""Teachers' weights: from a file, from a library's hub, or none; never unpickled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from sak_core.errors import BadTeacherOptions, NoWeights, TeacherUnavailable
from sak_core.interfaces.teacher import Size
from sak_core.weights.digests import state_digest
from sak_core.weights.hub import hub_or_local, hub_reason
from sak_core.weights.prefixes import Found, find_state
from sak_core.weights.tensor_files import Misfit, RefusedFile, State, check_state

T = TypeVar("T")


@dataclass(frozen=True)
class BuildOptions:
    """What is asked of a teacher.

    Attributes:
        size: (H, W) of the views it will be given, px.
        levels: indices of tapped blocks, ascending; None for the teacher's own.
        weights: a file, or FILE::KEY; None for the library's hub.
        random_weights: leave the network untrained, its start drawn from `seed`.
        prefix: whether class and register tokens are given, where there are some.
    """

    size: Size
    levels: Sequence[int] | None = None
    weights: Path | None = None
    random_weights: bool = False
    seed: int = 0
    prefix: bool = False

    def __post_init__(self) -> None:
        if self.weights is not None and self.random_weights:
            raise BadTeacherOptions(f"either weights from {self.weights} or random weights, not both")
        if min(self.size) < 1:
            raise BadTeacherOptions(f"views of {self.size[0]}x{self.size[1]} px")

    @property
    def from_hub(self) -> bool:
        """Whether the weights must come from the library's hub."""
        return self.weights is None and not self.random_weights


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw torch's CPU random numbers from `seed` inside, and leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def hub(teacher: str, what: str = "weights", kind: type[TeacherUnavailable] = NoWeights) -> Iterator[None]:
    """Turn whatever a library raises when its hub cannot be reached into an error of this kind."""
    try:
        with hub_or_local():
            yield
    except TeacherUnavailable:
        raise
    except Exception as error:  # every library has its own network errors
        raise kind(f"no {what} for {teacher}: the hub did not give them ({hub_reason(error)})") from error


def load_weights(
    net: nn.Module, path: Path, ignore: Sequence[str] = (), rename: Callable[[State], State] | None = None
) -> str:
    """Load what of the file `path` (or `FILE::KEY`) is `net`'s, under whatever wrapper and prefix it lies there.

    Args:
        ignore: prefixes of keys that the tower does without (a classifier, a text tower).
        rename: a release's names to the network's.

    Returns:
        Wrapper and prefix that were found, dotted, for `Teacher.weights_from`; "" for the network's own names.

    Raises:
        TeacherUnavailable: no such file, a refused one, none or several places in it that fit.
    """

    def fit(state: State) -> State:
        return _fitting(net, _renamed(state, rename, net) if rename else state, ignore)

    found = found_in(path, fit)
    net.load_state_dict(found.value)
    return found.where


def found_in(path: Path, fit: Callable[[State], T], what: str = "the network") -> Found[T]:
    """As `sak_core.weights.prefixes.find_state`.

    Raises:
        TeacherUnavailable: something is wrong with the file.
    """
    try:
        return find_state(path, fit, what)
    except (FileNotFoundError, RefusedFile) as error:
        raise TeacherUnavailable(str(error)) from None


def _fitting(net: nn.Module, state: Mapping[str, Tensor], ignore: Sequence[str]) -> State:
    wanted = net.state_dict()
    given = {key: value for key, value in state.items() if key in wanted or not key.startswith(tuple(ignore))}
    check_state(wanted, given)
    return given


def _renamed(state: State, rename: Callable[[State], State], net: nn.Module) -> State:
    try:
        return rename(dict(state))
    except Exception as error:  # libraries' renaming takes names for granted that other files lack
        wanted = net.state_dict().keys()
        raise Misfit(f"its names cannot be mapped ({type(error).__name__}: {error})", wanted, wanted) from None


def identity(net: nn.Module, options: BuildOptions) -> str:
    """What names the weights in provenance: "sha256:<hex of the state>" or "random:<seed>"."""
    return f"random:{options.seed}" if options.random_weights else state_digest(net.state_dict())


def choose_levels(teacher: str, asked: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """The tapped blocks: those asked for, or the ends of the four quarters (2, 5, 8, 11 of 12).

    Raises:
        BadTeacherOptions: they do not ascend within 0..count-1.
    """
    if asked is None:
        quarters = range(1, 5) if count >= 4 else range(0)
        return tuple(count * quarter // 4 - 1 for quarter in quarters) or tuple(range(count))
    levels = tuple(asked)
    if not levels or list(levels) != sorted(set(levels)) or levels[0] < 0 or levels[-1] >= count:
        raise BadTeacherOptions(
            f"levels of {teacher} must ascend within 0..{count - 1} ({count} blocks), got "
            f"{', '.join(map(str, levels)) or 'none'}"
        )
    return levels
