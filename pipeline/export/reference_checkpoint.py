"""Checkpoints of the authors' release, read into a folder that stands for a finished run, and written back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from pipeline import runs
from pipeline.console import say
from pipeline.errors import UserError
from pipeline.runs import checkpoint, lineage
from sak_common.names import listed
from sak_core.student.config import StudentConfig
from sak_core.student.network import StudentNetwork
from sak_core.student.parts import count_parameters
from sak_core.student.pretrained import CONFIG, WEIGHTS, Student, save_pretrained
from sak_core.student.pretrained_config import PretrainedConfig
from sak_core.student.reference import export_reference, export_rival, import_reference, import_rival
from sak_core.student.reference_config import reference_config, rival_config
from sak_core.weights.tensor_files import RefusedFile, read_tensors

STAGES = {1: "distill", 2: "finetune"}


def import_checkpoint(source: Path, out: Path, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Write a checkpoint of SAK's, InvPT's or MLoRE's release, `source`, as a folder that `finetune --from`, `predict`
    and `export-reference` take; returns what it is.

    Args:
        size: (H, W) in px that its position embedding is made for, where that is neither square nor NYUD-v2's.

    Raises:
        UserError: the file is missing, damaged or hostile; entries are missing or left over, which are named; or `out`
            is there already.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another folder")
    try:
        state = read_tensors(source)
        rival = rival_config(state, size)
        config = rival or reference_config(state, size)
        student = StudentNetwork(config)
        unused = import_rival(student, state) if rival else []
        stage = 2 if rival else import_reference(student, state)
    except (RefusedFile, FileNotFoundError, ValueError) as error:
        raise UserError(f"{source}: {error}") from None
    arm = config.decoder.kind if config.decoder else "sak"
    if unused:
        say(f"{source}: {len(unused)} entries that its release never uses are left out: {listed(unused)}")
    if arm == "mlore":
        say(f"{source} does not say how experts are kept; taken as published: {config.decoder}")
    about = {"imported": source.name, "stage": STAGES[stage]}
    save_pretrained(student, PretrainedConfig(config, about=about), out)
    last = out / checkpoint.LAST
    last.mkdir()
    (last / WEIGHTS).hardlink_to(out / WEIGHTS)
    runs.write_atomically(last / "state.json", json.dumps(about))
    made = lineage.Lineage(arm=arm, student=config.to_dict(), stem_weights=source.name)
    runs.write_atomically(out / "model.json", made.model_dump_json(indent=1))
    counts = count_parameters(student)
    results = {
        "stage": STAGES[stage],
        "arm": arm,
        "seconds": 0.0,
        "parameters": counts["total"],
        "random_weights": [],
        "teachers": list(config.teachers),
        "tasks": [task.name for task in config.tasks],
        "unused": unused,
    }
    runs.write_atomically(out / "results.json", json.dumps(results, indent=1))
    return results


def export_checkpoint(source: Path, out: Path) -> dict[str, Any]:
    """Write the student of a run, an imported or an exported folder under the release's names, for torch.load; of
    InvPT's and MLoRE's without what these never use, so `load_state_dict(..., strict=False)` takes them there.

    Stage 1's names where it has no tasks, else stage 2's.

    Raises:
        UserError: the release cannot express the student, or `out` is there already.
    """
    if out.exists():
        raise UserError(f"{out} is there already; choose another file")
    student = _student(source)
    stage = 2 if student.config.tasks else 1
    try:
        state = export_rival(student) if student.config.decoder else export_reference(student, stage=stage)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, out)
    return {"file": str(out), "stage": STAGES[stage], "entries": len(state)}


def _student(source: Path) -> StudentNetwork:
    if not (source / "model.json").is_file() and (source / CONFIG).is_file():
        return Student.from_pretrained(source).network
    described = lineage.read(source).student
    if described is None:
        raise UserError(f"{source} has no student")
    student = StudentNetwork(StudentConfig.from_dict(described))
    runs.load_weights(source, student)
    return student
