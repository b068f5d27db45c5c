"""A run's folder: run.json, factors/, scores/part-*.parquet, log.jsonl. Resumable, and refused to another config."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayinf.data.differences import differences
from rayinf.data.files import sweep, write_json
from rayinf.errors import InputError


@dataclass(frozen=True)
class RunFolder:
    """Paths and state of one run."""

    path: Path

    @property
    def factors(self) -> Path:
        """Curvature factors, as safetensors."""
        return self.path / "factors"

    @property
    def scores(self) -> Path:
        """Shards of scores, as Parquet."""
        return self.path / "scores"

    def part(self, index: int) -> Path:
        """The file of one shard of scores."""
        return self.scores / f"part-{index:05d}.parquet"

    def read(self) -> dict[str, Any] | None:
        """`run.json`, or None where no run has begun.

        Raises:
            InputError: the file is damaged.
        """
        file = self.path / "run.json"
        if not file.exists():
            return None
        try:
            held: dict[str, Any] = json.loads(file.read_text())
            _ = held["identity"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file} is damaged, or no run's: {error!r}.", "give the run another folder with out=..."
            ) from error
        return held

    def begin(self, record: Mapping[str, Any]) -> bool:
        """Claim the folder for a config, or find it claimed by the same one.

        Args:
            record: what `run.json` shall say; its `identity` decides whether a run is the same.

        Returns:
            Whether the run had already finished, and all its shards of scores are still there.

        Raises:
            InputError: the folder belongs to another config, or holds other things.
        """
        there = next((p for p in (self.path, *self.path.parents) if p.exists()), None)
        if there is not None and not there.is_dir():
            raise InputError(f"{there} is a file, so {self.path} cannot be a folder.", "pass another folder as out.")
        held = self.read()
        if held is None:
            if self.path.is_dir() and any(f.name != "log.jsonl" for f in self.path.iterdir()):
                raise InputError(f"{self.path} is not empty and holds no run.", "pass an empty or a new folder as out.")
            write_json(self.path / "run.json", {**record, "status": "running"})
            return False
        changed = differences(held.get("identity", {}), record["identity"])
        if changed:
            raise InputError(
                f"{self.path} holds a run of another config: {'; '.join(changed[:6])}.",
                "pass another folder as out, or the same arguments and tables as before.",
            )
        sweep(self.path)
        return held.get("status") == "finished" and not self._lacks(held.get("parts"))

    def _lacks(self, parts: int | None) -> bool:
        """Whether shards of scores were taken away."""
        return self.scores.is_dir() and len(list(self.scores.glob("part-*.parquet"))) != parts

    def finish(self, record: Mapping[str, Any]) -> None:
        """Mark the run as finished."""
        write_json(self.path / "run.json", {**record, "status": "finished"})

    def log(self, event: str, **fields: Any) -> None:
        """Append a line to `log.jsonl`."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "log.jsonl").open("a") as file:
            file.write(json.dumps({"time": round(time.time(), 3), "event": event, **fields}, default=str) + "\n")
