"""What is valued: a trained model, its loss, and the columns of the tables that feed it."""

from __future__ import annotations

import copy
import inspect
import operator
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from rayinf.arguments import flag, function, names, number, one_of, optional, refuse, shown, text, whole
from rayinf.errors import InputError
from rayinf.user_code import LOSS, one_line, user_code

RowLoss = Callable[[Tensor, Tensor], Tensor]
# (task, train, weights [n] or None, seed) -> a trained model.
Trainer = Callable[["Task", Any, Any, int], nn.Module]


def column_name(column: Any) -> Any:
    """The name that Arrow gives a column; columns of a frame made from an array are named by integers."""
    whole = isinstance(column, Integral) and not isinstance(column, bool)
    return str(column) if whole else column


@dataclass(frozen=True)
class Fit:
    """How a model is trained, for the verbs that retrain it.

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
        """Refuse arguments of the wrong type or range.

        Raises:
            InputError: an argument has the wrong type or range.
        """
        one_of("Fit.optimizer", self.optimizer, ("sgd", "adam", "adamw"))
        one_of("Fit.schedule", self.schedule, ("constant", "cosine", "linear"))
        held = {
            "lr": number("Fit.lr", self.lr, "> 0"),
            "epochs": whole("Fit.epochs", self.epochs, 1),
            "batch_size": whole("Fit.batch_size", self.batch_size, 1),
            "momentum": number("Fit.momentum", self.momentum, "in [0, 1)"),
            "weight_decay": number("Fit.weight_decay", self.weight_decay),
            "fresh": flag("Fit.fresh", self.fresh),
        }
        for name, value in held.items():
            object.__setattr__(self, name, value)


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
        fit: how the model was trained, and is trained again by the steps that retrain: a `Fit`, or a callable
            `(task, train, weights, seed) -> model` that does it all. Values of a model that was trained from its start
            as a `Fit` says predict that training (`inverse="auto"` of `influence`). `train` is the table as it was
            given to the verb; `weights` is None, or a weight `[n]` for each of its rows, 0 on rows that are left out
            (drop these); `task.l2` is the ridge to use. It must be picklable where a cluster is used. None: a linear
            softmax head, as `logistic_regression` makes, is fitted to convergence, and other models cannot be
            retrained.
        classes: the labels in the order of the logits. None: integer labels in [0, C) name their logit (as text, too),
            and other labels are taken in sorted order, numbers by their value; where another order fits the model's
            predictions on 512 training rows clearly better, that is an error which names it.
        mask: for tokens; the model's input -> a boolean `[B, T]` that is False on padding. Masked positions
            enter no factor.
        version: your own name for what a digest cannot see. Two runs are the same, and scores belong to a task, if
            their code agrees: functions, the helpers and values that these name, and the model are compared by content.
            Where something in them cannot be read (a compiled object, a lock), this name stands for it: change it
            whenever that changes.
        checkpoints: the model's weights at several points of its training, in order: state dicts, modules, or paths or
            URIs of files that hold a state dict (safetensors, or `torch.save` of tensors alone). `influence` and
            `self_influence` value the rows under each, and give the mean of the values. `model` says what the weights
            are loaded into.
        ensemble: the weights of several models that were trained alike (under other seeds, say), in any order and in
            the same forms. `influence` and `self_influence` give the mean of the values over them, and its standard
            error as a column `<name>_se`. `model` is one of them only if its weights are listed.
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
    checkpoints: Sequence[Any] | None = None
    ensemble: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        """Refuse arguments that are wrong whatever the tables are.

        Raises:
            InputError: an argument has the wrong type or range.
        """
        self._name_columns()
        _check_model(self.model)
        if self.loss != "cross_entropy" if isinstance(self.loss, str) else not callable(self.loss):
            raise InputError(
                f"Task(loss={shown(self.loss)}) is unknown.",
                'use "cross_entropy" or a callable (logits [B, C], labels [B]) -> losses [B].',
            )
        if not isinstance(self.loss, str):
            function("Task.loss", self.loss, "a function (logits [B, C], labels [B]) -> losses [B]")
        check_columns(self.features, self.label, self.group, self.row_id, "Task.")
        optional(function, "Task.transform", self.transform, "a function from features to the model's input")
        optional(function, "Task.mask", self.mask, "a function from the model's input to a mask [B, T]")
        names("Task.parameters", self.parameters, '"all", "supported", "last", or a list of module names')
        object.__setattr__(self, "l2", number("Task.l2", self.l2))
        object.__setattr__(self, "classes", _classes(self.classes))
        optional(text, "Task.version", self.version, "a text that names your code, such as '2'")
        if not (self.fit is None or isinstance(self.fit, Fit)):
            function("Task.fit", self.fit, "a rayinf.Fit(...), or a function (task, train, weights, seed) -> nn.Module")
        self._check_members()

    def _check_members(self) -> None:
        """Refuse weights of several models in a form that cannot be loaded.

        Raises:
            InputError: another form, fewer than two, or both kinds.
        """
        given = {k: v for k in ("checkpoints", "ensemble") if (v := getattr(self, k)) is not None}
        if len(given) > 1:
            raise InputError("Task(checkpoints=..., ensemble=...): both are given.", "pass one of them.")
        for name, held in given.items():
            expected = "a list of two or more state dicts, modules, or paths of files with a state dict"
            if not isinstance(held, Sequence) or isinstance(held, str | bytes) or len(held) < 2:
                refuse(f"Task.{name}", held, expected, f"pass {name}=[first, second, ...].")
            kinds = (Mapping, nn.Module, str, os.PathLike)
            if wrong := [v for v in held if not isinstance(v, kinds) or (isinstance(v, str) and not v.strip())]:
                refuse(f"Task.{name}", wrong[0], expected, "pass model.state_dict(), or the path of one.")

    @property
    def members(self) -> Sequence[Any]:
        """The weights of several models, of either kind; empty for one model."""
        return self.ensemble or self.checkpoints or ()

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
        """A new model in eval mode: a copy of the one given, or the factory's.

        Raises:
            InputError: the model cannot be copied, the factory raises or gives no module, or parameters have no values.
        """
        if isinstance(self.model, nn.Module):
            try:
                model = copy.deepcopy(self.model)
            except Exception as error:
                raise InputError(
                    f"Task(model=...) cannot be copied: {one_line(error)}.",
                    "pass a function without arguments that builds the model and loads its weights, as model=build.",
                ) from error
        else:
            with user_code("Task(model=...), a factory,", "mend it: it is called without arguments in every process."):
                model = self.model()
        if not isinstance(model, nn.Module):
            raise InputError(
                f"Task(model=...) is a factory that returned {shown(model)}, which is not a torch.nn.Module.",
                "return the trained module itself from it.",
            )
        model = uncompiled(model)
        _check_values(model)
        return model.eval()

    def row_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each row, `[B]`, without reduction."""
        if callable(self.loss):
            with user_code(*LOSS):
                return self.loss(logits, labels)
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def uncompiled(model: nn.Module) -> nn.Module:
    """The model without `torch.compile`, whose graphs hide the layers' inputs and outputs from hooks."""
    compiling: Any = sys.modules.get("torch._dynamo.eval_frame")  # importing it takes longer than all of torch
    if compiling is not None and isinstance(model, compiling.OptimizedModule):
        compiled: Any = model
        model = compiled._orig_mod
    for name, child in list(model.named_children()):
        inner = uncompiled(child)
        if inner is not child:
            setattr(model, name, inner)
    # model.compile() keeps the module, and makes its __call__ use the compiled function.
    if getattr(model, "_compiled_call_impl", None) is not None:
        model._compiled_call_impl = None
    return model


