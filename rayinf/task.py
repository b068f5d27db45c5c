"""What is valued: a trained model, its loss, and the columns of the tables that feed it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rayinf.errors import InputError

RowLoss = Callable[[Tensor, Tensor], Tensor]
# (task, train, weights [n] or None, seed) -> a trained model.
Trainer = Callable[["Task", Any, Any, int], nn.Module]


@dataclass(frozen=True)
class Fit:
    """How the model is trained, for the steps that retrain it.

    Args:
        optimizer: "sgd" (with momentum), "adam" or "adamw".
        lr: the first learning rate.
        schedule: "constant", "cosine" or "linear" decay to 0 over all steps.
        epochs: passes over the training rows.
        batch_size: rows a step.
        momentum: of "sgd".
        weight_decay: decoupled for "adamw", added to the gradient otherwise.
        fresh: start from newly initialised parameters (`reset_parameters()` of every module that has it, under a
            seed). False: go on from the task's weights.
    """

    optimizer: str = "adam"
    lr: float = 1e-3
    schedule: str = "cosine"
    epochs: int = 10
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 0.0
    fresh: bool = True

    def __post_init__(self) -> None:
        """Refuse what no optimiser could run with.

        Raises:
            InputError: a name or a number is out of range.
        """
        for key, allowed in (("optimizer", ("sgd", "adam", "adamw")), ("schedule", ("constant", "cosine", "linear"))):
            if getattr(self, key) not in allowed:
                raise InputError(f"Fit({key}={getattr(self, key)!r}) is unknown.", f"use one of {', '.join(allowed)}.")
        if self.lr <= 0 or self.epochs < 1 or self.batch_size < 1:
            raise InputError(
                f"Fit got lr={self.lr}, epochs={self.epochs}, batch_size={self.batch_size}.",
                "lr must be positive, epochs and batch_size at least 1.",
            )


@dataclass(frozen=True)
class Task:
    """A trained classifier and how tables feed it.

    Args:
        model: a trained `nn.Module` giving logits `[B, C]`, or a zero-argument factory of one. Workers call the
            factory themselves, so that a large checkpoint is loaded where it is used instead of being sent.
        loss: "cross_entropy", or a callable `(logits [B, C], labels [B]) -> loss of each row [B]` (no reduction).
        features: a column of the tables (a number, a list, a tensor, bytes or text), or a list of numeric columns.
        label: the column of labels, integers or strings.
        group: a column of groups, for the objectives that compare groups.
        row_id: a column of unique ids that the scores carry. None: the column `row_id` where the training table
            has one, else the position of the row in the table.
        transform: picklable; turns the features of a batch (NumPy, `[B, ...]`) into the model's input: an array or
            tensor, or a tuple or dict of them, which the model gets as arguments.
        parameters: what is valued: "all"; "supported" (all that K-FAC has a rule for); "last" (the last linear
            layer); or a list of module names.
        l2: the ridge of the fit, mean loss + l2/2 * ||theta||^2, over all parameters that are valued.
        fit: how to train, for the steps that retrain: a `Fit`, or a callable `(task, train, weights, seed) -> model`
            that does it all. `train` is the table as it was given to the verb; `weights` is None, or a weight `[n]`
            for each of its rows, 0 on rows that are left out (drop these); `task.l2` is the ridge to use. It must be
            picklable where a cluster is used. None: a linear softmax head, as `logistic_regression` makes, is fitted
            to convergence, and other models cannot be retrained.
        classes: the labels in the order of the logits. None: integer labels in [0, C) name their logit, and other
            labels are taken in sorted order.
        mask: for tokens; the model's input -> a boolean `[B, T]` that is False on padding. Masked positions
            enter no factor.
        version: your own name for what a digest cannot see. Two runs are the same, and scores belong to a task, if
            their code agrees: functions, the helpers and values that these name, and the model are compared by content.
            Where something in them cannot be read (a compiled object, a lock), this name stands for it: change it
            whenever that changes.
    """

    model: nn.Module | Callable[[], nn.Module]
    loss: str | RowLoss = "cross_entropy"
    features: str | Sequence[str] = "features"
    label: str = "label"
    group: str | None = None
    row_id: str | None = None
    transform: Callable[[Any], Any] | None = None
    parameters: str | Sequence[str] = "all"
    l2: float = 0.0
    fit: Fit | Trainer | None = None
    classes: Sequence[Any] | None = None
    mask: Callable[[Any], Tensor] | None = None
    version: str | None = None

    def __post_init__(self) -> None:
        """Refuse arguments that no table could make right.

        Raises:
            InputError: an argument has the wrong type or range.
        """
        if not callable(self.model):
            raise InputError(
                f"Task(model=...) got a {type(self.model).__name__}.",
                "pass a torch.nn.Module or a function without arguments that returns one.",
            )
        if isinstance(self.loss, str) and self.loss != "cross_entropy":
            raise InputError(
                f"Task(loss={self.loss!r}) is unknown.",
                'use "cross_entropy" or a callable (logits [B, C], labels [B]) -> losses [B].',
            )
        if not (isinstance(self.l2, int | float) and 0 <= self.l2 < float("inf")):
            raise InputError(f"Task(l2={self.l2!r}) is not a ridge.", "pass a finite number >= 0.")
        if not isinstance(self.features, str) and not list(self.features):
            raise InputError("Task(features=[]) names no column.", "name at least one column.")
        if self.version is not None and not (isinstance(self.version, str) and self.version):
            raise InputError(f"Task(version={self.version!r}) is not a name.", 'pass a text, as in version="2".')
        fits = self.fit is None or isinstance(self.fit, Fit) or callable(self.fit)
        if not fits or isinstance(self.fit, type):  # the class Fit itself is callable too
            raise InputError(
                f"Task(fit={self.fit!r}) says nothing of how to train.",
                "pass rayinf.Fit(optimizer=..., lr=...), or a function (task, train, weights, seed) -> nn.Module.",
            )

    @property
    def feature_columns(self) -> list[str]:
        """The columns that hold the features."""
        return [self.features] if isinstance(self.features, str) else list(self.features)

    @property
    def is_cross_entropy(self) -> bool:
        """Whether the closed forms of softmax cross-entropy apply."""
        return self.loss == "cross_entropy"

    def build(self) -> nn.Module:
        """A model in eval mode that is the caller's own: a copy of the one given, or the factory's.

        Raises:
            InputError: the factory gives no module.
        """
        model = copy.deepcopy(self.model) if isinstance(self.model, nn.Module) else self.model()
        if not isinstance(model, nn.Module):
            raise InputError(
                f"Task(model=...) is a factory that returned a {type(model).__name__}.",
                "return a torch.nn.Module from it.",
            )
        return model.eval()

    def row_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each row, `[B]`, without reduction."""
        if callable(self.loss):
            return self.loss(logits, labels)
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")
