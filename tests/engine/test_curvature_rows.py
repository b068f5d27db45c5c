"""K-FAC and EKFAC on rows that are drawn by their contents, against a fit on these rows alone."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import rayinf
from rayinf.data import file_state
from rayinf.data.batches import fast_keys, uniforms
from rayinf.data.known_scans import known
from rayinf.engine import curvature_rows
from rayinf.engine.worker import Worker

ROWS, MOST = 900, 300


def make(seed=0):
    """A small network, correlated rows, validation rows."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(ROWS, 6)) @ rng.normal(size=(6, 6))).astype(np.float32)
    y = rng.integers(0, 3, ROWS)
    return rayinf.Task(model), (x, y), (x[:40] + 0.1, y[:40])


def table(rows, order=None):
    x, y = rows
    order = np.arange(len(x)) if order is None else order
    features = pa.FixedSizeListArray.from_arrays(pa.array(x[order].ravel()), x.shape[1])
    return pa.table({"row_id": order, "features": features, "label": y[order]})


def drawn(rows, seed=0, most=MOST):
    """The rows that are drawn, as the rule says in words: four standard deviations under the most."""
    draws = uniforms(fast_keys(*rows), seed + curvature_rows._SEED, 1)[:, 0]
    share = (most - 4 * most**0.5) / len(rows[0])
    return draws < share, draws < share / 2


def values(scores, order=None):
    found = scores.to_numpy()
    return found if order is None else found[np.argsort(order)]


@pytest.mark.parametrize("curvature", ["ekfac", "kfac"])
def test_the_fit_is_that_of_the_drawn_rows(curvature):
    """Scores of all rows with factors that were fitted on the drawn rows, given as a table of their own."""
    task, train, valid = make()
    damping = 0.01
    found = rayinf.influence(task, train, valid, curvature=curvature, damping=damping, curvature_rows=MOST)
    mask, first = drawn(train)
    rows = tuple(v[mask] for v in train)
    parts = [train[0][mask & side] for side in (first, ~first)]
    # n enters the solve, and not the curvature: a mean over the drawn rows.
    alone = rayinf.influence(task, rows, train, "total", curvature=curvature, damping=damping, curvature_rows=None)
    assert alone.metadata.get("curvature_sample") is None
    sample = found.metadata["curvature_sample"]
    assert (sample["rows"], sample["of"]) == (mask.sum(), ROWS)
    assert sample["rows_of_halves"] == [len(p) for p in parts]
    assert mask.sum() <= MOST
    names = found.metadata["layers"]
    for name, layer in alone.metadata["layers"].items():
        assert names[name]["mean_eigenvalue"] == pytest.approx(layer["mean_eigenvalue"], rel=1e-5)
        assert names[name]["largest_eigenvalue"] == pytest.approx(layer["largest_eigenvalue"], rel=1e-5)
    everything = rayinf.influence(task, train, valid, curvature=curvature, damping=damping)
    assert "curvature_sample" not in everything.metadata
    gap = np.abs(values(found) - values(everything)).max() / np.abs(values(everything)).max()
    assert 1e-4 < gap < 0.5


def test_values_are_those_of_borrowed_factors_of_the_drawn_rows(tmp_path):
    task, train, valid = make()
    options = {"damping": 0.01, "inverse": "damped"}
    found = rayinf.influence(task, train, valid, curvature_rows=MOST, **options)
    mask, _ = drawn(train)
    rows = tuple(v[mask] for v in train)
    rayinf.influence(task, rows, valid, curvature_rows=None, out=tmp_path / "run", **options)
    truth = rayinf.influence(task, train, valid, factors=tmp_path / "run", **options)
    assert np.allclose(values(found), values(truth), rtol=1e-4, atol=1e-6 * np.abs(values(truth)).max())


