"""Parts of one artefact that are put into a store of factors whose process is killed in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rayinf.engine.factors import FactorStore


def put_over_a_crash(folder: Path, name: str, make: Callable[[Any], Any], items: Mapping[int, Any]) -> FactorStore:
    """Put the first two parts twice; another store in the same folder asks for the others, and gets them in reverse.

    Args:
        folder: of both stores.
        name: of the artefact.
        make: an item's part.
        items: by key.

    Returns:
        The second store, which has all parts.
    """
    first = FactorStore(folder, "run")
    assert first.missing_parts(name, list(items)) == list(items)
    for key in list(items)[:2] * 2:
        first.put_part(name, key, make(items[key]))
    store = FactorStore(folder, "run")
    left = store.missing_parts(name, list(items))
    assert left == list(items)[2:]
    for key in reversed(left):
        store.put_part(name, key, make(items[key]))
    return store
