"""What a job gets of a config: the code beside it and no more, no secret, no path of this machine alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import rayinf
from rayinf.config import read_values
from rayinf.sent_config import CONFIG, prepare

SOUND: dict[str, Any] = {"task": "tasks/mine.py:task", "train": "s3://b/train", "valid": "/shared/valid", "out": "/r"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "project"
    for name, text in {
        "tasks/mine.py": "import helper\nTASK = 1",
        "tasks/helper.py": "",
        "package/__init__.py": "",
        "package/loss.py": "import package.parts",
        "package/parts.py": "",
        "train.parquet": "data",
        ".env": "SECRET=1",
        "runs/a/run.json": "{}",
        "../elsewhere/goal.py": "import near",
        "../elsewhere/near.py": "",
    }.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    return home


def sent(folder: Path, values: dict[str, Any], env: dict[str, Any] | None = None, verb: str = "influence") -> Any:
    return prepare(verb, read_values(values, (), verb), folder, env)


def test_code_travels_with_the_config_and_nothing_else(folder):
    cluster = {"workers": 3, "address": "10.0.0.1:6379", "runtime_env": {"pip": ["a"]}}
    objectives = ["total", "package.loss:goal", "../elsewhere/goal.py:goal", "slice:sex"]
    found = sent(folder, {**SOUND, "objective": objectives, "cluster": cluster}, {"conda": "b"})
    assert set(found.files) == {
        "tasks/mine.py", "tasks/helper.py", "package/__init__.py", "package/loss.py", "package/parts.py",
        "code_0/goal.py", "code_0/near.py", CONFIG,
    }  # fmt: skip
    assert yaml.safe_load(found.files[CONFIG]) == {
        **SOUND,
        "objective": ["total", "package.loss:goal", "code_0/goal.py:goal", "slice:sex"],
        "cluster": {"workers": 3},
    }
    assert found.runtime_env == {"pip": ["a"], "conda": "b"}
    assert found.places == {"train": "s3://b/train", "valid": "/shared/valid", "out": "/r"}
    assert found.size == sum(map(len, found.files.values()))


def test_each_of_several_places_is_looked_at(folder):
    values = {**SOUND, "method": "tracin", "checkpoints": ["s3://b/1.pt", "/shared/2.pt"]}
    found = sent(folder, values, verb="baseline")
    assert {k: v for k, v in found.places.items() if k not in SOUND} == {
        "checkpoints[0]": "s3://b/1.pt",
        "checkpoints[1]": "/shared/2.pt",
    }
    with pytest.raises(rayinf.InputError, match=r"checkpoints\[1\]='2.pt': a relative path"):
        sent(folder, {**values, "checkpoints": ["s3://b/1.pt", "2.pt"]}, verb="baseline")
    sets = {**SOUND, "rows": {"worst": "/shared/a.parquet", "others": "b.parquet"}}
    with pytest.raises(rayinf.InputError, match=r"rows\.others='b.parquet': a relative path"):
        sent(folder, sets, verb="predict-removal")


def test_the_same_run_is_known_again(folder):
    first = sent(folder, SOUND).digest
    (folder / "tasks/mine.py").write_text('"""Words."""\nimport helper\nTASK = 1  # a comment')
    assert sent(folder, {**dict(reversed(SOUND.items())), "seed": 0, "cluster": {"workers": 9}}).digest == first
    others = [
        sent(folder, {**SOUND, "seed": 1}).digest,
        sent(folder, {**SOUND, "out": "/s"}).digest,
        sent(folder, SOUND, verb="measure").digest,
    ]
    (folder / "tasks/helper.py").write_text("X = 2")
    others.append(sent(folder, SOUND).digest)
    assert len({first, *others}) == 5


@pytest.mark.parametrize(
    ("change", "part", "mend"),
    [
        ({"train": "data/train"}, "train='data/train': a relative path", "s3://bucket/train"),
        ({"valid": "~/valid"}, "valid='~/valid'", "absolute path"),
        ({"out": "runs/a"}, "out='runs/a'", "runs/a, if they do"),
        ({"out": None}, "has no out", "out: FOLDER"),
        ({"task": "tasks/none.py:task"}, "there is no file", "config's folder"),
        ({"task": "tasks.mine"}, "names nothing to import", ":name"),
        ({"train": "s3://key:pl4nted@b/t"}, "train holds a password", "machines of the cluster"),
        ({"train": "abfss://c@a/t?sig=pl4nted"}, "train holds a password", "machines of the cluster"),
        ({"cluster": {"runtime_env": {"env_vars": {"HF": "pl4nted"}}}}, r"environment variables \(HF\)", "leave env_v"),
        ({"cluster": {"runtime_env": {"working_dir": "."}}}, "working_dir", "leave working_dir out"),
        ({"cluster": {"runtime_env": {"pip": ["--index-url https://me:pl4nted@host"]}}}, "runtime_env.pip", "cluster"),
    ],
)
def test_what_is_refused_before_anything_is_sent(folder, change, part, mend):
    with pytest.raises(rayinf.InputError, match=part) as found:
        sent(folder, {**SOUND, **change})
    assert mend in found.value.fix
    assert "pl4nted" not in str(found.value) and "\n" not in str(found.value)


def test_runtime_env_of_the_caller_is_held_to_the_same(folder):
    for env in (
        {"env_vars": {"A": "pl4nted"}},
        {"working_dir": "."},
        {"pip": object()},
        {"pip": ["https://a:pl4nted@b"]},
    ):
        with pytest.raises(rayinf.InputError, match="runtime_env") as found:
            sent(folder, SOUND, env)
        assert "pl4nted" not in str(found.value)
    listed = folder / "requirements.txt"
    listed.write_text("--index-url https://me:pl4nted@host\nnumpy")
    with pytest.raises(rayinf.InputError, match=r"runtime_env\.pip holds a password"):
        sent(folder, SOUND, {"pip": str(listed)})
    assert sent(folder, SOUND, {"env_vars": {}}).runtime_env == {"env_vars": {}}


def test_an_oracle_is_code_or_a_place(folder):
    values = {k: v for k, v in SOUND.items() if k != "train"} | {"labeled": "/l", "pool": "/p", "test": "/t"}
    found = sent(folder, {**values, "oracle": "package.loss:ask"}, verb="active-learning")
    assert "oracle" not in found.places and "package/loss.py" in found.files
    found = sent(folder, {**values, "oracle": "/labels"}, verb="active-learning")
    assert found.places["oracle"] == "/labels"
    with pytest.raises(rayinf.InputError, match="oracle='labels'"):
        sent(folder, {**values, "oracle": "labels"}, verb="active-learning")


def test_data_in_python_files_is_refused(folder):
    (folder / "tasks/helper.py").write_text(f"X = '{'a' * (21 << 20)}'")
    with pytest.raises(rayinf.InputError, match=r"21 MiB, and at most 20 MiB are sent; .* tasks/helper.py"):
        sent(folder, SOUND)
