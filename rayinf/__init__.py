"""rayinf: what every training row of a classifier is worth, to whom, and what to do about it."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayinf.api.acquire import acquire
    from rayinf.api.active_learning import active_learning
    from rayinf.api.baseline import baseline
    from rayinf.api.ceiling import ceiling
    from rayinf.api.ceiling_report import Ceiling
    from rayinf.api.evaluate import evaluate
    from rayinf.api.history import History
    from rayinf.api.influence import influence
    from rayinf.api.influence_measure import influence_measure
    from rayinf.api.label_issues import LabelIssues, label_issues
    from rayinf.api.lds import lds
    from rayinf.api.lds_result import LDS
    from rayinf.api.logistic_regression import logistic_regression
    from rayinf.api.pairs import pairs
    from rayinf.api.pareto_reweight import pareto_reweight
    from rayinf.api.plan import plan
    from rayinf.api.predict_removal import RemovalPrediction, predict_removal
    from rayinf.api.removal_check import removal_check
    from rayinf.api.removal_check_result import RemovalCheck
    from rayinf.api.retrain import retrain
    from rayinf.api.reweight_lp import reweight_lp
    from rayinf.api.reweighting import Reweighting
    from rayinf.api.row_weights import RowWeights
    from rayinf.api.run_state import Status, Verification, status, verify
    from rayinf.api.self_influence import self_influence
    from rayinf.api.trim import trim
    from rayinf.api.trim_rounds import TrimRounds, trim_rounds
    from rayinf.api.trim_stream import TrimmedBatch, trim_stream
    from rayinf.core.attacks import robustness
    from rayinf.core.gaps import demographic_parity, equal_opportunity
    from rayinf.core.objectives import Objective
    from rayinf.data.pairs import Pairs
    from rayinf.data.scores import Scores
    from rayinf.data.selection import Selection
    from rayinf.engine.job import Cluster
    from rayinf.errors import InputError, RayinfError, RunError
    from rayinf.select.tree import InfluenceTree
    from rayinf.submission import SubmittedJob, submit
    from rayinf.task import Fit, Task
    from rayinf.training.oracle import LabelFolder
    from rayinf.training.search import Search

# The public names, each imported at its first use: a worker that needs none of matplotlib, scikit-learn and
# HiGHS starts in half the time.
HOMES = {
    "Ceiling": "rayinf.api.ceiling_report",
    "Cluster": "rayinf.engine.job",
    "Fit": "rayinf.task",
    "History": "rayinf.api.history",
    "InfluenceTree": "rayinf.select.tree",
    "InputError": "rayinf.errors",
    "LDS": "rayinf.api.lds_result",
    "LabelFolder": "rayinf.training.oracle",
    "LabelIssues": "rayinf.api.label_issues",
    "Objective": "rayinf.core.objectives",
    "Pairs": "rayinf.data.pairs",
    "RayinfError": "rayinf.errors",
    "RemovalCheck": "rayinf.api.removal_check_result",
    "RemovalPrediction": "rayinf.api.predict_removal",
    "Reweighting": "rayinf.api.reweighting",
    "RowWeights": "rayinf.api.row_weights",
    "RunError": "rayinf.errors",
    "Scores": "rayinf.data.scores",
    "Search": "rayinf.training.search",
    "Selection": "rayinf.data.selection",
    "Status": "rayinf.api.run_state",
    "SubmittedJob": "rayinf.submission",
    "Task": "rayinf.task",
    "TrimRounds": "rayinf.api.trim_rounds",
    "TrimmedBatch": "rayinf.api.trim_stream",
    "Verification": "rayinf.api.run_state",
    "acquire": "rayinf.api.acquire",
    "active_learning": "rayinf.api.active_learning",
    "baseline": "rayinf.api.baseline",
    "ceiling": "rayinf.api.ceiling",
    "demographic_parity": "rayinf.core.gaps",
    "equal_opportunity": "rayinf.core.gaps",
    "evaluate": "rayinf.api.evaluate",
    "influence": "rayinf.api.influence",
    "influence_measure": "rayinf.api.influence_measure",
    "label_issues": "rayinf.api.label_issues",
    "lds": "rayinf.api.lds",
    "logistic_regression": "rayinf.api.logistic_regression",
    "pairs": "rayinf.api.pairs",
    "pareto_reweight": "rayinf.api.pareto_reweight",
    "plan": "rayinf.api.plan",
    "removal_check": "rayinf.api.removal_check",
    "retrain": "rayinf.api.retrain",
    "predict_removal": "rayinf.api.predict_removal",
    "reweight_lp": "rayinf.api.reweight_lp",
    "robustness": "rayinf.core.attacks",
    "self_influence": "rayinf.api.self_influence",
    "status": "rayinf.api.run_state",
    "submit": "rayinf.submission",
    "trim": "rayinf.api.trim",
    "trim_rounds": "rayinf.api.trim_rounds",
    "trim_stream": "rayinf.api.trim_stream",
    "verify": "rayinf.api.run_state",
}
_FOLDERS = ("api", "core", "data", "engine", "errors", "pareto", "plots", "select", "task", "training")

__all__ = [
    "LDS",
    "Ceiling",
    "Cluster",
    "Fit",
    "History",
    "InfluenceTree",
    "InputError",
    "LabelFolder",
    "LabelIssues",
    "Objective",
    "Pairs",
    "RayinfError",
    "RemovalCheck",
    "RemovalPrediction",
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
    "baseline",
    "ceiling",
    "demographic_parity",
    "equal_opportunity",
    "evaluate",
    "influence",
    "influence_measure",
    "label_issues",
    "lds",
    "logistic_regression",
    "pairs",
    "pareto_reweight",
    "plan",
    "predict_removal",
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
    """Import a public name, or a part of the package, at its first use."""
    if name in HOMES:
        found = getattr(importlib.import_module(HOMES[name]), name)
    elif name in _FOLDERS:
        found = importlib.import_module(f"rayinf.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted({*globals(), *__all__})
