"""What the user's own code raises or returns is said to be theirs: who, where, on which rows, and how to mend it."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from data.refusals import TRAIN, VALID, X, Y, task
from torch import Tensor, nn
from torch.nn import functional

import rayinf
from rayinf.user_code import UserCodeError, from_worker, on_rows, sendable, user_code

ROWS = "rows 0 to 3 of train (features [4, 4] float32)"


class Net(nn.Module):
    """A linear classifier with a function before and after it."""

    def __init__(self, after: Callable[[Tensor], Any], before: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.after, self.before = nn.Linear(4, 3), after, before

    def forward(self, x: Tensor) -> Any:
        return self.after(self.head(self.before(x)))


def plain(x: Tensor) -> Tensor:
    return x


def raise_at(row: int) -> Callable[[Any], Any]:
    """A function of features that fails on the batch which holds a training row, wherever it stands."""

    def check(x: Any) -> Any:
        held = torch.as_tensor(np.asarray(x) if isinstance(x, np.ndarray) else x.detach()).reshape(len(x), -1)
        if bool((held == torch.tensor(X[row])).all(1).any()):
            raise KeyError("colour")
        return torch.as_tensor(x)

    return check


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


def refused(kind: type[Exception] = rayinf.InputError, **given: Any) -> rayinf.RayinfError:
    with pytest.raises(kind) as caught:
        rayinf.influence(**{"task": task(), "train": TRAIN, "valid": VALID, "batch_size": 4, **given})
    error = caught.value
    assert isinstance(error, rayinf.RayinfError)
    assert "\n" not in str(error)
    assert str(error).count("Fix: ") == 1
    return error


# --- What a model gives


@pytest.mark.parametrize(
    ("after", "said", "mend"),
    [
        (lambda z: {"loss": 0.1, "logits": z}, "returned a dict with 'loss', 'logits', not a tensor", "['logits']"),
        (lambda z: (z, z.tanh()), "returned a tuple of 2", "self.model(...)[0]"),
        (lambda z: [z], "returned a list of 1", "self.model(...)[0]"),
        (lambda z: SimpleNamespace(logits=z), "returned a SimpleNamespace", "self.model(...).logits"),
        (lambda z: None, "returned a NoneType", "one tensor of logits"),
        (lambda z: z.detach().numpy(), "returned a ndarray", "one tensor of logits"),
        (lambda z: z.argmax(1), "returned [4] numbers of torch.int64", "before softmax or argmax"),
        (lambda z: z.round().long(), "returned [4, 3] numbers of torch.int64", "before softmax or argmax"),
        (lambda z: z > 0, "returned [4, 3] numbers of torch.bool", "floating-point"),
    ],
)
@pytest.mark.parametrize("curvature", ["ekfac", "exact"])
def test_what_is_not_logits(after: Any, said: str, mend: str, curvature: str) -> None:
    error = refused(task=task(Net(after)), curvature=curvature)
    assert f"The model {said}" in error.what
    assert ROWS in error.what
    assert mend in error.fix


@pytest.mark.parametrize("curvature", ["ekfac", "ggn", "identity"])
@pytest.mark.parametrize("after", [lambda z: z.detach(), lambda z: z.data, lambda z: torch.tensor(z.tolist())])
def test_logits_without_a_gradient(after: Any, curvature: str) -> None:
    """Also where no layer has a rule, and zeros would come out."""
    norm = nn.Sequential(nn.LayerNorm(4), Net(after))
    assert "logits have no gradient" in refused(task=task(Net(after)), curvature=curvature).what
    if curvature != "ekfac":
        assert "logits have no gradient" in refused(task=task(norm, parameters=["0"]), curvature=curvature).what


# --- What raises, early or late


def test_a_model_that_raises_on_a_late_batch() -> None:
    """Row 53 is in the batch of rows 52 to 55."""
    error = refused(task=task(Net(plain, raise_at(53))))
    assert "The model raised KeyError: 'colour' (test_user_code.py, line " in error.what
    assert error.what.endswith("on rows 52 to 55 of train (features [4, 4] float32).")
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyError):
        cause = cause.__cause__
    assert isinstance(cause, KeyError)


@pytest.mark.parametrize("curvature", ["ekfac", "exact", "ggn", "identity"])
def test_a_transform_that_raises_on_a_late_batch(curvature: str) -> None:
    error = refused(task=task(transform=raise_at(57)), curvature=curvature)
    assert "Task(transform=...) raised KeyError" in error.what
    assert "on rows 56 to 59 of train" in error.what


def test_the_line_is_the_users() -> None:
    """The line that raises, in the user's file."""
    line = next(k for k, text in enumerate(Path(__file__).read_text().splitlines(), 1) if 'raise KeyError("col' in text)
    assert f"(test_user_code.py, line {line})" in refused(task=task(transform=raise_at(30))).what


