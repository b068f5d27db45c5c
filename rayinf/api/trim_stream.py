"""Online trimming: batches arrive one by one, and each is valued and trimmed before a learner sees it.

See Chhabra 2024, section 5.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayinf.api.influence import influence
from rayinf.api.trim import trim
from rayinf.arguments import shown
from rayinf.data.files import write_result
from rayinf.data.out_folder import check_out
from rayinf.data.scores import Scores
from rayinf.data.selection import Selection
from rayinf.data.tables import Table, as_table
from rayinf.engine.entry import check, require_one_model
from rayinf.engine.job import Cluster
from rayinf.errors import InputError, RayinfError
from rayinf.store.places import AnyPath, open_place
from rayinf.task import Task
from rayinf.training.retraining import train_anew


@dataclass(frozen=True)
class TrimmedBatch:
    """A batch after trimming.

    Attributes:
        index: its place in the stream, from 0.
        table: the kept rows, in order, with all columns that were given.
        selection: which rows were kept and removed.
        scores: what every row of the batch is worth.
    """

    index: int
    table: pa.Table
    selection: Selection
    scores: Scores


def trim_stream(
    task: Task,
    batches: Iterable[Any],
    valid: Any,
    budget: float = 0.1,
    objective: Any = "total",
    by: str | None = None,
    refit: bool = True,
    curvature: str = "exact",
    damping: float | str | None = None,
    floor: int = 0,
    cluster: Cluster | None = None,
    out: str | AnyPath | None = None,
    seed: int = 0,
) -> Iterator[TrimmedBatch]:
    """Value each batch of a stream on its own, and trim it.

    See Chhabra 2024, section 5.4 and C.3, with Chhabra 2024, Algorithm 2.

    Args:
        task: the model and its columns. With several batches in which a class may be missing, name `Task(classes=...)`
            or use a fitted task (`logistic_regression`), whose classes are settled.
        batches: tables, taken one at a time, each a Parquet path, folder, glob or URI, a `pyarrow.Table`, a
            `pandas.DataFrame`, or arrays `(X, y)`; the stream may be endless.
        valid: the rows that the objectives are summed over, in any of these forms.
        budget: of each batch, at most this share of its rows in (0, 1), or this integer number of rows.
        objective: "total" (the summed loss), "category" (a column a class), "slice:<column>" (a column a value);
            "demographic_parity" and "equal_opportunity" (gaps between the groups of `Task(group=...)`); "robustness"
            (the linear attack); an `Objective` (`demographic_parity(...)`, `robustness("pgd", epsilon=...)`, your own),
            a function `(logits [B, C], labels [B]) -> [B]`, or a list of these.
        by: the column to trim by. It is needed where there are several.
        refit: whether the task's model is trained anew on each batch, which is valued under that model: a surrogate for
            the model that learns from the stream. False: each batch is valued under the task's model in its present
            state, so that a model that goes on training (the very same module) is followed.
        curvature: the matrix whose inverse weighs the gradients: "ekfac" or "kfac", a block for each layer; "exact"
            (the Hessian) or "ggn" (generalised Gauss-Newton), for few parameters; "identity".
        damping: a number >= 0 that is added to the eigenvalues of the mean curvature; "layer_mean:0.1", so many times
            each layer's mean eigenvalue; or "sample:3", so many times mean x parameters of the layer / (rows x
            (classes - 1)). None: the inverse of the training that `Task(fit=Fit(...))` describes, which has none;
            without a `Fit`, "layer_mean:0.1" for a linear softmax head under "kfac" and "ekfac", 0 for "exact" and
            "ggn", "sample:3" otherwise.
        floor: rows of every class that stay in a batch at least, >= 0; a class that had fewer keeps all.
        cluster: the workers on Ray that do the work. None: this process, without Ray.
        out: a folder or URI with a run folder a batch, `batch-00000` and so on, and in it the kept rows as
            `kept.parquet`: given the same stream again, batches that are finished are not valued again, and another
            stream is refused. None: nothing is written.
        seed: an integer >= 0 that fixes training and the drawn labels (above 32 classes).

    Returns:
        An iterator of `TrimmedBatch`, each as soon as it is done.

    Raises:
        InputError: a wrong argument (at the call, before any batch is taken); a batch that cannot be valued, by its
            place in the stream: earlier ones are not lost.
        RunError: a run that cannot go on, or training that diverged.

    Cost: that of `influence` on each batch, and with `refit` that of training on it. One batch is held at a time.
    """
    check(task=task, by=by, refit=refit, curvature=curvature, damping=damping, floor=floor, cluster=cluster)
    require_one_model(task, "trim_stream")
    check(out=out, seed=seed)
    _check(batches, budget)
    how: dict[str, Any] = {"curvature": curvature, "damping": damping, "cluster": cluster, "seed": seed}

    def value(batch: Any, folder: AnyPath | None) -> tuple[Selection, Scores]:
        model = train_anew(task, batch, seed=seed) if refit else task
        scores = influence(model, batch, valid, objective, out=folder, **how)
        return trim(scores, _rows(budget, len(scores)), by=by, floor=floor), scores

    return _stream(task, batches, value, None if out is None else open_place(out, "out"))


def _stream(
    task: Task,
    batches: Iterable[Any],
    value: Callable[[Any, AnyPath | None], tuple[Selection, Scores]],
    home: AnyPath | None,
) -> Iterator[TrimmedBatch]:
    others = [task.label, *([task.group] if task.group else [])]
    for index, batch in enumerate(batches):
        folder = None if home is None else home / f"batch-{index:05d}"
        try:
            given = as_table(batch, task.feature_columns, others, "the batch")
            check_out(folder, {f"batch {index}": given})
            selection, scores = value(given, folder)
            table = _whole(given).filter(pa.array(selection.mask))
        except RayinfError as error:
            raise type(error)(f"Batch {index} of the stream: {error.what}", error.fix) from error
        if folder is not None:
            write_result(folder / "kept.parquet", table)
        yield TrimmedBatch(index, table, selection, scores)


def _whole(table: Table) -> pa.Table:
    """All rows and columns of a batch."""
    reader = table.open(table.schema.names)
    return pa.Table.from_batches([b for s in table.shards for b in reader.read(s)], table.schema)


def _rows(budget: float, rows: int) -> int:
    """How many rows may go, at most."""
    return min(int(budget), rows) if isinstance(budget, Integral) else int(budget * rows)


def _check(batches: object, budget: object) -> None:
    """Refuse what is no stream, and a budget that is none.

    Raises:
        InputError: one of these.
    """
    import pandas as pd

    arrays = isinstance(batches, tuple) and len(batches) > 0 and hasattr(batches[0], "shape")
    if isinstance(batches, str | Path | pa.Table | pd.DataFrame) or (
        arrays and not isinstance(batches[0], pd.DataFrame | pa.Table)  # type: ignore[index]
    ):
        raise InputError(
            f"batches={shown(batches)} is a single table, and a stream is made of several.",
            "pass a list of tables, or [table].",
        )
    if not isinstance(batches, Iterable):
        raise InputError(f"batches={shown(batches)}: batches must be an iterable of tables.", "pass a list of tables.")
    number = isinstance(budget, Real) and not isinstance(budget, bool)
    whole = number and isinstance(budget, Integral) and int(budget) >= 1
    share = number and not isinstance(budget, Integral) and 0 < float(budget) < 1  # type: ignore[arg-type]
    if not whole and not share:
        raise InputError(
            f"budget={shown(budget)}: budget must be a share in (0, 1), or a whole number of rows >= 1.",
            "pass budget=0.1, say, for a tenth of every batch.",
        )
