"""The keys of every verb: the arguments of its function, wrong values, and which verb a config is for."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_cases import imports_of
from config_cases import make_config_folder, refused, write, write_for

import rayinf
from rayinf.config import find_verb, read_config
from rayinf.config_keys import SECTIONS, VERBS, describe_keys, keys_of
from rayinf.config_model import model_of
from rayinf.core.fisher import FisherKind
from rayinf.signatures import arguments_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(rayinf.Scores, "load", lambda place: place)  # there are no runs
    with imports_of(tmp_path):
        yield make_config_folder(tmp_path / "conf")


@pytest.mark.parametrize("public", [*VERBS.values(), *SECTIONS.values(), "plan"])
def test_arguments_are_those_that_python_sees(public: str) -> None:
    found = {a.name: a for a in arguments_of(public)}
    parameters = inspect.signature(getattr(rayinf, public)).parameters
    assert list(found) == list(parameters)
    assert {k: a.default for k, a in found.items()} == {k: p.default for k, p in parameters.items()}
    assert {k: a.annotation for k, a in found.items()} == {k: p.annotation for k, p in parameters.items()}


FUNCTIONS = [name for name, home in rayinf.HOMES.items() if name.islower() and home.split(".")[1] != "core"]


@pytest.mark.parametrize("public", [*FUNCTIONS, *SECTIONS.values()])
def test_every_argument_is_described_where_it_stands(public: str) -> None:
    """In full: a reader of one docstring is not sent to another one."""
    for argument in arguments_of(public):
        assert len(argument.meaning) > 8, argument
        assert not re.search(r"\bas in `|\bthe same\.$", argument.meaning), argument


@pytest.mark.parametrize("verb", VERBS)
def test_a_config_with_the_required_keys_gives_all_arguments(folder: Path, verb: str) -> None:
    parameters = inspect.signature(getattr(rayinf, VERBS[verb])).parameters
    given = read_config(write_for(folder, verb), (), verb)
    assert list(given) == list(keys_of(verb))
    assert {*given} - {*parameters} <= {"out"}
    defaults = {k: p.default for k, p in parameters.items() if p.default is not inspect.Parameter.empty}
    assert {k: given[k] for k in defaults} == defaults


def test_sections_give_the_defaults_of_their_classes(folder: Path) -> None:
    cluster = read_config(write(folder, cluster="{}"))["cluster"]
    assert dataclasses.replace(cluster, runtime_env=None) == rayinf.Cluster()
    assert read_config(write_for(folder, "reweight", search="{}"), (), "reweight")["search"] == rayinf.Search()


def test_types_that_are_named_in_signatures() -> None:
    """The annotation is read without importing the module that defines it."""
    assert model_of("influence").model_fields["fisher"].annotation == FisherKind


@pytest.mark.parametrize("verb", VERBS)
def test_every_key_has_a_default_or_is_required(verb: str) -> None:
    found = describe_keys(verb)
    assert {name for name, default, _ in found if not default} == {k for k, a in keys_of(verb).items() if a.required}
    assert all(meaning for _, _, meaning in found)


class TestKeysOfVerbs:
    @pytest.mark.parametrize(
        ("verb", "item", "part"),
        [
            ("influence", "rank=3", "--set rank is a key of measure, acquire, active-learning, not of influence"),
            ("influence", "rounds=3", "--set rounds is a key of trim-rounds, active-learning, not of influence"),
            (
                "measure",
                "objective=total",
                "--set objective is a key of influence, baseline, trim-rounds, predict-removal, evaluate, lds, not of "
                "measure",
            ),
            (
                "measure",
                "precision=bf16",
                "--set precision is a key of influence, self-influence, pairs, baseline, label-issues, "
                "predict-removal, not of measure",
            ),
            (
                "acquire",
                "train=a",
                "--set train is a key of influence, measure, self-influence, pairs, baseline, trim-rounds, "
                "label-issues, predict-removal, reweight, removal-check, lds, not of acquire",
            ),
            ("acquire", "oracle=a", "--set oracle is a key of active-learning, not of acquire"),
            ("active-learning", "exclude=[1]", "--set exclude is a key of acquire, not of active-learning"),
            ("acquire", "stratgy=fi", "--set stratgy is an unknown key (did you mean 'strategy'?)"),
            ("active-learning", "cluster.n=1", "--set cluster.n is an unknown key"),
        ],
    )
    def test_of_another_verb_or_none(self, folder: Path, verb: str, item: str, part: str) -> None:
        message = refused(write_for(folder, verb), item, verb=verb)
        assert part in message
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
        ("verb", "item", "part"),
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
            ("acquire", "aggregate=yes", "aggregate=true should be a name or a number"),
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
    def test_wrong_values(self, folder: Path, verb: str, item: str, part: str) -> None:
        message = refused(write_for(folder, verb), item, verb=verb)
        assert part in message
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
        (folder / "drop").mkdir()
        given = read_config(write_for(folder, "active-learning", out="runs", oracle="drop"), (), "active-learning")
        for key in ("labeled", "pool", "test"):
            assert given[key] == str(folder / f"{key}.parquet")
        assert (given["out"], given["oracle"]) == (str(folder / "runs"), str(folder / "drop"))
        assert (
            read_config(folder / "run.yaml", ["oracle=s3://b/labels"], "active-learning")["oracle"] == "s3://b/labels"
        )

    def test_an_oracle_that_is_nowhere(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = write_for(folder, "active-learning", oracle="labels")
        assert "there is no table and no folder" in refused(file, verb="active-learning")
        (folder.parent / "labels").mkdir()
        monkeypatch.chdir(folder.parent)
        assert "write ../labels or an absolute path" in refused(file, verb="active-learning")
        assert read_config(file, ["oracle=labels/*.parquet"], "active-learning")

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
