"""What a run on Ray adds to the cluster's own metrics, for Prometheus and Grafana: counted in the driver alone.

Ray puts `ray_` before each name. Every metric has the tags `verb` and `stage`. Nothing is made or sent where nobody
collects metrics: in a Ray that a run started for itself, and where `RAY_enable_metrics_collection` is 0.
"""

from __future__ import annotations

import os
from typing import Any

from ray.util.metrics import Counter

# What each counts, as Prometheus shows it.
METRICS = {
    "rayinf_rows": "Rows that a stage has finished.",
    "rayinf_shards": "Shards, or chunks of shards, that a stage has finished.",
    "rayinf_bytes": "Bytes of score files that were written.",
    "rayinf_retries": "Restarts of worker processes that died.",
    "rayinf_stage_seconds": "Seconds that a stage took, once it has ended.",
}
_TAGS = ("verb", "stage")
_SWITCH, _OFF = "RAY_enable_metrics_collection", ("0", "false", "no")


class Meter:
    """Counters, each made when it is first needed."""

    def __init__(self) -> None:
        self._counters: dict[str, Any] = {}

    def add(self, name: str, value: float, verb: str, stage: str) -> None:
        """Raise a counter.

        Args:
            name: of `METRICS`.
            value: by how much; nothing is done for 0.
            verb: of the run.
            stage: that it belongs to.
        """
        if value <= 0:
            return
        if name not in self._counters:
            self._counters[name] = _counter(name)
        self._counters[name].inc(value, {"verb": verb, "stage": stage})


def meter(own: bool) -> Meter | None:
    """A meter, or None where nobody collects metrics.

    Args:
        own: whether the Ray was started by this run, for itself alone.
    """
    return None if own or os.environ.get(_SWITCH, "1").lower() in _OFF else Meter()


def _counter(name: str) -> Any:
    return Counter(name, METRICS[name], _TAGS)
