"""What a config says, where its paths start, what it imports, and how it is refused."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_cases import imports_of
from config_cases import TASK, make_config_folder, refused, write, write_for

import rayinf
from rayinf.config import read_config


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with imports_of(tmp_path):
        yield make_config_folder(tmp_path / "conf")


def test_values_that_yaml_reads_as_something_else(folder: Path) -> None:
    given = read_config(write(folder, fisher="true", damping="1e-3"))
    assert given["fisher"] == "true"
    assert given["damping"] == pytest.approx(1e-3)


def test_a_number_of_rows_is_no_file_of_rows(folder: Path) -> None:
    sets = read_config(write_for(folder, "predict-removal", rows="{worst: rows.parquet}"), (), "predict-removal")
    assert sets["rows"]["worst"].tolist() == [1, 2]
    assert read_config(write_for(folder, "retrain", rows=7), (), "retrain")["rows"] == 7


class TestPaths:
    def test_relative_ones_start_at_the_config(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder.parent)
        given = read_config("conf/run.yaml", ["out=../runs/a", "factors=old"])
        assert given["train"] == str(folder / "train.parquet")
        assert given["out"] == str(folder.parent / "runs" / "a")
        assert given["factors"] == str(folder / "old")

    def test_uris_globs_and_absolute_paths_are_kept(self, folder: Path) -> None:
        given = read_config(write(folder, train="s3://bucket/train/", valid="'*.parquet'", out="/runs/a"))
        assert given["train"] == "s3://bucket/train/"
        assert given["valid"] == str(folder / "*.parquet")
        assert given["out"] == "/runs/a"

    def test_home(self, folder: Path) -> None:
        assert read_config(folder / "run.yaml", ["out=~/a"])["out"] == os.path.expanduser("~/a")

    def test_a_file_of_the_current_folder_is_pointed_out(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder.parent)
        (folder.parent / "train.parquet").touch()
        message = refused(folder / "run.yaml")
        assert "does not exist, but train.parquet does in the current folder" in message
        assert "write ../train.parquet" in message


class TestOverrides:
    def test_values_are_yaml(self, folder: Path) -> None:
        given = read_config(folder / "run.yaml", ["objective=[total, slice:group]", "halves=true", "damping=null"])
        assert given["objective"] == ["total", "slice:group"]
        assert given["halves"] is True
        assert given["damping"] is None

    def test_dotted_keys_make_and_change_mappings(self, folder: Path) -> None:
        file = write(folder, cluster="{workers: 3, patience: 5}")
        assert read_config(file, ["cluster.workers=4"])["cluster"].workers == 4
        assert read_config(file, ["cluster.workers=4"])["cluster"].patience == 5
        assert read_config(file, ["cluster.workers=auto"])["cluster"].workers == "auto"
        assert read_config(write(folder), ["cluster.address=auto"])["cluster"].address == "auto"
        assert read_config(file, ["cluster=null"])["cluster"] is None

    def test_the_last_one_counts(self, folder: Path) -> None:
        assert read_config(folder / "run.yaml", ["seed=1", "seed=2"])["seed"] == 2

    @pytest.mark.parametrize(
        ("item", "part"),
        [
            ("seed", "--set seed is not of the form key=value"),
            ("=1", "is not of the form key=value"),
            ("task.x=1", "task is 'mytask.py:task', which has no keys"),
            ("train=*.parquet", "the value is not YAML"),
            ("out=2024-13-45", "the value is not YAML"),
            ("sede=1", "--set sede is an unknown key (did you mean 'seed'?)"),
            ("cluster.worker=1", "--set cluster.worker is an unknown key (did you mean 'workers'?)"),
            ("clutser.workers=1", "--set clutser is an unknown key (did you mean 'cluster'?)"),
        ],
    )
    def test_slips(self, folder: Path, item: str, part: str) -> None:
        assert part in refused(folder / "run.yaml", item)


class TestRefusals:
    @pytest.mark.parametrize(
        ("key", "value", "part"),
        [
            (
                "objctive",
                "total",
                "run.yaml: objctive is an unknown key (did you mean 'objective'?). Fix: use the keys",
            ),
            ("damping", "lots", 'run.yaml: damping="lots" should be a number, layer_mean:0.1, sample:3 or null'),
            ("fisher", "false", "fisher=false should be 'true' or 'empirical'"),
            ("objective", "{slice: group}", "write slice:group without a space"),
            ("objective", "[total, 3]", "should be a name or a list of names"),
            ("objective", "3", "should be a name or a list of names"),
            ("train", "null", "train=null should be text"),
            ("out", "2024-01-01", 'out="2024-01-01" should be text: put quotes around it'),
            ("cluster", "4", "cluster=4 should be a mapping of address, workers"),
            ("cluster", "{workers: 0}", "workers=0"),
            ("cluster", "{workers: all}", 'must be an integer >= 1 or "auto"'),
            ("cluster", "{workers: 1.5}", "workers"),
            ("seed", "[1, 2", "line 5, column 1"),
        ],
    )
    def test_a_wrong_value(self, folder: Path, key: str, value: str, part: str) -> None:
        message = refused(write(folder, **{key: value}))
        assert part in message
        assert "Fix: " in message

    def test_all_problems_in_one_line(self, folder: Path) -> None:
        message = refused(write(folder, seed="x", halves="perhaps", batch_size="y", precision="1", oops="2"))
        assert "oops is an unknown key; " in message
        assert "and 2 more" in message

    @pytest.mark.parametrize(
        ("text", "part"),
        [
            ("", "run.yaml is empty"),
            ("- a", "holds a list"),
            ("task: a: b", "run.yaml, line 1, column 8: mapping values are not allowed here"),
            ("seed: 1\nseed: 2\n", "line 2, column 1: key 'seed' stands twice"),
            ("seed: 1", "task is missing; "),
            ("1: 2", "1 is an unknown key"),
        ],
    )
    def test_no_config(self, folder: Path, text: str, part: str) -> None:
        (folder / "run.yaml").write_text(text)
        assert part in refused(folder / "run.yaml")

    def test_no_file(self, folder: Path) -> None:
        assert "There is no config file" in refused(folder / "nothing.yaml")
        assert "cannot be read" in refused(folder)
        (folder / "binary.yaml").write_bytes(b"PAR1\xff\xfe")
        assert "cannot be read" in refused(folder / "binary.yaml")


class TestTask:
    def test_forms(self, folder: Path) -> None:
        file = folder / "run.yaml"
        task = read_config(file)["task"]
        assert isinstance(task, rayinf.Task)
        assert read_config(file, ["task=mytask:task"])["task"] is task
        assert read_config(file, [f"task={folder}/mytask.py:task"])["task"] is task
        assert read_config(file, ["task=mytask.py:made"])["task"].l2 == pytest.approx(1e-3)

    def test_a_module_of_a_package(self, folder: Path) -> None:
        (folder / "ownpackage").mkdir()
        (folder / "ownpackage" / "__init__.py").touch()
        (folder / "ownpackage" / "parts.py").write_text(TASK)
        (folder / "ownpackage" / "tasks.py").write_text("from .parts import task\n")
        assert isinstance(read_config(folder / "run.yaml", ["task=ownpackage.tasks:task"])["task"], rayinf.Task)
        message = refused(folder / "run.yaml", "task=ownpackage/tasks.py:task")
        assert "name a module inside a package as package.module:name" in message

    @pytest.mark.parametrize(
        ("reference", "part"),
        [
            ("mytask.py", "mytask.py names nothing to import"),
            ("mytask.py:tsk", "mytask.py has no 'tsk'. Did you mean 'task'?"),
            ("nothing.py:task", "there is no file"),
            ("nothing.at.all:task", "ModuleNotFoundError"),
            ("mytask.py:module", "is a Linear. Fix: name a rayinf.Task"),
            ("mytask.py:number", "is a int. Fix: name a rayinf.Task"),
            ("mytask.py:needs", "cannot be called without arguments: missing a required argument: 'x'"),
            ("mytask.py:gives_none", "returned a NoneType"),
            ("mytask.py:net", "returned a Linear"),
            ("mytask.py:refused", "l2=-1): l2 must be a finite number >= 0. Fix: pass a finite number >= 0."),
        ],
    )
    def test_no_task(self, folder: Path, reference: str, part: str) -> None:
        assert part in refused(folder / "run.yaml", f"task={reference}")

    def test_a_function_that_fails_names_its_line(self, folder: Path) -> None:
        line = TASK.splitlines().index('    raise KeyError("weights")') + 1
        message = refused(folder / "run.yaml", "task=mytask.py:fails")
        assert re.search(rf"fails raised KeyError: 'weights' \(.*mytask\.py, line {line}\)", message)

    @pytest.mark.parametrize(
        ("text", "part"),
        [
            ("x = 1\ny = 1 / 0\n", r"importing .*broken\.py raised ZeroDivisionError: .* \(.*broken\.py, line 2\)"),
            ("x = 1\n\ndef f(:\n", r"raised SyntaxError: .* \(.*broken\.py, line 3\)"),
            ("import sys\nsys.exit(3)\n", r"raised SystemExit: 3 \(.*broken\.py, line 2\)"),
            (
                "import nothing_at_all\n",
                r"ModuleNotFoundError: No module named 'nothing_at_all' \(.*broken\.py, line 1",
            ),
            (
                "import rayinf\nrayinf.Fit(lr=-1)\n",
                r"broken\.py: Fit\(lr=-1\): lr must be a finite number > 0. Fix: pass",
            ),
        ],
    )
    def test_a_file_that_fails_names_its_line(self, folder: Path, text: str, part: str) -> None:
        (folder / "broken.py").write_text(text)
        assert re.search(part, refused(folder / "run.yaml", "task=broken.py:task"))

    @pytest.mark.parametrize("stem", ["json", "wave", "yaml", "rich"])
    def test_a_file_that_shadows_a_module(self, folder: Path, stem: str) -> None:
        (folder / f"{stem}.py").write_text(TASK)
        message = refused(folder / "run.yaml", f"task={stem}.py:task")
        assert f"would be imported as {stem!r}, which is the name of another module" in message
        assert f"rename the file, to {stem}_for_rayinf.py" in message

    def test_two_files_of_one_name(self, folder: Path) -> None:
        read_config(folder / "run.yaml")
        (folder / "other").mkdir()
        (folder / "other" / "mytask.py").write_text(TASK)
        assert str(folder / "mytask.py") in refused(folder / "run.yaml", "task=other/mytask.py:task")

    def test_a_package_beside_the_file(self, folder: Path) -> None:
        (folder / "mytask").mkdir()
        (folder / "mytask" / "__init__.py").touch()
        assert "which is the name of another module" in refused(folder / "run.yaml")

    def test_a_name_that_is_none(self, folder: Path) -> None:
        (folder / "my.task.py").write_text(TASK)
        assert "cannot be imported under the name 'my.task'" in refused(folder / "run.yaml", "task=my.task.py:task")


class TestObjective:
    def test_names_objects_and_lists(self, folder: Path) -> None:
        found = read_config(folder / "run.yaml", ["objective=[total, 'mytask.py:gap', 'mytask:margin']"])["objective"]
        assert found[0] == "total"
        assert isinstance(found[1], rayinf.Objective)
        assert found[2].__name__ == "margin"
        assert read_config(folder / "run.yaml", ["objective=mytask.py:gap"])["objective"] is found[1]

    def test_slices_are_no_references(self, folder: Path) -> None:
        assert read_config(folder / "run.yaml", ["objective=slice:a:b"])["objective"] == "slice:a:b"

    def test_something_else(self, folder: Path) -> None:
        message = refused(folder / "run.yaml", "objective=mytask.py:number")
        assert "mytask.py:number is a int. Fix: name a rayinf.Objective" in message


class TestWorkersImport:
    def test_the_folder_of_the_task(self, folder: Path) -> None:
        (folder / "inner").mkdir()
        (folder / "inner" / "innertask.py").write_text(TASK)
        file = write(folder, task="inner/innertask.py:task", objective="mytask.py:gap", cluster="{}")
        path = read_config(file)["cluster"].runtime_env["env_vars"]["PYTHONPATH"]
        assert path.split(os.pathsep)[:2] == [str(folder / "inner"), str(folder)]

    def test_beside_what_the_user_set(self, folder: Path) -> None:
        file = write(folder, cluster="{runtime_env: {pip: [x], env_vars: {PYTHONPATH: /own, A: b}}}")
        assert read_config(file)["cluster"].runtime_env == {
            "pip": ["x"],
            "env_vars": {"PYTHONPATH": f"{folder}{os.pathsep}/own", "A": "b"},
        }
