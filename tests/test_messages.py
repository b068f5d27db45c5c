"""On the command line messages name options and config keys, never Python's arguments."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_cases import TASK, call, imports_of, make_folder

import rayinf
from rayinf import messages
from rayinf.config_keys import VERBS, keys_of
from rayinf.errors import InputError

TRIM = ("by", "budget", "floor", "out")
# Arguments of the library that a config or an option holds, with a value as Python writes it; and calls that no config
# can hold. Task(...), Fit(...) and objectives are written in the user's own Python file.
_KEYS = "|".join(sorted({key for verb in VERBS for key in keys_of(verb)} | {"by", "budget", "floor"}))
PYTHON = re.compile(
    rf"\b(?:{_KEYS})=(?:'|\"|True\b|False\b|None\b|\.\.\.)"
    r"|\b(?:Cluster|Search|Scores\.\w+|influence|influence_measure|acquire|active_learning|trim|ceiling|removal_check|lds"
    r"|pareto_reweight)\("
)


def without_the_users_file(text: str) -> str:
    """The text less what the user writes in Python on the command line too: `Task(...)`, objectives."""
    once = None
    while once != text:
        once, text = (
            text,
            re.sub(r"\b(?:rayinf\.)?(?:Task|Fit|Objective|robustness|\w+_parity|\w+_opportunity)\([^()]*\)", "", text),
        )
    return text


@pytest.mark.parametrize(
    ("python", "line"),
    [
        ("name one, as by='total'.", "name one, as --by total."),
        ("pass at most 5, or by='fi_rank', which has all.", "pass at most 5, or --by fi_rank, which has all."),
        (
            'compute them with influence(..., objective="category", halves=True)',
            "compute them with rayinf influence with objective: category and halves: true",
        ),
        ("pass rayinf.influence_measure(task, rank=3).", "pass rayinf measure with rank: 3."),
        ("pass rayinf.Cluster(workers=2), or None.", "pass cluster.workers: 2, or null."),
        ("For slow shards pass Cluster(patience=...).", "For slow shards pass cluster.patience."),
        ("fewer workers in Cluster(...), or nodes.", "fewer workers in cluster, or nodes."),
        (
            'Cluster(runtime_env={"working_dir": "a/b"}), or install it',
            "cluster.runtime_env: {working_dir: a/b}, or install it",
        ),
        ('pass Search(slack="scaled") or a radius', "pass search.slack: scaled or a radius"),
        ("pass valid=..., or use isal.", "pass valid, or use isal."),
        ('leave them out, or use strategy="fi".', "leave them out, or use strategy: fi."),
        ("pass damping=None.", "pass damping: null."),
        ("pass subsample=0.25 or more.", "pass subsample: 0.25 or more."),
        ('pass objective=["total", "category"].', "pass objective: [total, category]."),
        ("compute them with rayinf, or pass Scores.from_numpy(..., labels=y).", "compute them with rayinf."),
        ("pass a number from 1 to 4, or None for all.", "pass a number from 1 to 4, or null for all."),
        ("None of these. pass True or False.", "None of these. pass true or false."),
        # What stays: the user's own file, and what only looks alike.
        ('pass Task(group="g", fit=rayinf.Fit(lr=0.1)).', 'pass Task(group="g", fit=rayinf.Fit(lr=0.1)).'),
        ('pass rayinf.robustness("fgsm", epsilon=0.1).', 'pass rayinf.robustness("fgsm", epsilon=0.1).'),
        ("a mask [B, T] (one row), epochs=3", "a mask [B, T] (one row), epochs=3"),
        ("an open ( and curvature='ggn'", "an open ( and curvature: ggn"),
    ],
)
def test_a_text(python: str, line: str) -> None:
    assert messages.translate(python, TRIM) == line


def test_an_error_shows_what_was_given_as_it_is_set() -> None:
    error = InputError("curvature='newton', halves=None and\nSearch(elites=-1) are unknown.", 'use curvature="ekfac".')
    assert messages.error_line(error) == (
        "curvature=newton, halves=null and search.elites=-1 are unknown. Fix: use curvature: ekfac."
    )


# --- Every message that there is


def _messages() -> Iterator[tuple[str, str]]:
    """Where errors are made, and the literal parts of what they say; values are filled in as X."""
    package = Path(rayinf.__file__).parent
    for file in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
                "InputError",
                "RunError",
                "UserCodeError",
            ):
                for part in node.args[:2]:
                    text = _text(part)
                    if text:
                        yield f"{file.relative_to(package)}:{node.lineno}", text


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_value(v) for v in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.IfExp):
        return f"{_text(node.body)} {_text(node.orelse)}"
    return ""


def _value(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    return "'X'" if isinstance(node, ast.FormattedValue) and node.conversion == ord("r") else "X"


def test_no_message_of_the_library_is_python_once_translated() -> None:
    held = list(_messages())
    assert len(held) > 300
    python = [m for m in held if PYTHON.search(without_the_users_file(m[1]))]
    assert len(python) > 20  # else the pattern finds nothing
    left = [(place, messages.translate(text, TRIM)) for place, text in held]
    assert [m for m in left if PYTHON.search(without_the_users_file(m[1]))] == []


# --- As a user meets them


TRAINABLE = """

def trainable():
    return rayinf.Task(net, l2=1e-2, fit=rayinf.Fit("sgd", lr=0.05, epochs=2, batch_size=20))


