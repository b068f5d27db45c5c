"""The command `rayinf`: what it prints and writes, and its exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

from rayinf import api, cli, config, references
from rayinf.data.scores import Scores
from rayinf.errors import RunError

TASK = """
import torch
import rayinf


def net():
    torch.manual_seed(0)
    return torch.nn.Linear(4, 3)


def task():
    return rayinf.Task(net, l2=1e-2)


def other_label():
    return rayinf.Task(net, label="y")
"""
CONFIG = """
task: mytask.py:task
train: train.parquet
valid: valid.parquet
objective: [total, category]
out: runs/a
"""


@pytest.fixture(autouse=True)
def _forget_imports(tmp_path: Path) -> Iterator[None]:
    """Modules of a test's own folder must not shadow those of the next."""
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, a task and a config; the current one is elsewhere."""
    home = tmp_path / "conf"
    home.mkdir()
    rng = np.random.default_rng(0)
    for name, rows in (("train", 60), ("valid", 20)):
        x = pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=rows * 4).astype(np.float32)), 4)
        ids = [f"{name}-{k}" for k in range(rows)]
        table = pa.table({"row_id": ids, "features": x, "label": np.arange(rows) % 3})
        pq.write_table(table, home / f"{name}.parquet", row_group_size=25)
    (home / "mytask.py").write_text(TASK)
    (home / "run.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return home


def call(*words: object) -> Result:
    return CliRunner().invoke(cli.app, [str(w) for w in words])


def influence(folder: Path, *changes: str) -> Result:
    return call("influence", folder / "run.yaml", *(w for c in changes for w in ("--set", c)))


def refused(result: Result, code: int = 2) -> str:
    """The one line that says what is wrong."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert "Fix: " in line
    return line


class TestInfluence:
    def test_writes_scores_and_names_the_rows_that_matter(self, folder: Path) -> None:
        result = influence(folder)
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        scores = Scores.load(folder / "runs" / "a")
        assert scores.columns == ["total", "category_0", "category_1", "category_2"]
        assert "60 rows, 4 columns: total, category_0, category_1, category_2" in result.stdout
        assert f"Scores: {folder / 'runs' / 'a' / 'scores'}" in result.stdout
        frame = scores.to_pandas().sort_values("total")
        shown = [line.split("│")[1:5] for line in result.stdout.splitlines() if line.startswith("│")]
        assert [w[0].strip() for w in shown] == list(frame.row_id[:5])
        assert [w[2].strip() for w in shown] == list(frame.row_id[:-6:-1])
        assert float(shown[0][1]) == pytest.approx(frame.total.iloc[0], rel=1e-3)
        assert float(shown[0][3]) == pytest.approx(frame.total.iloc[-1], rel=1e-3)

    def test_gives_what_the_verb_gives(self, folder: Path) -> None:
        influence(folder)
        arguments = config.read_config(folder / "run.yaml")
        expected = api.influence(**{**arguments, "out": None})
        np.testing.assert_allclose(
            Scores.load(folder / "runs" / "a").to_numpy(), expected.to_numpy(), rtol=1e-4, atol=1e-6
        )

    def test_again_does_nothing(self, folder: Path) -> None:
        first = influence(folder)
        run = folder / "runs" / "a"
        files = [run / "run.json", *(run / "scores").iterdir(), *(run / "factors").rglob("*.safetensors")]
        times = [f.stat().st_mtime_ns for f in files]
        second = influence(folder)
        assert second.exit_code == 0
        assert second.stdout == first.stdout
        assert [f.stat().st_mtime_ns for f in files] == times

    def test_another_config_on_the_same_folder(self, folder: Path) -> None:
        assert influence(folder).exit_code == 0
        line = refused(influence(folder, "damping=0.5"))
        assert "holds a run of another config" in line
        assert "damping: None -> 0.5" in line
        assert influence(folder, "damping=0.5", "out=runs/b").exit_code == 0

    def test_without_out_nothing_is_started(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(api, "influence", None)
        assert "has no out: the scores would be lost" in refused(influence(folder, "out=null"))


class TestWrongInput:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ("objctive=total", "did you mean 'objective'?"),
            ("task=mytask.py:tsk", "Did you mean 'task'?"),
            ("task=mytask.py:other_label", "no column 'y'; it has row_id, features, label"),
            ("objective=slice:group", "no column 'group'"),
            ("curvature=newton", "curvature='newton' is unknown"),
            ("train=nothing.parquet", "train: no Parquet file at"),
        ],
    )
    def test_a_key(self, folder: Path, change: str, said: str) -> None:
        assert said in refused(influence(folder, change))
        assert not (folder / "runs").exists()

    def test_a_broken_task_file(self, folder: Path) -> None:
        (folder / "mytask.py").write_text("weights = [1, 2]\nweights[7]\n")
        line = refused(influence(folder))
        assert f"{folder / 'mytask.py'} raised IndexError: list index out of range" in line
        assert "line 2" in line

    def test_no_yaml(self, folder: Path) -> None:
        (folder / "run.yaml").write_text("task: a: b")
        assert "line 1, column 8" in refused(influence(folder))

    def test_no_config(self, folder: Path) -> None:
        assert "There is no config file" in refused(call("influence", folder / "none.yaml"))
        assert call("influence").exit_code == 2
        assert call("influence", folder / "run.yaml", "--workers", "0").exit_code == 2

    def test_debug_shows_where(self, folder: Path) -> None:
        (folder / "mytask.py").write_text("1 / 0\n")
        result = call("influence", folder / "run.yaml", "--debug")
        assert result.exit_code == 2
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("Error: task: importing")


