"""The command `rayinf`: what it prints and writes, and its exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import typer
from cli_cases import CONFIG, TASK, call, imports_of, make_folder, refused
from click.testing import Result

import rayinf
from rayinf import cli, config, config_keys, messages, references, summaries
from rayinf.data.scores import Scores
from rayinf.errors import RunError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with data, a task and a config; the current one is elsewhere."""
    monkeypatch.chdir(tmp_path)
    with imports_of(tmp_path):
        yield make_folder(tmp_path / "conf")


def influence(folder: Path, *changes: str) -> Result:
    return call("influence", folder / "run.yaml", *(w for c in changes for w in ("--set", c)))


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
        expected = rayinf.influence(**{**arguments, "out": None})
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
        assert "already finished" not in first.stdout
        assert second.stdout == "already finished: nothing was computed\n" + first.stdout
        assert [f.stat().st_mtime_ns for f in files] == times

    def test_again_after_a_shard_is_lost(self, folder: Path) -> None:
        influence(folder)
        part = next((folder / "runs" / "a" / "scores").iterdir())
        held = part.read_bytes()
        part.unlink()
        second = influence(folder)
        assert second.exit_code == 0
        assert "already finished" not in second.stdout
        assert part.read_bytes() == held

    def test_another_config_on_the_same_folder(self, folder: Path) -> None:
        assert influence(folder).exit_code == 0
        line = refused(influence(folder, "damping=0.5"))
        assert "holds a run of another config" in line
        assert "damping: None -> 0.5" in line
        assert influence(folder, "damping=0.5", "out=runs/b").exit_code == 0

    def test_without_out_nothing_is_started(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rayinf, "influence", None)
        assert "has no out: the results would be lost" in refused(influence(folder, "out=null"))


class TestWrongInput:
    @pytest.mark.parametrize(
        ("change", "part"),
        [
            ("objctive=total", "did you mean 'objective'?"),
            ("task=mytask.py:tsk", "Did you mean 'task'?"),
            ("task=mytask.py:other_label", "no column 'y'; it has row_id, features, label"),
            ("objective=slice:group", "no column 'group'"),
            ("curvature=newton", "curvature=newton is unknown"),
            ("train=nothing.parquet", "train: no Parquet file at"),
        ],
    )
    def test_a_key(self, folder: Path, change: str, part: str) -> None:
        assert part in refused(influence(folder, change))
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
        for workers in ("0", "2.5", "all"):
            assert call("influence", folder / "run.yaml", "--workers", workers).exit_code == 2

    def test_debug_shows_where(self, folder: Path) -> None:
        (folder / "mytask.py").write_text("1 / 0\n")
        result = call("influence", folder / "run.yaml", "--debug")
        assert result.exit_code == 2
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("Error: task: importing")


def test_a_warning_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def verb(**given: object) -> Scores:
        warnings.warn("The forest\nis weak.", stacklevel=1)
        return Scores.from_numpy(np.ones(3), "a")

    monkeypatch.setattr(rayinf, "influence", verb)
    result = influence(folder)
    assert result.exit_code == 0
    assert result.stderr == "Warning: The forest is weak.\n"


class _FromWorkerError(Exception):
    """As Ray raises it: a whole traceback for a message, and the error itself."""

    cause = ValueError("weights\nare gone.")

    def __str__(self) -> str:
        return "\n".join(["Traceback"] * 50)


class TestOtherErrors:
    @pytest.mark.parametrize(
        ("error", "part"),
        [
            (RunError("The disk is\nfull.", "free space."), "Error: The disk is full. Fix: free space."),
            (ValueError("two\nlines."), "Error: ValueError: two lines, which rayinf did not expect. Fix: run again"),
            (ValueError("x" * 9999), "xxx..., which rayinf did not expect."),
            (_FromWorkerError(), "Error: ValueError: weights are gone, which"),
        ],
    )
    def test_one_line_and_code_1(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, part: str
    ) -> None:
        monkeypatch.setattr(rayinf, "influence", _raiser(error))
        assert part in refused(influence(folder), 1)

    def test_interrupted(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rayinf, "influence", _raiser(KeyboardInterrupt()))
        result = influence(folder)
        assert result.exit_code == 1
        assert result.stderr == "Stopped: run the same command again to go on.\n"


