"""How far a run goes: more goes on, less is there already, and nothing that is done gets lost from the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import rayinf
from rayinf.data.run_folder import RunFolder


def record(extent: dict[str, int], **optional: Any) -> dict[str, Any]:
    return {"verb": "v", "identity": {"seed": 0}, "extent": extent, **({"optional": optional} if optional else {})}


def run(path: Path, asked: dict[str, Any], finish: bool = True) -> bool:
    """Whether all was there."""
    with RunFolder(path) as folder:
        found = folder.begin(asked)
        if not found and finish:
            folder.finish(asked)
        return found


def held(path: Path) -> dict[str, Any]:
    found = RunFolder(path).read()
    assert found is not None
    return found


def test_more_and_less(tmp_path: Path) -> None:
    assert not run(tmp_path, record({"a": 2}))
    assert run(tmp_path, record({"a": 2})) and run(tmp_path, record({"a": 1}))
    assert not run(tmp_path, record({"a": 3}))
    assert not run(tmp_path, record({"b": 1}))
    assert run(tmp_path, record({"a": 3, "b": 1})) and run(tmp_path, record({"b": 1}))
    assert held(tmp_path)["extent"] == {"a": 3, "b": 1} and "complete" not in held(tmp_path)


def test_more_that_is_stopped_leaves_what_was_finished(tmp_path: Path) -> None:
    run(tmp_path, record({"a": 2}))
    for _ in range(2):
        assert not run(tmp_path, record({"a": 5, "b": 1}), finish=False)
        assert held(tmp_path)["status"] == "running"
        assert (held(tmp_path)["extent"], held(tmp_path)["complete"]) == ({"a": 5, "b": 1}, {"a": 2})
    assert not run(tmp_path, record({"b": 1}))
    assert held(tmp_path)["extent"] == {"a": 2, "b": 1}
    assert not run(tmp_path, record({"a": 5}))


def test_what_only_some_of_the_work_depends_on(tmp_path: Path) -> None:
    run(tmp_path, record({"a": 1}))
    assert not run(tmp_path, record({"b": 1}, more=7))
    assert run(tmp_path, record({"a": 1})) and run(tmp_path, record({"b": 1}, more=7))
    with pytest.raises(rayinf.InputError, match="another config: more: 7 -> 8"):
        run(tmp_path, record({"b": 1}, more=8))
    assert not run(tmp_path, record({"a": 2}))
    assert held(tmp_path)["optional"] == {"more": 7}


def test_another_config_is_refused_whatever_the_extent(tmp_path: Path) -> None:
    run(tmp_path, record({"a": 1}))
    with pytest.raises(rayinf.InputError, match="another config: seed: 0 -> 1"):
        run(tmp_path, {**record({"a": 2}), "identity": {"seed": 1}})