def test_order_and_shards_do_not_matter(monkeypatch):
    task, train, valid = make()
    order = np.random.default_rng(3).permutation(ROWS)
    options = {"damping": 0.01, "curvature_rows": MOST}
    one = rayinf.influence(task, table(train), valid, **options)
    other = rayinf.influence(task, table(train, order), valid, **options)
    scale = np.abs(values(one)).max()
    assert np.allclose(values(one), values(other, order), atol=1e-5 * scale)
    monkeypatch.setattr(curvature_rows, "_KEPT_BYTES", 0)  # every shard is read again
    again = rayinf.influence(task, table(train), valid, **options)
    assert np.array_equal(values(one), values(again))
    assert one.metadata["curvature_sample"] == again.metadata["curvature_sample"]
    moved = rayinf.influence(task, table(train), valid, seed=1, **options)
    assert moved.metadata["curvature_sample"]["rows"] != one.metadata["curvature_sample"]["rows"]


@pytest.fixture
def rows_read(monkeypatch):
    """Training rows that stages read, the scan apart."""
    found, plain = [], Worker.read_raw

    def counted(worker, name, shard, size):
        for raw in plain(worker, name, shard, size):
            found.append(len(raw) if name == "train" else 0)
            yield raw

    monkeypatch.setattr(Worker, "read_raw", counted)
    return found


@pytest.mark.parametrize("options", [{}, {"curvature": "kfac", "precision": "fp64"}])
def test_the_scan_draws(options, rows_read, tmp_path, monkeypatch):
    """No stage reads the whole table before it is scored. A known table is not scanned: its drawn rows are kept."""
    task, train, valid = make()
    pq.write_table(table(train), tmp_path / "train.parquet", row_group_size=130)
    time.sleep(1.2 * file_state._TICK_NS / 1e9)
    found, few = [], 16  # a few rows are read to measure a batch
    for passes in (1, 1, 2):
        if passes == 2:  # another table was drawn from meanwhile
            monkeypatch.setattr(curvature_rows.DrawnRows, "_last", None)
        rows_read.clear()
        found.append(rayinf.influence(task, str(tmp_path / "train.parquet"), valid, curvature_rows=MOST, **options))
        assert passes * ROWS <= sum(rows_read) < passes * ROWS + few
    for other in found[1:]:
        assert np.array_equal(values(found[0]), values(other))
        assert found[0].metadata["curvature_sample"] == other.metadata["curvature_sample"]


def test_rows_that_were_kept_are_those_of_the_same_draw_alone(tmp_path):
    """Runs over a known table, then over another in its place."""
    task, train, _ = make()
    other = train[0] + 1, train[1]
    path, samples = tmp_path / "train.parquet", set()
    for rows, seed, most in ((train, 0, MOST), (train, 1, MOST), (train, 1, MOST + 100), (other, 1, MOST + 100)):
        if rows is other or not samples:
            pq.write_table(table(rows), path, row_group_size=130)
            time.sleep(1.2 * file_state._TICK_NS / 1e9)
        found = rayinf.self_influence(task, str(path), damping=0.01, curvature_rows=most, seed=seed)
        count = found.metadata["curvature_sample"]["rows"]
        assert count == drawn(rows, seed, most)[0].sum()
        samples.add(count)
    assert len(samples) == 4


def test_rows_of_mixed_shapes_are_refused_where_rows_are_drawn():
    task, (x, y), valid = make()
    rows = [*x[:-1].tolist(), [0.0] * 5]
    train = pa.table({"row_id": range(ROWS), "features": pa.array(rows, pa.list_(pa.float32())), "label": y})
    with pytest.raises(rayinf.InputError, match=r"lists of different lengths: 6 in row \d+, 5 in row 899"):
        rayinf.influence(task, train, valid, curvature_rows=MOST)


def test_workers_draw_the_same_rows(ray_session, tmp_path):
    """Each has the rows of the shards that it scanned, and reads others again."""
    task, train, valid = make()
    pq.write_table(table(train), tmp_path / "train.parquet", row_group_size=60)
    cluster, options = rayinf.Cluster(workers=2), {"curvature_rows": MOST, "damping": 0.01}
    alone = rayinf.influence(task, str(tmp_path / "train.parquet"), valid, **options)
    known._held.clear()
    found = rayinf.influence(task, str(tmp_path / "train.parquet"), valid, cluster=cluster, **options)
    assert np.array_equal(values(found), values(alone))
    assert found.metadata["curvature_sample"] == alone.metadata["curvature_sample"]


