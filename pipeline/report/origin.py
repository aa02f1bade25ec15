"""Panel 7: every command, recipe, seed, version, digest and licence, and what the student may be used for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import UserError
from pipeline.recipes.config import STAGES, load_recipe, recipe_names
from pipeline.report.elements import Block, Column, Listing, Panel, Table, Text, count, name
from pipeline.report.facts import ArmFacts, RunFacts, StudyFacts
from pipeline.runs.licences import strictest
from pipeline.runs.origin import addresses
from sak_common.differences import NOTHING, differences

OWN = ("name", "stage", "seed", "arm")
"""Keys of a recipe that say which run it is."""
SHOWN_DIGITS = 12


def origin_panel(found: StudyFacts) -> Panel:
    """What a reader needs to make it again, and to know what they may do with it."""
    blocks: list[Block] = [*_licences(found), _runs(found), *_recipes(found), *_digests(found), *_commands(found)]
    return Panel("origin", "How it was made", "Could I make it again, and what may I use it for?", blocks)


def _licences(found: StudyFacts) -> list[Block]:
    teachers = {t.name: t for run in found.runs if run.lineage for t in run.lineage.teachers}
    if not teachers:
        return [Text("No finished run learned from a teacher, so no teacher's licence binds one.")]
    all_terms = strictest((teacher.name, teacher.licence) for teacher in teachers.values())
    told = all_terms.sentence()
    blocks: list[Block] = [Text(f"Of a student of all these teachers: {told[0].lower()}{told[1:]}")]
    by_arm: dict[str, list[str]] = {}
    for arm in found.arms:
        of = [run.lineage for run in (*arm.runs.values(), *arm.stage1.values()) if run.lineage]
        terms = strictest((t.name, t.licence) for lineage in of for t in lineage.teachers)
        by_arm.setdefault(terms.use if terms.by else "no teacher's licence binds it", []).append(arm.label)
    uses = "; ".join(f"{use}: {', '.join(labels)}" for use, labels in by_arm.items())
    blocks.append(Text(f"By arm: {uses}. Whether a licence of weights binds a student is for you to judge.", "note"))
    rows = [
        [
            name(t.name),
            name(f"{t.library} {t.model}"),
            name(t.licence),
            name(strictest([(t.name, t.licence)]).use),
            name("RANDOM: never trained" if t.is_random else t.weights, "worse" if t.is_random else ""),
        ]
        for t in teachers.values()
    ]
    columns = ["teacher", "from", "licence", "allows", "weights"]
    blocks.append(Table("licences", "The teachers", [Column(text, numeric=False) for text in columns], rows))
    return blocks


def _runs(found: StudyFacts) -> Table:
    columns = [Column("run", numeric=False), Column("arm", numeric=False), Column("seed")]
    columns += [Column("state", numeric=False), Column("step"), Column("of")]
    columns += [Column(text, numeric=False) for text in ("commit", "device", "versions")]
    rows = []
    for run in found.runs:
        made = run.results.get("environment", {})
        versions = made or run.results.get("made_from", {}).get("code", {})
        told = ", ".join(f"{key} {versions[key]}" for key in ("sak", "torch", "python") if key in versions)
        rows.append(
            [
                name(run.name),
                name(run.label),
                count(run.seed),
                name(run.state, "worse" if run.state in ("failed", "broken") else ""),
                count(run.step),
                count(run.steps),
                name(_short(made.get("commit"))),
                name(f"{made['device']}, {made['threads']} threads" if made else "–"),
                name(told or "–"),
            ]
        )
    return Table("runs", "Every run", columns, rows)


def _short(commit: Any) -> str:
    if not commit:
        return "–"
    digest, _, changed = str(commit).partition(" ")
    return f"{digest[:SHOWN_DIGITS]} {changed}".strip()


def _recipes(found: StudyFacts) -> list[Block]:
    """What each arm's recipe says otherwise than the one that ships under its name, or else than the first arm's."""
    blocks: list[Block] = []
    for stage in STAGES:
        told = {arm.label: recipe for arm in found.arms if (recipe := _recipe(arm, stage))}
        if not told:
            continue
        shipped, source = _shipped(next(iter(told.values())), stage)
        base = shipped or next(iter(told.values()))
        against = source or f"that of {next(iter(told))}"
        rows = [
            [name(label), name(key), name(_shown(now)), name(_shown(then))]
            for label, recipe in told.items()
            for key, then, now in differences(base, recipe)
            if key.partition(".")[0] not in OWN and not {_shown(now), _shown(then)} <= {"–"}
        ]
        number = STAGES.index(stage) + 1
        columns = [Column(text, numeric=False) for text in ("arm", "key", "here", "there")]
        caption = f"Stage {number}: recipes, as differences from {against}"
        if rows:
            blocks.append(Table(f"recipe-{stage}", caption, columns, rows))
        else:
            blocks.append(Text(f"{caption}: none.", "note"))
        lines = json.dumps(base, indent=1, sort_keys=True).splitlines()
        blocks.append(Listing(f"The whole recipe of stage {number} that these differ from", lines))
    return blocks


def _recipe(arm: ArmFacts, stage: str) -> Mapping[str, Any] | None:
    runs = arm.stage1 if stage == "distill" else arm.runs
    return next((run.recipe for _, run in sorted(runs.items()) if run.recipe), None)


def _shipped(recipe: Mapping[str, Any], stage: str) -> tuple[Mapping[str, Any] | None, str]:
    """The recipe that ships under a recipe's name, with its arm, as a run keeps it; None where none does."""
    shipped = str(recipe.get("name"))
    if shipped not in recipe_names():
        return None, ""
    try:
        found = load_recipe(shipped, "distill" if stage == "distill" else "finetune", {"arm": recipe["arm"]})
    except UserError:
        return None, ""
    return found.model_dump(mode="json"), f"the shipped one, {shipped}"


def _shown(value: Any) -> str:
    if value is None or value == NOTHING:
        return "–"
    return value if isinstance(value, str) else json.dumps(value)


def _digests(found: StudyFacts) -> list[Block]:
    digests: dict[tuple[str, str, str], list[str]] = {}
    for run in found.runs:
        for origin in run.origins:
            for store, parts in origin.get("caches", {}).items():
                for part, digest in parts.items():
                    digests.setdefault((store, part, digest), []).append(run.name)
    if not digests:
        return []
    columns = [Column(text, numeric=False) for text in ("cache", "part", "digest")] + [Column("runs that read it")]
    rows = [
        [name(store), name(part), name(digest), count(len(set(names)))]
        for (store, part, digest), names in sorted(digests.items())
    ]
    table = Table("digests", "What was read: SHA-256 over the digests of a part's files", columns, rows)
    origins = [origin for run in found.runs for origin in run.origins]
    read_at = sorted({address for origin in origins for address in addresses(origin).values()})
    return [table, *([Text(f"Read from the hub, at these commits: {', '.join(read_at)}.", "note")] if read_at else [])]


def _commands(found: StudyFacts) -> Sequence[Block]:
    by_command: dict[str, list[RunFacts]] = {}
    for run in found.runs:
        if run.command:
            by_command.setdefault(run.command, []).append(run)
    lines = []
    for command, runs in by_command.items():
        lines += [f"# {', '.join(run.name for run in runs)}", command]
    return [Listing("The commands that began these runs", lines)] if lines else []
