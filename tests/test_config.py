"""What a config says, where its paths start, what it imports, and how it is refused."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rayinf
from rayinf import keys
from rayinf.config import find_verb, read_config

TASK = """
import torch
import rayinf


def net():
    return torch.nn.Linear(4, 3)


def made():
    return rayinf.Task(net, l2=1e-3)


task = rayinf.Task(net)
module = net()
number = 3


def needs(x):
    return task


def gives_none():
    return None


def fails():
    raise KeyError("weights")


def refused():
    return rayinf.Task(net, l2=-1)


def margin(logits, labels):
    return logits.logsumexp(1)


gap = rayinf.Objective("gap", rows=margin)
"""
# The command of a config, and the function whose arguments are its keys.
FUNCTIONS = [
    ("influence", "influence"),
    ("measure", "influence_measure"),
    ("acquire", "acquire"),
    ("active-learning", "active_learning"),
]


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
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "conf"
    home.mkdir()
    (home / "mytask.py").write_text(TASK)
    write(home)
    return home


def write(folder: Path, **values: object) -> Path:
    return write_for(folder, "influence", **values)


def write_for(folder: Path, verb: str, **values: object) -> Path:
    """A config with the required keys of a verb."""
    required = [k for k, f in keys.VERBS[verb].model_fields.items() if f.is_required() and k != "task"]
    file = folder / "run.yaml"
    held = {"task": "mytask.py:task", **{k: f"{k}.parquet" for k in required}, **values}
    file.write_text("".join(f"{k}: {v}\n" for k, v in held.items()))
    return file


def refused(file: Path, *overrides: str, verb: str = "influence") -> str:
    with pytest.raises(rayinf.InputError) as caught:
        read_config(file, overrides, verb)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("verb", "function"), FUNCTIONS)
def test_keys_and_defaults_are_those_of_the_verb(folder: Path, verb: str, function: str) -> None:
    parameters = inspect.signature(getattr(rayinf, function)).parameters
    assert list(keys.VERBS[verb].model_fields) == list(parameters)
    given = read_config(write_for(folder, verb), (), verb)
    assert list(given) == list(parameters)
    defaults = {k: p.default for k, p in parameters.items() if p.default is not inspect.Parameter.empty}
    assert {k: given[k] for k in defaults} == defaults


def test_cluster_keys_and_defaults_are_those_of_cluster(folder: Path) -> None:
    assert list(keys.ClusterConfig.model_fields) == [f.name for f in dataclasses.fields(rayinf.Cluster)]
    cluster = read_config(write(folder, cluster="{}"))["cluster"]
    assert dataclasses.replace(cluster, runtime_env=None) == rayinf.Cluster()


@pytest.mark.parametrize("verb", keys.VERBS)
def test_every_key_is_described(verb: str) -> None:
    assert all(meaning for _, _, meaning in keys.describe_keys(verb))


def test_values_that_yaml_reads_as_something_else(folder: Path) -> None:
    given = read_config(write(folder, fisher="true", damping="1e-3"))
    assert given["fisher"] == "true"
    assert given["damping"] == pytest.approx(1e-3)


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
        assert read_config(write(folder), ["cluster.address=auto"])["cluster"].address == "auto"
        assert read_config(file, ["cluster=null"])["cluster"] is None

    def test_the_last_one_counts(self, folder: Path) -> None:
        assert read_config(folder / "run.yaml", ["seed=1", "seed=2"])["seed"] == 2

    @pytest.mark.parametrize(
        ("item", "said"),
        [
            ("seed", "--set seed is no key=value"),
            ("=1", "is no key=value"),
            ("task.x=1", "task is 'mytask.py:task', which has no keys"),
            ("train=*.parquet", "the value is no YAML"),
            ("out=2024-13-45", "the value is no YAML"),
            ("sede=1", "--set sede is an unknown key (did you mean 'seed'?)"),
            ("cluster.worker=1", "--set cluster.worker is an unknown key (did you mean 'workers'?)"),
            ("clutser.workers=1", "--set clutser is an unknown key (did you mean 'cluster'?)"),
        ],
    )
    def test_slips(self, folder: Path, item: str, said: str) -> None:
        assert said in refused(folder / "run.yaml", item)


class TestRefusals:
    @pytest.mark.parametrize(
        ("key", "value", "said"),
        [
            (
                "objctive",
                "total",
                "run.yaml: objctive is an unknown key (did you mean 'objective'?). Fix: use the keys",
            ),
            ("damping", "lots", 'run.yaml: damping="lots" should be a valid number'),
            ("fisher", "false", "fisher=false should be 'true' or 'empirical'"),
            ("objective", "{slice: group}", "write slice:group without a space"),
            ("objective", "[total, 3]", "should be a name or a list of names"),
            ("objective", "3", "should be a name or a list of names"),
            ("train", "null", "train=null should be text"),
            ("out", "2024-01-01", 'out="2024-01-01" should be text: put quotes around it'),
            ("cluster", "4", "cluster=4 should be a mapping of address, workers"),
            ("cluster", "{workers: 0}", "workers=0"),
            ("seed", "[1, 2", "line 5, column 1"),
        ],
    )
    def test_a_wrong_value(self, folder: Path, key: str, value: str, said: str) -> None:
        message = refused(write(folder, **{key: value}))
        assert said in message
        assert "Fix: " in message

    def test_all_problems_in_one_line(self, folder: Path) -> None:
        message = refused(write(folder, seed="x", halves="perhaps", batch_size="y", precision="1", oops="2"))
        assert "oops is an unknown key; " in message
        assert "and 2 more" in message

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "run.yaml is empty"),
            ("- a", "holds a list"),
            ("task: a: b", "run.yaml, line 1, column 8: mapping values are not allowed here"),
            ("seed: 1\nseed: 2\n", "line 2, column 1: key 'seed' stands twice"),
            ("seed: 1", "task is missing; "),
            ("1: 2", "1 is an unknown key"),
        ],
    )
    def test_no_config(self, folder: Path, text: str, said: str) -> None:
        (folder / "run.yaml").write_text(text)
        assert said in refused(folder / "run.yaml")

    def test_no_file(self, folder: Path) -> None:
        assert "There is no config file" in refused(folder / "nothing.yaml")
        assert "cannot be read" in refused(folder)
        (folder / "binary.yaml").write_bytes(b"PAR1\xff\xfe")
        assert "cannot be read" in refused(folder / "binary.yaml")


class TestKeysOfVerbs:
    @pytest.mark.parametrize(
        ("verb", "item", "said"),
        [
            ("influence", "rank=3", "--set rank is a key of measure, acquire, active-learning, not of influence"),
            ("influence", "rounds=3", "--set rounds is a key of active-learning, not of influence"),
            ("measure", "objective=total", "--set objective is a key of influence, not of measure"),
            ("measure", "precision=bf16", "--set precision is a key of influence, not of measure"),
            ("acquire", "train=a", "--set train is a key of influence, measure, not of acquire"),
            ("acquire", "oracle=a", "--set oracle is a key of active-learning, not of acquire"),
            ("active-learning", "exclude=[1]", "--set exclude is a key of acquire, not of active-learning"),
            ("acquire", "stratgy=fi", "--set stratgy is an unknown key (did you mean 'strategy'?)"),
            ("active-learning", "cluster.n=1", "--set cluster.n is an unknown key"),
        ],
    )
    def test_of_another_verb_or_none(self, folder: Path, verb: str, item: str, said: str) -> None:
        message = refused(write_for(folder, verb), item, verb=verb)
        assert said in message
        assert "Fix: use the keys " in message

    @pytest.mark.parametrize(
        ("verb", "missing"),
        [("measure", "valid"), ("acquire", "pool"), ("active-learning", "oracle"), ("active-learning", "test")],
    )
    def test_missing(self, folder: Path, verb: str, missing: str) -> None:
        file = write_for(folder, verb)
        file.write_text("".join(x for x in file.read_text().splitlines(True) if not x.startswith(missing)))
        message = refused(file, verb=verb)
        assert f"run.yaml: {missing} is missing" in message
        assert f"Fix: add {missing}: " in message

    @pytest.mark.parametrize(
        ("verb", "item", "said"),
        [
            ("measure", "rank=yes", "rank=true is a truth value to YAML: write a number"),
            ("measure", "subsample=on", "subsample=true is a truth value to YAML: write a number"),
            ("measure", "subsample=half", 'subsample="half" should be a valid number'),
            ("measure", "damping=no", "damping=false is a truth value to YAML"),
            ("influence", "seed=off", "seed=false is a truth value to YAML"),
            ("influence", "cluster.workers=yes", "cluster.workers=true is a truth value to YAML"),
            ("acquire", "n=1.5", "n=1.5 should be a valid integer"),
            ("acquire", "n=all", 'n="all" should be a valid integer'),
            ("acquire", "pool=no", "pool=false should be text: put quotes around it"),
            ("acquire", "strategy=yes", "strategy=true should be text: put quotes around it"),
            ("acquire", "strategy=[fi]", 'strategy=["fi"] should be text'),
            ("acquire", "aggregate=yes", "aggregate=true should be a name, or a number in [0, 1]"),
            ("acquire", "exclude=[a, yes]", "should be a list of row ids"),
            ("acquire", "exclude=[2024-01-01]", "put quotes around dates"),
            ("active-learning", "oracle=yes", "oracle=true should be text: put quotes around it"),
            ("active-learning", "strategy=[fi, no]", "should be a name or a list of names"),
            ("active-learning", "strategy=[]", "should be a name or a list of names"),
            ("active-learning", "seed=[1, yes]", "should be an integer or a list of integers"),
            ("active-learning", "seed=x", 'seed="x" should be an integer or a list of integers'),
            ("active-learning", "rounds=null", "rounds=null should be a valid integer"),
        ],
    )
    def test_wrong_values(self, folder: Path, verb: str, item: str, said: str) -> None:
        message = refused(write_for(folder, verb), item, verb=verb)
        assert said in message
        assert "Fix: " in message

    def test_one_or_several(self, folder: Path) -> None:
        file = write_for(folder, "active-learning")
        one = read_config(file, ["strategy=random", "seed=3", "aggregate=0.9"], "active-learning")
        assert (one["strategy"], one["seed"], one["aggregate"]) == ("random", 3, 0.9)
        several = read_config(file, ["strategy=[fi, random]", "seed=[0, 1]"], "active-learning")
        assert (several["strategy"], several["seed"]) == (["fi", "random"], [0, 1])

    def test_row_ids(self, folder: Path) -> None:
        given = read_config(write_for(folder, "acquire"), ["exclude=[1, 'no', '07']"], "acquire")
        assert given["exclude"] == [1, "no", "07"]

    def test_paths(self, folder: Path) -> None:
        given = read_config(write_for(folder, "active-learning", out="runs", oracle="drop"), (), "active-learning")
        for key in ("labeled", "pool", "test"):
            assert given[key] == str(folder / f"{key}.parquet")
        assert (given["out"], given["oracle"]) == (str(folder / "runs"), str(folder / "drop"))
        assert (
            read_config(folder / "run.yaml", ["oracle=s3://b/labels"], "active-learning")["oracle"] == "s3://b/labels"
        )

    def test_an_oracle_of_the_users_own(self, folder: Path) -> None:
        file = write_for(folder, "active-learning", oracle="mytask.py:margin", cluster="{}")
        given = read_config(file, (), "active-learning")
        assert given["oracle"].__name__ == "margin"
        assert str(folder) in given["cluster"].runtime_env["env_vars"]["PYTHONPATH"]
        assert "oracle: " in refused(file, "oracle=mytask.py:number", verb="active-learning")
        assert "is a int. Fix: name a function" in refused(file, "oracle=mytask.py:number", verb="active-learning")
        assert "has no 'margn'" in refused(file, "oracle=mytask.py:margn", verb="active-learning")


@pytest.mark.parametrize(
    ("verb", "changes", "found"),
    [
        ("influence", [], "influence"),
        ("influence", ["curvature=ggn", "out=a", "seed=1"], "influence"),
        ("influence", ["rank=2"], "measure"),
        ("influence", ["subsample=.2"], "measure"),
        ("influence", ["objctive=total"], "influence"),
        ("acquire", [], "acquire"),
        ("acquire", ["strategy=fi", "n=3", "rank=3", "subsample=.3", "samples=3"], "acquire"),
        ("acquire", ["rounds=3"], "active-learning"),
        ("active-learning", [], "active-learning"),
    ],
)
def test_the_verb_that_a_config_is_for(folder: Path, verb: str, changes: list[str], found: str) -> None:
    assert find_verb(write_for(folder, verb), changes) == found


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
        ("reference", "said"),
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
            ("mytask.py:refused", "l2=-1) is not a ridge. Fix: pass a finite number >= 0."),
        ],
    )
    def test_no_task(self, folder: Path, reference: str, said: str) -> None:
        assert said in refused(folder / "run.yaml", f"task={reference}")

    def test_a_function_that_fails_names_its_line(self, folder: Path) -> None:
        line = TASK.splitlines().index('    raise KeyError("weights")') + 1
        message = refused(folder / "run.yaml", "task=mytask.py:fails")
        assert re.search(rf"fails raised KeyError: 'weights' \(.*mytask\.py, line {line}\)", message)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("x = 1\ny = 1 / 0\n", r"importing .*broken\.py raised ZeroDivisionError: .* \(.*broken\.py, line 2\)"),
            ("x = 1\n\ndef f(:\n", r"raised SyntaxError: .* \(.*broken\.py, line 3\)"),
            ("import sys\nsys.exit(3)\n", r"raised SystemExit: 3 \(.*broken\.py, line 2\)"),
            (
                "import nothing_at_all\n",
                r"ModuleNotFoundError: No module named 'nothing_at_all' \(.*broken\.py, line 1",
            ),
            ("import rayinf\nrayinf.Fit(lr=-1)\n", r"broken\.py: Fit got lr=-1.* Fix: lr must be positive"),
        ],
    )
    def test_a_file_that_fails_names_its_line(self, folder: Path, text: str, said: str) -> None:
        (folder / "broken.py").write_text(text)
        assert re.search(said, refused(folder / "run.yaml", "task=broken.py:task"))

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