def test_equal_rows_go_together_and_none_is_refused():
    task, (x, y), _ = make()
    same = np.repeat(x[:1], ROWS, axis=0), np.repeat(y[:1], ROWS)
    with pytest.raises(rayinf.InputError, match=r"none of the training rows was drawn.*Fix"):
        rayinf.self_influence(rayinf.Task(task.model, classes=(0, 1, 2)), same, damping=0.01, curvature_rows=5)


@pytest.mark.parametrize("curvature", ["exact", "ggn", "identity"])
def test_dense_curvatures_take_all_rows(curvature):
    task, train, valid = make()
    options = {"curvature": curvature, "inverse": "damped"}
    few = rayinf.influence(
        task, train, valid, damping=None if curvature == "identity" else 10.0, **options, curvature_rows=9
    )
    all_rows = rayinf.influence(task, train, valid, damping=None if curvature == "identity" else 10.0, **options)
    assert np.array_equal(values(few), values(all_rows))


def test_halves_that_differ_are_reported_by_layer():
    """EKFAC: eigenvalues of the halves; here against float64 sums of squared row gradients in the identity basis."""
    rng = np.random.default_rng(0)
    first, both = rng.random((1, 4, 3)), rng.random((1, 4, 3)) + 2
    factors = {"rows": np.array(50.0), "L/a": both, "first/L/a": first, "first/rows": np.array(20.0)}
    scaled = curvature_rows.scale_up(factors, 1000)
    assert np.allclose(scaled["L/a"], both * 20)
    said = curvature_rows.describe_drawn(scaled)["curvature_sample"]
    one, two = first / 20, (both - first) / 30
    truth = np.linalg.norm(one - two) / np.linalg.norm((one + two) / 2)
    assert said["halves_differ"]["a"] == pytest.approx(truth)
    assert said["rows_of_halves"] == [20, 30]
    a, g = rng.random((1, 3)) + 1, rng.random((1, 4)) + 1
    q, _ = np.linalg.qr(rng.normal(size=(1, 3, 3)))
    values = q.transpose(0, 2, 1) @ (a[:, :, None] * q)
    levels = {"l_a/a": np.diagonal(values, axis1=1, axis2=2), "q_a/a": q, "l_g/a": g, "q_g/a": np.eye(4)[None]}
    exact = np.einsum("rde,re->rd", q * q, levels["l_a/a"])
    kfac = {"rows": np.array(50.0), **levels, "first/A/a": a / 3, "first/G/a": g / 3, "first/rows": np.array(20.0)}
    said = curvature_rows.describe_drawn(curvature_rows.scale_up(kfac, 500))["curvature_sample"]
    one = (g / 60)[:, :, None] * (a / 60)[:, None]
    two = (g * 2 / 90)[:, :, None] * ((exact - a / 3) / 30)[:, None]
    truth = np.linalg.norm(one - two) / np.linalg.norm((one + two) / 2)
    assert said["halves_differ"]["a"] == pytest.approx(truth)


def test_a_run_with_other_rows_is_another_run(tmp_path):
    """Where rows are drawn; a table with fewer rows than may be drawn is all there is either way."""
    task, train, valid = make()
    options = {"damping": 0.01, "out": tmp_path / "run"}
    rayinf.influence(task, train, valid, curvature_rows=MOST, **options)
    with pytest.raises(rayinf.InputError, match="curvature_rows"):
        rayinf.influence(task, train, valid, curvature_rows=MOST + 1, **options)
    whole = {**options, "out": tmp_path / "whole"}
    one = rayinf.influence(task, train, valid, **whole)
    assert np.array_equal(values(one), values(rayinf.influence(task, train, valid, curvature_rows=None, **whole)))
