"""Strategies that pick rows together, through `acquire`: what they are given, and what must not matter to it."""

from __future__ import annotations

import numpy as np
import oracles_measure as om
import pyarrow.parquet as pq
import pytest
import torch
from core.measure_cases import CASES, Case, network, only, relative
from engine import small_job as job
from engine.test_measure_runs import pool_values
from torch import Tensor, nn

import rayinf
from rayinf.engine import embeddings, joint, spanning
from rayinf.select.badge import pick_badge
from rayinf.select.typiclust import pick_typical

EMBEDDED = ("badge", "coreset", "typiclust")


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    labeled = job.write(folder / "labeled.parquet", 60, 1, 25)
    return labeled, [job.write(folder / f"pool{size}.parquet", 150, 2, size) for size in (150, 40)]


# --- FI in its own geometry


def gram_of(case: Case, curvature: Tensor) -> Tensor:
    """`<phi(z'), phi(z'')>` of all pool rows by definition: dense matrices, a labelled row at a time."""
    of, n = case.subject, len(case.train[0])
    H_inverse = om.symmetric_inverse(curvature)
    total = torch.zeros_like(H_inverse)
    for row in om.rows_of(of, case.train):
        moved = om.moved_parameters(row, H_inverse, n)
        R_R = moved @ torch.linalg.pinv(om.metric(row, moved), rtol=om.KEPT, hermitian=True) @ moved.T
        total += R_R / torch.trace(R_R) / n
    x = case.valid[0]
    g = torch.stack([of.gradient(v, y) for v, y in zip(x, of.likeliest(x), strict=True)])
    return g @ total @ g.T


def greedy(gram: Tensor, n: int) -> list[int]:
    ridge = float(gram.diagonal().mean())
    picked: list[int] = []
    for _ in range(n):
        left = [i for i in range(len(gram)) if i not in picked]
        chosen = [torch.tensor([*picked, i]) for i in left]
        values = [torch.logdet(torch.eye(len(c), dtype=gram.dtype) + gram[c][:, c] / ridge) for c in chosen]
        picked.append(left[int(torch.stack(values).argmax())])
    return picked


NAMES = [
    "last layer of a network",
    "head of 3 classes, 6 features, l2 0.01",
    "network of 3 classes, 4 features",
]


def batch(case: Case, n: int = 4, **way) -> rayinf.Selection:
    return rayinf.acquire(case.task, case.train, (case.valid[0],), n, strategy="fi_batch", curvature="exact", **way)


@pytest.mark.parametrize("name", NAMES)
def test_fi_batch_is_the_greedy_log_determinant_by_definition(name: str) -> None:
    case = CASES[name]()
    gram = gram_of(case, case.curvature())
    found = batch(case)
    assert relative(torch.tensor(pool_values(found)[:, 0]), gram.diagonal()) < 1e-6
    assert found.row_ids.tolist() == greedy(gram, 4)
    largest = gram.diagonal().argsort(descending=True)[:4].tolist()
    print(f"\n{name}: picked {found.row_ids.tolist()}, of the longest vectors {largest}")


def test_the_sketch_keeps_lengths_and_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """82 numbers a row as 64 mixed ones: lengths within what chance allows, and rows in the order of their contents."""
    case = network(3, 4)
    truth = gram_of(case, case.curvature()).diagonal()
    monkeypatch.setattr(spanning, "WIDTH", 64)
    errors = []
    for seed in range(3):
        found = batch(case, seed=seed)
        values = torch.tensor(pool_values(found)[:, 0])
        errors.append(float((values / truth - 1).abs().mean()))
        order = torch.randperm(41, generator=torch.Generator().manual_seed(seed))
        moved = Case(case.model, (case.train[0][order], case.train[1][order]), case.valid, case.l2)
        assert relative(torch.tensor(pool_values(batch(moved, seed=seed))[:, 0]), values) < 1e-9
    print(f"\nsquared lengths off by {np.round(errors, 3).tolist()}; by chance about {(2 / 64) ** 0.5:.2f}")
    assert 0.01 < np.mean(errors) < 2.5 * (2 / 64) ** 0.5


def test_fi_batch_in_all_ways_of_fi() -> None:
    """A rank, a scale, and a perturbed layer change it; the last layer alone is a head on its activations."""
    case = only("2")
    with torch.no_grad():
        inside = [(case.model[:2](x), y) for x, y in (case.train, case.valid)]
    alone = Case(case.model[2], *inside, case.l2)
    for way in ({}, {"scale": "sum", "rank": 1}):
        a, b = batch(case, perturb="2", **way), batch(alone, **way)
        assert relative(torch.tensor(pool_values(a)), torch.tensor(pool_values(b))) < 1e-6
        assert a.row_ids.tolist() == b.row_ids.tolist()
    assert relative(torch.tensor(pool_values(batch(case))), torch.tensor(pool_values(batch(case, scale="sum")))) > 0.01
    for method in ("ekfac", "identity"):
        picked = rayinf.acquire(case.task, case.train, (case.valid[0],), 3, strategy="fi_batch", curvature=method)
        assert len(set(picked.row_ids)) == 3


# --- The last layer's inputs


def seen_by(path) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of the job's last layer, and `P - e` of the likeliest label."""
    flat = pq.read_table(path)["features"].combine_chunks().flatten().to_numpy().reshape(-1, job.WIDTH)
    model = job.model().double()
    with torch.no_grad():
        a = model[:-1](torch.tensor(flat).double())
        P = model[-1](a).softmax(1)
    g = P - nn.functional.one_hot(P.argmax(1), 3)
    return a.numpy(), g.numpy()


