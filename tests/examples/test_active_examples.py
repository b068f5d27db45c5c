"""The scripts on active learning and on approximate FI run from end to end, on their own rows and a user's."""

import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples" / "influence_measure"
SHARED = [path.stem for path in FOLDER.glob("*.py")]

LEARNED = ["mean over rounds", "FI less it", "seeds FI better", "last round", "s an acquisition", "Here: FI", "Paper"]
TABULAR = [*LEARNED, "fi", "iv", "entropy", "margin", "random", "Jigsaw"]
APPROXIMATE = ["exact", "forest", "random", "of exact", "rank correlation", "overlap", "93.8", "1228 s"]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict]]:
    """What a script defines. It imports its neighbours from its own folder, as it does when it is run."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("COLUMNS", "160")
    threads = torch.get_num_threads()
    yield lambda name: runpy.run_path(str(FOLDER / f"{name}.py"))
    torch.set_num_threads(threads)
    for name in SHARED:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's Parquet: numeric features, one that repeats the label, and columns that are not features."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((700, 6))
    label = (x[:, 0] + x[:, 1] + rng.standard_normal(700) > 0).astype(np.int8)
    frame = pd.DataFrame(x, columns=[f"f{k}" for k in range(6)])
    path = tmp_path_factory.mktemp("data") / "own.parquet"
    frame.assign(label=label, copy=label, sensitive=1, split="train").to_parquet(path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's images: 300 RGB squares of 6 pixels, bright where the label is 1."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 300)
    pixels = (rng.integers(0, 128, (300, 6, 6, 3)) + 100 * label[:, None, None, None]).astype(np.uint8)
    path = tmp_path_factory.mktemp("data") / "squares.parquet"
    pd.DataFrame({"image": [p.tobytes() for p in pixels], "label": label}).to_parquet(path)
    return path


def run(load: Callable, capsys: pytest.CaptureFixture, script: str, *options: str) -> str:
    load(script)["main"](["--quick", *options])
    return capsys.readouterr().out


def missing(printed: list[str], out: str) -> list[str]:
    return [text for text in printed if text not in out]


def test_tabular_prints_ours_beside_the_papers_and_draws(
    load: Callable, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    out = run(load, capsys, "active_tabular", "--out", str(tmp_path / "picture.png"))
    assert missing([*TABULAR, "synthetic rows, 60 labelled", "2 seeds, 2 rounds"], out) == []
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_tabular_takes_tables_of_the_users(load: Callable, capsys: pytest.CaptureFixture, table: Path) -> None:
    options = ["--data", str(table), "--test", str(table), "--drop", "copy", "--strategies", "random"]
    out = run(load, capsys, "active_tabular", *options)
    assert missing(["own, 60 labelled", "fi", "random"], out) == []
    assert missing(["entropy", "margin", "│ iv"], out) == ["entropy", "margin", "│ iv"]


@pytest.mark.parametrize(
    ("options", "printed"),
    [
        (["--strategies", "fi_batch", "badge", "entropy"], ["digits, 60 labelled", "fi_batch", "badge", "Table 9"]),
        (["--unbalanced", "--strategies", "iv", "batchbald"], ["digits, unbalanced", "batchbald", "iv"]),
        (["--redundant", "--strategies", "coreset"], ["digits, redundant", "coreset"]),
    ],
)
def test_images_print_ours_beside_the_papers_and_draw(
    load: Callable, capsys: pytest.CaptureFixture, tmp_path: Path, options: list[str], printed: list[str]
) -> None:
    out = run(load, capsys, "active_images", *options, "--out", str(tmp_path / "picture.png"))
    assert missing([*LEARNED, "fi", *printed], out) == []
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_images_take_a_file_of_the_users(load: Callable, capsys: pytest.CaptureFixture, pictures: Path) -> None:
    out = run(load, capsys, "active_images", "--data", str(pictures), "--strategies", "random")
    assert missing(["squares, 60 labelled", "fi", "random"], out) == []


@pytest.mark.filterwarnings("ignore:The random forest's out-of-bag")
def test_approximate_prints_ours_beside_the_papers(load: Callable, capsys: pytest.CaptureFixture) -> None:
    out = run(load, capsys, "approximate", "--rows", "150")
    assert missing([*APPROXIMATE, "digits"], out) == []
    assert "rank 3" not in out


@pytest.mark.filterwarnings("ignore:The random forest's out-of-bag")
def test_approximate_takes_a_table_of_the_users(load: Callable, capsys: pytest.CaptureFixture, table: Path) -> None:
    out = run(load, capsys, "approximate", "--data", str(table), "--drop", "copy", "--rank", "3")
    assert missing([*APPROXIMATE, "own", "forest, rank 3"], out) == []


def test_tables_that_leave_no_test_rows_are_refused(load: Callable, capsys: pytest.CaptureFixture, table: Path) -> None:
    with pytest.raises(SystemExit):
        load("active_tabular")["main"](["--data", str(table), "--drop", "copy"])
    assert "leave 50 rows to test on" in capsys.readouterr().err


def test_rounds_end_with_the_pool(load: Callable) -> None:
    args = load("active_tabular")["options"](["--pool", "1000", "--n", "300"])[0]
    assert args.rounds == 3


def test_images_of_other_forms_are_refused(load: Callable, tmp_path: Path, table: Path) -> None:
    read = load("images")["read_images"]
    with pytest.raises(SystemExit, match="needs the columns image"):
        read(table)
    pd.DataFrame({"image": [b"12345"], "label": [0]}).to_parquet(tmp_path / "five.parquet")
    with pytest.raises(SystemExit, match="5 bytes"):
        read(tmp_path / "five.parquet")


def test_images_keep_their_pixels_in_place(load: Callable, pictures: Path) -> None:
    x, y = load("images")["read_images"](pictures)
    first = pd.read_parquet(pictures)["image"].iloc[0]
    assert x.shape == (300, 3, 6, 6)
    assert len(y) == 300
    assert x[0, 2, 4, 5] == first[(4 * 6 + 5) * 3 + 2]


def test_unbalanced_keeps_ten_of_the_upper_classes_for_one_of_the_lower(load: Callable) -> None:
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 200))
    x, kept = load("active_images")["unbalanced"]((y.copy(), y))
    assert np.bincount(kept).tolist() == [20, 20, 200, 200]
    assert (x == kept).all()


def test_redundant_labels_all_but_two_digits_as_neither(load: Callable) -> None:
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(10), range(10, 20)))
    x, kept = load("active_images")["redundant"]((y.copy(), y))
    assert np.bincount(kept).tolist() == [11, 11, len(y) - 11 - 17]
    assert ((x == 1) == (kept == 0)).all()
    assert ((x == 7) == (kept == 1)).all()


def test_every_round_adds_images_that_were_not_labelled(load: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    names = load("active_images")
    args = names["options"](["--quick", "--pool", "60", "--n", "30"])
    data = names["digits"]()
    split = names["split_of"](data, None, args, 0)
    task = names["rayinf"].Task(names["cnn"]((1, 8, 8), 10), classes=range(10))
    first = names["train"](task, split["labeled"], 2, 0)
    args.steps = 2
    seen = []
    trained = names["learn"].__globals__
    monkeypatch.setitem(trained, "train", lambda task, rows, steps, seed: seen.append(rows) or first)
    lines = names["learn"](split, "fi", first, args, 0)
    assert [line["labeled"] for line in lines] == [60, 90, 120]
    whole = np.concatenate([split["labeled"][0], split["pool"][0]]).reshape(120, -1)
    assert len(np.unique(seen[-1][0].reshape(120, -1), axis=0)) == len(np.unique(whole, axis=0))
