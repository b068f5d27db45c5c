"""The same numbers whatever the batch, the shards, the order of rows, the runner and the number of workers."""

import numpy as np
import pytest
from engine import small_job as job

import rayinf

CURVATURES = ("ekfac", "kfac", "identity")


def distance(found, truth) -> float:
    """Largest difference, as a share of each column's largest value."""
    return float((np.abs(found - truth).max(0) / np.abs(truth).max(0)).max())


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    sizes = {1: job.ROWS, 3: 200, 50: 12}
    train = {k: job.write(folder / f"train{k}.parquet", job.ROWS, 1, size) for k, size in sizes.items()}
    order = np.random.default_rng(5).permutation(job.ROWS)
    train["shuffled"] = job.write(folder / "shuffled.parquet", job.ROWS, 1, 100, order)
    return train, job.write(folder / "valid.parquet", job.VALID, 2, 50), order


@pytest.fixture(scope="module")
def truth(tables):
    train, valid, _ = tables
    return {c: job.run(train[1], valid, curvature=c).to_numpy() for c in CURVATURES}


@pytest.mark.parametrize("curvature", ["ekfac", "identity"])
def test_batches_of_one_row(curvature, tmp_path):
    train, valid = job.write(tmp_path / "train.parquet", 120, 1, 50), job.write(tmp_path / "valid.parquet", 40, 2, 40)
    whole, single = (job.run(train, valid, curvature=curvature, batch_size=b).to_numpy() for b in (None, 1))
    assert distance(single, whole) < 1e-5


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("batch", [7, 512])
def test_batch_size(tables, truth, curvature, batch):
    train, valid, _ = tables
    found = job.run(train[1], valid, curvature=curvature, batch_size=batch)
    assert distance(found.to_numpy(), truth[curvature]) < 1e-5


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("shards", [3, 50])
def test_shards(tables, truth, curvature, shards):
    train, valid, _ = tables
    assert distance(job.run(train[shards], valid, curvature=curvature).to_numpy(), truth[curvature]) < 1e-5


@pytest.mark.parametrize("curvature", CURVATURES)
def test_row_order(tables, truth, curvature):
    train, valid, order = tables
    found = job.run(train["shuffled"], valid, curvature=curvature)
    assert distance(found.to_numpy(), truth[curvature][order]) < 1e-5
    assert found.table["row_id"].to_numpy().tolist() == job.arrays(job.ROWS, 1)[2][order].tolist()


def test_categories_and_groups_sum_to_the_total(tables, truth):
    for values in truth.values():
        total, categories, groups = values[:, 0], values[:, 1:4].sum(1), values[:, 4:].sum(1)
        scale = np.abs(values).max()
        assert np.abs(total - categories).max() < 1e-5 * scale
        assert np.abs(total - groups).max() < 1e-5 * scale


@pytest.mark.slow
def test_ray_serves_every_verb_and_tables_in_memory(ray_session):
    x, y, _, _ = job.arrays(300, 1)
    task, cluster = rayinf.Task(job.model()), rayinf.Cluster(workers=1)
    alone = rayinf.self_influence(task, (x, y)).to_numpy()
    assert distance(rayinf.self_influence(task, (x, y), cluster=cluster).to_numpy(), alone) < 1e-5
    pairs = [rayinf.pairs(task, (x, y), (x[:9], y[:9]), top=4, cluster=c).to_pandas() for c in (None, cluster)]
    assert pairs[0][["valid_row_id", "effect", "rank", "row_id"]].equals(
        pairs[1][["valid_row_id", "effect", "rank", "row_id"]]
    )


@pytest.mark.slow
def test_an_error_in_a_worker_arrives_as_it_was_raised(ray_session):
    x, y, _, _ = job.arrays(300, 1)
    x[17, 3] = np.nan
    with pytest.raises(rayinf.InputError, match=r"'features'\[3\] holds nan in row 17"):
        rayinf.influence(rayinf.Task(job.model()), (x, y), (x[:9], y[:9]), cluster=rayinf.Cluster(workers=1))


def test_all_pairs_add_up_to_the_total():
    x, y, _, _ = job.arrays(300, 1)
    xv, yv, _, _ = job.arrays(40, 2)
    task = rayinf.Task(job.model())
    frame = rayinf.pairs(task, (x, y), (xv, yv), top=300).to_pandas()
    added = frame[frame.effect == "helps"].groupby("row_id").value.sum().to_numpy()
    assert distance(added[:, None], rayinf.influence(task, (x, y), (xv, yv)).to_numpy()) < 1e-5


def test_self_influence_is_the_pair_of_a_row_with_itself():
    x, y, _, _ = job.arrays(60, 1)
    task = rayinf.Task(job.model())
    frame = rayinf.pairs(task, (x, y), (x, y), top=60).to_pandas()
    own = frame[(frame.effect == "helps") & (frame.row_id == frame.valid_row_id)].sort_values("row_id").value.to_numpy()
    assert distance(own[:, None], rayinf.self_influence(task, (x, y)).to_numpy()) < 1e-5


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_keeps_the_order(tables, truth, precision):
    train, valid, _ = tables
    found = job.run(train[1], valid, precision=precision).to_numpy()
    correlation = [np.corrcoef(found[:, k], truth["ekfac"][:, k])[0, 1] for k in range(found.shape[1])]
    assert min(correlation) > 0.98
    assert distance(found, truth["ekfac"]) > 1e-7  # it did run in another precision
