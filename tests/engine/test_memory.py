"""What does not fit into memory is refused before any work; the numbers are those of a real run."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from data.refusals import TRAIN, VALID, task
from torch import nn

import rayinf
from rayinf.engine import machine, memory, scoring, stages

WIDE = nn.Sequential(nn.Linear(4, 50), nn.Tanh(), nn.Linear(50, 3))
LARGER = 4 * 50 + 50
P = LARGER + 50 * 3 + 3


def give(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    """A machine with so many bytes free, in no control group."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=int(free)))
    monkeypatch.setattr(machine, "_CGROUP", Path("/nonexistent"))


@pytest.mark.parametrize(
    ("given", "columns", "size"),
    [
        # Sums in float64 (8), solved queries in the model's precision (4), and the larger layer's query vectors (8).
        ({"objective": "category", "curvature": "ekfac"}, 3, 12 * 3 * P + 8 * 3 * LARGER),
        ({"objective": "category", "curvature": "identity"}, 3, 12 * 3 * P + 16 * 3 * LARGER),
        ({"objective": ["total", "category"], "curvature": "ekfac"}, 4, 12 * 4 * P + 16 * 4 * LARGER),
        # Two sums and three vectors for each column.
        ({"objective": "category", "curvature": "ekfac", "halves": True}, 9, (8 * 6 + 4 * 9) * P + 8 * 15 * LARGER),
    ],
)
def test_columns_that_do_not_fit(
    given: dict[str, Any], columns: int, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte: nine tenths of what is free may be taken."""
    monkeypatch.setattr(memory, "_factors", lambda *given: [])
    give(monkeypatch, size / 0.9 - 2)
    with pytest.raises(rayinf.InputError) as caught:
        rayinf.influence(task(WIDE), TRAIN, VALID, out=tmp_path / "run", **given)
    assert f"{columns} columns over {P} parameters take" in caught.value.what
    assert "fewer columns at a time" in caught.value.fix
    assert ("halves" in caught.value.fix) == ("halves" in given)
    assert not (tmp_path / "run").exists()
    give(monkeypatch, size / 0.9 + 2)
    assert len(rayinf.influence(task(WIDE), TRAIN, VALID, **given)) == 60


def test_numbers_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a case that does not fit."""
    give(monkeypatch, 14 << 30)
    need = memory.Need("1,000 columns over 513,000 parameters", 28 * 1000 * 513_000, "ask for fewer.")
    monkeypatch.setattr(memory, "needs", lambda *given: [need])
    with pytest.raises(
        rayinf.InputError, match=r"^1,000 columns over 513,000 parameters take 13.4 GiB of memory; 14.0"
    ):
        rayinf.influence(task(WIDE), TRAIN, VALID)


def test_factors_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times A and G of both layers, and LAPACK's room for the largest side of 51."""
    size = 3 * 8 * (50**2 + 5**2 + 3**2 + 51**2) + 24 * 51**2
    give(monkeypatch, size / 0.9 - 2)
    with pytest.raises(rayinf.InputError, match=r"Factors of layers with up to 51 inputs or outputs.*identity"):
        rayinf.influence(task(WIDE), TRAIN, VALID, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert len(rayinf.influence(task(WIDE), TRAIN, VALID, curvature="identity")) == 60


def test_steps_of_ekfac(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bytes of A and G, of all parameters and of the largest layer; by hand, for one chunk and for eight."""
    job, probed, _, merged = _last(monkeypatch)
    monkeypatch.undo()
    grams, p, block = 8 * (50**2 + 5**2 + 3**2 + 51**2), 8 * P, 250
    own = memory.query_bytes(job, probed, 1, merged).size
    one = memory.kronecker_bytes(job, probed, 1, merged)
    assert one["covariance"] == grams
    assert one["lambda"] == grams + grams // 2 + 12 * block + p
    assert one["factors"] == grams + p
    layer = 8 * (50**2 + 5**2) + 56 * block
    assert one["solved"] == grams + p + layer + own
    assert memory.kronecker_bytes(job, probed, 3, merged)["solved"] == 2 * (grams + p) + 3 * layer + own
    shards = [dataclasses.replace(job.tables["train"].shards[0], index=k, rows=1) for k in range(8)]
    table = SimpleNamespace(shards=shards)
    many = dataclasses.replace(job, tables={**job.tables, "train": table})
    # A level each of a tree of eight leaves, what comes in and what goes out; two workers hold and send two each.
    assert memory.kronecker_bytes(many, probed, 1, 8)["covariance"] == 5 * grams
    assert memory.kronecker_bytes(many, probed, 2, 8)["covariance"] == 9 * grams


def test_pairs_and_measures_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    big = nn.Linear(4, 3)
    give(monkeypatch, 1024)
    with pytest.raises(rayinf.InputError, match="gradients of validation rows over 15 parameters take"):
        rayinf.pairs(task(big), TRAIN, VALID, curvature="identity")
    give(monkeypatch, 3 * 8 * 2 * 15 + 2)
    with pytest.raises(rayinf.InputError, match="2 directions of one labelled row over 15 parameters"):
        rayinf.acquire(task(big), TRAIN, VALID, n=2, curvature="identity")
    give(monkeypatch, 3 * 8 * 2 * 4 + 2)
    monkeypatch.setattr(memory, "query_bytes", lambda *given: memory.Need("Columns", 0, ""))
    with pytest.raises(rayinf.InputError, match="derivatives of one row, 2 x 4 numbers"):
        rayinf.influence_measure(task(big), TRAIN, VALID, curvature="identity")


def test_workers_on_this_machine_count_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds its own sums; of a cluster elsewhere nothing is known."""
    held: list[list[int]] = []
    real = memory.needs

    def noted(*given: Any) -> list[memory.Need]:
        held.append([need.size for need in real(*given)])
        return real(*given)

    monkeypatch.setattr(memory, "needs", noted)
    rayinf.influence(task(WIDE), TRAIN, VALID, "category")
    ((total, *_),) = held
    job, probed, _, merged = _last(monkeypatch)
    monkeypatch.setattr(memory, "needs", real)
    assert memory.query_bytes(job, probed, 1, merged).size == total
    # Eight workers that send a sum and hold one: 16 bytes each beside the store's two sums.
    assert memory.query_bytes(job, probed, 8, merged).size == (8 * (2 + 2 * 8)) * 3 * P
    give(monkeypatch, 1)
    with pytest.raises(rayinf.InputError):
        memory.check_fits(job, probed, 2, merged)
    assert job.spec.is_here and dataclasses.replace(job.spec, cluster=rayinf.Cluster()).is_here
    assert not dataclasses.replace(job.spec, cluster=rayinf.Cluster(address="auto")).is_here


def _last(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """What `needs` is asked with."""
    asked: list[tuple[Any, ...]] = []

    def noted(*given: Any) -> list[memory.Need]:
        asked.append(given)
        return []

    monkeypatch.setattr(memory, "needs", noted)
    rayinf.influence(task(WIDE), TRAIN, VALID, "category")
    return asked[0]


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 5\ninactive_file 50\n"}, 350),
        ({"memory.max": "max", "memory.current": "700", "memory.stat": ""}, None),
        (
            {
                "memory.limit_in_bytes": "1000",
                "memory.usage_in_bytes": "990",
                "memory.stat": "inactive_file 7\ntotal_inactive_file 3\ntotal_active_file 2\n",
            },
            15,
        ),
        ({}, None),
    ],
)
def test_a_containers_limit(
    files: dict[str, str], left: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts where the machine has more free."""
    give(monkeypatch, 10_000)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    folder = tmp_path / "memory" if "memory.limit_in_bytes" in files else tmp_path
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    assert machine.free_memory() == (10_000 if left is None else left)


def test_a_plan_tries_no_more_columns_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """500 classes and 250 parameters each, with room to try 100: the seconds and bytes are those of all."""
    monkeypatch.setattr("rayinf.engine.plan.fewest", lambda columns, parameters: min(columns, 100))
    seen: dict[str, list[int]] = {"scores": [], "queries": []}
    prepare, batch = scoring.Score.prepare, stages.Queries.batch

    def scores(self: Any, arrays: Any) -> None:
        seen["scores"] += [len(v) for v in arrays.values()]
        prepare(self, arrays)

    def queries(self: Any, sums: Any, ready: Any) -> None:
        batch(self, sums, ready)
        seen["queries"] += [len(v) for k, v in sums.items() if k.startswith("V")]

    monkeypatch.setattr(scoring.Score, "prepare", scores)
    monkeypatch.setattr(stages.Queries, "batch", queries)
    x = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    rows = x, np.arange(500)
    cost = rayinf.plan(task(nn.Linear(4, 500)), rows, rows, "category", curvature="identity")
    assert set(seen["scores"]) == {100}
    assert set(seen["queries"]) == {1}
    memory_of = {s.name: s.memory for s in cost.stages}
    fixed = memory_of["scan train"]
    assert memory_of["queries"] - fixed == 28 * 500 * 2500
    assert memory_of["scores"] - fixed == 2 * 4 * 500 * 2500


def test_a_plan_of_a_dense_curvature_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, 1 << 20)
    with pytest.raises(rayinf.InputError, match="curvature='exact' over 403 parameters takes"):
        rayinf.plan(task(WIDE), TRAIN, VALID, curvature="exact")


_MEASURED = """
import sys
import numpy as np, torch
import rayinf
torch.set_num_threads(1)
columns, rng = int(sys.argv[2]), np.random.default_rng(0)
net = torch.nn.Sequential(torch.nn.Linear(1000, 100), torch.nn.Tanh(), torch.nn.Linear(100, 3))
x = rng.normal(size=(2 * columns, 1000)).astype("f4")
import pyarrow as pa
table = pa.table({"features": list(x), "label": np.arange(2 * columns) % 3, "g": np.arange(2 * columns) % columns})
task, few = rayinf.Task(net), table.slice(0, 20)
rayinf.influence(task, few, table, curvature=sys.argv[1], batch_size=16)
def status(name):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))
base = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the kernel counts the peak anew
rayinf.influence(task, few, table, "slice:g", curvature=sys.argv[1], batch_size=16)
print((status("VmHWM") - base) / sum(p.numel() for p in net.parameters()))
"""


@pytest.mark.parametrize(("curvature", "bytes_each"), [("ekfac", 20), ("identity", 28)])
@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is told to give freed arrays back at once")
def test_the_constants_are_those_of_a_run(curvature: str, bytes_each: int) -> None:
    """Peak memory that 30 more columns take over 100,403 parameters, a parameter and column."""
    peak = {
        columns: float(
            subprocess.run(
                [sys.executable, "-c", _MEASURED, curvature, str(columns)],
                env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
                capture_output=True,
                text=True,
                check=True,
                timeout=300,
            ).stdout
        )
        for columns in (30, 60)
    }
    assert 0.8 * bytes_each < (peak[60] - peak[30]) / 30 < 1.05 * bytes_each


def test_large_queries_are_added_in_the_models_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, in one chunk: the same values up to its rounding, and half the bytes of the sums."""
    small = rayinf.influence(task(WIDE), TRAIN, VALID, "category", damping=0.1).to_numpy()
    seen: list[Any] = []
    batch = stages.Queries.batch

    def queries(self: Any, sums: Any, ready: Any) -> None:
        batch(self, sums, ready)
        seen.extend(v.dtype for k, v in sums.items() if k.startswith("V"))

    monkeypatch.setattr(stages.Queries, "batch", queries)
    monkeypatch.setattr(stages, "_EXACT_QUERIES", 8 * 3 * P - 1)
    large = rayinf.influence(task(WIDE), TRAIN, VALID, "category", damping=0.1).to_numpy()
    assert set(seen) == {torch.float32}
    assert np.abs(small - large).max() < 1e-5 * np.abs(small).max()
    job, probed, _, merged = _last(monkeypatch)
    assert memory.are_summed_at_once(job, probed)
    need = memory.query_bytes(job, probed, 1, merged).size
    assert need == 8 * 3 * P + 4 * 3 * LARGER
