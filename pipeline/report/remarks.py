"""What keeps a report's runs from comparing, in sentences: other caches, other budgets, what is not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pipeline.report.facts import RunFacts, StudyFacts


def remarks(found: StudyFacts) -> tuple[str, ...]:
    """What a reader must know before comparing, most important first."""
    return (
        *_states(found),
        *_seeds(found),
        *_caches(found),
        *_budgets(found),
        *_random(found),
    )


def _states(found: StudyFacts) -> Iterator[str]:
    words = {
        "running": "is still running",
        "stopped": "is not finished",
        "waiting": "has not begun",
        "failed": "failed",
        "broken": "cannot be read",
    }
    for state, told in words.items():
        mine = [run for run in found.runs if run.state == state]
        if not mine:
            continue
        if state in ("failed", "broken"):
            yield from (f"{run.name} {told}: {run.why}." for run in mine)
        elif state in ("running", "stopped"):
            steps = ", ".join(f"{run.name} (step {run.step} of {run.steps})" for run in mine)
            yield f"{_count(mine, told)}: {steps}."
        else:
            yield f"{_count(mine, told)}: {', '.join(run.name for run in mine)}."
    unscored = [
        run.name for run in found.runs if run.stage == "finetune" and run.state == "finished" and run.on is None
    ]
    if unscored and found.split:
        yield f"Without scores on {found.split}, and so not compared: {', '.join(unscored)} (sak evaluate RUN)."


def _count(runs: Sequence[RunFacts], told: str) -> str:
    if len(runs) == 1:
        return f"One run {told}"
    return f"{len(runs)} runs {told.replace('is ', 'are ').replace('has ', 'have ')}"


def _seeds(found: StudyFacts) -> Iterator[str]:
    scored = [arm for arm in found.arms if arm.scored]
    lacking: dict[tuple[int, ...], list[str]] = {}
    for arm in scored if found.is_study else ():
        if missing := tuple(seed for seed in found.seeds if seed not in arm.scored):
            lacking.setdefault(missing, []).append(arm.label)
    for seeds, labels in lacking.items():
        yield f"Without scores for seed {', '.join(map(str, seeds))}, their means over the others: {', '.join(labels)}."
    if scored and all(len(arm.scored) == 1 for arm in scored) and len(scored) > 1:
        yield ("One seed: another one moves scores, too, so no difference between arms is established, however large.")


def _caches(found: StudyFacts) -> Iterator[str]:
    """Runs that read other bytes: other stores, or the same part of a store with another digest."""
    finals = [run for arm in found.arms for run in arm.runs.values()]
    trained = {run.name: tuple(caches) for run in finals if (caches := run.origins[0].get("caches"))}
    yield from _different("trained on different caches", trained)
    yield from _different(
        "scored on different caches",
        {run.name: tuple(run.on.made_from.get("caches", {})) for run in finals if run.on and run.on.made_from},
    )
    digests: dict[tuple[str, str], dict[str, list[str]]] = {}
    for run in found.runs:
        for origin in run.origins:
            for store, parts in origin.get("caches", {}).items():
                for part, digest in parts.items():
                    digests.setdefault((store, part), {}).setdefault(digest, []).append(run.name)
    for (store, part), by_digest in digests.items():
        if len(by_digest) > 1:
            views = " (or in another number of views)"
            groups = "; ".join(", ".join(dict.fromkeys(names)) for names in by_digest.values())
            yield f"NOT COMPARABLE as they stand: {part} of {store} was read with other bytes{views} by: {groups}."


def _different(what: str, by_run: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, value in by_run.items():
        groups.setdefault(value, []).append(name)
    if len(groups) > 1:
        told = "; ".join(f"{', '.join(names)} on {', '.join(value)}" for value, names in groups.items())
        yield f"NOT COMPARABLE as they stand: runs were {what}: {told}."


def _budgets(found: StudyFacts) -> Iterator[str]:
    second = {arm.label: _rows(arm.runs) for arm in found.arms if arm.runs}
    if len(set(second.values())) > 1:
        yield f"Arms had different budgets in stage 2: {_listed(second)}."
    first = {arm.label: _rows(arm.stage1) for arm in found.arms}
    trained = {label: rows for label, rows in first.items() if rows != (0,)}
    if len(set(trained.values())) > 1:
        yield f"Arms had different budgets in stage 1: {_listed(trained)}."
    if without := [label for label, rows in first.items() if rows == (0,)] if trained else []:
        yield (
            f"Arms without a stage 1 saw no distillation: {', '.join(without)}. The others trained "
            f"{_listed(trained)} in stage 1 on top."
        )


def _rows(runs: Mapping[int, RunFacts]) -> tuple[int, ...]:
    """The rows that an arm's runs were trained on: one number where all seeds agree."""
    return tuple(sorted({run.rows for run in runs.values() if run.recipe} or {0}))


def _listed(rows: Mapping[str, tuple[int, ...]]) -> str:
    by_rows: dict[tuple[int, ...], list[str]] = {}
    for label, value in rows.items():
        by_rows.setdefault(value, []).append(label)
    return "; ".join(
        f"{' or '.join(f'{one:,}' for one in value)} rows ({', '.join(labels)})" for value, labels in by_rows.items()
    )


def _random(found: StudyFacts) -> Iterator[str]:
    names = sorted({name for run in found.runs for name in run.results.get("random_weights", ())})
    if names:
        yield f"RANDOM WEIGHTS: {', '.join(names)} had never been trained. This is a trial; its scores say nothing."
