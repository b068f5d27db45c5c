"""Minibatches with gaps: order and cuts of all rows, without those that are left out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

import rayinf
from rayinf.data.batches import Columns
from rayinf.data.tables import as_table
from rayinf.training import shuffle
from rayinf.training.shuffle import Rows, Shuffled

ROWS = 3000
COLUMNS = Columns(("x",), True, "label", None)


def batches(keep: np.ndarray, size: int, gaps: bool, seed: int = 0) -> list[Rows]:
    table = as_table(pa.table({"x": np.arange(ROWS) * 1.0, "label": np.arange(ROWS) % 2}), [], [], "train")
    return list(Shuffled(table, COLUMNS, keep, size, gaps).epoch(torch.Generator().manual_seed(seed)))


@pytest.fixture(params=["in one buffer", "streamed"])
def _buffers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "streamed":
        monkeypatch.setattr(shuffle, "BUFFER_ROWS", 500)
    return


@pytest.mark.usefixtures("_buffers")
def test_gaps_leave_all_else_as_it_was() -> None:
    keep = np.random.default_rng(0).random(ROWS) < 0.8
    whole, thinned = batches(np.ones(ROWS, bool), 64, False), batches(keep, 64, True)
    assert len(whole) == len(thinned) == 47
    for a, b in zip(whole, thinned, strict=True):
        assert b.positions.tolist() == [p for p in a.positions if keep[p]]
        assert b.x[:, 0].tolist() == b.positions.tolist()
        assert (b.labels == b.positions % 2).all()
    plain = batches(keep, 64, False)
    assert sorted(np.concatenate([b.positions for b in plain])) == np.flatnonzero(keep).tolist()
    assert plain[0].positions.tolist() != thinned[0].positions.tolist()


@pytest.mark.usefixtures("_buffers")
@pytest.mark.parametrize(("share", "size"), [(0.02, 8), (0.3, 2), (0.0007, 64)])
def test_no_minibatch_of_one_row(share: float, size: int) -> None:
    """Batch norm needs two."""
    keep = np.zeros(ROWS, bool)
    keep[np.random.default_rng(1).permutation(ROWS)[: round(share * ROWS)]] = True
    found = batches(keep, size, True)
    assert min(map(len, found)) >= 2
    order = [p for b in batches(np.ones(ROWS, bool), size, False) for p in b.positions if keep[p]]
    assert [p for b in found for p in b.positions] == order


def test_single_rows_where_these_were_asked_for() -> None:
    keep = np.arange(ROWS) < 5
    assert [len(b) for b in batches(keep, 1, True)] == [1] * 5
    only = np.arange(ROWS) == 7
    assert [b.positions.tolist() for b in batches(only, 16, True)] == [[7]]


def test_pairs_differ_by_the_rows_alone() -> None:
    """A row that hardly counts moves a paired fit far less than a fit in another order."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    x = (rng.normal(size=(120, 3)) + y[:, None]).astype(np.float32)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    # Adam's first steps go by signs, which a single row may turn.
    fit = rayinf.Fit(optimizer="sgd", lr=0.05, epochs=5, batch_size=16)
    task = rayinf.Task(model, l2=1e-2, fit=fit)

    def parameters(keep: np.ndarray | None, paired: bool) -> torch.Tensor:
        fitted = rayinf.retrain(task, (x, y), keep=keep, rows=120, paired=paired).build()
        return torch.cat([p.detach().flatten() for p in fitted.parameters()])

    def moved(paired: bool) -> float:
        whole = parameters(None, paired)
        return sum(float((parameters(np.arange(120) != row, paired) - whole).norm()) for row in range(8))

    assert moved(paired=True) < 0.5 * moved(paired=False)


def test_a_pair_of_all_rows_is_the_fit_itself() -> None:
    x, y = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32), np.arange(40) % 2
    task = rayinf.Task(nn.Linear(3, 2), l2=1e-2, fit=rayinf.Fit(epochs=2, batch_size=7))
    plain, paired = (rayinf.retrain(task, (x, y), paired=p).build() for p in (False, True))
    assert torch.equal(plain.weight, paired.weight)