def deep():
    return rayinf.Task(lambda: torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)))


def normed():
    return rayinf.Task(lambda: torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 3)))


def many():
    return rayinf.Task(torch.nn.Linear(4, 40), loss=lambda z, y: z.sum(1))


def broken():
    return rayinf.Task(net, transform=lambda x: 1 / 0)
"""
_TABLES = "train: train.parquet\nvalid: valid.parquet\n"
_POOL = "task: mytask.py:task\nlabeled: train.parquet\npool: pool.parquet\nn: 3\nout: runs/q\n"
CONFIGS = {
    "measure.yaml": f"task: mytask.py:task\n{_TABLES}out: runs/m\n",
    "acquire.yaml": _POOL,
    "learn.yaml": f"{_POOL}oracle: pool.parquet\ntest: test.parquet\nrounds: 2\n",
    "reweight.yaml": f"task: mytask.py:trainable\n{_TABLES}scores: runs/a\ntargets: [0]\nout: runs/w\n",
    "removal.yaml": f"task: mytask.py:task\n{_TABLES}test: test.parquet\nscores: runs/a\nout: runs/r\n",
    "lds.yaml": f"task: mytask.py:trainable\n{_TABLES}scores: runs/a\nout: runs/s\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with data, tasks and configs, and a finished run of influence by category."""
    home = tmp_path_factory.mktemp("messages") / "conf"
    with imports_of(home.parent):
        make_folder(home)
        (home / "mytask.py").write_text(TASK + TRAINABLE)
        for name, text in CONFIGS.items():
            (home / name).write_text(text)
        assert call("influence", home / "run.yaml").exit_code == 0
        yield home


BAD: list[tuple[Any, ...]] = [
    *(
        ("influence", "run.yaml", "--set", f"out=runs/none-{k}", "--set", change)
        for k, change in enumerate(
            [
                "curvature=newton",
                "damping=-1",
                "seed=-1",
                "batch_size=0",
                "precision=fp8",
                "objective=totl",
                "objective=[]",
                "objective=demographic_parity",
                "objective=[total, total]",
                "factors=runs/nothing",
                "cluster={workers: 0}",
                "cluster={cpus_per_worker: -1}",
                "cluster={patience: 0}",
                "cluster={address: ''}",
                "out=https://host/run",
                "halves=maybe",
                "task=mytask.py:normed",
                "task=mytask.py:many",
                "task=mytask.py:broken",
            ]
        )
    ),
    *(
        ("measure", "measure.yaml", "--set", f"out=runs/none-m{k}", "--set", change)
        for k, change in enumerate(["rank=0", "rank=999", "subsample=2", "subsample=0.01", "curvature=x"])
    ),
    *(
        ("acquire", "acquire.yaml", "--set", f"out=runs/none-a{k}", "--set", change)
        for k, change in enumerate(
            ["n=0", "n=999", "strategy=best", "strategy=iv", "strategy=bald", "aggregate=most", "samples=0"]
        )
    ),
    *(
        ("active-learning", "learn.yaml", "--set", f"out=runs/none-l{k}", "--set", change)
        for k, change in enumerate(["rounds=0", "rounds=99", "strategy=[fi, fi]", "seed=[0, 0]", "strategy=none"])
    ),
    *(
        ("reweight", "reweight.yaml", "--set", f"out=runs/none-w{k}", "--set", change)
        for k, change in enumerate(
            [
                "targets=[7]",
                "mode=sideways",
                "search={elites: -1}",
                "search={population: 5}",
                "search={upper: 0}",
                "task=mytask.py:task",
                "scores=runs/nothing",
            ]
        )
    ),
    *(
        ("removal-check", "removal.yaml", "--set", f"out=runs/none-r{k}", "--set", change)
        for k, change in enumerate(["share=1.5", "seeds=0", "valid=test.parquet", "task=mytask.py:deep"])
    ),
    *(
        ("lds", "lds.yaml", "--set", f"out=runs/none-s{k}", "--set", change)
        for k, change in enumerate(["subsets=2", "share=0.001", "objective=[total]", "task=mytask.py:deep"])
    ),
    ("trim", "runs/a"),
    ("trim", "runs/a", "--by", "nothing"),
    ("trim", "runs/a", "--by", "total", "--budget", "-1"),
    ("trim", "runs/a", "--by", "total", "--budget", "999"),
    ("trim", "runs/a", "--by", "total", "--floor", "-1"),
    ("trim", "runs/nothing"),
    ("ceiling", "runs/nothing"),
    ("ceiling", "runs/a", "--plane", "0,7"),
    ("plan", "run.yaml", "--for", "trim"),
    ("plan", "run.yaml", "--set", "curvature=newton"),
]


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")  # of torch itself; a process of its own does not show it
@pytest.mark.parametrize("words_given", BAD, ids=lambda c: " ".join(c)[:70])
def test_bad_input(folder: Path, words_given: tuple[str, ...]) -> None:
    command, place, *rest = words_given
    result = call(command, folder / place, *rest)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    line = result.stderr.strip()
    assert line.startswith("Error: ")
    assert " Fix: " in line
    assert not PYTHON.search(without_the_users_file(line)), line


def test_the_verdict_of_a_ceiling_without_halves(folder: Path) -> None:
    shown = call("ceiling", folder / "runs" / "a").stdout
    assert "rayinf influence with objective: category and halves: true" in shown
    assert not PYTHON.search(without_the_users_file(shown))
