"""Steps that are done once: read where they are on disk, done again where they are damaged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import nn

import rayinf
from rayinf.data.checked_folder import CheckedFolder
from rayinf.engine.parallel import side_by_side
from rayinf.training.steps import Steps, run_folder

VALUES: dict[str, Any] = {
    "a.json": {"x": 0.1 + 0.2, "y": [1, None, "é"]},
    "b.parquet": pa.table({"row_id": [7, 9], "value": [0.1, 1e-300]}),
}


def steps(folder: Path) -> Steps:
    """As another process would open them."""
    files = CheckedFolder(folder, "me")
    return Steps(lambda: files)


@pytest.mark.parametrize("name", VALUES)
def test_a_step_is_done_once_and_again_where_it_is_damaged(name: str, tmp_path: Path) -> None:
    made: list[str] = []

    def make() -> Any:
        made.append(name)
        return VALUES[name]

    for _ in range(3):
        assert steps(tmp_path).step(name, make) == VALUES[name]
    assert len(made) == 1
    held = bytearray((tmp_path / name).read_bytes())
    held[len(held) // 2] ^= 1
    (tmp_path / name).write_bytes(held)
    assert steps(tmp_path).step(name, make) == VALUES[name] and len(made) == 2
    (tmp_path / name).unlink()
    assert steps(tmp_path).step(name, make) == VALUES[name] and len(made) == 3


def test_a_step_that_cannot_be_done_yet_is_not_kept(tmp_path: Path) -> None:
    assert steps(tmp_path).step("a.json", lambda: None) is None
    assert not list(tmp_path.iterdir())
    assert steps(tmp_path).step("a.json", lambda: [1]) == [1]


def test_the_same_value_is_not_written_again(tmp_path: Path) -> None:
    held = steps(tmp_path)
    held.write("a.json", {"k": 1})
    before = (tmp_path / "manifest.jsonl").read_bytes()
    held.write("a.json", {"k": 1})
    assert (tmp_path / "manifest.jsonl").read_bytes() == before
    held.write("a.json", {"k": 2})
    assert steps(tmp_path).read("a.json") == {"k": 2}


def test_a_model(tmp_path: Path) -> None:
    task = rayinf.Task(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)))
    made: list[int] = []

    def train() -> rayinf.Task:
        made.append(1)
        model = task.build()
        nn.init.constant_(model[0].weight, 0.5)
        return replace(task, model=model)

    first, again = (steps(tmp_path).model("m.safetensors", task, train) for _ in range(2))
    assert len(made) == 1 and again.model is not task.model and not again.model.training
    for a, b in zip(first.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    # The same tensors in another architecture are not what was trained.
    other = rayinf.Task(nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)))
    before = (tmp_path / "manifest.jsonl").read_bytes()
    steps(tmp_path).model("m.safetensors", other, train)
    assert len(made) == 2 and (tmp_path / "manifest.jsonl").read_bytes() == before


def test_items_side_by_side_are_kept_as_they_come(tmp_path: Path) -> None:
    done: list[str] = []
    items = {f"{k}.json": k for k in (3, 1, 2)}

    def square(k: int) -> dict[str, int]:
        if k == 2 and not done.count("1.json") == 2:
            raise KeyboardInterrupt
        return {"square": k * k}

    def each(name: str, found: Any) -> None:
        done.append(name)

    calls = partial(side_by_side, square, cluster=None)
    with pytest.raises(KeyboardInterrupt):
        steps(tmp_path).map(calls, items, each)
    assert done == ["3.json", "1.json"] and sorted(p.name for p in tmp_path.glob("*.json")) == ["1.json", "3.json"]
    (tmp_path / "1.json").write_text("{")
    with pytest.raises(KeyboardInterrupt):
        steps(tmp_path).map(calls, {n: items[n] for n in ("3.json", "2.json")}, each)
    found = steps(tmp_path).map(calls, items, each, "squares", "items")
    assert done == ["3.json", "1.json", "1.json", "2.json"]
    assert list(found) == list(items) and found == {n: {"square": k * k} for n, k in items.items()}

    def none(missing: Mapping[str, int]) -> Iterator[tuple[str, Any]]:
        assert not missing
        return iter(())

    assert steps(tmp_path).map(none, items, each) == found


def test_a_result_that_is_refused_is_not_kept(tmp_path: Path) -> None:
    def each(name: str, found: Any) -> None:
        raise rayinf.RunError("A table changed.", "leave it.")

    with pytest.raises(rayinf.RunError):
        steps(tmp_path).map(partial(side_by_side, str, cluster=None), {"1.json": 1}, each)
    assert not list(tmp_path.iterdir())


def test_without_a_folder_every_step_is_done(tmp_path: Path) -> None:
    made: list[int] = []
    task = rayinf.Task(nn.Linear(2, 2))
    for _ in range(2):
        assert Steps(None).step("a.json", lambda: made.append(1) or 5) == 5
        assert Steps(None).model("m.safetensors", task, lambda: made.append(1) or task) is task
    assert len(made) == 4


def test_a_temporary_folder_goes_at_the_end(tmp_path: Path) -> None:
    record = {"verb": "v", "identity": {}}
    with run_folder(None, record) as (folder, finished):
        folder.files.put_json("a.json", 1)
        assert (folder.path / "a.json").exists() and not finished
    assert not folder.path.exists()
    for before in (False, True):
        with run_folder(tmp_path / "run", record) as (folder, finished):
            assert finished is before
            if not finished:
                folder.finish(record)
