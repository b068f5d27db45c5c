"""The differences of two configs as text: what a user changed, without digests."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TABLES = {
    "train": "the training table",
    "valid": "the validation table",
    "test": "the test table",
    "pool": "the pool",
    "labeled": "the labelled table",
}
# The key of a table's description for the sizes of its shards.
SHARDS = "shards"
_NAMES = {
    "loss": "the loss function",
    "model": "the model (its weights, code or attributes)",
    "architecture": "the model's code, attributes or shapes",
    "frozen": "the set of frozen parameters",
    "fit": "the function that trains the model",
    "factors": "the run whose factors are used",
    "scores": "the values of the scores",
    "removals": "the rows to remove",
}
FUNCTIONS = "objective functions"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One text a difference: `key: old -> new`, or a description where digests stand for code or rows."""
    a, b = (json.loads(json.dumps(v, default=str)) for v in (old, new))
    changed = [k for k in [*a, *(k for k in b if k not in a)] if a.get(k) != b.get(k)]
    found = [_difference(key, a.get(key), b.get(key), changed) for key in changed]
    # An entry that follows from others is left out, unless nothing else would be shown.
    return [text for text in found if text is not None] or [f"{key} differs" for key in changed]


def _difference(key: str, old: Any, new: Any, changed: list[str]) -> str | None:
    """One difference as text; None where it follows from another one."""
    # A column of a table's description has the name of the argument that names it: features, label, row_id.
    if key in _TABLES and (isinstance(old, dict) or isinstance(new, dict)):
        return _table(_TABLES[key], old, new, changed)
    if key == FUNCTIONS:
        old, new = old or {}, new or {}
        names = [name for name in old if name in new and old[name] != new[name]]
        return f"the function of the objective {', '.join(map(repr, names))} differs" if names else None
    if _is_digest(old) and _is_digest(new):
        return f"{_NAMES.get(key, f'the {key}')} differs"
    return f"{key}: {_short(old)} -> {_short(new)}"


def table_differences(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The difference of two descriptions of a table (`engine.identity`), in the entries that both have."""
    return _table(_TABLES.get(name, name), old, new, [])


def _table(name: str, old: Any, new: Any, changed: list[str]) -> str | None:
    if old is None or new is None:
        return f"{name} is {'missing' if new is None else 'added'}"
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return f"{name} was described by another version of rayinf"
    if old["rows"] != new["rows"]:
        return f"{name} has {old['rows']:,} -> {new['rows']:,} rows"
    names = [k for k in old if k in new and old[k] != new[k] and k not in changed]
    if names == [SHARDS]:
        return f"{name} is cut into other files or row groups"
    shown = [n.removeprefix("column:") for n in names if n != SHARDS]
    return f"{name} has other values, or its rows in another order ({', '.join(shown)})" if shown else None


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _short(value: Any) -> str:
    if _is_digest(value):
        return "a function"
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
