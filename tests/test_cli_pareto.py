"""The commands that weigh and remove rows by class: what they write and print, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_cases import TASK, call, imports_of, make_folder, refused
from click.testing import Result

from rayinf import Scores

TRAINABLE = """

def trainable():
    return rayinf.Task(net, l2=1e-2, fit=rayinf.Fit("sgd", lr=0.05, epochs=2, batch_size=20))
"""
REWEIGHT = """
task: mytask.py:trainable
train: train.parquet
valid: valid.parquet
scores: runs/a
targets: [0, 2]
search: {elites: 1, mutated_elites: 1, randoms: 1, crossover_children: 1, iterations: 2}
out: runs/w
"""
REMOVAL = """
task: mytask.py:trainable
train: train.parquet
valid: valid.parquet
test: test.parquet
scores: runs/a
seeds: 1
out: runs/r
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with a finished run of influence in runs/a."""
    home = make_folder(tmp_path / "conf")
    (home / "mytask.py").write_text(TASK + TRAINABLE)
    with imports_of(tmp_path):
        done = call("influence", home / "run.yaml", "--set", "curvature=ggn")
        assert done.exit_code == 0, done.output
        yield home


def run(command: str, folder: Path, config: str, *changes: str) -> Result:
    file = folder / "second.yaml"
    file.write_text(config)
    return call(command, file, *(word for c in changes for word in ("--set", c)))


class TestReweight:
    def test_writes_weights_and_a_picture(self, folder: Path) -> None:
        result = run("reweight", folder, REWEIGHT)
        assert result.exit_code == 0, result.output
        out = folder / "runs" / "w"
        weights = pq.read_table(out / "weights.parquet")
        assert weights.schema.names == ["row_id", "weight"]
        assert weights["row_id"].to_pylist() == [f"train-{k}" for k in range(60)]
        assert (weights["weight"].to_numpy() >= 0).all()
        assert (out / "trade_off.png").read_bytes().startswith(b"\x89PNG")
        assert f"Trade-off: {out / 'trade_off.png'}" in result.stdout
        assert result.stdout.count(" *") >= 2  # both targets are marked

    def test_again_computes_nothing(self, folder: Path) -> None:
        first, second = (run("reweight", folder, REWEIGHT) for _ in range(2))
        assert second.stdout == "already finished: nothing was computed\n" + first.stdout

    @pytest.mark.parametrize(
        ("change", "part"),
        [
            ("targets=[7]", "targets: 7 is not a class of the scores"),
            ("targets=yes", "should be a class or a list of classes"),
            ("search.elites=-1", "search.elites=-1: elites must be an integer >= 0"),
            ("search.elits=1", "is an unknown key (did you mean 'elites'?)"),
            ("search.radius=true", "should be a name, a number or null"),
            ("mode=sideways", "mode=sideways is unknown"),
            ("scores=runs/none", "holds no run"),
            ("task=mytask.py:task", "how its model is trained"),
        ],
    )
    def test_refusals(self, folder: Path, change: str, part: str) -> None:
        assert part in refused(run("reweight", folder, REWEIGHT, change))
        assert not (folder / "runs" / "w").exists()


class TestRemovalCheck:
    def test_prints_and_draws(self, folder: Path) -> None:
        result = run("removal-check", folder, REMOVAL)
        assert result.exit_code == 0, result.output
        picture = folder / "runs" / "r" / "removal_check.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert f"Heat maps: {picture}" in result.stdout
        again = run("removal-check", folder, REMOVAL)
        assert again.stdout == "already finished: nothing was computed\n" + result.stdout

    @pytest.mark.parametrize(
        ("change", "part"),
        [
            ("share=1.5", "share=1.5: share must be a number in (0, 1)"),
            ("seeds=0", "seeds=0: seeds must be an integer >= 1"),
            ("sides=both", "sides is an unknown key"),
            ("valid=test.parquet", "valid has 30 rows, and the scores were computed for 20"),
        ],
    )
    def test_refusals(self, folder: Path, change: str, part: str) -> None:
        assert part in refused(run("removal-check", folder, REMOVAL, change))
        assert not (folder / "runs" / "r").exists()

    def test_scores_of_another_table(self, folder: Path) -> None:
        x = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(40, np.float32)), 4)
        other = pa.table({"row_id": [f"o{k}" for k in range(10)], "features": x, "label": np.arange(10) % 3})
        pq.write_table(other, folder / "other.parquet")
        assert len(Scores.load(folder / "runs" / "a")) == 60
        shown = refused(run("removal-check", folder, REMOVAL, "train=other.parquet"))
        assert "10 rows, and the scores have 60" in shown


class TestLds:
    def test_prints_and_draws(self, folder: Path) -> None:
        config = REMOVAL.replace("test: test.parquet\n", "").replace("runs/r", "runs/s") + "subsets: 3\n"
        result = run("lds", folder, config)
        assert result.exit_code == 0, result.output
        out = folder / "runs" / "s"
        assert (out / "lds.png").read_bytes().startswith(b"\x89PNG")
        table = pq.read_table(out / "lds.parquet").to_pandas()
        assert set(table["scores"]) == {"scores", "random", "own_loss"}
        assert "Linear datamodelling score: 3 subsets of 30 of 60 rows, one seed" in result.stdout
        again = run("lds", folder, config)
        assert again.stdout == "already finished: nothing was computed\n" + result.stdout


class TestLabelIssues:
    def test_writes_and_prints(self, folder: Path) -> None:
        config = "task: mytask.py:task\ntrain: train.parquet\nscores: runs/a\nout: runs/i\nlimit: 9\n"
        result = run("label-issues", folder, config)
        assert result.exit_code == 0, result.output
        file = folder / "runs" / "i" / "issues.parquet"
        frame = pq.read_table(file).to_pandas()
        assert len(frame) == 9 and frame["quality"].is_monotonic_increasing
        assert {"row_id", "label", "suggested", "suspect", "margin", "value", "harms"} <= set(frame)
        assert " of 60 labels are suspect" in result.stdout
        assert f"Every row: {file}" in result.stdout
        assert "by=loss is not a column" in refused(run("label-issues", folder, config, "by=loss"))


class TestPredictRemoval:
    CONFIG = "task: mytask.py:task\ntrain: train.parquet\nvalid: valid.parquet\nout: runs/p\n"

    def test_rows_that_trim_removed_and_several_sets(self, folder: Path) -> None:
        assert call("trim", folder / "runs" / "a", "--by", "total", "--budget", "5").exit_code == 0
        removed = "runs/a/trim/removed.parquet"
        result = run("predict-removal", folder, f"{self.CONFIG}rows: {removed}\n")
        assert result.exit_code == 0, result.output
        one = pq.read_table(folder / "runs" / "p" / "prediction.parquet").to_pandas()
        assert list(one["removed"]) == [5] and f"5 rows go: total from {one['now'][0]:.4g} to" in result.stdout
        pq.write_table(pa.table({"row_id": ["train-0", "train-7"]}), folder / "two.parquet")
        several = f"{self.CONFIG}rows: {{worst: {removed}, two: two.parquet}}\n"
        result = run("predict-removal", folder, several, "out=runs/p2")
        assert result.exit_code == 0, result.output
        both = pq.read_table(folder / "runs" / "p2" / "prediction.parquet").to_pandas()
        assert list(both["set"]) == ["worst", "two"] and list(both["removed"]) == [5, 2]
        assert both["second_order"][0] == pytest.approx(one["second_order"][0], rel=1e-6)
        assert "2 rows of 'two' go" in result.stdout

    @pytest.mark.parametrize(
        ("rows", "part"),
        [
            ("[1, 2]", "should be a path, or paths by name"),
            ("none.parquet", "none.parquet"),
            ("{}", "should be a path, or paths by name"),
        ],
    )
    def test_refusals(self, folder: Path, rows: str, part: str) -> None:
        assert part in refused(run("predict-removal", folder, f"{self.CONFIG}rows: {rows}\n"))


class TestCeiling:
    def test_without_halves_there_is_no_verdict(self, folder: Path) -> None:
        result = call("ceiling", folder / "runs" / "a")
        assert result.exit_code == 0, result.output
        assert "No verdict: the scores have no halves" in result.stdout
        held = json.loads((folder / "runs" / "a" / "ceiling" / "ceiling.json").read_text())
        assert held["cross_fit"] is None
        assert held["classes"] == ["0", "1", "2"]
        for name in ("influence_plane", "classes"):
            assert (folder / "runs" / "a" / "ceiling" / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    def test_with_halves(self, folder: Path) -> None:
        done = call("influence", folder / "run.yaml", "--set", "halves=true", "--set", "out=runs/h")
        assert done.exit_code == 0, done.output
        result = call("ceiling", folder / "runs" / "h", "--out", folder / "report", "--plane", "2, 0")
        assert result.exit_code == 0, result.output
        held = json.loads((folder / "report" / "ceiling.json").read_text())
        assert f"Cross-fitted gain {held['cross_fit']:+.4f}" in result.stdout
        assert held["verdict"] in result.stdout
        assert not (folder / "runs" / "h" / "ceiling").exists()

    def test_refusals(self, folder: Path) -> None:
        assert "holds no run" in refused(call("ceiling", folder / "runs"))
        shown = refused(call("ceiling", folder / "runs" / "a", "--plane", "0,7"))
        assert "are not two of the classes" in shown
        done = call("influence", folder / "run.yaml", "--set", "objective=total", "--set", "out=runs/t")
        assert done.exit_code == 0, done.output
        assert "objective: category" in refused(call("ceiling", folder / "runs" / "t"))
