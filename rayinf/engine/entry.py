"""The arguments of public verbs, checked before any work: one rule a name, which means the same in every verb.

The rules are functions of this package, not pydantic's types: pydantic's errors ("Input should be greater than or equal
to 0") give no fix, and its strict integers refuse NumPy's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from rayinf.arguments import flag, is_index, names, number, one_of, optional, path, refuse, shown, text, whole
from rayinf.core.response import parse_damping
from rayinf.data.scores import Scores
from rayinf.engine.job import Cluster
from rayinf.errors import InputError
from rayinf.store.places import AnyPath, open_place
from rayinf.task import Task

# Curvatures that are sums over layers of Kronecker factors, and those that are one dense matrix.
KRONECKER = ("ekfac", "kfac")
DENSE = ("exact", "ggn")
CURVATURES = (*KRONECKER, *DENSE, "identity")
# Strategies of `acquire`: by FI, by influence, by dropout samples, by what goes into the last layer, by the logits.
BY_MEASURE = ("fi", "fi_batch")
BY_INFLUENCE = ("iv", "isal", "tree")
BY_DROPOUT = ("bald", "batchbald")
BY_EMBEDDING = ("badge", "coreset", "typiclust")
BY_LOGITS = ("entropy", "margin", "least_confidence")
# Those that pick rows together: how many are wanted matters to which.
JOINT = ("fi_batch", "batchbald", *BY_EMBEDDING)
STRATEGIES = (*BY_MEASURE, *BY_INFLUENCE, *BY_DROPOUT, *BY_EMBEDDING, *BY_LOGITS, "random")
# Above, drawn numbers would repeat; verbs that train count on from a seed.
_MOST_SEED = 2**62


def check(**given: Any) -> dict[str, Any]:
    """Refuse arguments of a verb that no table could make right.

    Args:
        given: arguments under their public names. Those that have no rule here (tables, say) are checked where they
            are used.

    Returns:
        Those that have a rule, as a rule gives them back: plain numbers for NumPy's, places for paths.

    Raises:
        InputError: the first that has the wrong type or is out of range.
    """
    found = {name: (value, _RULES[name](name, value)) for name, value in given.items() if name in _RULES}
    return {name: value if plain is None else plain for name, (value, plain) in found.items()}


def check_task(name: str, value: Any) -> None:
    """Refuse what is not a Task: a model, most often.

    Raises:
        InputError: how to make it one.
    """
    if isinstance(value, Task):
        return
    expected = "a rayinf.Task"
    if isinstance(value, nn.Module):
        refuse(name, value, expected, "wrap the model: rayinf.Task(model).")
    if hasattr(value, "fit") and hasattr(value, "predict"):
        fix = "wrap a torch model, rayinf.Task(model); rayinf.logistic_regression(train) makes a linear one."
        refuse(name, value, expected, fix)
    refuse(name, value, expected, 'pass rayinf.Task(model, features="...", label="...").')


def require_one_model(task: Task, verb: str) -> None:
    """Refuse a task with the weights of several models.

    Raises:
        InputError: it has.
    """
    if task.members:
        kind = "ensemble" if task.ensemble is not None else "checkpoints"
        raise InputError(
            f"{verb} takes one model, and the task has {len(task.members)} ({kind}=...).",
            f"use influence or self_influence, or pass the task of one model: dataclasses.replace(task, {kind}=None).",
        )


def check_scores(name: str, value: Any) -> None:
    """Refuse what is not Scores: the path of a run, or a frame.

    Raises:
        InputError: how to make it Scores.
    """
    if isinstance(value, Scores):
        return
    import pandas as pd

    if isinstance(value, str | Path):
        fix = f"open the run: rayinf.Scores.load({str(value)!r})."
    elif isinstance(value, pd.DataFrame):
        fix = 'pass rayinf.Scores.from_numpy(frame[["total"]].to_numpy(), ["total"]), with its columns of values.'
    else:
        fix = "pass what influence(...) gave, rayinf.Scores.load(folder), or rayinf.Scores.from_numpy(...)."
    refuse(name, value, "rayinf.Scores", fix)


def check_cluster(name: str, value: Any) -> None:
    """Refuse what is not a Cluster: its fields as a mapping, an address, a number of workers.

    Raises:
        InputError: how to make it a Cluster.
    """
    if value is None or isinstance(value, Cluster):
        return
    fix = "pass rayinf.Cluster(workers=2), or None to work in this process."
    if isinstance(value, dict) and value and all(isinstance(k, str) for k in value):
        fix = f"pass rayinf.Cluster({', '.join(f'{k}={shown(v)}' for k, v in value.items())})."
    elif isinstance(value, str):
        fix = f"pass rayinf.Cluster(address={value!r})."
    elif isinstance(value, int) and not isinstance(value, bool):
        fix = f"pass rayinf.Cluster(workers={value})."
    refuse(name, value, "a rayinf.Cluster or None", fix)


def check_place(name: str, value: Any) -> AnyPath:
    """The place that a path or URI names, here or in a store: absolute, since workers have folders of their own.

    Raises:
        InputError: not a path, or a URI that leads nowhere.
    """
    path(name, value)
    return open_place(value, name)


def check_aggregate(name: str, value: Any) -> str:
    """An aggregate's name, or a quantile as text; its parser refuses unknown names.

    Raises:
        InputError: it is neither text nor a number in [0, 1].
    """
    return str(value if isinstance(value, str) else number(name, value, "in [0, 1]"))


def check_ids(name: str, value: Any) -> None:
    """Refuse row ids that are not a collection.

    Raises:
        InputError: they are not.
    """
    several = isinstance(value, Sequence | np.ndarray | set | frozenset) or is_index(value)
    if value is None or (several and not isinstance(value, str | bytes)):
        return
    refuse(name, value, "a list or array of row ids", f"pass {name}=[...], with ids of rows.")


def check_seeds(name: str, value: Any) -> list[int]:
    """One seed or several, as a list in which each stands once.

    Raises:
        InputError: none, one that is not an integer in range, or one twice.
    """
    several = isinstance(value, Sequence | np.ndarray | range) and not isinstance(value, str)
    held = [whole(name, v, 0, _MOST_SEED) for v in (value if several else [value])]
    if not held or len(set(held)) < len(held):
        raise InputError(f"{name}={shown(value)} holds no seed, or one twice.", "pass an integer >= 0, or a list.")
    return held


def check_damping(name: str, value: Any) -> Any:
    """Refuse a damping that is neither a number nor one of the rules.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(value, str):
        return optional(number, name, value)
    with suppress(ValueError):
        parse_damping(value)
        return value.strip()
    expected = 'a finite number >= 0, "layer_mean:0.1" or "sample:3"'
    fix = f"pass {name}={value.strip()}, without quotes." if _is_number(value) else f"pass {expected}, or None."
    return refuse(name, value, expected, fix)


