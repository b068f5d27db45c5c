"""Trimming: drop the worst rows of a column of scores, and see what that does to the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from rayinf.api.evaluate import evaluate
from rayinf.api.predict_removal import predict_removal
from rayinf.data.scores import Scores
from rayinf.data.selection import Selection
from rayinf.engine.entry import check
from rayinf.errors import InputError
from rayinf.select.trim import UNSIGNED, candidates, pick, use_up, worst_first
from rayinf.task import Task
from rayinf.training.retraining import train_anew
from rayinf.training.scored_curvature import curvature_of
from rayinf.training.scored_table import check_scored

# Columns that bear the name of their objective, beside the summed loss.
_NAMED = ("demographic_parity", "equal_opportunity", "robustness")


def trim(
    scores: Scores,
    budget: int = 100,
    by: str | None = None,
    floor: int = 0,
    *,
    retrain: bool = False,
    predict: bool = False,
    task: Task | None = None,
    train: Any = None,
    valid: Any = None,
    test: Any = None,
    objective: Any = (),
    seed: int = 0,
) -> Selection:
    """Remove the worst rows by a column of scores.

    Of `fi`, `fi_rank` and `self_influence`, the `budget` rows of largest value (Yu 2025, Algorithm 3). Of every other
    column, an influence with a sign, the `min(budget, number of negative values)` most negative ones (Chhabra 2024,
    Algorithm 2). Of equal values the earlier row counts as the worse. Rows without a value (`fi`, where a share was
    scored) stay.

    Of a gap between groups (`demographic_parity`, `equal_opportunity`) no more rows go than bring the predicted gap
    nearest to 0: further ones would open it on the other side. `metadata` has the predicted gap.

    Args:
        scores: of the training rows: from `influence`, `influence_measure` or `self_influence`, `Scores.load`, or
            `Scores.from_numpy`.
        budget: the most rows to remove, >= 0.
        by: the column. It is needed where there are several; of `fi` with `fi_rank`, None means `fi_rank`.
        floor: rows of every class that stay at least, >= 0 (a class that had fewer keeps all): rows of a class at its
            floor are passed over, and the next worst are taken.
        retrain: whether the task's model is also trained anew on all of `train` and on the kept rows (`Task(fit=...)`),
            and both are measured: `Selection.before` and `.after`.
        predict: whether first and second order predict what the removal of these rows does to `objective` (if it is
            empty: the summed loss, and before it the gap or robustness that `by` names) on `valid`, without training:
            `Selection.predicted`. The curvature is that of the scores; see `predict_removal`.
        task: for `retrain` and `predict`: the task that was valued. To train another on the kept rows, take
            `rayinf.retrain(task, train, keep=...)`.
        train: for `retrain` and `predict`: the table that the scores belong to, in any form that `influence` takes.
        valid: for `predict`: the rows of the objectives; for `retrain`: the rows to measure on, where there is no
            `test`.
        test: for `retrain`: the rows to measure on.
        objective: of `predict`, and for `retrain` measures beside loss and accuracy: "total" (the summed loss),
            "category" (a column a class), "slice:<column>" (a column a value); "demographic_parity" and
            "equal_opportunity" (gaps between the groups of `Task(group=...)`); "robustness" (the linear attack); an
            `Objective` (`demographic_parity(...)`, `robustness("pgd", epsilon=...)`, your own), a function `(logits
            [B, C], labels [B]) -> [B]`, or a list of these. Attacks are aimed at the task's own model. The empty
            default: none.
        seed: for `retrain`: an integer >= 0 that fixes the training.

    Returns:
        A Selection: `.kept`, `.removed` (worst first), and with `retrain` the measures `before` and `after`: `rows`,
        `loss`, `accuracy` and `accuracy_<label>` on `test`, those of `objective` (see `evaluate`), and `train_rows`;
        with `predict`, `predicted` (None where no row goes). Of values with a sign, `metadata["predicted_change"]` is
        the sum of those of the removed rows.

    Raises:
        InputError: an unknown column, several and none named, a budget or floor out of range, a floor without labels,
            `retrain` or `predict` without what it needs, or another model or table than that of the scores.
        RunError: training diverged or did not converge.

    Cost: a sort of the column; with `retrain`, two trainings; with `predict`, a `predict_removal`.
    """
    check(scores=scores, budget=budget, by=by, floor=floor, retrain=retrain, predict=predict, seed=seed)
    if retrain:
        _check_tables(scores, task, train, valid if test is None else test, "retrain", "test")
    how = _check_prediction(scores, task, train, valid) if predict else {}
    by = _column(scores, by)
    table = scores.select(["row_id", by])
    ids, values, labels = table["row_id"], table[by].to_numpy(), scores.labels if floor else None
    if floor and labels is None:
        raise InputError(
            f"floor={floor} needs the class of every row, and these scores carry no labels.",
            "compute the scores with rayinf, or pass Scores.from_numpy(..., labels=y).",
        )
    valued = int((~np.isnan(values)).sum())
    if budget > valued:
        ranked = by != "fi_rank" and "fi_rank" in scores.columns
        raise InputError(
            f"budget={budget} is more than the {valued:,} rows that have a value of {by!r}.",
            f"pass at most {valued}" + (", or by='fi_rank', which has every row." if ranked else "."),
        )
    signed = bool(scores.metadata.get("signed", by not in UNSIGNED))
    order = worst_first(values, signed)
    removed = pick(order, candidates(values, signed), budget, labels, floor)
    gap = abs(scores.metadata.get("objective_details", {}).get(by, {}).get("signed", np.inf))
    harmful = int(removed.sum())
    if gap < np.inf:
        removed = use_up(order, removed, values, gap)
    rule = "most negative" if signed else "largest"
    metadata = {"by": by, "rule": rule, "budget": budget, "floor": floor, "removed": int(removed.sum())}
    metadata |= {"of": scores.metadata["of"]} if "of" in scores.metadata else {}
    metadata |= {"predicted_change": float(values[removed].sum())} if signed else {}
    if gap < np.inf:
        left = abs(gap + float(values[removed].sum()))
        metadata |= {"gap": gap, "predicted_gap": left, "used_up": int(removed.sum()) < harmful}
    # Rows without a value are neither good nor bad: after the best ones, before those that are removed.
    missing = np.isnan(values[order])
    best_first = np.concatenate([order[~missing][::-1], order[missing]])
    selection = Selection.of(ids, values, best_first, ~removed, metadata)
    if predict and task is not None and removed.any():
        wanted = [by, "total"] if by in _NAMED else "total"
        found = predict_removal(task, train, valid, selection, wanted if objective == () else objective, **how)
        selection = replace(selection, predicted=found.table)
    if not retrain or task is None:
        return selection
    test = valid if test is None else test
    measured = []
    for keep in (None, selection.mask):
        measures = evaluate(train_anew(task, train, keep=keep, seed=seed), test, objective, against=task)
        measured.append({**measures, "train_rows": len(selection.mask) if keep is None else len(selection)})
    return replace(selection, before=measured[0], after=measured[1])


def _column(scores: Scores, by: str | None) -> str:
    """The column to trim by.

    Raises:
        InputError: there is none of that name, or several and none is named.
    """
    have = scores.value_columns
    shown = ", ".join(map(repr, have))
    if by is None and set(have) == {"fi", "fi_rank"} and not scores.metadata.get("signed", False):
        return "fi_rank"
    if by is None and len(have) != 1:
        raise InputError(f"The scores have {len(have)} columns: {shown}.", f"name one, as by={have[0]!r}.")
    if by is not None and by not in have:
        raise InputError(f"by={by!r} is not a column of the scores; they have {shown}.", "name one of these.")
    return have[0] if by is None else by


def _check_prediction(scores: Scores, task: Task | None, train: Any, valid: Any) -> dict[str, Any]:
    """The arguments of `predict_removal` that the scores rest on.

    Raises:
        InputError: `predict=True` without what it needs, or scores that do not say it.
    """
    how = curvature_of(scores)
    if how is None:
        raise InputError(
            "predict=True needs the curvature that the scores rest on, and these do not say one of a single model.",
            "pass scores of influence(task, train, valid, ...), or call predict_removal with the selection.",
        )
    _check_tables(scores, task, train, valid, "predict", "valid")
    return how


def _check_tables(scores: Scores, task: Task | None, train: Any, table: Any, name: str, role: str) -> None:
    """Refuse `retrain=True` or `predict=True` without what it needs, or with another table than that of the scores.

    Raises:
        InputError: what is missing or does not match.
    """
    if missing := [n for n, value in (("task", task), ("train", train), (role, table)) if value is None]:
        also = " or valid" if role == "test" else ""
        raise InputError(
            f"{name}=True needs task, train, and {role}{also}: {', '.join(missing)} is missing.",
            f"pass trim(scores, ..., {name}=True, task=task, train=train, {role}={role}).",
        )
    check(task=task)
    assert task is not None
    check_scored(scores, task, train)
