"""State dicts of the authors' release (innovator-zero/SAK), read into this project's student and written
back; and those of InvPT's and MLoRE's releases, by their naming tables (`sak_core.student.decoders.release`).

The release names the tapped block in its keys, this project the level; the rest is a renaming. Stage 1
checkpoints hold the backbone alone, without the `backbone.` prefix and without routers and heads; stage 2
checkpoints hold everything.
"""

from collections.abc import Mapping

from torch import Tensor

from sak_core.student.decoders.release import read_release, write_release
from sak_core.student.initial_weights import fit_positions
from sak_core.student.network import StudentNetwork
from sak_core.student.stem import Stem
from sak_core.weights.tensor_files import check_state

_ROUTER_PARTS = {"hidden": "0", "norm": "1", "gates": "3"}
_HEAD_PARTS = {"linears": "linears", "fuse": "linear_fuse.0", "norm": "linear_fuse.1", "last": "last_conv"}


def reference_names(student: StudentNetwork, *, stage: int = 2) -> dict[str, str]:
    """The release's name of every entry of the student's state dict (for stage 1: of all but routers and
    heads).

    Raises:
        ValueError: the release cannot express the student: many-to-one, another head, another kind of router.
    """
    if not student.config.paths or student.config.head != "sak" or student.config.router not in ("mor", "none"):
        raise ValueError(
            "the release knows students with paths, head 'sak' and router 'mor' or 'none' only, not one with "
            f"paths = {student.config.paths}, head {student.config.head!r} and router {student.config.router!r}"
        )
    for teacher, levels in student.matches.items():
        if levels != tuple(range(len(student.levels))):
            raise ValueError(
                f"the release knows one level of a teacher for each of the student's, {teacher} has others"
            )
    prefix = "" if stage == 1 else "backbone."
    names = {}
    for name in student.state_dict():
        new = _reference_name(name, student.levels)
        if new.startswith(("mor.", "heads.")) and stage == 1:
            continue
        names[name] = new if new.startswith("heads.") else prefix + new
    return names


def import_rival(student: StudentNetwork, state: Mapping[str, Tensor]) -> list[str]:
    """Loads a state dict of InvPT's or MLoRE's release into a `student` with such a decoder and no teachers, and
    returns the names of what the release keeps and never uses, which is left out.

    Raises:
        ValueError: as `import_reference`, and where the release numbers parts by another order of the tasks.
    """
    decoder, tasks = _rival(student), [task.name for task in student.config.tasks]
    found, unused = read_release(decoder, student.state_dict(), state, tasks)
    student.load_state_dict(found)
    return unused


def export_rival(student: StudentNetwork) -> dict[str, Tensor]:
    """The weights under the release's names, without those that it keeps and never uses."""
    own = {name: value.detach().clone() for name, value in student.state_dict().items()}
    return write_release(_rival(student), own, [task.name for task in student.config.tasks])


def _rival(student: StudentNetwork) -> str:
    config = student.config
    if config.decoder is None or config.teachers:
        raise ValueError("the releases of InvPT and MLoRE know students with such a decoder and without teachers only")
    return config.decoder.kind


def import_reference(student: StudentNetwork, state: Mapping[str, Tensor]) -> int:
    """Loads a state dict of the release into `student` and returns its stage, 1 or 2.

    Position embeddings of another size are resampled. After a stage 1 checkpoint routers and heads keep the weights
    they had.

    Raises:
        ValueError: entries are missing, left over or of another shape; they are named as the release does.
    """
    stage = 2 if any(name.startswith("backbone.") for name in state) else 1
    names = reference_names(student, stage=stage)
    own = student.state_dict()
    given = dict(state)
    positions = names["stem.vit.pos_embed"]
    if (
        isinstance(student.stem, Stem)
        and positions in given
        and given[positions].shape != own["stem.vit.pos_embed"].shape
    ):
        given[positions] = fit_positions(student.stem, given[positions])
    wanted = {reference: own[name] for name, reference in names.items()}
    check_state(wanted, given, f"the stage {stage} checkpoint does not fit the student")
    student.load_state_dict({**own, **{name: given[reference] for name, reference in names.items()}})
    return stage


def export_reference(student: StudentNetwork, *, stage: int = 2) -> dict[str, Tensor]:
    """The student's weights under the release's names; stage 1 leaves routers and heads out."""
    own = student.state_dict()
    return {reference: own[name].detach().clone() for name, reference in reference_names(student, stage=stage).items()}


def _reference_name(name: str, levels: tuple[int, ...]) -> str:
    part, rest = name.split(".", 1)
    if part == "stem":
        return rest
    owner, rest = rest.split(".", 1)
    if part == "paths":
        inner, rest = rest.split(".", 1)
        index, rest = rest.split(".", 1)
        if inner == "adapters":
            return f"tsap.{owner}.{index}.{rest}"
        return f"out_norms.{levels[int(index)]}_{owner}.{rest}"
    if part == "aligners":
        index, rest = rest.split(".", 1)
        return f"ts_aligners.{levels[int(index)]}_{owner}.{rest}"
    if part == "routers":
        index, inner, rest = rest.split(".", 2)
        return f"mor.{levels[int(index)]}_{owner}.router.module.{_ROUTER_PARTS[inner]}.{rest}"
    inner, rest = rest.split(".", 1)
    return f"heads.{owner}.{_HEAD_PARTS[inner]}.{rest}"
