"""Finished runs made by hand, for tests and benchmarks of what reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayinf.data.checked_folder import Entry
from rayinf.data.files import sealed, unsealed
from rayinf.data.part_files import PartPlace
from rayinf.data.run_folder import SCORES, RunFolder

IDENTITY = {"verb": "influence", "seed": 0}


def write_run(folder: Path, parts: Iterable[pa.Table | Callable[[Path], int]], metadata: dict[str, Any]) -> Path:
    """A finished run with these parts of scores: tables, or functions that write a file and return its rows."""
    place, count = PartPlace(folder, SCORES), 0
    with RunFolder(folder) as run:
        run.begin({"identity": IDENTITY})
        for k, part in enumerate(parts):
            if isinstance(part, pa.Table):
                entry = place.write(k, part)
            else:
                (folder / SCORES).mkdir(exist_ok=True)
                entry = Entry.of(folder, place.name(k), part(folder / place.name(k)))
            run.files.add(entry)
            count = k + 1
        run.finish({"verb": "influence", "identity": IDENTITY, "parts": count, "metadata": metadata})
    return folder


def edit_record(folder: Path, **changes: Any) -> None:
    """Change `run.json` as rayinf itself would write it."""
    file = folder / "run.json"
    held = unsealed(json.loads(file.read_text()))
    assert held is not None
    file.write_text(json.dumps(sealed({**held, **changes})))
