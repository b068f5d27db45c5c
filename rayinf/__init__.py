"""rayinf: what every training row of a classifier is worth, to whom, and what to do about it."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayinf.api import (
        Ceiling,
        RowWeights,
        acquire,
        ceiling,
        influence,
        influence_measure,
        logistic_regression,
        pairs,
        plan,
        reweight_lp,
        self_influence,
    )
    from rayinf.core.attacks import robustness
    from rayinf.core.gaps import demographic_parity, equal_opportunity
    from rayinf.core.objectives import Objective
    from rayinf.data.history import History
    from rayinf.data.pairs import Pairs
    from rayinf.data.removals import RemovalCheck
    from rayinf.data.run_state import Status, Verification, status, verify
    from rayinf.data.scores import Scores
    from rayinf.data.selection import Selection
    from rayinf.engine.job import Cluster
    from rayinf.errors import InputError, RayinfError, RunError
    from rayinf.loops.active_learning import active_learning
    from rayinf.loops.evaluate import evaluate
    from rayinf.loops.oracle import LabelFolder
    from rayinf.loops.pareto_reweight import pareto_reweight
    from rayinf.loops.removal_check import removal_check
    from rayinf.loops.retrain import retrain
    from rayinf.loops.reweighting import Reweighting
    from rayinf.loops.search import Search
    from rayinf.loops.trim import trim
    from rayinf.loops.trim_rounds import TrimRounds, trim_rounds
    from rayinf.loops.trim_stream import TrimmedBatch, trim_stream
    from rayinf.select.tree import InfluenceTree
    from rayinf.submission import SubmittedJob, submit
    from rayinf.task import Fit, Task

# The public names, each imported when it is first asked for: a worker that needs none of matplotlib, scikit-learn and
# HiGHS starts in half the time.
_HOMES = {
    "Ceiling": "rayinf.api",
    "Cluster": "rayinf.engine.job",
    "Fit": "rayinf.task",
    "History": "rayinf.data.history",
    "InfluenceTree": "rayinf.select.tree",
    "InputError": "rayinf.errors",
    "LabelFolder": "rayinf.loops.oracle",
    "Objective": "rayinf.core.objectives",
    "Pairs": "rayinf.data.pairs",
    "RayinfError": "rayinf.errors",
    "RemovalCheck": "rayinf.data.removals",
    "Reweighting": "rayinf.loops.reweighting",
    "RowWeights": "rayinf.api",
    "RunError": "rayinf.errors",
    "Scores": "rayinf.data.scores",
    "Search": "rayinf.loops.search",
    "Selection": "rayinf.data.selection",
    "Status": "rayinf.data.run_state",
    "SubmittedJob": "rayinf.submission",
    "Task": "rayinf.task",
    "TrimRounds": "rayinf.loops.trim_rounds",
    "TrimmedBatch": "rayinf.loops.trim_stream",
    "Verification": "rayinf.data.run_state",
    "acquire": "rayinf.api",
    "active_learning": "rayinf.loops.active_learning",
    "ceiling": "rayinf.api",
    "demographic_parity": "rayinf.core.gaps",
    "equal_opportunity": "rayinf.core.gaps",
    "evaluate": "rayinf.loops.evaluate",
    "influence": "rayinf.api",
    "influence_measure": "rayinf.api",
    "logistic_regression": "rayinf.api",
    "pairs": "rayinf.api",
    "pareto_reweight": "rayinf.loops.pareto_reweight",
    "plan": "rayinf.api",
    "removal_check": "rayinf.loops.removal_check",
    "retrain": "rayinf.loops.retrain",
    "reweight_lp": "rayinf.api",
    "robustness": "rayinf.core.attacks",
    "self_influence": "rayinf.api",
    "status": "rayinf.data.run_state",
    "submit": "rayinf.submission",
    "trim": "rayinf.loops.trim",
    "trim_rounds": "rayinf.loops.trim_rounds",
    "trim_stream": "rayinf.loops.trim_stream",
    "verify": "rayinf.data.run_state",
}
_FOLDERS = ("api", "core", "data", "engine", "errors", "loops", "pareto", "report", "select", "task")

__all__ = [
    "Ceiling",
    "Cluster",
    "Fit",
    "History",
    "InfluenceTree",
    "InputError",
    "LabelFolder",
    "Objective",
    "Pairs",
    "RayinfError",
    "RemovalCheck",
    "Reweighting",
    "RowWeights",
    "RunError",
    "Scores",
    "Search",
    "Selection",
    "Status",
    "SubmittedJob",
    "Task",
    "TrimRounds",
    "TrimmedBatch",
    "Verification",
    "acquire",
    "active_learning",
    "ceiling",
    "demographic_parity",
    "equal_opportunity",
    "evaluate",
    "influence",
    "influence_measure",
    "logistic_regression",
    "pairs",
    "pareto_reweight",
    "plan",
    "removal_check",
    "retrain",
    "reweight_lp",
    "robustness",
    "self_influence",
    "status",
    "submit",
    "trim",
    "trim_rounds",
    "trim_stream",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name, or a part of the package, when it is first asked for."""
    if name in _HOMES:
        found = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _FOLDERS:
        found = importlib.import_module(f"rayinf.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted({*globals(), *__all__})
