"""The commands that value rows by themselves and in pairs, train, and measure: what they print and write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cli_cases import call, imports_of, make_folder, refused
from click.testing import Result
from safetensors.torch import load_file

import rayinf
from rayinf import config

TABLES = {"task": "mytask.py:task", "train": "train.parquet", "valid": "valid.parquet"}
TABLE = {"task": "mytask.py:task", "table": "train.parquet"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with data and a task; the current one is elsewhere."""
    monkeypatch.chdir(tmp_path)
    with imports_of(tmp_path):
        yield make_folder(tmp_path / "conf")


def run(command: str, folder: Path, values: dict[str, Any], *changes: str) -> Result:
    file = folder / "run.yaml"
    file.write_text("".join(f"{k}: {v}\n" for k, v in values.items()))
    return call(command, file, *(w for c in changes for w in ("--set", c)))


def arguments(folder: Path, verb: str) -> dict[str, Any]:
    """The arguments that the last config gave, but for `out`."""
    return {k: v for k, v in config.read_config(folder / "run.yaml", (), verb).items() if k != "out"}


def cells(result: Result) -> list[list[str]]:
    """The printed tables' cells, line by line."""
    return [[c.strip() for c in x.split("│")[1:-1]] for x in result.stdout.splitlines() if x.startswith("│")]


def test_self_influence_names_the_highest_rows(folder: Path) -> None:
    values = {k: v for k, v in TABLES.items() if k != "valid"} | {"out": "runs/s", "curvature": "ggn"}
    result = run("self-influence", folder, values)
    assert result.exit_code == 0, result.output
    frame = rayinf.Scores.load(folder / "runs" / "s").to_pandas().sort_values("self_influence", ascending=False)
    assert [line[0] for line in cells(result)] == list(frame.row_id[:5])
    assert run("self-influence", folder, values).stdout == "already finished: nothing was computed\n" + result.stdout
    trimmed = call("trim", folder / "runs" / "s", "--budget", 3)
    assert "3 of 60 rows removed: largest self_influence" in trimmed.stdout


def test_baseline_by_a_method_of_the_row_and_trimming_by_it(folder: Path) -> None:
    values = {k: v for k, v in TABLES.items() if k != "valid"} | {"out": "runs/b", "method": "margin"}
    result = run("baseline", folder, values)
    assert result.exit_code == 0, result.output
    frame = rayinf.Scores.load(folder / "runs" / "b").to_pandas().sort_values("margin")
    assert [line[0] for line in cells(result)] == list(frame.row_id[:5])
    assert run("baseline", folder, values).stdout == "already finished: nothing was computed\n" + result.stdout
    negative = int((frame.margin < 0).sum())
    assert f"{negative} of 60 rows removed" in call("trim", folder / "runs" / "b", "--budget", 60).stdout
    assert call("verify", folder / "runs" / "b").exit_code == 0
    assert "baseline, finished, 3 of 3 parts" in call("status", folder / "runs" / "b").stdout


def test_baseline_with_checkpoints_whose_paths_start_at_the_config(folder: Path) -> None:
    torch.save(torch.nn.Linear(4, 3).state_dict(), folder / "early.pt")
    values = {**TABLES, "method": "tracin", "checkpoints": "[early.pt]", "rates": "[0.5]", "out": "runs/t"}
    assert run("baseline", folder, values).exit_code == 0
    state = torch.load(folder / "early.pt")
    given = arguments(folder, "baseline")
    assert given["checkpoints"] == [str(folder / "early.pt")]
    truth = rayinf.baseline(**{**given, "checkpoints": [state]}).to_numpy()
    np.testing.assert_array_equal(rayinf.Scores.load(folder / "runs" / "t").to_numpy(), truth)
    for change, part in (("rates=[a]", "list of numbers"), ("checkpoints=[1]", "path"), ("only=yes", "row ids")):
        result = run("baseline", folder, {**values, "out": "runs/x"}, change)
        assert result.exit_code == 2
        assert part in result.stderr, result.stderr


def test_pairs_show_the_strongest_of_the_first_validation_row(folder: Path) -> None:
    result = run("pairs", folder, {**TABLES, "top": 7, "out": "runs/p"})
    assert result.exit_code == 0, result.output
    assert f"{20 * 2 * 7} pairs" in result.stdout
    assert f"Pairs: {folder / 'runs' / 'p' / 'pairs'}" in result.stdout
    frame = rayinf.pairs(**arguments(folder, "pairs")).to_pandas()
    first = frame[(frame.valid_row_id == "valid-0") & (frame["rank"] < 5)]
    assert [line[:2] for line in cells(result)] == first[["effect", "row_id"]].to_numpy().tolist()
    assert {line[0] for line in cells(result)} == {"helps", "harms"}


