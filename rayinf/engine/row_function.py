"""Whether transform, model and losses are functions of the row: on the same rows twice, one by one, and among others.

Values of rows add up over batches of any size and order, so that a row must give the same in each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayinf.core.capture import forward
from rayinf.data.batches import Array
from rayinf.engine.worker import Worker
from rayinf.errors import InputError, RayinfError
from rayinf.task import RowLoss
from rayinf.user_code import UserCodeError

# Differences that rounding may make between batches, as a share of the largest value.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
# And between two passes over the same batch.
_REPEAT = 1e-4
_TINY = 1e-9
# A loss is a difference of logits: rounding of these, as a share of the largest.
_LEAST = 1e-6


def check_transform(worker: Worker, x: Array, rows: int) -> None:
    """Refuse a transform that is random, reorders rows, mixes them, or fails on a batch of one row.

    Args:
        worker: whose task has one.
        x: features of `rows` rows, and then of some more.
        rows: that are looked at; `x` has them first.

    Raises:
        InputError: what it does.
    """
    if worker.job.task.transform is None:
        return
    what = "Task(transform=...)"
    first, again = (_leaves(worker.input(x[:rows].copy())) for _ in range(2))
    if not _agree(first, again):
        if _is_permuted(first, again, rows):
            raise InputError(f"{what} returns the rows in another order each time.", _keep_order())
        raise InputError(
            f"{what} returns other values for the same {rows} rows when it is called again: it is random.",
            "leave random augmentation to training, and give every row the same input each time.",
        )
    per_row = [len(v) == rows if v.ndim else False for v in first]
    if not any(per_row):
        raise InputError(
            f"{what} returns {_shapes(first)} for {rows} rows: no array has the rows as its first axis.",
            "return arrays or tensors [B, ...], with the batch first.",
        )
    for k in range(rows):
        alone = _leaves(_alone(worker, x[k : k + 1].copy()))
        for batch, one, own in zip(first, alone, per_row, strict=True):
            if own and (one.ndim != batch.ndim or len(one) != 1):
                raise InputError(
                    f"{what} returns {list(one.shape)} for a batch of one row, and {list(batch.shape)} for {rows} "
                    "rows: it drops the batch's axis (squeeze?).",
                    "keep the batch as the first axis: a batch may hold one row, such as the last.",
                )
        inputs = [(b[k : k + 1], one) for b, one, own in zip(first, alone, per_row, strict=True) if own]
        same = [_close(a, b, _rounding(a)) for a, b in inputs if a.shape == b.shape]  # else padded to the longest
        if not all(same):
            if _is_row(inputs, [b for b, own in zip(first, per_row, strict=True) if own]):
                raise InputError(f"{what} returns the rows in another order than it gets them.", _keep_order())
            raise InputError(
                f"{what} returns other values for row {k} alone than for it among {rows} rows: a row's input depends "
                "on the rest of its batch (it is scaled by the batch's mean or range?).",
                "take such numbers once from all training rows, and hold them fixed.",
            )


def check_model(worker: Worker, x: Array, rows: int) -> None:
    """Refuse a model whose logits of a row are random, or depend on the other rows of its batch.

    Args:
        worker: that looks.
        x: features of `rows` rows, and then of some more.
        rows: that are looked at; `x` has them first.

    Raises:
        InputError: what it does.
        RayinfError: as reading its input does.

    Cost: five small passes forward.
    """
    logits, again = (_logits(worker, x[:rows]) for _ in range(2))
    if not _close(logits, again, _repeat(logits)):
        raise InputError(
            f"The model gives other logits for the same {rows} rows when it is called again, in eval mode: they differ "
            f"by up to {_gap(logits, again):.2g}. It is random, or keeps a state.",
            "let dropout follow the mode, as F.dropout(x, p, training=self.training), and draw nothing in forward.",
        )
    for k in {0, rows - 1}:
        try:
            alone = _logits(worker, x[k : k + 1])
        except UserCodeError as error:
            raise InputError(
                f"The model fails on a batch of one row (row {k} of the training table): {error.parts[0]}.",
                "keep the batch's axis in forward: a batch may hold one row, such as the last.",
            ) from error
        if alone.shape != logits[k : k + 1].shape:
            raise InputError(
                f"The model returns {list(alone.shape)} for a batch of one row, and {list(logits.shape)} for {rows} "
                "rows: it drops the batch's axis (squeeze?).",
                "keep the batch as the first axis: a batch may hold one row, such as the last.",
            )
        _check_apart(logits[k : k + 1], alone, f"row {k} alone", rows)
    order = _mixed(rows, len(x))
    places = [order.index(k) for k in range(rows)]
    _check_apart(logits, _logits(worker, x[order])[places], f"them among {len(x)}, in another order", rows)


def check_rows(rows: RowLoss, logits: Tensor, labels: Tensor, name: str = "The loss") -> None:
    """Refuse a loss, or an objective's function of rows, that is random or mixes rows.

    Args:
        rows: `(logits, labels) -> [B]`.
        logits: `[B, C]`, of some rows.
        labels: `[B]`.
        name: how errors call it.

    Raises:
        InputError: what it does.
    """
    spread = torch.sin(torch.arange(logits.numel(), device=logits.device, dtype=torch.float64)).view(logits.shape)
    # The logits themselves, and others that differ from row to row even where the model's do not.
    for given in (logits, logits + (spread * (1 + logits.abs().amax())).to(logits.dtype)):
        whole, again = (_values(rows, given, labels, name) for _ in range(2))
        if not _close(whole, again, _repeat(whole)):
            raise InputError(
                f"{name} gives other values for the same rows when it is called again: it is random.",
                "let it depend on the logits and labels alone.",
            )
        for k in range(len(labels)):
            alone = _values(rows, given[k : k + 1], labels[k : k + 1], name)
            slack = _rounding(given) * _scale(whole) + _LEAST * _scale(given) + _TINY
            if _gap(whole[k : k + 1], alone) > slack:
                raise InputError(
                    f"{name} of a row depends on other rows of its batch: {float(whole[k]):.6g} for row {k} among "
                    f"{len(labels)} rows, {float(alone[0]):.6g} for it alone.",
                    "return each row's own loss: no mean, maximum or normalisation over the batch.",
                )


def _values(rows: RowLoss, logits: Tensor, labels: Tensor, name: str) -> Tensor:
    try:
        found = rows(logits.detach().clone().requires_grad_(True), labels)
    except RayinfError:
        raise
    except Exception as error:
        raise InputError(
            f"{name} fails on {len(labels)} row{'s' if len(labels) > 1 else ''}: {type(error).__name__}: {error}.",
            "it is called as (logits [B, C], labels [B]) -> [B], on batches of any size.",
        ) from error
    if not isinstance(found, Tensor) or found.shape != (len(labels),):
        got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(
            f"{name} returned {got} for a batch of {len(labels)} rows: it must be one value a row.",
            'return losses of shape [B], for one row too: with torch losses, pass reduction="none".',
        )
    return found.detach()


def _logits(worker: Worker, x: Array) -> Tensor:
    with torch.no_grad():
        return forward(worker.model, worker.input(x.copy()))


def _alone(worker: Worker, x: Array) -> Any:
    try:
        return worker.input(x)
    except UserCodeError as error:
        raise InputError(
            f"Task(transform=...) fails on a batch of one row: {error.parts[0]}.",
            "keep the batch as the first axis: a batch may hold one row, such as the last.",
        ) from error


def _check_apart(logits: Tensor, other: Tensor, how: str, rows: int) -> None:
    scale = float(logits.double().abs().amax())
    if not _close(logits, other, _rounding(logits)):
        raise InputError(
            f"The logits of one row depend on other rows of its batch: those of {rows} rows differ from those of {how} "
            f"by up to {_gap(logits, other):.2g} (the largest is {scale:.2g}).",
            "keep the batch as the first axis in forward, and let no layer mix rows (BatchNorm in eval mode is fine).",
        )


def _mixed(rows: int, most: int) -> list[int]:
    """The rows in reverse order, with the other ones between them."""
    found: list[int] = []
    others = list(range(rows, most))
    for k in reversed(range(rows)):
        found += [*others[:1], k]
        others = others[1:]
    return found + others


def _leaves(x: Any) -> list[Tensor]:
    """The tensors of an input."""
    return list(_walk(x))


def _walk(x: Any) -> Iterator[Tensor]:
    if isinstance(x, dict):
        for value in x.values():
            yield from _walk(value)
    elif isinstance(x, tuple | list):
        for value in x:
            yield from _walk(value)
    else:
        yield x


def _shapes(tensors: Sequence[Tensor]) -> str:
    return ", ".join(str(list(v.shape)) for v in tensors) or "nothing"


def _keep_order() -> str:
    return "return one input a row, in the order of the rows."


def _rounding(like: Tensor) -> float:
    share = _ROUNDING.get(like.dtype, 0.0)
    return max(share, 5e-3) if like.is_cuda and like.dtype is torch.float32 else share  # TF32


def _repeat(like: Tensor) -> float:
    return _rounding(like) if like.is_cuda else _REPEAT


def _agree(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    if len(first) != len(second):
        return False
    return all(a.shape == b.shape and _close(a, b, _repeat(a)) for a, b in zip(first, second, strict=True))


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether two tensors agree to a share of the largest value; NaN and infinities in the same places."""
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    return bool(_gap(a, b) <= tolerance * _scale(a) + _TINY)


