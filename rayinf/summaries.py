"""What a command prints of what it found: a few numbers, the rows that stand out, and where the files lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayinf.api.history import History
from rayinf.api.removal_check_result import RemovalCheck
from rayinf.api.reweighting import Reweighting
from rayinf.data.scores import Scores, to_numpy
from rayinf.data.selection import Selection
from rayinf.engine.fit_quality import fit_line
from rayinf.select.top_rows import TopRows
from rayinf.store.places import AnyPath

_TOP = 5
_SHOWN_COLUMNS = 8
_SHOWN_CLASSES = 20
_SHOWN_ROUNDS = 21


def tell_fit(metadata: Mapping[str, Any], warn: bool = False) -> None:
    """Print how well the model fits the rows that it was valued on.

    Args:
        metadata: of scores or a selection.
        warn: say again what the run warned of.
    """
    fit = metadata.get("fit")
    line = fit_line(fit)
    if line is not None:
        typer.echo(line)
    for text in (fit or {}).get("warnings", []) if warn else []:
        typer.echo(f"Warning: {text}", err=True)


def tell_influence(scores: Scores) -> None:
    """Print how many rows were valued, which matter most, and where the scores lie."""
    names = scores.columns
    shown = ", ".join(names[:_SHOWN_COLUMNS]) + (", ..." if len(names) > _SHOWN_COLUMNS else "")
    typer.echo(f"{len(scores):,} rows, {len(names)} column{'s' if len(names) > 1 else ''}: {shown}")
    tell_fit(scores.metadata)
    best = most(scores, names[0])
    if best is not None:
        rows = [
            (low_id, f"{low:+.4g}", high_id, f"{high:+.4g}")
            for (low_id, low), (high_id, high) in zip(_pairs(best.harms), _pairs(best.helps), strict=True)
        ]
        headings = ("most harmful row_id", "value", "most helpful row_id", "value")
        _print_table(f"{names[0]}: positive helps, negative harms", headings, rows)
    for column, told in scores.metadata.get("objective_details", {}).items():
        if "signed" in told:
            typer.echo(
                f"{column}: a gap of {told['signed']:+.4f} on the validation rows, {told['hard']:.4f} of predictions"
            )
        elif "accuracy" in told:
            typer.echo(f"{column}: {told['accuracy']:.1%} of the attacked validation rows are classified right")
    _tell_place(scores)


def tell_measure(scores: Scores) -> None:
    """Print how many rows were measured, on which the fit hangs most, and how good the approximations are."""
    told = scores.metadata
    measured = told.get("rows_measured", len(scores))
    typer.echo(f"{len(scores):,} rows" + (f", {measured:,} of them measured" if measured < len(scores) else ""))
    tell_fit(told)
    column = "fi_rank" if "fi_rank" in scores.columns else "fi"
    best = most(scores, column)
    if best is not None:
        rows = [(row_id, f"{value:.4g}") for row_id, value in _pairs(best.helps)]
        _print_table(f"{column}: the higher, the more the fit hangs on the row", ("highest row_id", "value"), rows)
    if "one_hot_rows" in told:
        typer.echo(f"Rows with one-hot probabilities, whose fi is 0: {told['one_hot_rows']:,}")
    if "captured_share" in told:
        least = told["least_captured_share"]
        typer.echo(f"Rank {told['rank']} keeps {told['captured_share']:.1%} of a row's norm (least: {least:.1%})")
    _tell_forest(told)
    _tell_place(scores)


def tell_acquire(selection: Selection, strategy: str, out: AnyPath, file: AnyPath) -> None:
    """Print which rows were picked first, and where all picks and all values lie.

    Args:
        selection: from `acquire`.
        strategy: by which they were picked.
        out: the run's folder.
        file: of the picked rows.
    """
    held = selection.source
    typer.echo(f"{len(selection):,} of {held.num_rows:,} rows picked by {strategy}")
    tell_fit(selection.metadata)
    first = held.filter(held["kept"]).slice(0, _TOP)
    rows = [
        (str(k + 1), row_id, _number(value))
        for k, (row_id, value) in enumerate(zip(first["row_id"].to_pylist(), first["value"].to_pylist(), strict=True))
    ]
    _print_table("The first to ask for", ("rank", "row_id", "value"), rows)
    _tell_forest(selection.metadata)
    typer.echo(f"Picked rows: {file}")
    typer.echo(f"Values of all rows of the pool: {out / 'scores'}")


def tell_trim(selection: Selection, labels: np.ndarray[Any, Any] | None, files: Sequence[AnyPath]) -> None:
    """Print how many rows are removed, the worst of them, how many of every class, and where both parts lie.

    Args:
        selection: from `trim`.
        labels: of all rows, in table order, if they are known.
        files: of the kept and of the removed rows.
    """
    told, held = selection.metadata, selection.source
    removed, rows = told["removed"], held.num_rows
    typer.echo(f"{removed:,} of {rows:,} rows removed: {told['rule']} {told['by']}")
    if removed < told["budget"]:
        floor = f", and of a class over its floor of {told['floor']:,}" if told["floor"] else ""
        which = "negative" if told["rule"] == "most negative" else "valued"
        why = "another would open the gap again" if told.get("used_up") else f"no other row is {which}{floor}"
        typer.echo(f"That is less than the budget of {told['budget']:,}: {why}.")
    if "gap" in told:
        typer.echo(f"{told['by']}: {told['gap']:.4f}, predicted without these rows: {told['predicted_gap']:.4f}")
    gone = held.filter(np.logical_not(to_numpy(held["kept"])))
    worst = gone.slice(max(removed - _TOP, 0)).to_pylist()[::-1]
    if worst:
        known = [] if labels is None else ["label"]
        lines = [
            (row["row_id"], _number(row["value"]), *([] if labels is None else [labels[row["position"]]]))
            for row in worst
        ]
        _print_table("The worst rows", ("row_id", "value", *known), lines)
    if labels is not None:
        _print_table("Classes", ("label", "rows", "removed", "kept"), _class_lines(labels, selection.mask))
    typer.echo(f"Kept rows: {files[0]}")
    typer.echo(f"Removed rows: {files[1]}")


def tell_active_learning(history: History, plot: AnyPath) -> None:
    """Print the learning curve, the mean accuracy of every strategy, what is awaited, and where the plot lies.

    Args:
        history: from `active_learning`.
        plot: of the learning curve.
    """
    frame = history.to_pandas()
    strategies = list(dict.fromkeys(frame["strategy"]))
    curve = frame.groupby(["round", "labeled", "strategy"])["accuracy"].mean().unstack("strategy")[strategies]
    shown = np.unique(np.linspace(0, len(curve) - 1, min(len(curve), _SHOWN_ROUNDS)).round().astype(int))
    seeds = frame["seed"].nunique()
    _print_table(
        "Accuracy" + (f", the mean of {seeds} seeds" if seeds > 1 else ""),
        ("round", "labelled", *strategies),
        [
            (f"{at[0]:,}", f"{at[1]:,}", *("-" if np.isnan(v) else f"{v:.4f}" for v in values))
            for at, values in zip(curve.index[shown], curve.to_numpy()[shown], strict=True)
        ],
    )
    for told in history.mean().to_dict("records"):
        several = told["seeds"] > 1
        spread = f", standard deviation {told['std']:.4f} over {told['seeds']} seeds" if several else ""
        typer.echo(f"Mean accuracy over rounds by {told['strategy']}: {told['accuracy']:.4f}{spread}")
    for file in history.waiting:
        asked = file.name.replace("labels-", "ask-", 1)
        typer.echo(f"Labels are awaited: {file} (row_id, label), for the rows in {asked} beside it")
    if history.waiting:
        typer.echo("Put them there and run the same command again: it goes on.")
    typer.echo(f"Learning curve: {plot}")


def tell_reweight(found: Reweighting, plot: AnyPath) -> None:
    """Print what the search found, and where weights, checkpoint and plot lie.

    Args:
        found: from `pareto_reweight`, with a folder.
        plot: of the trade-off.
    """
    typer.echo(found.to_text())
    typer.echo(f"Weights, checkpoint and all candidates: {found.path}")
    typer.echo(f"Trade-off: {plot}")


def tell_removal_check(check: RemovalCheck, plot: AnyPath) -> None:
    """Print how well prediction and measurement agree, and where the heat maps lie.

    Args:
        check: from `removal_check`.
        plot: the heat maps.
    """
    typer.echo(check.to_text())
    typer.echo(f"Heat maps: {plot}")


def most(scores: Scores, column: str) -> TopRows | None:
    """The rows of largest and smallest value, batch by batch: memory does not grow with the rows."""
    best, start = None, 0
    for batch in scores.batches(["row_id", column]):
        values, ids = (batch.column(n).to_numpy(zero_copy_only=False) for n in (column, "row_id"))
        valued = ~np.isnan(values)
        found = TopRows.of(values[valued][None], ids[valued], start, _TOP)
        best, start = found if best is None else best.merge(found), start + batch.num_rows
    return best


def _pairs(side: tuple[Any, Any, Any]) -> list[tuple[Any, float]]:
    """Ids and values of one side of `TopRows` that has one query."""
    return list(zip(side[2][0], side[0][0], strict=True))


def _class_lines(labels: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> list[tuple[str, ...]]:
    """Rows, removed and kept ones of every class; the classes that lose most where there are many."""
    names, codes = np.unique(labels, return_inverse=True)
    rows, kept = np.bincount(codes, minlength=len(names)), np.bincount(codes[mask], minlength=len(names))
    shown = range(len(names))
    if len(names) > _SHOWN_CLASSES:
        shown = np.argsort(kept - rows, kind="stable")[:_SHOWN_CLASSES].tolist()
    return [(str(names[k]), f"{rows[k]:,}", f"{rows[k] - kept[k]:,}", f"{kept[k]:,}") for k in shown]


def _tell_forest(told: Any) -> None:
    if "forest_rank_correlation" in told:
        typer.echo(
            f"Forest: out-of-bag rank correlation {told['forest_rank_correlation']:.3f} over "
            f"{told['forest_rows']:,} valued rows"
        )


def _tell_place(scores: Scores) -> None:
    if scores.path is not None:
        typer.echo(f"Scores: {scores.path / 'scores'}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    typer.echo(title)  # as a title of the table it would be broken to the table's width
    table = Table()
    for heading in headings:
        named = heading.endswith("row_id") or heading in ("label", "strategy")
        table.add_column(heading, justify="left" if named else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    Console().print(table)