def check_columns(features: Any, label: Any, group: Any, row_id: Any, owner: str = "") -> None:
    """Refuse arguments that are not names of columns.

    Raises:
        InputError: which argument.
    """
    names(f"{owner}features", features, "the name of a column, or a list of names")
    text(f"{owner}label", label, "the name of the column of labels")
    optional(text, f"{owner}group", group, "the name of a column, or None")
    optional(text, f"{owner}row_id", row_id, "the name of a column, or None")


def _check_model(model: Any) -> None:
    """Refuse a model that is neither a module nor a function that returns one.

    Raises:
        InputError: with a fix for each of the usual mistakes.
    """
    if isinstance(model, nn.Module):
        return
    expected = "a torch.nn.Module, or a function without arguments that returns one"
    if isinstance(model, type):
        fix = f"pass a trained instance of {model.__name__}, or a function that loads one."
    elif isinstance(model, str | bytes | os.PathLike):
        fix = "pass the loaded module, or a function that loads it from that path."
    elif isinstance(model, dict):
        fix = "load the state dict into a module, and pass that."
    elif isinstance(model, Task):
        fix = "pass the model itself; dataclasses.replace(task, ...) changes a Task."
    elif hasattr(model, "fit") and hasattr(model, "predict"):
        fix = "rayinf values torch models; rayinf.logistic_regression(train) fits a linear one to a table."
    elif not callable(model):
        fix = f"pass {expected}."
    else:
        if missing := _required(model):
            raise InputError(
                f"Task(model={shown(model)}) needs the arguments {', '.join(missing)}: a function as model must build "
                "the model without any.",
                "pass a torch.nn.Module; a plain function of inputs goes into the forward of one.",
            )
        return
    refuse("Task.model", model, expected, fix)


def _required(function: Callable[..., Any]) -> list[str]:
    """Names of a function's arguments without a default."""
    try:
        held = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-in functions have no signature
        return []
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in held if p.default is p.empty and p.kind not in kinds]


def _classes(given: Any) -> Any:
    """Classes as they were given; arrays and other collections of plain labels as a tuple.

    Raises:
        InputError: text, a set (which has no order), fewer than two, or one twice.
    """
    if given is None:
        return None
    expected = "a list of labels in the order of the logits"
    if isinstance(given, str | bytes | dict | set | frozenset) or not hasattr(given, "__iter__"):
        refuse("Task.classes", given, expected, 'pass a list, such as classes=["no", "yes"].')
    held = [v.item() if hasattr(v, "item") else v for v in given]
    if others := [v for v in held if not isinstance(v, int | str)]:
        refuse("Task.classes", others[0], f"{expected}, integers or text", "name every class as the tables do.")
    if len(set(held)) < max(len(held), 2):
        refuse("Task.classes", given, f"{expected}, at least two and each once", "name every class once.")
    return given if isinstance(given, list | tuple) and all(map(operator.is_, held, given)) else tuple(held)


def _check_values(model: nn.Module) -> None:
    """Refuse a model whose parameters have no values.

    Raises:
        InputError: lazy parameters, or some on the meta device.
    """
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(value):
            raise InputError(
                f"The model's {name!r} belongs to a lazy layer that was never called, and has no values yet.",
                "call the model once on a batch (and train it) before you pass it.",
            )
        if value.is_meta:
            raise InputError(
                f"The model's {name!r} is on the meta device, and has no values.",
                "load the weights: model.to_empty(device='cpu'), then model.load_state_dict(...).",
            )