def _scale(a: Tensor) -> float:
    finite = a[torch.isfinite(a)]
    return float(finite.double().abs().amax()) if finite.numel() else 0.0


def _gap(a: Tensor, b: Tensor) -> float:
    """The largest difference; infinite where only one is finite."""
    one, two = a.double(), b.double()
    same = (one == two) | (one.isnan() & two.isnan())
    apart = torch.where(same, 0.0, (one - two).abs())
    return float(torch.where(apart.isnan(), torch.inf, apart).amax()) if apart.numel() else 0.0


def _is_permuted(first: Sequence[Tensor], second: Sequence[Tensor], rows: int) -> bool:
    """Whether the rows of two inputs are the same in another order."""
    if any(a.shape != b.shape or not a.ndim or len(a) != rows for a, b in zip(first, second, strict=True)):
        return False
    keys = [
        sorted(tuple(np.asarray(v.flatten(1)[k].cpu().double())) for k in range(rows)) for v in (first[0], second[0])
    ]
    return keys[0] == keys[1]


def _is_row(inputs: Sequence[tuple[Tensor, Tensor]], batches: Sequence[Tensor]) -> bool:
    """Whether a row alone is another row of the batch."""
    return all(
        a.shape == b.shape and any(_close(batch[k : k + 1], b, _rounding(b)) for k in range(len(batch)))
        for (a, b), batch in zip(inputs, batches, strict=True)
    )
