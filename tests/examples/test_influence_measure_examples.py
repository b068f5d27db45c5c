"""The scripts on the influence measure run from end to end, on their own rows and a user's, and print their tables."""

import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "influence_measure"
SHARED = [path.stem for path in FOLDER.glob("*.py")]

GAUSSIANS = ["rows deleted", "better than IV", "ties", "accuracy", "FI, sum", "random", "paper, FI", "96.23 ± 0.64"]
CRESCENTS = [*GAUSSIANS[:-1], "90.32 ± 1.67"]
SETTINGS = ["distance", "features", "l2", "before", "FI better", "FI, sum", "random", "standardised", "raw"]
PERTURB = ["top FI", "bottom FI", "random", "paper, top FI", "paper, bottom FI", "-0.77", "+0.14", "budgets"]
TRIMMING = ["rows removed", "FI, sum", "IV", "random", "FI - IV", "seeds FI better", "FI above IV", "Paper"]
FOLDS = ["rows removed", "FI", "IV", "random", "FI - IV", "folds FI better", "3 folds", "FI above IV", "Paper"]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict]]:
    """What a script defines. It imports its neighbours from its own folder, as it does when it is run."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("COLUMNS", "140")
    yield lambda name: runpy.run_path(str(FOLDER / f"{name}.py"))
    for name in SHARED:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's Parquet: binary features, one that repeats the label, and columns that are not features."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (700, 8))
    label = (x[:, 0] + x[:, 1] + rng.integers(0, 2, 700) > 1).astype(np.int8)
    frame = pd.DataFrame(x, columns=[f"f{k}" for k in range(8)])
    path = tmp_path_factory.mktemp("data") / "own.parquet"
    frame.assign(label=label, copy=label, sensitive=x[:, 0], split="train").to_parquet(path)
    return path


@pytest.mark.parametrize(
    ("script", "options", "printed"),
    [
        ("gaussians", [], GAUSSIANS),
        ("crescents", [], CRESCENTS),
        ("trimming", [], TRIMMING),
        ("trimming", ["--noise"], ["with noise", *TRIMMING]),
        ("trimming", ["--folds", "3"], FOLDS),
    ],
)
def test_quick_prints_ours_beside_the_papers_and_draws(
    load: Callable, capsys: pytest.CaptureFixture, tmp_path: Path, script: str, options: list[str], printed: list[str]
) -> None:
    load(script)["main"](["--quick", *options, "--out", str(tmp_path / "picture.png")])
    out = capsys.readouterr().out
    assert [text for text in printed if text not in out] == []
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("script", "options", "printed"), [("gaussians", ["--settings"], SETTINGS), ("perturb", [], PERTURB)]
)
def test_quick_prints_a_table(
    load: Callable, capsys: pytest.CaptureFixture, script: str, options: list[str], printed: list[str]
) -> None:
    load(script)["main"](["--quick", *options])
    out = capsys.readouterr().out
    assert [text for text in printed if text not in out] == []


@pytest.mark.parametrize("script", ["gaussians", "crescents", "perturb", "trimming"])
def test_takes_a_table_of_the_users(load: Callable, table: Path, capsys: pytest.CaptureFixture, script: str) -> None:
    load(script)["main"](["--quick", "--data", str(table), "--drop", "copy"])
    assert "own" in capsys.readouterr().out


def test_trimming_takes_a_table_of_test_rows(load: Callable, table: Path, capsys: pytest.CaptureFixture) -> None:
    load("trimming")["main"](["--quick", "--data", str(table), "--test", str(table), "--drop", "copy", "--noise"])
    assert "own with noise" in capsys.readouterr().out


def test_features_are_the_columns_that_are_not_dropped(load: Callable, table: Path) -> None:
    read = load("common")["read"]
    assert read(table, ["copy"])[0].shape == (700, 8)
    assert read(table)[0].shape == (700, 9)


def test_features_that_are_words_are_refused_by_name(load: Callable, tmp_path: Path) -> None:
    pd.DataFrame({"label": [0, 1], "age": [3, 4], "job": ["a", "b"]}).to_parquet(tmp_path / "words.parquet")
    with pytest.raises(SystemExit, match=r"\['job'\] are not numbers"):
        load("trimming")["main"](["--data", str(tmp_path / "words.parquet")])


def test_draws_do_not_overlap_and_shrink_with_the_table(load: Callable) -> None:
    draw, data = load("common")["draw"], (np.arange(100.0)[:, None], np.arange(100))
    for sizes, got in (((50, 20, 10), [50, 20, 10]), ((500, 300, 200), [50, 30, 20])):
        parts = draw(data, sizes, np.random.default_rng(0))
        assert [len(y) for _, y in parts] == got
        assert len(np.unique(np.concatenate([y for _, y in parts]))) == sum(got)
        assert all((x[:, 0] == y).all() for x, y in parts)


@pytest.mark.parametrize("binary", [True, False])
def test_noise_is_on_a_tenth_of_the_training_rows_at_most(load: Callable, binary: bool) -> None:
    names, rng = load("trimming"), np.random.default_rng(0)
    x = rng.standard_normal((1000, 20))
    x = np.where(x > 0, 3.0, -1.0) if binary else x
    rows = (x, np.zeros(1000, int))
    changed = names["noisy"](names["Split"](rows, rows, rows), rng).train[0] != x
    assert changed.any(1).sum() == 100
    assert changed.any(0).sum() == (6 if binary else 20)
    assert changed.sum() == 100 * (6 if binary else 20)


def test_folds_of_one_are_refused(load: Callable, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        load("trimming")["main"](["--folds", "1"])
    assert "at least two folds" in capsys.readouterr().err