def test_a_loss_that_raises() -> None:
    def early(logits: Tensor, labels: Tensor) -> Tensor:
        raise ZeroDivisionError("no rows")

    def late(logits: Tensor, labels: Tensor) -> Tensor:
        if len(labels) == 2:
            raise ValueError("two rows")
        return cross_entropy(logits, labels)

    assert "Task(loss=...) raised ZeroDivisionError: no rows" in refused(task=task(loss=early)).what
    # The last batch of 30 validation rows holds two, and it is the first of that size.
    error = refused(task=task(loss=late), curvature="identity")
    assert "Task(loss=...) raised ValueError: two rows" in error.what
    assert "on rows 28 to 29 of valid" in error.what


def test_a_transform_that_drops_the_axis_of_one_row() -> None:
    """59 of 60 rows a batch: the last holds one."""
    error = refused(task=task(transform=lambda x: torch.tensor(x).squeeze()), batch_size=59)
    assert "returns [4] for a batch of one row, and [4, 4] for 4 rows" in error.what
    assert "squeeze" in error.what


def test_a_transform_may_write_into_what_it_gets(recwarn: pytest.WarningsRecorder) -> None:
    """Arrays of a table are read-only: it gets a copy, torch has nothing to warn of, and the next pass is no other."""

    def halved(x: Any) -> Any:
        x /= 2
        return torch.from_numpy(x)

    rows = pa.table({"features": pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 4), "label": Y})
    found = rayinf.influence(task(transform=halved), rows, VALID, batch_size=16).to_numpy()
    expected = rayinf.influence(task(transform=lambda x: torch.tensor(x / 2)), rows, VALID, batch_size=16).to_numpy()
    np.testing.assert_array_equal(found, expected)
    assert not [w for w in recwarn if "writable" in str(w.message)]


def test_a_factory_that_raises_or_gives_something_else() -> None:
    def build() -> nn.Module:
        raise FileNotFoundError("no checkpoint at /models/a.pt")

    error = refused(task=task(build))
    assert "a factory, raised FileNotFoundError: no checkpoint at /models/a.pt (test_user_code.py" in error.what
    assert "returned <class Linear>, which is not" in refused(task=task(lambda: nn.Linear)).what
    assert "returned None, which is not" in refused(task=task(lambda: None)).what


class _NotCopied(nn.Linear):
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("this handle is mine alone")


def test_models_without_values_or_copies() -> None:
    error = refused(task=task(_NotCopied(4, 3)))
    assert "cannot be copied: RuntimeError: this handle is mine alone" in error.what
    assert "function without arguments" in error.fix
    assert "'weight' belongs to a lazy layer" in refused(task=task(nn.LazyLinear(3))).what
    assert (
        "'1.weight' is on the meta device"
        in refused(task=task(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3, device="meta")))).what
    )


def test_an_objective_that_raises_or_has_no_gradient() -> None:
    def broken(logits: Tensor, labels: Tensor) -> Tensor:
        raise ValueError("no such class")

    def detached(logits: Tensor, labels: Tensor) -> Tensor:
        return logits.detach().sum(1)

    assert "Objective 'broken' raised ValueError: no such class" in refused(objective=broken).what
    assert "Objective 'detached' returned values without a gradient" in refused(objective=detached).what
    where = rayinf.Objective("some", where=lambda y: y[:1] == 0)
    assert "where of objective 'some' returned [1] for 4 rows" in refused(objective=where).what
    combine = rayinf.Objective("gap", split="label", combine=lambda s, n: s.missing)  # type: ignore[attr-defined]
    table = {"features": list(X), "label": Y}
    assert "combine of objective 'gap' raised AttributeError" in refused(objective=combine, valid=pa.table(table)).what
    attack = rayinf.robustness(lambda predict, x, labels, loss: 1 / 0)  # type: ignore[arg-type,return-value]
    assert "The attack of objective 'robustness' raised ZeroDivisionError" in refused(objective=attack).what


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda z, y: cross_entropy(z, y).detach(), "without a gradient in the logits"),
        (lambda z, y: (z.argmax(1) != y).float(), "without a gradient in the logits"),
        (lambda z, y: torch.ones(len(y), requires_grad=True), "does not depend on the logits"),
        (lambda z, y: functional.cross_entropy(z, y), "returned () for a batch of 4 rows"),
        (nn.CrossEntropyLoss(), "returned () for a batch of 4 rows"),
        (lambda z, y: cross_entropy(z, y).tolist(), "returned list"),
    ],
)
def test_a_loss_of_no_use(loss: Any, said: str) -> None:
    assert said in refused(task=task(loss=loss)).what


