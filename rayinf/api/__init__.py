"""The verbs: each a short pipeline over a run."""

from rayinf.api.ceiling import ceiling
from rayinf.api.ceiling_report import Ceiling
from rayinf.api.fit import logistic_regression
from rayinf.api.influence import influence, pairs, self_influence
from rayinf.api.measure import acquire, influence_measure
from rayinf.api.plan import plan
from rayinf.api.reweight import reweight_lp
from rayinf.api.row_weights import RowWeights

__all__ = [
    "Ceiling",
    "RowWeights",
    "acquire",
    "ceiling",
    "influence",
    "influence_measure",
    "logistic_regression",
    "pairs",
    "plan",
    "reweight_lp",
    "self_influence",
]