class TestCluster:
    @pytest.mark.parametrize(
        ("text", "options", "address", "workers"),
        [
            ("", ["--workers", "3"], None, 3),
            ("", ["--workers", "auto"], None, "auto"),
            ("", ["--address", "auto"], "auto", 2),
            ("cluster: {workers: 7, address: a}\n", ["--workers", "3", "--address", "b:1"], "b:1", 3),
            ("cluster: {workers: 7, address: a}\n", ["--set", "cluster.workers=4", "--workers", "3"], "a", 3),
        ],
    )
    def test_options_override_the_config(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, options: list[str], address: Any, workers: int
    ) -> None:
        seen: dict[str, Any] = {}
        monkeypatch.setattr(
            rayinf, "influence", lambda **given: seen.update(given) or Scores.from_numpy(np.ones(3), "a")
        )
        (folder / "run.yaml").write_text(CONFIG + text)
        assert call("influence", folder / "run.yaml", *options).exit_code == 0
        assert (seen["cluster"].address, seen["cluster"].workers) == (address, workers)


@pytest.mark.parametrize("command", config_keys.VERBS)
def test_help_describes_every_key(command: str) -> None:
    shown = " ".join(call(command, "--help").stdout.split())
    keys = config_keys.keys_of(command)
    for name, default, meaning in config_keys.describe_keys(command):
        note = f" Default: {default}." if default else " Required."
        assert f" {name}: {' '.join(messages.translate(meaning).split())}{note}" in shown
    others = {k for verb in config_keys.VERBS for k in config_keys.keys_of(verb)} - set(keys)
    assert not [k for k in others if f"] {k}: " in shown or f". {k}: " in shown]
    assert references.PATHS in shown
    assert "--set" in shown
    for option in ("--address", "--workers"):
        assert (option in shown) == ("cluster" in keys)


@pytest.mark.parametrize("verb", config_keys.VERBS)
def test_options_of_a_cluster_are_those_of_verbs_that_have_one(verb: str) -> None:
    names = {p.name for p in typer.main.get_command(cli.app).commands[verb].params}  # type: ignore[attr-defined]
    assert {"overrides", "debug"} <= names
    assert ({"address", "workers"} <= names) == ("cluster" in config_keys.keys_of(verb))


def test_commands_are_listed_in_groups() -> None:
    shown = call("--help").stdout
    places = [shown.index(group) for group in ("Value rows", "Act on values", "Train and measure", "Runs and jobs")]
    assert places == sorted(places)
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    assert set(config_keys.VERBS) | {"trim", "ceiling", "plan", "submit", "status", "verify"} == set(commands)
    assert all(command.short_help and command.rich_help_panel for command in commands.values())


HEAVY = ("torch", "ray", "sklearn", "pandas", "matplotlib", "pyarrow", "scipy")


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["--help"], ()),
        (["influence", "--help"], ()),
        (["reweight", "nothing.yaml"], ("pyarrow", "pandas")),
        (["status", "nothing"], ("pyarrow", "pandas")),
        (["verify", "nothing"], ("pyarrow", "pandas")),
        (["submit", "influence", "nothing.yaml", "--address", "http://127.0.0.1:9"], ("pyarrow", "pandas")),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(words: list[str], needed: tuple[str, ...]) -> None:
    code = (
        "import sys, rayinf.cli\n"
        f"sys.argv = ['rayinf', *{words}]\n"
        "try:\n    rayinf.cli.main()\nexcept SystemExit:\n    pass\n"
        f"print('imported:', *[m for m in {HEAVY} if m in sys.modules])"
    )
    done = _run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()[-1].split()[1:]) <= set(needed)


def test_dir_lists_every_public_name() -> None:
    done = _run(sys.executable, "-c", "import rayinf, sys; print(*dir(rayinf)); assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr
    assert set(rayinf.__all__) == set(rayinf.HOMES)
    assert set(rayinf.__all__) <= set(done.stdout.split())


def test_version() -> None:
    result = call("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("rayinf 0.")


def test_top_rows_of_many_batches() -> None:
    """The summary's rows, gathered over batches, are those of the whole column."""
    values = np.random.default_rng(1).permutation(1000) / 7 - 50
    parts = [pa.table({"row_id": np.arange(s, s + 100), "v": values[s : s + 100]}) for s in range(0, 1000, 100)]
    best = summaries.most(Scores(pa.concat_tables(parts)), "v")
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

    @pytest.mark.slow
    def test_workers_on_ray_find_the_task(self, folder: Path) -> None:
        """Its folder is neither the current one nor the script's, which Ray would send by itself."""
        (folder / "mytask.py").write_text(TASK.replace("torch.nn.Linear", "sibling.Linear").replace("torch", "sibling"))
        (folder / "sibling.py").write_text("from torch import eye, manual_seed, no_grad\nfrom torch.nn import Linear\n")
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
