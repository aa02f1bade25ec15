"""One number for a multi-task model."""

from collections.abc import Mapping, Sequence

from sak_core.tasks import Task


def delta_m(scores: Mapping[str, float], baseline: Mapping[str, float], tasks: Sequence[Task]) -> float:
    """Mean over tasks of the relative gain over the single-task baseline, in percent, positive where better.

    scores, baseline: primary score by task name. Source: Maninis et al. 2019 (arXiv 1904.08918), equation 4.
    Raises ValueError naming a task whose baseline is 0.
    """
    gains = []
    for task in tasks:
        base = baseline[task.name]
        if base == 0:
            raise ValueError(f"the baseline of {task.name} is 0, a relative gain over it is undefined")
        gain = (scores[task.name] - base) / base
        gains.append(gain if task.higher_is_better else -gain)
    return 100 * sum(gains) / len(gains)
