"""What a verb would cost, before it is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

from rayinf.api.influence import value_rows
from rayinf.api.influence_measure import measure_rows
from rayinf.api.pairs import pair_rows
from rayinf.api.pareto_reweight import epoch_fit
from rayinf.api.self_influence import value_by_self
from rayinf.arguments import shown
from rayinf.core.fisher import FisherKind
from rayinf.data.tables import as_table
from rayinf.engine.acquisition import value_pool
from rayinf.engine.cost import Cost
from rayinf.engine.entry import check
from rayinf.engine.job import Cluster
from rayinf.engine.measure_spec import AcquireSpec, MeasureSpec
from rayinf.engine.plan import make_plan
from rayinf.engine.run import Run
from rayinf.engine.spec import InfluenceSpec, PairsSpec, RunSpec, SelfInfluenceSpec
from rayinf.errors import InputError
from rayinf.store.places import AnyPath
from rayinf.task import Task
from rayinf.training.retraining import check_trainable
from rayinf.training.reweight_request import check_search
from rayinf.training.search import Search
from rayinf.training.trial import removal_costs, search_costs

# Verbs that have a plan: what describes them, and their stages.
_VERBS: dict[str, tuple[type[RunSpec], Callable[[Run], Any]]] = {
    "influence": (InfluenceSpec, value_rows),
    "influence_measure": (MeasureSpec, measure_rows),
    "acquire": (AcquireSpec, value_pool),
    "self_influence": (SelfInfluenceSpec, value_by_self),
    "pairs": (PairsSpec, pair_rows),
}


def plan(
    task: Task,
    train: Any,
    valid: Any = None,
    objective: Any = "total",
    curvature: str = "ekfac",
    fisher: FisherKind = "true",
    damping: float | str | None = None,
    halves: bool = False,
    cluster: Cluster | None = None,
    out: str | AnyPath | None = None,
    seed: int = 0,
    *,
    inverse: str = "auto",
    training_time: float | None = None,
    curvature_rows: int | None = 100_000,
    batch_size: int | None = None,
    precision: str | None = None,
    verb: str = "influence",
    pool: Any = None,
    strategy: str = "fi",
    rank: int | None = None,
    subsample: float = 1.0,
    perturb: str = "input",
    top: int = 100,
    test: Any = None,
    seeds: int = 3,
    search: Search | None = None,
) -> Cost:
    """Seconds and bytes of every stage of `influence` (or of another verb) with these arguments, before it is run.

    Every stage is tried on the first rows of the tables for about a second, and scaled to all rows and workers;
    decompositions by the cube of their size. Memory and disk are counted from the shapes, and held against what is
    free on this machine.

    Args:
        task: the trained model and its columns.
        train: the rows to value: a Parquet path, folder, glob or URI, a `pyarrow.Table`, a `pandas.DataFrame`, or
            arrays `(X, y)`. Only the first rows are read. For "acquire", the labelled rows.
        valid: the validation rows, in any of these forms; only the first rows are read.
        objective: "total" (the summed loss), "category" (a column a class), "slice:<column>" (a column a value);
            "demographic_parity" and "equal_opportunity" (gaps between the groups of `Task(group=...)`); "robustness"
            (the linear attack); an `Objective` (`demographic_parity(...)`, `robustness("pgd", epsilon=...)`, your own),
            a function `(logits [B, C], labels [B]) -> [B]`, or a list of these. The groups of a slice are those of the
            first rows.
        curvature: the matrix whose inverse weighs the gradients: "ekfac" or "kfac", a block for each layer; "exact"
            (the Hessian) or "ggn" (generalised Gauss-Newton), for few parameters; "identity".
        fisher: the labels of the gradients that K-FAC and EKFAC are fitted to: "true" (the expectation over the model's
            own predictions, without sampling up to 32 classes) or "empirical" (the labels of the table).
        inverse: the function of the curvature's eigenvalues that answers for the fit. "unrolled": that of a training of
            time T, `(1 - exp(-T x)) / x` at `x = eigenvalue + l2 + weight decay` (Bae et al. 2024); "damped":
            `1 / (eigenvalue + l2 + damping)`, that of a minimum; "auto": unrolled where `Task(fit=Fit(...))` says how
            the model was trained from its start, else damped; validation rows then also say how far the training
            rows are learned (docs/inverse.md), which the other two leave out.
        training_time: T: the sum of the learning rates of all steps, over `1 - momentum` for SGD; of Adam, in units of
            its step sizes. None: from `Task(fit=...)`.
        damping: for the damped inverse: a number >= 0 that is added to the eigenvalues of the mean curvature;
            "layer_mean:0.1", so many times each layer's mean eigenvalue; "sample:3", so many times mean x parameters of
            the layer / (rows x (classes - 1)). None: "sample:3" for "kfac" and "ekfac" ("layer_mean:0.1" for a linear
            softmax head without a fit, which is at its minimum), 0 otherwise.
        halves: whether every column is also computed for each half of the validation rows.
        cluster: the workers on Ray that would do the work; nothing is started. With `workers="auto"` and an address the
            cluster is joined for a moment, to count its room. None: this process.
        out: the folder or URI that the run would write to; nothing is written. None: the result would be held in
            memory.
        seed: an integer >= 0 that fixes all that the run would draw.
        curvature_rows: the most training rows that "kfac" and "ekfac" are fitted on, drawn by contents and seed (equal
            rows together); `metadata["curvature_sample"]` says how far the halves of the draw differ. None: all rows.
            "exact" and "ggn" use all.
        batch_size: rows a pass of the model. None: those whose activations take 512 MB, or 40% of a GPU's memory.
        precision: "bf16" or "fp16" runs the model in mixed precision, "fp64" in float64; sums and products stay in
            float32 or better. None: the model's own precision.
        verb: the function that would be called: "influence", "self_influence", "pairs", "influence_measure",
            "acquire", "removal_check" or "pareto_reweight". The last two count the values by class that they rest on;
            of `removal_check`, second order is priced as a further fit.
        pool: for "acquire": the rows to pick from.
        strategy: for "acquire": what makes a row worth a label, such as "fi" or "entropy".
        rank: for "influence_measure" and "acquire": the rank of the truncated SVD of every row's mixed derivative. None
            is exact.
        subsample: for "influence_measure" and "acquire": the share of the rows that is valued, in (0, 1].
        perturb: for "influence_measure" and "acquire": "input", or the name of the layer whose input is perturbed.
        top: for "pairs": rows kept on each side of every validation row.
        test: for "removal_check": the rows that trainings are measured on.
        seeds: for "removal_check": trainings of every removal.
        search: for "pareto_reweight": how its search goes. None: `Search()`.

    Returns:
        A `Cost`; `to_text()` is the table that `rayinf plan` prints.

    Raises:
        InputError: wrong input, as far as the first rows show it; a verb that has no plan.
    """
    given = {**locals(), "labeled": train, "n": 1}
    check(**{k: v for k, v in given.items() if k != "search"})
    if verb in ("removal_check", "pareto_reweight"):
        return _with_trainings(verb, {**given, "objective": "category", "halves": verb == "pareto_reweight"})
    if not isinstance(verb, str) or verb not in _VERBS:
        known = [*_VERBS, "removal_check", "pareto_reweight"]
        raise InputError(f"verb={shown(verb)} has no plan.", f"use one of {', '.join(map(repr, known))}.")
    kind, compute = _VERBS[verb]
    return make_plan(_spec(kind, given), compute)


def _spec(kind: type[RunSpec], given: Mapping[str, Any]) -> RunSpec:
    names = {f.name for f in fields(kind) if f.init}
    return kind(**{name: value for name, value in given.items() if name in names})


def _with_trainings(verb: str, given: Mapping[str, Any]) -> Cost:
    """The plan of a verb that values rows by class, then trains.

    Raises:
        InputError: as `plan`.
    """
    task, search = given["task"], given["search"] or Search()
    if verb == "removal_check":
        check_trainable(task)
        others = [task.label, *([task.group] if task.group else [])]
        test = as_table(given["test"], task.feature_columns, others, "test")
        more = partial(removal_costs, test=test, seeds=int(given["seeds"]))
    else:
        check_search(task, search)
        more = partial(search_costs, search=search, fit=epoch_fit(task, search))
    return make_plan(_spec(InfluenceSpec, given), value_rows, more)
