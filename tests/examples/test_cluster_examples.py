"""The jobs of examples/cluster give what is right, with the same configs in a process each, without Ray."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import rayinf

CLUSTER = Path(__file__).parents[2] / "examples" / "cluster"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def load() -> Iterator[Any]:
    """A module of the folder, under its own name."""
    sys.path.insert(0, str(CLUSTER))

    def get(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, CLUSTER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    yield get
    sys.path.remove(str(CLUSTER))
    for file in CLUSTER.glob("*.py"):
        sys.modules.pop(file.stem, None)


@pytest.fixture
def without_ray(load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Any) -> Any:
    """Runs a script whose jobs are commands on this machine; gives what was printed."""

    def command(verb: str, config: Path, address: str) -> list[str]:
        return [sys.executable, "-m", "rayinf", verb, str(config), "--set", "cluster=null"]

    def script(name: str) -> str:
        module = load(name)
        monkeypatch.setattr(sys.modules["jobs"], "submit_command", command)
        module.main(["--store", str(tmp_path), "--quick", "--address", "http://no-head:8265"])
        return str(capfd.readouterr().out)

    return script


def test_appended_rows_get_the_values_that_they_have_in_the_old_training_set(
    load: Any, without_ray: Any, tmp_path: Path
) -> None:
    printed = without_ray("valuation")
    assert "6 (new)" in printed
    first, new = (rayinf.Scores.load(tmp_path / "runs" / name) for name in ("days", "appended"))
    source = new.metadata["factors_from"]
    assert (source["rows"], source["same_table"]) == (600, False)
    assert new.to_pandas()["row_id"].tolist() == list(range(600, 720))
    wrong = pq.read_table(tmp_path / "appended").to_pandas().query("label != true_label").row_id
    assert (new.to_pandas().set_index("row_id")["total"].loc[wrong] < 0).mean() > 0.7

    # A day of the old ones, valued as the new one was, has the values of the first run.
    task = load("task")
    valuation = load("valuation")
    again = rayinf.influence(
        task.load_task(str(tmp_path / "model.pt")),
        tmp_path / "days" / "day-2.parquet",
        tmp_path / "valid.parquet",
        ["total", "category"],
        factors=tmp_path / "runs" / "days",
    )
    old = first.to_pandas().set_index("row_id")["total"]
    ids = again.to_pandas()["row_id"]
    np.testing.assert_allclose(valuation.on_old_n(again), old.loc[ids], atol=1e-5 * old.abs().max())


def test_rounds_wait_for_annotators_between_jobs(without_ray: Any, tmp_path: Path) -> None:
    printed = without_ray("rounds")
    assert [f"Job {k} took" in printed for k in (1, 2, 3)] == [True, True, False]
    assert printed.count("the annotators labelled 40 rows") == 1
    assert "the annotators labelled 0 rows" in printed
    folder = tmp_path / "runs" / "rounds" / "fi-seed0"
    known = pq.read_table(tmp_path / "annotators" / "known.parquet").to_pandas().set_index("row_id")["label"]
    added = pq.read_table(folder / "round-1.parquet").to_pandas()
    assert len(added) == 40
    assert (known.loc[added.row_id].to_numpy() == added.label.to_numpy()).all()
    before, after = (json.loads((folder / f"round-{k}.json").read_text()) for k in range(2))
    assert after["accuracy"] > before["accuracy"]
    assert not pq.read_schema(tmp_path / "pool.parquet").names.count("label")


def test_weights_are_searched_after_the_values(without_ray: Any, tmp_path: Path) -> None:
    printed = without_ray("weights")
    assert "Mean weight of the" in printed
    weights = pq.read_table(tmp_path / "runs" / "weights" / "weights.parquet").to_pandas()
    assert len(weights) == 600
    assert weights.weight.between(0, 2).all()
    assert rayinf.Scores.load(tmp_path / "runs" / "scores").halves is not None


def test_scripts_ask_for_an_address(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for script in ("valuation", "rounds", "weights"):
        with pytest.raises(SystemExit, match="2"):
            load(script).main([])
        assert "--quick for a head on this machine" in capsys.readouterr().err
