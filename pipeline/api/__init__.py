"""The commands as functions: what `import sak` offers, and what the command line calls.

Errors that the caller can mend are `sak_common.errors.SakError`s. Progress goes to stderr.
"""

from pipeline.api.arguments import places
from pipeline.api.cache_calls import TRAINING_VIEWS, cache, cache_request, join, plan, publish
from pipeline.api.student_calls import (
    ablate,
    distill,
    evaluate,
    export,
    finetune,
    plan_training,
    predict,
    recipe,
    report,
    training,
)

__all__ = [
    "TRAINING_VIEWS",
    "ablate",
    "cache",
    "cache_request",
    "distill",
    "evaluate",
    "export",
    "finetune",
    "join",
    "places",
    "plan",
    "plan_training",
    "predict",
    "publish",
    "recipe",
    "report",
    "training",
]
