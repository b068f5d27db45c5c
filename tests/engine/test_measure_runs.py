"""FI and acquisition: the same numbers whatever the batch, shards, rows' order and workers, and whatever is killed."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from engine import small_job as job
from engine.test_invariance import distance

import rayinf
from rayinf.engine import acquisition

SUBSAMPLED = {"subsample": 0.2, "seed": 3}
WAYS = ({}, SUBSAMPLED, {"curvature": "ggn"})


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    sizes = {1: job.ROWS, 6: 100}
    train = {k: job.write(folder / f"train{k}.parquet", job.ROWS, 1, size) for k, size in sizes.items()}
    order = np.random.default_rng(5).permutation(job.ROWS)
    train["shuffled"] = job.write(folder / "shuffled.parquet", job.ROWS, 1, 100, order)
    return train, job.write(folder / "valid.parquet", job.VALID, 2, 40), order


def values(scores, column=-1):
    return scores.to_numpy()[:, [column]]


def pool_values(picked):
    """Of every row of a pool, by id."""
    return picked.to_pandas().sort_values("row_id")[["value"]].to_numpy()


@pytest.mark.parametrize("way", WAYS, ids=list(map(str, WAYS)))
def test_batches_shards_and_order(tables, way):
    train, valid, order = tables
    truth = values(job.measure(train[1], valid, **way))
    for batch, shards in ((13, 1), (512, 6)):
        found = values(job.measure(train[shards], valid, batch_size=batch, **way))
        assert distance(found, truth) < 1e-5
    shuffled = values(job.measure(train["shuffled"], valid, **way))
    assert distance(shuffled, truth[order]) < 1e-5


def test_a_subsample_takes_the_same_rows_in_any_order(tables):
    train, valid, order = tables
    known, shuffled = (values(job.measure(train[k], valid, **SUBSAMPLED), 0) for k in (1, "shuffled"))
    assert 0.1 < np.isfinite(known).mean() < 0.3
    np.testing.assert_allclose(shuffled, known[order], rtol=0, atol=1e-5 * np.nanmax(known))


@pytest.mark.slow
def test_ranks_of_a_subsample(tables, tmp_path):
    """Measured rows are ranked by their values and stand on top; all ranks are in [0, 1]; trim reads them."""
    train, valid, _ = tables
    scores = job.measure(train[1], valid, **SUBSAMPLED)
    frame = scores.to_pandas()
    scored = frame["fi"].notna()
    assert scored.sum() == scores.metadata["rows_measured"]
    by_value = frame[scored].sort_values("fi")["fi_rank"]
    assert by_value.is_monotonic_increasing
    assert by_value.is_unique
    assert frame["fi_rank"].between(0, 1).all()
    top = scores.metadata["exact_top_rows"]
    assert top >= 30
    assert scored[frame["fi_rank"].sort_values().index[-top:]].all()
    assert not scored[frame["fi_rank"].sort_values().index[-top - 1 :]].all()
    thin = job.measure(job.write(tmp_path / "thin.parquet", job.ROWS, 1, 4), valid, **SUBSAMPLED)
    assert distance(values(thin), values(scores)) < 1e-5, "shards of which no row is drawn"
    whole = job.measure(train[1], valid).to_numpy()[:, 0]
    np.testing.assert_allclose(frame["fi"][scored], whole[scored], rtol=1e-9)
    assert -1 <= scores.metadata["forest_rank_correlation"] <= 1
    kept = rayinf.trim(scores, 30)
    assert set(kept.removed) == set(frame.sort_values("fi_rank", kind="stable")["row_id"].iloc[-30:])


@pytest.mark.parametrize("curvature", ["ekfac", "ggn", "identity"])
def test_pairs_in_tiles_are_those_in_one(tables, monkeypatch, tmp_path, curvature):
    train, valid, _ = tables
    truth = pool_values(job.acquire(train[6], valid, curvature=curvature))
    whole = job.acquire(train[1], valid, curvature=curvature, batch_size=11)
    assert distance(pool_values(whole), truth) < 1e-5
    monkeypatch.setattr(acquisition, "TILE_BYTES", 100_000)
    tiled = job.acquire(train[1], valid, tmp_path / "run", curvature=curvature)
    assert distance(pool_values(tiled), truth) < 1e-5
    again = job.acquire(train[1], valid, tmp_path / "run", curvature=curvature)
    assert again.row_ids.tolist() == tiled.row_ids.tolist()


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("verb", "stages", "options"),
    [(job.measure, ("Measure",), SUBSAMPLED), (job.acquire, ("PairFactors", "PairValues"), {})],
    ids=["measure", "acquire"],
)
def test_workers_that_are_killed(tables, ray_session, tmp_path, verb, stages, options):
    """The bytes of a run in this process; Gather and RankRest read raw features."""
    train, valid, _ = tables
    marks = tmp_path / "marks"
    marks.mkdir()
    # The same callable, so that both runs have one identity: only the first has stages to kill in.
    calm, killed = (job.Killer(marks, s) for s in ((), stages))
    verb(train[6], valid, tmp_path / "calm", transform=calm, **options)
    verb(train[6], valid, tmp_path / "killed", rayinf.Cluster(workers=1), transform=killed, **options)
    assert sorted(m.name for m in marks.iterdir()) == sorted(stages)
    assert job.digest(tmp_path / "calm") == job.digest(tmp_path / "killed")


def test_a_run_stopped_between_measuring_and_ranking_goes_on(tables, tmp_path, monkeypatch):
    from rayinf.engine import rank_forest

    train, valid, _ = tables
    job.measure(train[6], valid, tmp_path / "calm", **SUBSAMPLED)
    plain = rank_forest.RankRest.__call__
    calls = []

    def stopped(self, item):
        calls.append(item)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plain(self, item)

    monkeypatch.setattr(rank_forest.RankRest, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        job.measure(train[6], valid, tmp_path / "run", **SUBSAMPLED)
    parts = [pq.read_schema(p).names for p in sorted((tmp_path / "run" / "scores").iterdir())]
    assert 0 < len(parts) < len(list((tmp_path / "run" / "unranked").iterdir()))
    assert all("fi_rank" in names for names in parts)
    job.measure(train[6], valid, tmp_path / "run", **SUBSAMPLED)
    assert job.digest(tmp_path / "run") == job.digest(tmp_path / "calm")
    told = [json.loads((tmp_path / n / "run.json").read_text())["metadata"] for n in ("run", "calm")]
    assert told[0]["forest_rank_correlation"] == told[1]["forest_rank_correlation"]


@pytest.mark.parametrize("curvature", ["ekfac", "ggn"])
def test_factors_of_a_run_in_the_models_own_precision(tables, tmp_path, curvature):
    train, valid, _ = tables
    way = {"curvature": curvature, "damping": 1e-3}
    job.run(train[1], valid, tmp_path / "run", **way)
    found = values(job.measure(train[1], valid, factors=tmp_path / "run", **way))
    assert distance(found, values(job.measure(train[1], valid, **way))) < 1e-3


@pytest.mark.parametrize("strategy", ["entropy", "margin", "least_confidence", "random", "isal", "iv"])
def test_strategies_depend_on_no_batch(tables, strategy):
    train, valid, _ = tables
    options = {"strategy": strategy, "valid": valid if strategy == "iv" else None}
    truth = job.acquire(train[1], valid, **options)
    found = job.acquire(train[1], valid, batch_size=7, **options)
    assert found.row_ids.tolist() == truth.row_ids.tolist()
    assert distance(pool_values(found), pool_values(truth)) < 1e-5


def test_rows_that_are_excluded_are_not_picked_again(tables):
    train, valid, _ = tables
    first = job.acquire(train[1], valid, strategy="entropy")
    second = job.acquire(train[1], valid, strategy="entropy", exclude=first.row_ids)
    ranked = first.to_pandas()["row_id"].tolist()
    assert second.row_ids.tolist() == ranked[20:40]
    with pytest.raises(rayinf.InputError, match="excluded"):
        job.acquire(train[1], valid, strategy="entropy", exclude=ranked[:110])


@pytest.fixture(scope="module")
def trained(tables, tmp_path_factory):
    """The job's network after training: what its outputs say of a row's FI is more than chance."""
    train, _, _ = tables
    fit = rayinf.Fit(lr=0.02, epochs=20, batch_size=50)
    task = rayinf.retrain(rayinf.Task(job.model(), fit=fit), train[1])
    factors = tmp_path_factory.mktemp("factors") / "run"
    rayinf.self_influence(task, train[1], out=factors)
    return task, {"factors": factors}


def test_the_rows_that_a_forest_puts_on_top_are_measured(tables, trained):
    """The top of the exact measure is found far more often than by the share that is drawn by chance alone."""
    (train, valid, _), (task, way) = tables, trained
    exact = rayinf.influence_measure(task, train[1], valid, **way).to_numpy()[:, 0]
    top = set(np.argsort(-exact)[:30])
    found = []
    for seed in range(3):
        scores = rayinf.influence_measure(task, train[1], valid, subsample=0.2, seed=seed, **way)
        frame = scores.to_pandas()
        assert 0.15 < frame["fi"].notna().mean() < 0.25
        known = frame["fi"].notna().to_numpy()
        np.testing.assert_allclose(frame["fi"][known], exact[known], rtol=1e-9)
        # Ranks of measured rows are near those among all rows.
        true = (np.argsort(np.argsort(exact)) / (len(exact) - 1))[known]
        assert np.abs(frame["fi_rank"][known] - true).mean() < 0.12
        found.append(len(top & set(frame["fi_rank"].sort_values().index[-30:])) / 30)
    print(
        f"\noverlap of the top 5 % {found}, of a choice by chance 0.05, of all rows drawn by chance at most 0.2 or so"
    )
    assert np.mean(found) > 0.5


def test_a_pool_of_which_a_share_is_measured(tables, trained, monkeypatch, tmp_path):
    """Values are those of the whole pool, in one tile or several; what is stopped goes on to the same end."""
    (train, _, _), (task, way) = tables, trained
    pool = job.write(tmp_path / "pool.parquet", 400, 3, 100)
    whole = rayinf.acquire(task, train[1], pool, 20, **way).to_pandas().set_index("row_id")["value"]
    options = {"subsample": 0.3, "exclude": [int(whole.index[0])], **way}

    def ranked(out=None):
        return rayinf.acquire(task, train[1], pool, 20, out=out, **options)

    first = ranked(tmp_path / "run")
    scores = rayinf.Scores.load(tmp_path / "run").to_pandas().set_index("row_id")
    known = scores["fi"].notna()
    assert 0.2 < known.mean() < 0.4
    np.testing.assert_allclose(scores["fi"][known], whole[scores.index][known], rtol=1e-4)
    assert whole.index[0] not in first.row_ids
    assert known[first.row_ids].all()
    monkeypatch.setattr(acquisition, "TILE_BYTES", 200_000)
    assert ranked().row_ids.tolist() == first.row_ids.tolist()
