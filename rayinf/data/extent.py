"""How far a run goes: what a later call may ask more of (rounds, seeds, strategies, generations) in the same folder.

A record of a run (`run.json`) has beside its `identity`, which is fixed:

- `extent`: counts by name, as `{"rounds": 4}`. A call that asks for more goes on from what is there.
- `optional`: parts of the config that only some of the work depends on, as the validation table of one strategy. They
  are compared where both calls have them.
- `complete`, while a run goes on: the extent that earlier calls have finished.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EXTENT, OPTIONAL, COMPLETE = "extent", "optional", "complete"


def complete(held: Mapping[str, Any], finished: bool) -> dict[str, int]:
    """The extent that is finished in a folder.

    Args:
        held: its record.
        finished: whether the record says that the run is.
    """
    return dict(held.get(EXTENT if finished else COMPLETE) or {})


def covers(done: Mapping[str, int], record: Mapping[str, Any]) -> bool:
    """Whether an extent has all that a record asks for."""
    return all(done.get(name, 0) >= count for name, count in record.get(EXTENT, {}).items())


def grown(held: Mapping[str, Any], done: Mapping[str, int], record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record that goes on from another one: nothing that is done gets lost.

    Args:
        held: the record of the folder; empty where there is none.
        done: the extent that is finished there.
        record: what is asked for.
    """
    if EXTENT not in record:
        return {}
    wanted = record[EXTENT]
    found = {EXTENT: {name: max(done.get(name, 0), wanted.get(name, 0)) for name in [*done, *wanted]}}
    optional = {**held.get(OPTIONAL, {}), **record.get(OPTIONAL, {})}
    return {**found, **({OPTIONAL: optional} if optional else {})}


def comparable(held: Mapping[str, Any], record: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configs of two records, as far as they must be the same."""
    a, b = held.get(OPTIONAL, {}), record.get(OPTIONAL, {})
    both = [name for name in a if name in b]
    return {**held.get("identity", {}), **{n: a[n] for n in both}}, {**record["identity"], **{n: b[n] for n in both}}
