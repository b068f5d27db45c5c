"""Candidates of `pareto_reweight`: weights from the LP, a weighted epoch from the checkpoint, accuracy by class."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rayinf.core.capture import forward
from rayinf.data.batches import Array, Batch, in_second_half
from rayinf.data.vectors import InfluenceRows
from rayinf.engine.job import Job
from rayinf.engine.worker import Worker
from rayinf.errors import InputError, RunError
from rayinf.pareto.halved_lp import HalvedLP
from rayinf.pareto.lp import InfeasibleError, ReweightLP, Solution
from rayinf.task import Fit
from rayinf.training.retraining import call_fit, train_in_place
from rayinf.training.shuffle import BUFFER_BYTES, Shuffled
from rayinf.user_code import on_rows

_EVALUATE_ROWS = 1024
_KEPT = ("right", "rows", "loss", "predicted", "mean_weight", "problem", "conflict")


@dataclass(frozen=True)
class Training:
    """A candidate's weights, and what is done with them.

    Attributes:
        alpha: of every class, in the order of the logits; None: no weights.
        radius: of the trust region; None: the box.
        trains: whether an epoch is trained; False measures the checkpoint.
        returns_model: whether the model and the weights are given back too.
        half: None, or the half of the validation rows (0, 1) that alone chooses the weights; then the rows of the
            other half alone are measured.
    """

    alpha: tuple[float, ...] | None = None
    radius: float | None = None
    trains: bool = True
    returns_model: bool = False
    half: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """How a candidate does. Sums and counts are over the validation rows, classes in the order of the logits.

    Attributes:
        right: `[K]`, rows that are classified rightly.
        rows: `[K]`.
        loss: `[K]`, means.
        predicted: `[K]`, by how much the LP expects each class's summed loss to fall against the unweighted fit.
        mean_weight: of the training rows.
        problem: why there is no model, where there is none; then all the others are None.
        conflict: names of the classes whose alphas cannot be met together.
        model: where it was asked for, on the CPU.
        weights: `[n]`, where they were asked for.
    """

    right: list[int] | None = None
    rows: list[int] | None = None
    loss: list[float] | None = None
    predicted: list[float] | None = None
    mean_weight: float | None = None
    problem: str | None = None
    conflict: tuple[str, ...] = ()
    model: nn.Module | None = None
    weights: Array | None = None

    @classmethod
    def from_json(cls, held: Mapping[str, Any]) -> Evaluation:
        """As it was kept."""
        found = cls(**{name: held[name] for name in _KEPT})
        return replace(found, conflict=tuple(found.conflict))

    def to_json(self, training: Training) -> dict[str, Any]:
        """What is kept of it, with the alphas and the radius."""
        held = {name: getattr(self, name) for name in _KEPT} | {"conflict": list(self.conflict)}
        alpha = None if training.alpha is None else list(training.alpha)
        return {"alpha": alpha, "radius": training.radius, **held}

    @property
    def accuracy(self) -> Array:
        """`[K]`; NaN where there is no model."""
        if self.right is None or self.rows is None:
            return np.full(1, np.nan)
        return np.asarray(self.right) / np.asarray(self.rows)


@dataclass
class CandidateTrainer:
    """Trains and measures one candidate after another. What they share is set up once in every process, and stays.

    Attributes:
        job: the task with its classes, and the tables "train" and "valid".
        given: the training table as the user gave it, where the fit is a function.
        fit: how a candidate is trained.
        vectors: influence vectors, classes in the order of the logits, `[n, K]`; of both halves of the validation rows
            `[n, 2 K]`; or what reads them.
        targets: positions of the classes to lift.
        slack: of the LP.
        upper: of the weights where there is no radius.
        seed: of training: the same for all candidates, so that they see the rows in the same order.
        threads: of training.
        device: where the model is; None: where the task has it.
        halves_seed: which rows are in which half; None: not known, and no training is for a half.
    """

    job: Job
    given: Any
    fit: Any
    vectors: Array | InfluenceRows
    targets: tuple[int, ...]
    slack: str
    upper: float
    seed: int
    threads: int
    device: str | None
    halves_seed: int | None = None

    def __call__(self, training: Training) -> Evaluation:
        """Train and measure one.

        Raises:
            InputError: the user's own fit returns no module.
            RunError: training without weights diverged.
        """
        with _threads(self.threads):
            if not training.trains:
                return self._measured(self._checkpoint.model, training, None)
            if training.alpha is None:
                return self._measured(self._train(None), training, None)
            try:
                found = self._solved(training)
            except InfeasibleError as error:
                names = tuple(self.job.classes.names[k] for k in error.classes)
                return Evaluation(problem=error.what, conflict=names)
            if not found.weights.any():
                return Evaluation(problem="The LP gives every row the weight 0.")
            try:
                model = self._train(found.weights)
            except RunError as error:  # of extreme weights; the unweighted epoch has shown that the fit is sound
                return Evaluation(problem=error.what)
            return self._measured(model, training, found)

    def _solved(self, training: Training) -> Solution:
        alpha, lp = np.asarray(training.alpha), self._lp
        if training.half is None:
            return lp.solve(alpha, self.upper, training.radius)
        assert isinstance(lp, HalvedLP)
        return lp.of_half(training.half, alpha, self.upper, training.radius)

    @cached_property
    def _lp(self) -> ReweightLP | HalvedLP:
        names = self.job.classes.names
        columns = len(self.vectors.columns) if isinstance(self.vectors, InfluenceRows) else self.vectors.shape[1]
        kind = ReweightLP if columns == len(names) else HalvedLP
        return kind(self.vectors, self.targets, self.slack, names)

    @cached_property
    def _checkpoint(self) -> Worker:
        """The checkpoint, which is never trained, and readers of both tables."""
        worker = Worker(self.job, self.device)
        _ = worker.model
        return worker

    @cached_property
    def _shuffled(self) -> Shuffled:
        table, rows = self.job.tables["train"], self.job.tables["train"].num_rows
        return Shuffled(table, self.job.columns["train"], np.ones(rows, bool), self.fit.batch_size)

    @cached_property
    def _held(self) -> list[Batch] | None:
        """The validation rows, where they fit in memory as the training rows may."""
        held, size = [], 0
        for raw in self._read():
            size += raw.x.nbytes if raw.x.dtype != object else sum(len(v) for v in raw.x.reshape(-1))
            if size > BUFFER_BYTES:
                return None
            held.append(raw)
        return held

    def _read(self) -> Iterator[Batch]:
        for shard in self.job.tables["valid"].shards:
            yield from self._checkpoint.read_raw("valid", shard, _EVALUATE_ROWS)

    def _train(self, weights: Array | None) -> nn.Module:
        task = replace(self.job.task, model=self._checkpoint.model)
        if isinstance(self.fit, Fit):
            worker = Worker(replace(self.job, task=task))  # with a copy of the checkpoint
            train_in_place(worker, self._shuffled, weights, self.fit, task.l2, self.seed)
            return worker.model
        model = call_fit(task, self.given, weights, self.seed)
        if model is self._checkpoint.model:
            raise InputError(
                "Task(fit=...) is a function that trained the task's own model in place.",
                "train a copy, as task.build() gives it: every candidate starts from the same checkpoint.",
            )
        return model.eval()

    def _counts(self, raw: Batch, half: int | None) -> Tensor:
        """Which rows of a batch are measured: all, or those of the half that did not choose the weights."""
        if half is None:
            return torch.ones(len(raw), dtype=torch.bool)
        assert self.halves_seed is not None
        return torch.from_numpy(in_second_half(raw.x, raw.labels, self.halves_seed) == (half == 0))

    def _measured(self, model: nn.Module, training: Training, found: Solution | None) -> Evaluation:
        worker, task, classes = self._checkpoint, self.job.task, len(self.job.classes.labels)
        model = model.to(worker.device)
        right, rows = (torch.zeros(classes, dtype=torch.int64) for _ in range(2))
        loss = torch.zeros(classes, dtype=torch.float64)
        with on_rows(lambda: worker.rows_at_work), torch.no_grad():
            for raw in self._read() if self._held is None else self._held:
                ready = worker.ready("valid", raw)
                counts = self._counts(raw, training.half)
                logits = forward(model, ready.x)
                losses = task.row_loss(logits, ready.y).double().cpu()
                y, hit = ready.y.cpu(), (logits.argmax(1) == ready.y).cpu()
                rows += torch.bincount(y[counts], minlength=classes)
                right += torch.bincount(y[hit & counts], minlength=classes)
                loss.index_add_(0, y[counts], losses[counts])
        means = (loss / rows.clamp(min=1)).tolist()
        if not np.isfinite(means).all():
            return Evaluation(problem=f"The trained model's mean losses by class are {means}.")
        measured = Evaluation(right.tolist(), rows.tolist(), means)
        if found is not None:
            expected = found.predicted_change.tolist()
            measured = replace(measured, predicted=expected, mean_weight=float(found.weights.mean()))
        if training.returns_model:
            held = None if found is None else found.weights
            measured = replace(measured, model=model.cpu() if training.trains else None, weights=held)
        return measured


@contextmanager
def _threads(count: int) -> Generator[None]:
    """So many threads for torch, and as many as before after."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