class TestRetrain:
    def test_writes_the_model(self, folder: Path) -> None:
        result = run("retrain", folder, {**TABLE, "out": "runs/t"})
        assert result.exit_code == 0, result.output
        assert f"Model: {folder / 'runs' / 't' / 'model.safetensors'}" in result.stdout
        found = load_file(folder / "runs" / "t" / "model.safetensors")
        expected = rayinf.retrain(**arguments(folder, "retrain")).model.state_dict()
        assert set(found) == set(expected)
        assert all(np.allclose(found[k], expected[k], atol=1e-6) for k in found)

    def test_on_the_rows_that_trim_keeps_and_with_weights(self, folder: Path) -> None:
        run("influence", folder, {**TABLES, "out": "runs/a"})
        assert call("trim", folder / "runs" / "a", "--budget", 9).exit_code == 0
        weights = np.linspace(0.5, 1.5, 60)
        pq.write_table(pa.table({"weight": weights}), folder / "weights.parquet")
        values = {**TABLE, "keep": "runs/a/trim/kept.parquet", "weights": "weights.parquet", "out": "runs/t"}
        result = run("retrain", folder, values)
        assert result.exit_code == 0, result.output
        given = arguments(folder, "retrain")
        assert len(given["keep"]) == 51
        np.testing.assert_array_equal(given["weights"], weights)
        bias = load_file(folder / "runs" / "t" / "model.safetensors")["bias"]
        assert np.allclose(bias, rayinf.retrain(**given).model.bias.detach(), atol=1e-6)
        assert not np.allclose(bias, rayinf.retrain(given["task"], given["table"]).model.bias.detach(), atol=1e-3)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (["keep=train.parquet", "weights=valid.parquet"], "with a column weight"),
            (["keep=nothing.parquet"], "nothing.parquet cannot be read as a Parquet file with a column row_id"),
            (["out=null"], "has no out"),
            (["cluster={workers: 2}"], "not of retrain"),
            (["rows=0"], "rows=0: rows must be an integer >= 1"),
            (["table=null"], "table=null should be text"),
        ],
    )
    def test_refusals(self, folder: Path, changes: list[str], message: str) -> None:
        assert message in refused(run("retrain", folder, {**TABLE, "out": "runs/t"}, *changes))
        assert not (folder / "runs").exists()


class TestEvaluate:
    def test_prints_and_writes_what_the_verb_gives(self, folder: Path) -> None:
        result = run("evaluate", folder, {**TABLE, "objective": "[category]", "out": "runs/e"})
        assert result.exit_code == 0, result.output
        expected = rayinf.evaluate(**arguments(folder, "evaluate"))
        assert json.loads((folder / "runs" / "e" / "evaluation.json").read_text()) == pytest.approx(expected)
        shown = {name: float(value) for name, value in cells(result)}
        assert shown == pytest.approx({k: v for k, v in expected.items() if k != "rows"}, rel=1e-3)
        assert {"loss", "accuracy", "accuracy_0", "category_2"} <= set(shown)
        assert "60 rows" in result.stdout

    def test_without_a_folder_it_only_prints(self, folder: Path) -> None:
        result = run("evaluate", folder, TABLE)
        assert result.exit_code == 0, result.output
        assert [name for name, _ in cells(result)][:2] == ["loss", "accuracy"]
        assert sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name != "__pycache__") == []

    def test_refusals(self, folder: Path) -> None:
        assert "is unknown" in refused(run("evaluate", folder, TABLE, "objective=totl"))
        assert "against: " in refused(run("evaluate", folder, TABLE, "against=mytask.py:nothing"))


def test_trim_rounds_writes_rows_and_the_last_model(folder: Path) -> None:
    result = run("trim-rounds", folder, {**TABLES, "rounds": 2, "out": "runs/r"})
    assert result.exit_code == 0, result.output
    expected = rayinf.trim_rounds(**arguments(folder, "trim-rounds"))
    out = folder / "runs" / "r"
    assert pq.read_table(out / "kept.parquet")["row_id"].to_pylist() == expected.kept.tolist()
    removed = pq.read_table(out / "removed.parquet").to_pydict()
    assert removed == {"row_id": expected.removed.tolist(), "round": expected.removed_in.tolist()}
    assert expected.reason in result.stdout
    assert set(load_file(out / "model.safetensors")) == {"weight", "bias"}