# --- Masks


class _Words(nn.Module):
    """Two positions of two numbers each, one layer over positions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head = nn.Linear(2, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x.view(-1, 2, 2)).tanh().mean(1))


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.float32, "numpy"])
def test_masks_of_zeros_and_ones_are_booleans(kind: Any) -> None:
    """As tokenizers give them, with the values that the boolean mask gives."""

    def boolean(x: Tensor) -> Tensor:
        return torch.stack([torch.ones(len(x), dtype=torch.bool), x[:, 2] > 0], 1)

    def other(x: Tensor) -> Any:
        return boolean(x).numpy().astype(np.int64) if kind == "numpy" else boolean(x).to(kind)

    found = [rayinf.influence(task(_Words(), mask=m), TRAIN, VALID).to_numpy() for m in (boolean, other, None)]
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 1e-3 * np.abs(found[2]).max()


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (lambda x: torch.ones(len(x)), "returned [4] for 4 rows"),
        (lambda x: torch.ones(len(x), 2, 1), "returned [4, 2, 1] for 4 rows"),
        (lambda x: torch.ones(1, 2), "returned [1, 2] for 4 rows"),
        (lambda x: None, "returned NoneType for 4 rows"),
        (lambda x: torch.full((len(x), 2), -1e9), "other values than 0 and 1"),
        (lambda x: x.missing, "raised AttributeError"),
    ],
)
def test_masks_of_no_use(mask: Any, said: str) -> None:
    error = refused(task=task(_Words(), mask=mask))
    assert f"Task(mask=...) {said}" in error.what or said in error.what
    assert ROWS in error.what


# --- Values that are not finite


def test_the_row_whose_logits_are_not_finite_is_named() -> None:
    """Of the validation table, which is summed: row 17 of 30 alone."""
    spoilt = VALID[0][17]

    def after(x: Tensor) -> Tensor:
        return torch.where((x == torch.tensor(spoilt)).all(1, keepdim=True), torch.nan, x)

    error = refused(task=task(Net(plain, after)), curvature="identity")
    assert "NaN or infinite on row 17 of valid (id 17)" in error.what


# --- Training and measuring


def test_evaluate_and_retrain_name_rows() -> None:
    with pytest.raises(
        UserCodeError, match=r"transform.* raised KeyError.* on rows? .*of train|on rows 0 to 59 of test"
    ):
        rayinf.evaluate(task(transform=raise_at(33)), TRAIN)
    fit = rayinf.Fit(epochs=1, batch_size=8, lr=0.1)
    with pytest.raises(UserCodeError, match=r"raised KeyError: 'colour' .* 8 rows of train \(positions \[.*\b33\b"):
        rayinf.retrain(task(transform=raise_at(33), fit=fit), TRAIN)

    def broken(task: Any, train: Any, weights: Any, seed: int) -> nn.Module:
        raise OSError("disk is full")

    with pytest.raises(UserCodeError, match=r"Task\(fit=...\), a function, raised OSError: disk is full"):
        rayinf.retrain(task(fit=broken), TRAIN)


# --- Between processes


def test_errors_travel_with_all_they_say() -> None:
    rows = on_rows(lambda: "rows 3 to 4 of train")
    with pytest.raises(UserCodeError) as caught, rows, user_code("The model", "mend it."):
        raise ValueError("two\nlines.")
    error = caught.value
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is UserCodeError
    assert str(again) == str(error)
    assert "The model raised ValueError: two lines (test_user_code.py, line " in str(error)
    assert str(error).endswith(", on rows 3 to 4 of train. Fix: mend it.")


def test_errors_of_the_library_and_interrupts_pass() -> None:
    for error in (rayinf.RunError("The disk is full.", "free space."), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, user_code("The model", "mend it."):
            raise error
        assert caught.value is error


def test_what_a_worker_raises() -> None:
    """One line, and for code that cannot be found there, how to send it."""
    missing = from_worker(ModuleNotFoundError("No module named 'mytask'"))
    assert isinstance(missing, rayinf.InputError)
    assert "cannot import the code of the Task: No module named 'mytask'" in missing.what
    assert "working_dir" in missing.fix
    other = from_worker(ValueError("odd\nthing"))
    assert isinstance(other, rayinf.RunError)
    assert "A worker raised ValueError: odd thing, which rayinf did not expect." in other.what
    with pytest.raises(rayinf.InputError, match="cannot be sent to them: TypeError: cannot pickle"), sendable():
        pickle.dumps(threading.Lock())
