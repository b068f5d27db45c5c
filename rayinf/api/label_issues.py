"""Rows that are likely mislabelled, the label that the model would give them, and what that rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import rankdata

from rayinf.arguments import text, whole
from rayinf.data.batches import Array
from rayinf.data.scores import LABEL_COLUMN, Scores, to_numpy
from rayinf.engine import pipeline
from rayinf.engine.baseline_spec import BaselineSpec
from rayinf.engine.baseline_stages import RowValues
from rayinf.engine.entry import check
from rayinf.engine.job import Cluster
from rayinf.engine.run import open_run
from rayinf.errors import InputError
from rayinf.select.trim import UNSIGNED
from rayinf.task import Task
from rayinf.training.scored_table import check_scored

if TYPE_CHECKING:
    import pandas as pd

# The part that ranks of the value have beside those of the margin (docs/inverse.md).
SHARE = 0.1
_CATEGORY = "category_"
_SHOWN = 5


@dataclass(frozen=True)
class LabelIssues:
    """Rows by how likely their label is wrong, most likely first.

    Attributes:
        table: `row_id`; `label`, as the table has it; `suggested`, the class that the model finds likeliest but for
            that; `suspect`: the model prefers it, and the row harms; and what that rests on: `quality` in (0, 1], the
            ranks that rows are sorted by, lowest first; `margin`, the logit of the label less that of `suggested`;
            `value`, the row's value; and `harms`, the class that the row harms most, of scores by category.
        metadata: rows, suspects among all of them, the column of the values, and what the scores are of.
    """

    table: pa.Table = field(repr=False)
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def suspects(self) -> Array:
        """Ids of the suspects in the table, most likely first."""
        return to_numpy(self.table.filter(self.table["suspect"])["row_id"])

    def to_pandas(self) -> pd.DataFrame:
        """The table as a frame."""
        frame: pd.DataFrame = self.table.to_pandas()
        return frame

    def to_text(self) -> str:
        """How many suspects there are, and the first of them."""
        lines = [f"{self.metadata['suspects']:,} of {self.metadata['rows']:,} labels are suspect"]
        for line in self.table.slice(0, _SHOWN).to_pylist():
            harms = f", harms {line['harms']!r} most" if line.get("harms") is not None else ""
            lines.append(
                f"row {line['row_id']!r}: {line['label']!r}, suggested {line['suggested']!r} "
                f"(margin {line['margin']:+.3g}, value {line['value']:+.3g}{harms})"
            )
        return "\n".join(lines)


def label_issues(
    scores: Scores,
    task: Task,
    train: Any,
    by: str = "total",
    limit: int | None = None,
    cluster: Cluster | None = None,
    *,
    batch_size: int | None = None,
    precision: str | None = None,
) -> LabelIssues:
    """Find rows that are likely mislabelled, by the model's own margin and by the rows' values.

    Rows are sorted by `rank(margin) + 0.1 rank(value)`, lowest first: of what was measured, this finds wrong labels
    best, also where classes are confusable ([docs/inverse.md](docs/inverse.md)). A row is a suspect where the model
    prefers another class **and** the value is negative. Look at them before you change any: a rare but right example
    may be among them.

    Args:
        scores: of the training rows: from `influence`, `Scores.load`, or `Scores.from_numpy`. With a column a class
            (`objective=["total", "category"]`) the class that a row harms most is told.
        task: the task that was valued.
        train: the table that the scores belong to: a Parquet path, folder, glob or URI, a `pyarrow.Table`, a
            `pandas.DataFrame`, or arrays `(X, y)`.
        by: the column of the values, whose sign says whether a row helps.
        limit: the most rows of the result, >= 1. None: all.
        cluster: the workers on Ray that do the work. None: this process, without Ray.
        batch_size: rows a pass of the model. None: as many as have their activations in 512 MB.
        precision: "bf16" or "fp16" runs the model in mixed precision, "fp64" in float64. None: the model's own
            precision.

    Returns:
        LabelIssues: `.table`, most likely first, and `.suspects`.

    Raises:
        InputError: wrong input (before any work), a column that is missing or has no sign, or scores of another model
            or table.

    Cost: a forward pass over `train`, and a sort.
    """
    check(scores=scores, task=task)
    text("by", by, "the name of a column of the scores")
    limit = None if limit is None else whole("limit", limit, 1)
    _check_column(scores, by)
    spec = BaselineSpec(
        task=task, train=train, method="margin", cluster=cluster, batch_size=batch_size, precision=precision
    )
    with open_run(spec) as run:
        check_scored(scores, task, run.job.tables["train"], run.scans)
        passed = pipeline.finish(run, pipeline.score(run, RowValues, {}, ["margin", "other"]), {})
    table = _rated(scores, passed, by)
    suspects = int(to_numpy(table["suspect"]).sum())
    known = {"of": scores.metadata["of"]} if "of" in scores.metadata else {}
    return LabelIssues(table.slice(0, limit), {"rows": len(scores), "suspects": suspects, "by": by, **known})


def _check_column(scores: Scores, by: str) -> None:
    """Refuse a column that is missing, or that does not say whether a row harms.

    Raises:
        InputError: which columns there are.
    """
    have = scores.value_columns
    if by not in have:
        raise InputError(
            f"by={by!r} is not a column of the scores; they have {', '.join(map(repr, have))}.",
            f"name one, as by={have[0]!r}, or compute scores with objective='total'.",
        )
    if not scores.metadata.get("signed", by not in UNSIGNED):
        raise InputError(f"by={by!r} has no sign: it does not say whether a row harms.", "pass scores of influence.")


def _rated(scores: Scores, passed: Scores, by: str) -> pa.Table:
    """All rows, most likely first.

    Args:
        scores: the values.
        passed: `margin`, and `other`: the position of a class.
        by: the column of the values.
    """
    found = passed.select(["row_id", LABEL_COLUMN, "margin", "other"])
    classes = [passed.metadata["classes"][str(k)] for k in range(len(passed.metadata["classes"]))]
    value, margin = to_numpy(scores.select([by])[by]).astype(float), to_numpy(found["margin"])
    missing = np.isnan(value)  # of a row that was left out nothing is known: it is ranked as one of value 0
    quality = (rankdata(margin) + SHARE * rankdata(np.where(missing, 0, value))) / ((1 + SHARE) * len(value))
    columns = {
        "row_id": found["row_id"],
        "label": found[LABEL_COLUMN],
        "suggested": pa.array(classes).take(pa.array(to_numpy(found["other"]).astype(np.int64))),
        "suspect": (margin < 0) & (value < 0),
        "quality": quality,
        "margin": margin,
        "value": pa.array(value, mask=missing),
    }
    by_class = [c for c in scores.value_columns if c.startswith(_CATEGORY)]
    if by_class:
        held = scores.select(by_class)
        least = np.stack([to_numpy(held[c]) for c in by_class], axis=1)
        harms = pa.array([c.removeprefix(_CATEGORY) for c in by_class]).take(pa.array(least.argmin(1)))
        columns["harms"] = pc.if_else(pa.array(least.min(1) < 0), harms, None)
    return pa.table(columns).take(pa.array(np.argsort(quality, kind="stable")))
