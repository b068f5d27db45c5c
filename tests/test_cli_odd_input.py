"""Configs and paths that are out of the ordinary: one line, and exit code 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_cases import CONFIG, call, imports_of, make_folder, refused

from rayinf.config import read_config
from rayinf.errors import InputError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    with imports_of(tmp_path):
        yield make_folder(tmp_path / "conf")


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
TEXTS = {
    "lists in lists": (f"objective: {deep(5000)}", "more than 32 mappings or lists"),
    "mappings in mappings": ("".join(" " * k + "a:\n" for k in range(3000)), "more than 32 mappings or lists"),
    "a list that holds itself": ("objective: &a [*a]", r"*a holds itself"),
    "a mapping that holds itself": ("cluster: &c {workers: *c}", r"*c holds itself"),
    "aliases of aliases": (BOMB + "\nobjective: *j", "unknown key"),
    "an alias of nothing": ("objective: *none", "undefined alias"),
    "a null byte": ("objective: a\0b", "special characters"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_configs(name: str, folder: Path) -> None:
    text, problem = TEXTS[name]
    (folder / "run.yaml").write_text(CONFIG.replace("objective: [total, category]\n", "") + text)
    line = refused(call("influence", folder / "run.yaml"))
    assert problem in line
    assert len(line) < 1500


@pytest.mark.parametrize("change", [f"objective={deep(5000)}", "objective=&a [*a]"])
def test_changes(change: str, folder: Path) -> None:
    refused(call("influence", folder / "run.yaml", "--set", change))


def test_what_is_not_too_deep_is_read(folder: Path) -> None:
    """Thirty levels, and an alias that is used twice."""
    text = f"base: &b [total]\n{CONFIG}cluster: {{runtime_env: {{x: {deep(28)}}}}}\n".replace("[total, category]", "*b")
    (folder / "run.yaml").write_text(text.replace("base: &b [total]\n", "").replace("*b", "&b [total]"))
    given = read_config(folder / "run.yaml")
    assert given["objective"] == ["total"]
    inner = given["cluster"].runtime_env["x"]
    for _ in range(27):
        (inner,) = inner
    assert inner == []
    with pytest.raises(InputError, match="more than 32"):
        read_config(folder / "run.yaml", [f"cluster.runtime_env={{x: {deep(40)}}}"])


WHERE = ["/proc/x", "/proc/self/x", "/dev/null/x", "n" * 300, "a/" + "n" * 300]


@pytest.mark.parametrize("out", WHERE)
@pytest.mark.parametrize("command", ["influence", "measure"])
def test_an_out_that_cannot_be_made(command: str, out: str, folder: Path) -> None:
    changes = ["--set", f"out={out}"]
    if command == "measure":
        (folder / "run.yaml").write_text(CONFIG.replace("objective: [total, category]\n", ""))
    before = sorted(folder.rglob("*.parquet"))
    line = refused(call(command, folder / "run.yaml", *changes))
    assert "out" in line.partition("Fix: ")[0] or "/dev/null is a file" in line
    assert len(line) < 700
    assert sorted(folder.rglob("*.parquet")) == before


@pytest.mark.parametrize("out", WHERE)
def test_an_out_of_a_command_on_a_run(out: str, folder: Path) -> None:
    assert call("influence", folder / "run.yaml").exit_code == 0
    for command in ("trim", "ceiling"):
        refused(call(command, folder / "runs" / "a", "--out", out))


def test_an_out_inside_the_table(folder: Path) -> None:
    line = refused(call("influence", folder / "run.yaml", "--set", "train=.", "--set", "out=runs/b"))
    assert "inside" in line or "other columns" in line
    (folder / "data").mkdir()
    (folder / "train.parquet").rename(folder / "data" / "train.parquet")
    line = refused(call("influence", folder / "run.yaml", "--set", "train=data", "--set", "out=data/run"))
    assert f"lies inside train ({folder / 'data'})" in line
    assert [p.name for p in (folder / "data").iterdir()] == ["train.parquet"]


@pytest.mark.parametrize("command", ["trim", "ceiling", "influence"])
def test_a_path_that_is_too_long(command: str, folder: Path) -> None:
    assert len(refused(call(command, "n" * 5000))) < 600
