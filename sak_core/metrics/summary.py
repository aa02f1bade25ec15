"""One number for a multi-task model."""

from collections.abc import Mapping


def delta_m(scores: Mapping[str, float], baseline: Mapping[str, float], higher_is_better: Mapping[str, bool]) -> float:
    """Mean over tasks of the relative gain over the single-task baseline, in percent, positive where better.

    Source: Maninis et al. 2019 (arXiv 1904.08918), equation 4.

    Args:
        scores, baseline: primary score by task name.
        higher_is_better: its sense, by task name; these tasks count.

    Raises:
        ValueError: a task has a baseline of 0; it is named.
    """
    gains = []
    for task, higher in higher_is_better.items():
        base = baseline[task]
        if base == 0:
            raise ValueError(f"the baseline of {task} is 0, a relative gain over it is undefined")
        gain = (scores[task] - base) / base
        gains.append(gain if higher else -gain)
    return 100 * sum(gains) / len(gains)
