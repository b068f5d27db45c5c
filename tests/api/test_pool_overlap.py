"""Rows of a pool that are labelled already, and shares of a pool that are drawn from the rows that are left."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from training import small_learning as small

import rayinf
from rayinf.api import active_learning as verb
from rayinf.data.batches import row_keys, uniforms
from rayinf.errors import FitWarning

IDS = 1000 + np.random.default_rng(3).permutation(200)
# Of the 24 labelled rows, 13 are rows of the pool: every fifth one from its third.
SHARED = np.arange(2, 2 + 5 * 13, 5)
KNOWN = np.r_[IDS[SHARED], np.arange(11)]
REST = np.setdiff1d(np.arange(200), SHARED)
LETTERS = np.array([f"tree {k}" for k in range(2000)])


def make(x: np.ndarray, ids: Any, y: Any = None) -> pa.Table:
    features = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(x).reshape(-1)), x.shape[1])
    return pa.table({"features": features, "row_id": ids, **({} if y is None else {"label": y})})


def labeled(ids: Any = KNOWN) -> pa.Table:
    """The labelled rows; those that are in the pool are its own."""
    x = small.LABELED[0].copy()
    x[: len(SHARED)] = small.POOL[0][SHARED]
    return make(x, ids, small.LABELED[1])


def pool(rows: np.ndarray | None = None, ids: Any = IDS) -> pa.Table:
    rows = np.arange(200) if rows is None else rows
    return make(small.POOL[0][rows], ids[rows], small.POOL[1][rows])


def pick(given: Any = None, of: Any = None, **arguments: Any) -> rayinf.Selection:
    how = {"n": 100, "curvature": "exact", **arguments}
    return rayinf.acquire(small.task(), labeled() if of is None else of, pool() if given is None else given, **how)


@pytest.mark.parametrize("strategy", ["fi", "isal", "entropy", "random"])
def test_rows_that_are_labelled_already_are_not_picked(strategy: str) -> None:
    """The picks are those from a pool without these rows; without ids they would be picked too."""
    with pytest.warns(UserWarning, match=r"13 of the 200 rows of the pool are labelled already"):
        found = pick(strategy=strategy)
    assert found.metadata["left_out"] == 13
    assert not np.isin(found.row_ids, KNOWN).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", FitWarning)
        apart = pick(pool(REST), strategy=strategy)
        plain = pick(pool().drop_columns("row_id"), strategy=strategy)
    assert apart.metadata["left_out"] == plain.metadata["left_out"] == 0
    if strategy != "random":  # which is drawn by position
        assert found.row_ids.tolist() == apart.row_ids.tolist()
        assert np.isin(plain.row_ids, SHARED).any()


@pytest.mark.parametrize("form", ["int32", "uint64", "text", "dictionary", "Parquet", "column", "index"])
def test_ids_of_every_kind(form: str, tmp_path: Path) -> None:
    of: Any = labeled()
    given: Any = pool()
    task = small.task()
    if form in ("int32", "uint64"):
        of = labeled(pa.array(KNOWN).cast(pa.int32() if form == "int32" else pa.uint64()))
    elif form in ("text", "dictionary"):
        text = pa.array(LETTERS[KNOWN])
        of = labeled(text.dictionary_encode() if form == "dictionary" else text)
        given = pool(ids=LETTERS[IDS])
    elif form == "Parquet":
        for name, held in (("of", of), ("given", given)):
            pq.write_table(held, tmp_path / f"{name}.parquet", row_group_size=17)
        of, given = tmp_path / "of.parquet", str(tmp_path / "given.parquet")
    elif form in ("column", "index"):
        task = small.task(row_id="key")
        of, given = (t.rename_columns(["key" if n == "row_id" else n for n in t.schema.names]) for t in (of, given))
        if form == "index":
            of, given = (
                pd.DataFrame({k: list(v) for k, v in t.to_pydict().items()}).set_index("key") for t in (of, given)
            )
    with pytest.warns(UserWarning, match="13 of the 200"):
        found = rayinf.acquire(task, of, given, 187, "entropy")
    picked = found.row_ids if form not in ("text", "dictionary") else [int(i[5:]) for i in found.row_ids]
    assert set(picked) == set(IDS[REST])


def test_positions_and_numbers_of_rows_say_nothing_of_another_table() -> None:
    plain, shuffled = pool().drop_columns("row_id"), np.random.default_rng(0).permutation(200)
    frame = pd.DataFrame({"features": list(small.POOL[0])}).iloc[shuffled]
    few = pd.DataFrame({"features": list(small.LABELED[0]), "label": small.LABELED[1]}).iloc[::-1]
    for of, given in ((small.LABELED, plain), (labeled(), plain), (small.LABELED, pool()), (few, frame)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", FitWarning)
            assert pick(given, of, strategy="entropy").metadata["left_out"] == 0


def test_what_is_refused() -> None:
    with pytest.raises(rayinf.InputError, match=r"labeled has row ids of type .*string.* and pool of type int64.*Fix"):
        pick(of=labeled(LETTERS[KNOWN]))
    few = r"n=188 rows are wanted, and the pool has 200, 13 of them"
    with pytest.warns(UserWarning, match="13 of"), pytest.raises(rayinf.InputError, match=few):
        pick(n=188)
    with pytest.raises(rayinf.InputError, match=r"want 190 rows, and the pool has 200, 13 of them labelled already"):
        small.learn(labeled=labeled(), pool=pool(), oracle=pool(), rounds=2, n=95)


def test_active_learning_labels_no_row_twice(tmp_path: Path) -> None:
    """The same rounds as on a pool without these rows; every row is trained on once."""
    with pytest.warns(UserWarning, match="13 of the 200"):
        found = small.learn(labeled=labeled(), pool=pool(), oracle=pool(), rounds=3, n=20, out=tmp_path / "run")
    apart = small.learn(labeled=labeled(), pool=pool(REST), oracle=pool(), rounds=3, n=20)
    assert [p.tolist() for p in found.picked["fi", 0]] == [p.tolist() for p in apart.picked["fi", 0]]
    picked = np.concatenate(found.picked["fi", 0])
    assert len({*picked, *KNOWN}) == 60 + 24
    assert found.table["loss"].to_pylist() == pytest.approx(apart.table["loss"].to_pylist(), rel=1e-9)


def test_a_pool_that_is_part_of_the_frame_of_the_oracle() -> None:
    """Numbers of an index without a name: of a whole frame they are positions."""
    whole = pd.DataFrame({"features": list(small.POOL[0]), "label": small.POOL[1]})
    order = np.random.default_rng(4).permutation(200)
    for part in (whole.iloc[order], whole.iloc[order[:90]]):
        found = small.learn(pool=part.drop(columns="label"), oracle=whole, rounds=1)
        assert set(found.picked["fi", 0][0]) <= set(part.index)
        truth = small.learn(
            pool=part.assign(key=part.index).drop(columns="label").reset_index(drop=True),
            task=small.task(row_id="key"),
            oracle=whole.assign(key=whole.index),
            rounds=1,
        )
        assert found.picked["fi", 0][0].tolist() == truth.picked["fi", 0][0].tolist()
        assert small.measures(found) == small.measures(truth)


# --- A share of the pool


def measured(folder: Path) -> np.ndarray:
    """Which rows have a value of their own."""
    return rayinf.Scores.load(folder).to_numpy()[:, 0]


@pytest.mark.filterwarnings("ignore:The random forest")
class TestSubsample:
    """Drawn anew in each round, from the rows that are left (Algorithm 8 of the influence measure's paper)."""

    def test_a_call_without_exclusions_draws_by_its_seed_alone(self, tmp_path: Path) -> None:
        pick(pool(REST), of=small.LABELED, subsample=0.4, seed=5, out=tmp_path / "run")
        keys = row_keys(small.POOL[0][REST], np.zeros(len(REST), np.int64))
        found = ~np.isnan(measured(tmp_path / "run"))
        drawn = uniforms(keys, 5 + 2, 1)[:, 0] < 0.2  # half of the share; the forest chooses the other half
        assert found[drawn].all()
        assert rayinf.Scores.load(tmp_path / "run").metadata["forest_rows"] == drawn.sum()
        assert abs(found.sum() - 0.4 * len(found)) < 4 * (0.24 * len(found)) ** 0.5

    def test_rounds_draw_from_the_rows_that_are_left(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folders: list[Path] = []
        gone: list[np.ndarray] = []

        def spy(*given: Any, **more: Any) -> rayinf.Selection:
            folders.append(tmp_path / f"round-{len(folders)}")
            gone.append(np.asarray(more["exclude"] or [], int))
            return rayinf.acquire(*given, **more, out=folders[-1])

        monkeypatch.setattr(verb, "acquire", spy)
        plain = small.learn(rounds=4, n=20, subsample=0.5)
        drawn = [~np.isnan(measured(f)) for f in folders]
        for r, (rows, excluded) in enumerate(zip(drawn, gone, strict=True)):
            assert len(excluded) == 20 * r
            assert not rows[excluded].any()
            left = 200 - len(excluded)
            assert abs(rows.sum() - left / 2) < 4 * (left / 4) ** 0.5  # a share of the rows that are left
            told = rayinf.Scores.load(folders[r]).metadata
            assert abs(told["forest_rows"] - left / 4) < 4 * (left * 3 / 16) ** 0.5  # the forest chooses the others
        # Of what two forests do not choose alike (a quarter of the rows), two draws of a third agree on five ninths;
        # the same draws would agree on all.
        for a in range(4):
            for b in range(a + 1, 4):
                both = np.setdiff1d(np.arange(200), gone[b])
                agree = (drawn[a][both] == drawn[b][both]).mean()
                assert agree < 0.25 + 0.75 * 5 / 9 + 4 * (0.25 / len(both)) ** 0.5
        monkeypatch.undo()
        assert small.measures(small.learn(rounds=4, n=20, subsample=0.5)) == small.measures(plain)

    def test_a_run_that_goes_on_picks_the_same(self, tmp_path: Path) -> None:
        arguments: dict[str, Any] = {"rounds": 3, "n": 20, "subsample": 0.5}
        small.learn(out=tmp_path / "whole", **arguments)
        asked: list[int] = []

        def failing(ids: np.ndarray) -> np.ndarray:
            asked.append(len(ids))
            if len(asked) == 2:
                raise RuntimeError("gone home")
            return small.truth(ids)

        with pytest.raises(rayinf.InputError, match="gone home"):
            small.learn(out=tmp_path / "parts", oracle=failing, **arguments)
        small.learn(out=tmp_path / "parts", **arguments)
        assert small.digest(tmp_path / "parts") == small.digest(tmp_path / "whole")

    def test_other_exclusions_are_another_run(self, tmp_path: Path) -> None:
        for excluded in ([3], [4]):
            pick(small.POOL[0], of=small.LABELED, subsample=0.5, exclude=excluded, out=tmp_path / str(excluded))
        with pytest.raises(rayinf.InputError, match="another config"):
            pick(small.POOL[0], of=small.LABELED, subsample=0.5, exclude=[5], out=tmp_path / "[3]")

    def test_too_few_rows_are_left(self) -> None:
        with pytest.raises(rayinf.InputError, match=r"subsample=0.5 of 30 rows leaves 15"):
            pick(small.POOL[0], of=small.LABELED, subsample=0.5, exclude=list(range(170)), n=5)
