"""A runner for plans: it measures the stages that pass over rows, and derives nothing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rayinf.data.files import Arrays
from rayinf.engine.failed_shards import Failures
from rayinf.engine.job import Chunk, Job
from rayinf.engine.leaves import FEWEST
from rayinf.engine.runner import LocalRunner
from rayinf.engine.spanning import SKETCH
from rayinf.engine.stages import Stage


class TrialRunner(LocalRunner):
    """A runner that measures every stage over rows, and whose store derives arrays of the right shapes alone.

    Stages pass over rows as in any run; but sums over few rows may be singular, and decompositions take long.
    """

    def __init__(self, job: Job, device: str | None, derived: Callable[[str, Any], Arrays]) -> None:
        super().__init__(job, device)
        self._derived = derived
        self.rows, self.seconds = Counter[str](), dict[str, float]()
        # Of each stage: bytes of what it is given beside the rows, and of its sums.
        self.bytes = dict[str, tuple[int, int]]()
        # Of `pairs`: of the gradients of a tile of validation rows.
        self.tile_seconds = 0.0
        self._last = 0, 0

    def map(
        self,
        stage: type[Stage],
        arrays: Arrays,
        items: Mapping[int, Any],
        failed: Failures | None = None,
        **options: Any,
    ) -> Iterator[tuple[int, Any]]:
        """Results by key, in order."""
        for key, found in super().map(stage, arrays, items, failed, **options):
            self._last = _bytes_of(arrays), _bytes_of(found) if isinstance(found, dict) else 0
            yield key, found

    def fill(
        self, stage: type[Stage], arrays: Arrays, items: Mapping[int, Any], name: str, **options: Any
    ) -> Iterator[int]:
        """Nothing: what parts are joined to is derived."""
        return iter(())

    def fold(
        self,
        stage: type[Stage],
        arrays: Arrays,
        items: Mapping[int, Chunk],
        name: str,
        failed: Failures | None = None,
        fewest: int = FEWEST,
    ) -> Iterator[int]:
        """Add the sums of each chunk to the store."""
        begin = time.perf_counter()
        yield from super().fold(stage, arrays, items, name, failed, fewest)
        self._last = _bytes_of(arrays), _bytes_of(self.store("get", name))
        if name.startswith("rows-"):
            self.tile_seconds = time.perf_counter() - begin

    def publish(self, method: str, *args: Any) -> Any:
        """Call the store of factors."""
        if method == "join_parts":
            name = args[0]
            self.store("put", name, self._derived(name, None))
            return self.store("get", name)
        if method == "derive":
            name, *_, last = args
            made = self._derived(name, last)
            # A sketch has the size that its own stage gave it.
            sketch = self.store("get", SKETCH) if self.store("has", SKETCH) else {}
            self.store("put", name, {**sketch, **self._derived("inverse", last)} if name == "spanning" else made)
            return self.store("get", name)
        return super().publish(method, *args)

    def count(self, name: str, value: float, verb: str, stage: str) -> None:
        """Note rows and seconds of a stage; decompositions have no rows."""
        if name == "rayinf_rows":
            self.rows[stage] += int(value)
        elif name == "rayinf_stage_seconds" and self.rows[stage]:
            self.seconds[stage], self.bytes[stage] = value, self._last


def _bytes_of(arrays: Arrays) -> int:
    return sum(v.nbytes for v in arrays.values())
