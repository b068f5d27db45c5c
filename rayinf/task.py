"""What is valued: a trained model, its loss, and the columns of the tables that feed it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule

from rayinf.errors import InputError

RowLoss = Callable[[Tensor, Tensor], Tensor]
# (task, train, weights [n] or None, seed) -> a trained model.
Trainer = Callable[["Task", Any, Any, int], nn.Module]


def column_name(column: Any) -> Any:
    """A column that is called by an integer, as in a frame made of an array, by the name that Arrow gives it."""
    whole = isinstance(column, Integral) and not isinstance(column, bool)
    return str(column) if whole else column


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
            factory themselves, so that a large checkpoint is loaded where it is used instead of being sent. What
            `torch.compile` made is taken off.
        loss: "cross_entropy", or a callable `(outputs [B, C], labels [B]) -> loss of each row [B]` (no reduction) of
            what the model returns: logits; log-probabilities, such as `nn.NLLLoss(reduction="none")` behind a
            `LogSoftmax`; or probabilities, of which it takes the logarithm. The values are those of the same model
            with logits.
        features: a column of the tables (a number, a list, a tensor, bytes or text), or a list of numeric columns.
            Columns of a frame that are called by integers are named by these, here and below.
        label: the column of labels, integers or strings.
        group: a column of groups, for the objectives that compare groups.
        row_id: a column of unique ids that the scores carry; a named index of a pandas frame is such a column too.
            None: the column `row_id` where the training table has one, else the frame's index where it has a name or
            is not the default one (it must be unique), else the position of the row in the table.
        transform: picklable; turns the features of a batch (NumPy, `[B, ...]`) into the model's input: an array or
            tensor, or a tuple or dict of them, which the model gets as arguments.
        parameters: what is valued: "all" that are trainable (`requires_grad`); "supported" (those of them that K-FAC
            has a rule for); "last" (the last linear layer); or a list of module names. Layers that are named, and the
            last one, are valued whether they are frozen or not.
        l2: the ridge of the fit, mean loss + l2/2 * ||theta||^2, over all parameters that are valued.
        fit: how to train, for the steps that retrain: a `Fit`, or a callable `(task, train, weights, seed) -> model`
            that does it all. `train` is the table as it was given to the verb; `weights` is None, or a weight `[n]`
            for each of its rows, 0 on rows that are left out (drop these); `task.l2` is the ridge to use. It must be
            picklable where a cluster is used. None: a linear softmax head, as `logistic_regression` makes, is fitted
            to convergence, and other models cannot be retrained.
        classes: the labels in the order of the logits. None: integer labels in [0, C) name their logit (as text, too),
            and other labels are taken in sorted order, numbers by their value; where another order fits the model's
            predictions on 512 training rows clearly better, that is an error which names it.
        mask: for tokens; the model's input -> a boolean `[B, T]` that is False on padding. Masked positions
            enter no factor.
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

    def __post_init__(self) -> None:
        """Refuse arguments that no table could make right.

        Raises:
            InputError: an argument has the wrong type or range.
        """
        self._name_columns()
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
        fits = self.fit is None or isinstance(self.fit, Fit) or callable(self.fit)
        if not fits or isinstance(self.fit, type):  # the class Fit itself is callable too
            raise InputError(
                f"Task(fit={self.fit!r}) says nothing of how to train.",
                "pass rayinf.Fit(optimizer=..., lr=...), or a function (task, train, weights, seed) -> nn.Module.",
            )

    def _name_columns(self) -> None:
        for key in ("label", "group", "row_id"):
            object.__setattr__(self, key, column_name(getattr(self, key)))
        if isinstance(self.features, Sequence) and not isinstance(self.features, str | bytes):
            object.__setattr__(self, "features", [column_name(c) for c in self.features])

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
        return _uncompiled(model).eval()

    def row_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each row, `[B]`, without reduction."""
        if callable(self.loss):
            return self.loss(logits, labels)
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def _uncompiled(model: nn.Module) -> nn.Module:
    """The model without `torch.compile`, whose graphs give up the layers' inputs and outputs."""
    if isinstance(model, OptimizedModule):
        model = model._orig_mod
    for name, child in list(model.named_children()):
        inner = _uncompiled(child)
        if inner is not child:
            setattr(model, name, inner)
    # model.compile() keeps the module, and calls what it compiled in its place.
    if getattr(model, "_compiled_call_impl", None) is not None:
        model._compiled_call_impl = None
    return model
