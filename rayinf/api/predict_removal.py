"""What happens to the objectives when some training rows go: first and second order, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rayinf.core.fisher import FisherKind
from rayinf.data.checked_folder import CheckedFolder
from rayinf.data.run_folder import FINISHED, owner_of, read_record
from rayinf.engine import pipeline, removal_pipeline
from rayinf.engine.job import Cluster
from rayinf.engine.removal_pipeline import Details, Predicted
from rayinf.engine.run import Run, open_run
from rayinf.errors import InputError
from rayinf.store.places import AnyPath, open_place
from rayinf.task import Task
from rayinf.training.removed_rows import ONE, PredictRemovalSpec, RemovedRows

if TYPE_CHECKING:
    import pandas as pd

_FILE = "prediction.parquet"


@dataclass(frozen=True)
class RemovalPrediction:
    """What the removal of rows is predicted to do to every objective.

    Attributes:
        table: a line for each set and objective: `set` (its name), `removed` (rows that go), `objective`, `now` (its
            value under the model as it is); the predicted values `first_order` and `second_order`, and their changes
            against `now`, `first_order_change` and `second_order_change`; and `linear_change`, that of the linearised
            objective along the step of second order; `step_length` of that step, in units of the one that the curvature
            gives by itself.
        metadata: the config, the sign and unit, figures of the curvature.
        path: the run's folder, if it has one.
    """

    table: pa.Table = field(repr=False)
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    path: AnyPath | None = None

    @classmethod
    def load(cls, path: str | AnyPath) -> RemovalPrediction:
        """Read a finished prediction.

        Args:
            path: the folder that was given as `out`.

        Raises:
            InputError: no finished prediction there, or a damaged one.
        """
        folder = open_place(path)
        record = read_record(folder) or {}
        done = record.get("status") == FINISHED
        table = CheckedFolder(folder, owner_of(record)).table(_FILE) if done else None
        if table is None:
            raise InputError(
                f"{folder} holds no finished prediction, or a damaged one.",
                "pass the folder that was given as out=..., or run that prediction again.",
            )
        return cls(table, record["metadata"], folder)

    def to_pandas(self) -> pd.DataFrame:
        """The table as a frame."""
        frame: pd.DataFrame = self.table.to_pandas()
        return frame

    def to_text(self) -> str:
        """The table in words, a line for each set and objective."""
        return "\n".join(map(_in_words, self.table.to_pylist()))


def predict_removal(
    task: Task,
    train: Any,
    valid: Any,
    rows: Any,
    objective: Any = "total",
    curvature: str = "ekfac",
    fisher: FisherKind = "true",
    damping: float | str | None = None,
    factors: str | AnyPath | None = None,
    cluster: Cluster | None = None,
    out: str | AnyPath | None = None,
    seed: int = 0,
    *,
    inverse: str = "auto",
    training_time: float | None = None,
    curvature_rows: int | None = 100_000,
    batch_size: int | None = None,
    precision: str | None = None,
) -> RemovalPrediction:
    """Predict what happens to every objective when these training rows go, to first and to second order.

    First order adds up the rows' values. But the curvature changes with the rows that go: second order takes Newton's
    step from the rows that stay, `delta = (H - H_S / n + l2 + damping)^-1 (1/n) sum_S grad l_i` (H the mean curvature
    of all n rows, H_S the sum over the rows S that go), and evaluates the objectives at `theta + delta`. Of EKFAC, H_S
    is the eigenvalues' share of these rows in the eigenbasis of all rows; of K-FAC, the diagonals of their A and G
    there. Both leave out what couples layers and directions, which makes the step several times too long where rows go
    that pull the same way; so its length is that of the generalised Gauss-Newton matrix along it (`step_length` times
    the length that EKFAC gives). Both orders predict a fit that keeps the *sum* of the ridge: a refit to n' rows has
    `l2 n / n'`.

    Of a gap between groups, first order is `|u + sum of the rows' values|`, u the gap.

    Args:
        task: the trained model and its columns.
        train: the rows that the model was fitted to: a Parquet path, folder, glob or URI, a `pyarrow.Table`, a
            `pandas.DataFrame`, or arrays `(X, y)`.
        valid: the rows that the objectives are summed over, in any of these forms.
        rows: the training rows that go: a `Selection` (of `trim`, from this table), whose removed rows these are; a
            boolean mask `[n]`, True where a row goes; or row ids. Integers are always row ids, never positions: those
            of the column `Task(row_id=...)` or `row_id` where the table has it, else the rows' positions. Or several
            sets, as a dict from names to these, each of which is removed by itself.
        objective: "total" (the summed loss), "category" (a column a class), "slice:<column>" (a column a value);
            "demographic_parity" and "equal_opportunity" (gaps between the groups of `Task(group=...)`); "robustness"
            (the linear attack, aimed at the model as it is); an `Objective` (`demographic_parity(...)`,
            `robustness("pgd", epsilon=...)`, your own), a function `(logits [B, C], labels [B]) -> [B]`, or a list of
            these.
        curvature: the matrix whose inverse weighs the gradients: "ekfac" or "kfac", a block for each layer; "exact"
            (the Hessian) or "ggn" (generalised Gauss-Newton), for few parameters; "identity", which no row changes.
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
        factors: the folder or URI of a finished run of the same model, curvature and training rows, whose factors are
            used again. None: they are fitted.
        cluster: the workers on Ray that do the work. None: this process, without Ray.
        out: the run's folder or URI (`s3://bucket/run`): `prediction.parquet` is written there, and the same call
            finishes an interrupted run. None: the result is held in memory.
        seed: an integer >= 0 that fixes what is drawn: labels (above 32 classes), rows of `curvature_rows`.
        curvature_rows: the most training rows that "kfac" and "ekfac" are fitted on, drawn by contents and seed (equal
            rows together); `metadata["curvature_sample"]` says how far the halves of the draw differ. None: all rows.
            "exact" and "ggn" use all.
        batch_size: rows a pass of the model. None: those whose activations take 512 MB, or 40% of a GPU's memory.
        precision: "bf16" or "fp16" runs the model in mixed precision, "fp64" in float64; sums and products stay in
            float32 or better. None: the model's own precision.

    Returns:
        A `RemovalPrediction`: `.table` with a line for each set and objective.

    Raises:
        InputError: before any work: rows that are unknown, none or all of them; a set that takes all rows of a class;
            a selection from another table; what `influence` refuses. Or a curvature that is singular or negative on the
            rows that stay.
        RunError: a run that cannot go on.

    Cost: beside the curvature and the objectives' gradients, as of `influence`: three passes over the rows of each set
    and one over all rows with a backward pass a Fisher column (`exact`, `ggn`: two, and none), a solve a set (of
    "exact" and "ggn" `p^3`), and a forward pass over `valid` a set. Memory: copies of the valued parameters for each
    set.
    """
    given = locals()
    spec = PredictRemovalSpec(removed=given.pop("rows"), **given)
    with open_run(spec) as run:
        if run.finished and run.folder is not None:
            return RemovalPrediction.load(run.folder.path)
        assert isinstance(run.spec, PredictRemovalSpec)
        sets = run.spec.sets
        now, found = removal_pipeline.predict(run, [one.to_mask for one in sets])
        return _finish(run, _table(sets, now, found))


def _finish(run: Run, table: pa.Table) -> RemovalPrediction:
    """Mark the run as finished, and give its result."""
    held = pipeline.values_metadata(run)
    if run.folder is None:
        return RemovalPrediction(table, {**held, "seconds": dict(run.seconds)})
    run.folder.files.put_table(_FILE, table)
    pipeline.close_folder(run, held)
    return RemovalPrediction.load(run.folder.path)


def _table(sets: Sequence[RemovedRows], now: Details, found: Sequence[Predicted]) -> pa.Table:
    """The lines of all sets."""
    lines = []
    for one, predicted in zip(sets, found, strict=True):
        for q, (column, details) in enumerate(now.items()):
            value, first = details["value"], details["value"] + float(predicted.first[q])
            first = abs(first) if "signed" in details else first  # a gap's values have its sign, until it crosses 0
            second = predicted.moved[column]["value"]
            lines.append(
                {
                    "set": one.name,
                    "removed": one.count,
                    "objective": column,
                    "now": value,
                    "first_order": first,
                    "second_order": second,
                    "first_order_change": first - value,
                    "second_order_change": second - value,
                    "linear_change": float(predicted.linear[q]),
                    "step_length": predicted.length,
                }
            )
    return pa.Table.from_pylist(lines)


def _in_words(line: Mapping[str, Any]) -> str:
    of = "" if line["set"] == ONE else f" of {line['set']!r}"
    return (
        f"{line['removed']:,} rows{of} go: {line['objective']} from {line['now']:.4g} to {line['second_order']:.4g} "
        f"(first order {line['first_order']:.4g})"
    )
