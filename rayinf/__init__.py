"""rayinf: what every training row of a classifier is worth, to whom, and what to do about it."""

from typing import TYPE_CHECKING, Any

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
from rayinf.task import Fit, Task

if TYPE_CHECKING:
    from rayinf.select.tree import InfluenceTree

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
    "trim",
    "trim_rounds",
    "trim_stream",
    "verify",
]


def __getattr__(name: str) -> Any:
    """`InfluenceTree` is fetched when it is asked for: it needs scikit-learn, which takes a second to import."""
    if name == "InfluenceTree":
        from rayinf.select.tree import InfluenceTree

        return InfluenceTree
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