def test_embeddings_and_gradients_of_the_last_layer(tables) -> None:
    labeled, (pool, _) = tables
    (known, _), (a, g) = seen_by(labeled), seen_by(pool)
    badge = job.acquire(labeled, pool, strategy="badge", seed=3)
    np.testing.assert_allclose(
        pool_values(badge)[:, 0], values_in_order(pool, np.sqrt((a**2).sum(1) * (g**2).sum(1))), rtol=1e-4
    )
    ids = ids_of(pool)
    assert badge.row_ids.tolist() == ids[pick_badge(g, a, 20, 3)].tolist()
    distance = np.sqrt(((a[:, None] - known) ** 2).sum(2))
    coreset = job.acquire(labeled, pool, strategy="coreset")
    np.testing.assert_allclose(pool_values(coreset)[:, 0], values_in_order(pool, distance.min(1)), rtol=1e-4)
    picked: list[int] = []
    for _ in range(20):
        nearest = np.min([distance.min(1), *(np.sqrt(((a - a[j]) ** 2).sum(1)) for j in picked)], axis=0)
        picked.append(int(nearest.argmax()))
    assert coreset.row_ids.tolist() == ids[picked].tolist()
    typical = job.acquire(labeled, pool, strategy="typiclust", seed=1)
    assert typical.row_ids.tolist() == ids[pick_typical(a, known, 20, 1)].tolist()


def ids_of(path) -> np.ndarray:
    return pq.read_table(path)["row_id"].to_numpy()


def values_in_order(path, values: np.ndarray) -> np.ndarray:
    """By row id, as `pool_values` gives them."""
    return values[np.argsort(ids_of(path))]


@pytest.mark.parametrize("strategy", ["fi_batch", *EMBEDDED])
def test_batches_and_shards_do_not_matter_and_a_stopped_run_goes_on(tables, strategy, tmp_path, monkeypatch) -> None:
    labeled, (whole, sharded) = tables
    truth = job.acquire(labeled, whole, strategy=strategy)
    exclude = truth.row_ids[:5].tolist()
    calm = job.acquire(labeled, sharded, tmp_path / "calm", strategy=strategy, batch_size=7)
    assert calm.row_ids.tolist() == truth.row_ids.tolist()
    assert np.allclose(pool_values(calm), pool_values(truth), rtol=1e-4, atol=0)
    plain = joint.pick
    monkeypatch.setattr(joint, "pick", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        job.acquire(labeled, sharded, tmp_path / "run", strategy=strategy, batch_size=7)
    monkeypatch.setattr(joint, "pick", plain)
    again = job.acquire(labeled, sharded, tmp_path / "run", strategy=strategy, batch_size=7)
    assert again.row_ids.tolist() == truth.row_ids.tolist()
    assert job.digest(tmp_path / "run") == job.digest(tmp_path / "calm")
    assert (
        job.acquire(labeled, sharded, tmp_path / "run", strategy=strategy, batch_size=7).row_ids.tolist()
        == again.row_ids.tolist()
    )
    others = job.acquire(labeled, whole, strategy=strategy, exclude=exclude)
    assert len(others.row_ids) == 20
    assert not set(others.row_ids) & set(exclude)


@pytest.mark.parametrize("strategy", EMBEDDED)
def test_candidates_that_do_not_fit_in_memory_are_left_out(tables, strategy, monkeypatch) -> None:
    """By their values, or (typiclust) by chance; of many labelled rows a share is looked at."""
    labeled, (pool, _) = tables
    monkeypatch.setattr(joint, "CANDIDATE_BYTES", 4 * 12 * 40)
    monkeypatch.setattr(embeddings, "_LABELED_BYTES", 4 * 9 * 30)
    picked = job.acquire(labeled, pool, strategy=strategy)
    assert len(set(picked.row_ids)) == 20
    highest = picked.to_pandas().sort_values("value", ascending=False)["row_id"][:40]
    assert set(picked.row_ids) <= set(highest) or strategy == "typiclust"


def test_models_without_one_last_layer_are_refused(tables) -> None:
    labeled, (pool, _) = tables
    none = nn.Sequential(nn.Unflatten(1, (job.WIDTH, 1)), nn.Conv1d(job.WIDTH, 3, 1), nn.Flatten())
    with pytest.raises(rayinf.InputError, match=r'"last" found no torch\.nn\.Linear.*Fix'):
        rayinf.acquire(rayinf.Task(none), labeled, pool, 5, strategy="coreset")

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.unflatten(1, (-1, 3))).mean(1)

    with pytest.raises(rayinf.InputError, match=r"'badge': the last linear layer, 'head', takes \[\d+, 4, 3\].*Fix"):
        rayinf.acquire(rayinf.Task(Tokens()), labeled, pool, 5, strategy="badge")


def test_a_subsample_is_for_fi_alone(tables) -> None:
    labeled, (pool, _) = tables
    with pytest.raises(rayinf.InputError, match=r"subsample=0\.5 is for FI, not for 'fi_batch'.*\"fi\""):
        job.acquire(labeled, pool, strategy="fi_batch", subsample=0.5)


@pytest.mark.slow
def test_the_same_bytes_on_a_cluster(tables, ray_session, tmp_path) -> None:
    """Batches, and a subsample of FI, whose forest and limit are made in the driver."""
    labeled, (_, pool) = tables
    cluster = rayinf.Cluster(workers=2)
    for name, options in (("batch", {"strategy": "fi_batch"}), ("subsample", {"subsample": 0.4})):
        here = job.acquire(labeled, pool, tmp_path / f"{name}-here", **options)
        there = job.acquire(labeled, pool, tmp_path / f"{name}-there", cluster, **options)
        assert there.row_ids.tolist() == here.row_ids.tolist()
        assert job.digest(tmp_path / f"{name}-there") == job.digest(tmp_path / f"{name}-here")