class _FromWorkerError(Exception):
    """As Ray raises it: a whole traceback for a message, and the error itself."""

    cause = ValueError("weights\nare gone.")

    def __str__(self) -> str:
        return "\n".join(["Traceback"] * 50)


class TestOtherErrors:
    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (RunError("The disk is\nfull.", "free space."), "Error: The disk is full. Fix: free space."),
            (ValueError("two\nlines."), "Error: ValueError: two lines, which rayinf did not expect. Fix: run again"),
            (ValueError("x" * 9999), "xxx..., which rayinf did not expect."),
            (_FromWorkerError(), "Error: ValueError: weights are gone, which"),
        ],
    )
    def test_one_line_and_code_1(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
    ) -> None:
        monkeypatch.setattr(api, "influence", _raiser(error))
        assert said in refused(influence(folder), 1)

    def test_interrupted(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(api, "influence", _raiser(KeyboardInterrupt()))
        result = influence(folder)
        assert result.exit_code == 1
        assert result.stderr == "Stopped: run the same command again to go on.\n"


class TestCluster:
    @pytest.mark.parametrize(
        ("text", "options", "address", "workers"),
        [
            ("", ["--workers", "3"], None, 3),
            ("", ["--address", "auto"], "auto", 2),
            ("cluster: {workers: 7, address: a}\n", ["--workers", "3", "--address", "b:1"], "b:1", 3),
            ("cluster: {workers: 7, address: a}\n", ["--set", "cluster.workers=4", "--workers", "3"], "a", 3),
        ],
    )
    def test_options_override_the_config(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, options: list[str], address: Any, workers: int
    ) -> None:
        seen: dict[str, Any] = {}
        monkeypatch.setattr(api, "influence", lambda **given: seen.update(given) or Scores.from_numpy(np.ones(3), "a"))
        (folder / "run.yaml").write_text(CONFIG + text)
        assert call("influence", folder / "run.yaml", *options).exit_code == 0
        assert (seen["cluster"].address, seen["cluster"].workers) == (address, workers)


def test_plan_is_printed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    told = SimpleNamespace(to_text=lambda: "scores: 60 rows")
    monkeypatch.setattr(api, "plan", lambda **given: seen.update(given) or told)
    result = call("plan", folder / "run.yaml", "--set", "seed=4", "--set", "out=null")
    assert result.exit_code == 0, result.output
    assert result.stdout == "scores: 60 rows\n"
    assert seen["seed"] == 4
    assert "factors" not in seen
    assert not (folder / "runs").exists()


def test_help_says_what_every_key_means() -> None:
    for command in ("influence", "plan"):
        said = " ".join(call(command, "--help").stdout.split())
        for name, _, meaning in config.describe_keys():
            assert f" {name}: {' '.join(meaning.split())}." in said
        assert references.PATHS in said
        for option in ("--set", "--address", "--workers"):
            assert option in said


def test_version() -> None:
    result = call("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("rayinf 0.")


def test_top_rows_of_many_batches() -> None:
    """The summary's rows, gathered over batches, are those of the whole column."""
    values = np.random.default_rng(1).permutation(1000) / 7 - 50
    parts = [pa.table({"row_id": np.arange(s, s + 100), "v": values[s : s + 100]}) for s in range(0, 1000, 100)]
    best = cli._most(Scores(pa.concat_tables(parts)), "v")
    assert best is not None
    order = np.argsort(values)
    assert best.harms[2][0].tolist() == order[:5].tolist()
    assert best.helps[2][0].tolist() == order[:-6:-1].tolist()


class TestProcesses:
    """The command as a user starts it."""

    def test_an_error_is_one_line(self, folder: Path) -> None:
        done = _run(sys.executable, "-m", "rayinf", "influence", folder / "run.yaml", "--set", "oops=1")
        assert done.returncode == 2
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert "oops is an unknown key" in done.stderr

    def test_workers_on_ray_find_the_task(self, folder: Path) -> None:
        """Its folder is neither the current one nor the script's, which Ray would send by itself."""
        (folder / "mytask.py").write_text(TASK.replace("torch.nn.Linear", "sibling.Linear").replace("torch", "sibling"))
        (folder / "sibling.py").write_text("from torch import manual_seed\nfrom torch.nn import Linear\n")
        done = _run("rayinf", "influence", folder / "run.yaml", "--workers", "1")
        assert done.returncode == 0, done.stderr
        assert "60 rows" in done.stdout
        assert Scores.load(folder / "runs" / "a").columns[0] == "total"


def _run(*words: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path}
    return subprocess.run(
        [str(w) for w in words], env=environment, capture_output=True, text=True, timeout=200, check=False
    )


def _raiser(error: BaseException) -> Any:
    def verb(**given: object) -> None:
        raise error

    return verb
