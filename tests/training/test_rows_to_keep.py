"""Which rows `retrain(keep=...)` trains on: those of a selection, a mask, or ids, never of positions among ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import rayinf
from rayinf.api.retrain import retrain

WIDTH, CLASSES, N = 3, 2, 60
RNG = np.random.default_rng(3)
X, Y = RNG.normal(size=(N, WIDTH)).astype(np.float32), RNG.integers(0, CLASSES, N)
IDS = RNG.permutation(N)  # ids that are positions of other rows: the worst case
VALID = RNG.normal(size=(30, WIDTH)).astype(np.float32), np.arange(30) % CLASSES
GONE = np.arange(N) % 3 == 0


def table(ids: Any = IDS, name: str = "row_id", x: np.ndarray = X, y: np.ndarray = Y) -> pa.Table:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), WIDTH)
    return pa.table({"features": lists, "label": y, name: ids})


def task(**more: Any) -> rayinf.Task:
    torch.manual_seed(0)
    return rayinf.Task(nn.Linear(WIDTH, CLASSES), l2=0.1, **more)


def by_hand(kept: np.ndarray) -> np.ndarray:
    """The minimum of the mean loss over some rows plus the ridge, by Newton in float64."""
    x = np.concatenate([X, np.ones((N, 1))], 1)[kept].astype(np.float64)
    y, w = np.eye(CLASSES)[Y[kept]], np.zeros((CLASSES, WIDTH + 1))
    for _ in range(50):
        z = x @ w.T
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        g = ((p - y).T @ x / len(x) + 0.1 * w).reshape(-1)
        s = np.einsum("nc,cd->ncd", p, np.eye(CLASSES)) - np.einsum("nc,nd->ncd", p, p)
        h = np.einsum("ncd,ni,nj->cidj", s, x, x).reshape(len(g), len(g)) / len(x) + 0.1 * np.eye(len(g))
        w = w - np.linalg.solve(h, g).reshape(w.shape)
    return w


def weights(found: rayinf.Task) -> np.ndarray:
    model = found.build()
    return np.concatenate([model.weight.detach().numpy(), model.bias.detach().numpy()[:, None]], 1)


def same(found: rayinf.Task, kept: np.ndarray) -> bool:
    return np.allclose(weights(found), by_hand(kept), atol=2e-5)


def selected(given: Any, task: rayinf.Task | None = None) -> rayinf.Selection:
    """The worst rows of made-up values go."""
    scores = rayinf.influence(task or globals()["task"](), given, VALID, curvature="identity")
    return rayinf.trim(scores, budget=20)


@pytest.mark.parametrize("ids", [IDS, IDS + 1000, np.array([f"r{k}" for k in IDS]), IDS.astype(np.uint8)])
@pytest.mark.parametrize("name", ["row_id", "customer"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_every_form_keeps_the_same_rows(ids: np.ndarray, name: str, on_disk: bool, tmp_path: Path) -> None:
    given: Any = table(ids, name)
    if on_disk:
        pq.write_table(given, tmp_path / "t.parquet", row_group_size=17)
        given = tmp_path / "t.parquet"
    of = task(row_id=name)
    selection = selected(given, of)
    kept = selection.mask
    assert sorted(selection.kept.tolist()) == sorted(ids[kept].tolist())
    forms: list[Any] = [
        selection, kept, kept.tolist(), torch.tensor(kept), selection.kept, selection.row_ids, selection.kept.tolist(),
        set(selection.kept.tolist()), pa.array(selection.kept).to_pylist(), selection.kept.astype(object),
    ]  # fmt: skip
    for keep in forms:
        assert same(retrain(of, given, keep=keep), kept), keep
    assert not same(retrain(of, given), kept)


def test_the_ids_of_a_selection_are_not_positions() -> None:
    """What was measured: test loss 0.379 for 0.433, on other rows than were asked for."""
    selection = selected(table())
    found = retrain(task(), table(), keep=selection.kept)
    positions = np.isin(np.arange(N), selection.kept)
    assert (positions != selection.mask).any()
    assert same(found, selection.mask)
    assert not same(found, positions)


def test_without_a_column_of_ids_positions_are_the_ids() -> None:
    keep = np.flatnonzero(~GONE)
    for form in (keep, keep[::-1], keep.astype(np.int32), set(keep.tolist())):
        assert same(retrain(task(), (X, Y), keep=form), ~GONE)
    selection = selected((X, Y))
    assert same(retrain(task(), (X, Y), keep=selection), selection.mask)
    # The same rows with ids of their own, by position.
    assert same(retrain(task(), table(IDS + 500), keep=selection), selection.mask)


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ([int(IDS.max()) + 1], r"names the id 60, which is not among column 'row_id' \(1 of 1 ids"),
        ([0, 1, -1, 99], r"the id -1, which is not among.*\(2 of 4"),
        ([5, 6, 5], "names the id 5 more than once"),
        ([], "keep is empty"),
        (np.zeros(0, np.int64), "keep is empty"),
        (np.zeros(N, bool), "None of the 60 rows is left"),
        (np.ones(N + 1, bool), r"keep is a mask \[61\] for 60 rows"),
        ([True, False], r"keep is a mask \[2\] for 60 rows"),
        ([1, True], "keep is an array"),
        (np.ones((N, 1), bool), "keep is an array"),
        ([1.0], "keep is an array"),
        ([None], "keep is an array"),
        (["r1"], "ids of the table are integers, and keep holds text"),
        ("row", "keep is a str"),
        (7, "keep is a int"),
    ],
)
def test_what_is_refused(keep: Any, said: str) -> None:
    with pytest.raises(rayinf.InputError, match=said):
        retrain(task(), table(), keep=keep)


def test_ids_that_stand_twice_in_the_table() -> None:
    with pytest.raises(rayinf.InputError, match="The id 4 stands in 2 rows"):
        retrain(task(), table(np.where(IDS == 5, 4, IDS)), keep=[4, 7])
    with pytest.raises(rayinf.InputError, match="ids of the table are text, and keep holds integers"):
        retrain(task(), table([f"r{k}" for k in IDS]), keep=[1])


# --- Selections from other tables


def test_a_selection_from_another_table() -> None:
    selection = selected(table())
    cases: dict[str, Any] = {
        r"other values, or its rows in another order \(label\)": table(y=1 - Y),
        r"other values, or its rows in another order \(features\)": table(x=X + 1),
        r"among 60 rows, and the table has 59": table().slice(1),
        r"other values, or its rows in another order \(features, label\)": table().take(np.arange(N)[::-1]),
        "Row 0 of train has the id": table(np.roll(IDS, 1)),
    }
    for said, given in cases.items():
        with pytest.raises(rayinf.InputError, match=said):
            retrain(task(), given, keep=selection)
    assert same(retrain(task(), table(), keep=selection), selection.mask)


def test_a_table_that_was_rewritten_between_two_verbs(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    pq.write_table(table(), file)
    selection = selected(file)
    pq.write_table(table(y=1 - Y), file)
    with pytest.raises(rayinf.InputError, match="of another table, by its fingerprint: the training table has other"):
        retrain(task(), file, keep=selection)
    pq.write_table(table(), file, row_group_size=7)  # the same rows, cut otherwise
    assert same(retrain(task(), file, keep=selection), selection.mask)


def test_a_selection_of_another_model() -> None:
    """Other weights are the start of the same training; another kind of model is told, and has its mask."""
    selection = selected(table())
    other = rayinf.Task(nn.Linear(WIDTH, CLASSES), l2=0.1)  # other weights
    assert same(retrain(other, table(), keep=selection), selection.mask)
    wide = rayinf.Task(
        nn.Sequential(nn.Linear(WIDTH, 4), nn.ReLU(), nn.Linear(4, CLASSES)), fit=rayinf.Fit(epochs=1, batch_size=16)
    )
    with pytest.raises(rayinf.InputError, match="a model with other code, attributes or shapes"):
        retrain(wide, table(), keep=selection)
    retrain(wide, table(), keep=selection.mask)


def test_a_selection_of_scores_from_elsewhere() -> None:
    scores = rayinf.Scores.from_numpy(np.arange(N) - 20.5, ["total"], row_ids=IDS)
    selection = rayinf.trim(scores, budget=20)
    assert "of" not in selection.metadata
    assert same(retrain(task(), table(), keep=selection), np.arange(N) > 19)
    with pytest.raises(rayinf.InputError, match="Row 0 of train has the id"):
        retrain(task(), table(np.roll(IDS, 1)), keep=selection)


def test_picks_from_a_pool() -> None:
    """A selection of `acquire` keeps what was picked, of the pool once it has labels."""
    picked = rayinf.acquire(task(), VALID, table().drop_columns(["label"]), n=25, strategy="entropy")
    assert same(retrain(task(), table(), keep=picked), picked.mask)
    assert picked.mask.sum() == 25
    with pytest.raises(rayinf.InputError, match="features"):
        retrain(task(), table(x=X + 1), keep=picked)
