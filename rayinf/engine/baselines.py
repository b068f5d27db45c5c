"""The stages of `baseline`: which passes over the rows each method takes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from rayinf.engine import curvature as curv
from rayinf.engine import pipeline, several_models
from rayinf.engine.baseline_spec import OF_THE_ROW, BaselineSpec
from rayinf.engine.baseline_stages import GradientCosines, GradientDots, RowValues
from rayinf.engine.nearest import value_by_neighbors
from rayinf.engine.run import Run
from rayinf.engine.trak import value_by_trak


def value_rows(run: Run) -> list[pa.Table]:
    """The values of every row by the spec's method, of those that train nothing.

    Returns:
        The shards' tables, or nothing where they were written to the folder.
    """
    spec: BaselineSpec = run.job.spec
    if spec.name in OF_THE_ROW:
        return pipeline.score(run, RowValues, {}, list(spec.method))
    if spec.name == "knn_shapley":
        return value_by_neighbors(run)
    pipeline.fit_factors(run)
    names = curv.column_names(run.job.targets, halves=False)
    if spec.name == "tracin":
        return several_models.score_models(
            run,
            lambda k, into: pipeline.score(run, GradientDots, _solved(run, k), names, into),
            partial(weighted_sum, weights=np.array(spec.rates)),
            names,
        )
    if spec.name == "trak":
        return value_by_trak(run)
    stage = GradientDots if spec.name == "grad_dot" else GradientCosines
    return pipeline.score(run, stage, pipeline.solve_queries(run), names)


def describe(run: Run) -> dict[str, Any]:
    """The objectives' values at the model, for methods that take gradients of them."""
    return pipeline.describe(run) if run.runner.store("has", "solved") else {}


def weighted_sum(values_kbc: np.ndarray[Any, Any], weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The sum over checkpoints of values times learning rates, `[B, columns]`, float64."""
    return np.tensordot(weights, values_kbc.astype(np.float64), axes=1)


def _solved(run: Run, k: int) -> Any:
    return run.runner.publish("get", several_models.solve(run, k))
