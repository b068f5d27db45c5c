"""What a run tells the cluster's metrics: rows, shards, bytes, retries, seconds; nothing where they are off."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
from engine import small_job as job

import rayinf
from rayinf.engine import ray_metrics, ray_pool


class Recorded:
    """Stands for a counter of Ray."""

    made: ClassVar[Counter[tuple[str, str, str]]] = Counter()

    def __init__(self, name: str) -> None:
        self.name = name

    def inc(self, value: float, tags: dict[str, str]) -> None:
        self.made[self.name, tags["verb"], tags["stage"]] += value  # type: ignore[assignment]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str, str]]:
    Recorded.made.clear()
    monkeypatch.setattr(ray_metrics, "_counter", Recorded)
    return Recorded.made


@pytest.mark.slow
def test_a_run_on_ray_is_counted(ray_session: None, recorded, tmp_path, monkeypatch) -> None:
    train, valid = job.write(tmp_path / "t.parquet", 240, 1, 80), job.write(tmp_path / "v.parquet", 40, 2, 40)
    deaths = iter([0] * 2 + [1] * 50)
    monkeypatch.setattr(ray_pool, "restarts_of", lambda actor: next(deaths))
    job.run(train, valid, tmp_path / "run", rayinf.Cluster(workers=1))
    assert recorded["rayinf_rows", "influence", "scores"] == 240
    assert recorded["rayinf_shards", "influence", "scores"] == 3
    written = sum(f.stat().st_size for f in (tmp_path / "run" / "scores").glob("part-*"))
    assert recorded["rayinf_bytes", "influence", "scores"] == written
    stages = {stage for name, _, stage in recorded if name == "rayinf_stage_seconds"}
    assert {"covariance", "queries", "scores"} <= stages
    assert sum(v for (name, *_), v in recorded.items() if name == "rayinf_retries") == 1
    assert {name for name, *_ in recorded} <= set(ray_metrics.METRICS)


def test_nothing_is_made_where_nobody_collects(recorded, monkeypatch) -> None:
    assert ray_metrics.meter(own=True) is None
    monkeypatch.setenv("RAY_enable_metrics_collection", "0")
    assert ray_metrics.meter(own=False) is None
    monkeypatch.delenv("RAY_enable_metrics_collection")
    found = ray_metrics.meter(own=False)
    assert found is not None
    found.add("rayinf_retries", 0, "influence", "scores")
    assert not recorded


def test_the_names_stand_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
    assert [name for name in ray_metrics.METRICS if f"ray_{name}" not in text] == []
