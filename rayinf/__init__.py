"""rayinf: what every training row of a classifier is worth, to whom, and what to do about it."""

from rayinf.api import acquire, influence, influence_measure, logistic_regression, pairs, plan, self_influence
from rayinf.core.objectives import Objective
from rayinf.data.pairs import Pairs
from rayinf.data.scores import Scores
from rayinf.data.selection import Selection
from rayinf.engine.job import Cluster
from rayinf.errors import InputError, RayinfError, RunError
from rayinf.loops.trim import trim
from rayinf.task import Fit, Task

__all__ = [
    "Cluster",
    "Fit",
    "InputError",
    "Objective",
    "Pairs",
    "RayinfError",
    "RunError",
    "Scores",
    "Selection",
    "Task",
    "acquire",
    "influence",
    "influence_measure",
    "logistic_regression",
    "pairs",
    "plan",
    "self_influence",
    "trim",
]