def _is_number(text: str) -> bool:
    try:
        return float(text) >= 0
    except ValueError:
        return False


def check_seed(name: str, value: Any) -> int:
    """Refuse a seed that is not an integer, or so large that draws would repeat.

    Raises:
        InputError: it is one of these.
    """
    return whole(name, value, 0, _MOST_SEED)


def check_strategies(name: str, value: Any) -> list[str]:
    """One strategy or several, as a list in which each stands once.

    Raises:
        InputError: none, one twice, or anything that is not a name.
    """
    names(name, value, "a strategy, or a list of strategies")
    return [value] if isinstance(value, str) else [str(v) for v in value]


def _at_least(least: int) -> Callable[[str, Any], Any]:
    return lambda name, value: whole(name, value, least)


def _in(allowed: str) -> Callable[[str, Any], Any]:
    return lambda name, value: number(name, value, allowed)


def _or_none(check: Callable[..., Any], *more: Any) -> Callable[[str, Any], Any]:
    return lambda name, value: optional(check, name, value, *more)


def _word(*allowed: Any) -> Callable[[str, Any], Any]:
    return lambda name, value: one_of(name, value, allowed)


_RULES: Mapping[str, Callable[[str, Any], Any]] = {
    "task": check_task,
    "against": _or_none(check_task),
    "scores": check_scores,
    "cluster": check_cluster,
    "out": _or_none(check_place),
    "factors": _or_none(check_place),
    "seed": check_seed,
    "curvature": _word(*CURVATURES),
    "fisher": _word("true", "empirical"),
    "precision": _word(None, "fp64", "bf16", "fp16"),
    "damping": check_damping,
    "inverse": _word("auto", "unrolled", "damped"),
    "training_time": _or_none(number, "> 0"),
    "on_error": _word("stop", "skip"),
    "halves": flag,
    "refit": flag,
    "retrain": flag,
    "predict": flag,
    "paired": flag,
    "stream": _or_none(flag),
    "cross_fit": _or_none(flag),
    "columns": _or_none(names, "a list of names of columns"),
    "batch_size": _or_none(whole, 1),
    "curvature_rows": _or_none(whole, 1),
    "rank": _or_none(whole, 1),
    "rows": _or_none(whole, 1),
    "top": _at_least(1),
    "n": _at_least(1),
    "rounds": _at_least(1),
    "samples": _at_least(1),
    "seeds": _at_least(1),
    "subsets": _at_least(3),
    "budget": _at_least(0),
    "floor": _at_least(0),
    "resamples": _at_least(10),
    "subsample": _in("in (0, 1]"),
    "share": _in("in (0, 1)"),
    "gap": _in("in (0, 1)"),
    "l2": _in(">= 0"),
    "aggregate": check_aggregate,
    "scale": _word("mean", "sum"),
    "perturb": lambda name, value: text(name, value, '"input", or the name of a layer'),
    "exclude": check_ids,
    "strategy": _word(*STRATEGIES),
    "by": _or_none(text, "the name of a column"),
    "mode": _word("direct", "correct"),
}
