"""The scripts on leave-one-out, trimming, run time and trees: what they read, measure, print and draw."""

import runpy
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "what_data_benefits"
PNG = b"\x89PNG"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict]]:
    """What a script defines. It imports its neighbours from its own folder, as it does when it is run."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("COLUMNS", "140")
    yield lambda name: runpy.run_path(str(FOLDER / f"{name}.py"))
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


def frame(rows: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x = pd.DataFrame(rng.normal(3, 2, (rows, 2)), columns=["a", "b"]).assign(constant=1.0, row_id=np.arange(rows))
    return x.assign(label=np.arange(rows) % 2, sensitive=np.arange(rows) // 2 % 2)


def test_features_are_in_units_of_the_training_rows(load: Callable) -> None:
    common = load("common")
    raw = common["partition"](frame())
    split = common["standardise"](raw)
    assert split.features == ["a", "b", "constant"]
    assert [len(p) for p in (split.train, split.valid, split.test)] == [24, 8, 8]
    np.testing.assert_allclose(split.train[["a", "b"]].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(split.train[["a", "b"]].std(ddof=0), 1, atol=1e-6)
    want = (raw.test["a"] - raw.train["a"].mean()) / raw.train["a"].std(ddof=0)
    np.testing.assert_allclose(split.test["a"], want, rtol=1e-5)
    assert (split.test["constant"] == 0).all()
    assert split.train["a"].dtype == np.float32


def test_parts_share_no_row_and_hold_all(load: Callable) -> None:
    split = load("common")["partition"](frame())
    held = pd.concat([split.train, split.valid, split.test])
    assert sorted(held["a"]) == sorted(frame()["a"])


@pytest.mark.parametrize("name", ["valid", "val"])
def test_a_tables_own_split_is_kept(load: Callable, name: str) -> None:
    rows = frame().assign(split=["test"] * 10 + [name] * 10 + ["train"] * 20)
    split = load("common")["partition"](rows)
    for part, at in ((split.test, slice(0, 10)), (split.valid, slice(10, 20)), (split.train, slice(20, 40))):
        np.testing.assert_array_equal(part["a"], rows["a"][at])


def test_adult_halves_its_test_rows_and_celeba_drops_smiling(load: Callable, tmp_path: Path) -> None:
    frame().to_parquet(tmp_path / "adult_train.parquet")
    frame(30).to_parquet(tmp_path / "adult_test.parquet")
    frame().assign(Smiling=1, split=["train", "train", "val", "test"] * 10).to_parquet(tmp_path / "celeba_attr.parquet")
    found = dict(load("common")["splits"](["adult", "celeba"], tmp_path))
    adult = found["adult"]
    assert (len(adult.train), len(adult.valid), len(adult.test)) == (40, 15, 15)
    assert sorted([*adult.valid["a"], *adult.test["a"]]) == sorted(frame(30)["a"])
    assert "Smiling" not in found["celeba"].features
    assert len(found["celeba"].train) == 20


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda f: f.assign(label=f["label"] + 1), "label"),
        (lambda f: f.drop(columns="sensitive"), "sensitive"),
        (lambda f: f.assign(word="x"), "word"),
    ],
)
def test_a_table_of_another_form_is_refused(load: Callable, tmp_path: Path, change: Callable, named: str) -> None:
    change(frame()).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(SystemExit, match=f"needs label and sensitive.*: {named} is missing"):
        list(load("common")["splits"]([], tmp_path / "rows.parquet"))


def test_a_split_without_a_part_is_refused(load: Callable) -> None:
    with pytest.raises(SystemExit, match="no rows of valid"):
        load("common")["partition"](frame().assign(split=["train", "test"] * 20))


@pytest.mark.parametrize(
    ("script", "file"),
    [
        ("leave_one_out", "toy_test.parquet"),
        ("trimming", "adult_test.parquet"),
        ("runtime", "adult_test.parquet"),
        ("trees", "adult_test.parquet"),
    ],
)
def test_without_data_the_file_that_is_needed_is_named(load: Callable, tmp_path: Path, script: str, file: str) -> None:
    for given in ([], ["--data", str(tmp_path)]):
        with pytest.raises(SystemExit, match=f"{file} is needed"):
            load(script)["main"](given)


def test_leave_one_out_predicts_the_refits_of_a_users_table(
    load: Callable, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    rows = load("common")["synthetic"](1500, seed=3)
    rows.to_parquet(tmp_path / "own.parquet")
    script = load("leave_one_out")
    # With a ridge no single row has much leverage, which is when a first-order prediction must be right.
    options = ["--rows", "40", "--l2", "0.1", "--out", str(tmp_path / "loo.png")]
    script["main"](["--data", str(tmp_path / "own.parquet"), *options])
    printed = capsys.readouterr().out
    assert "own: 40 of 900 rows" in printed
    lines = {c[0]: c for line in printed.splitlines() if len(c := line.replace("│", " ").split()) > 2}
    for name in script["OBJECTIVES"]:
        assert float(lines[name][1]) > 0.98
        assert float(lines[name][2]) > 0.98
    assert (tmp_path / "loo.png").read_bytes().startswith(PNG)


def test_trimming_narrows_the_gap_that_random_trimming_leaves(load: Callable) -> None:
    script, common = load("trimming"), load("common")
    split = common["standardise"](common["partition"](common["synthetic"]()))
    lines = script["study"]("logistic", split, Namespace(points={"logistic": 1}, draws=2)).lines
    before, random = lines[lines["by"] == "before"].iloc[0], lines[lines["by"] == "random"]
    ours = lines.set_index("by")
    for gap in ("demographic_parity", "equal_opportunity"):
        assert ours.loc[gap, gap] < 0.7 * before[gap]
        assert (random[gap] > 0.85 * before[gap]).all()
    assert len(random) == 2
    assert (random["removed"] == 45).all()
    assert ours.loc["robustness", "robustness_accuracy"] > before["robustness_accuracy"]
    # Aimed at the model that is measured, the linear attack flips every prediction; aimed at the first, no longer.
    np.testing.assert_allclose(lines["anew_robustness_accuracy"], 1 - lines["accuracy"], atol=1e-12)
    assert ours.loc["robustness", "robustness_accuracy"] > 1.005 - ours.loc["robustness", "accuracy"]


def test_what_trimming_asks_of_itself_comes_from_its_lines(load: Callable, capsys: pytest.CaptureFixture) -> None:
    found = pd.DataFrame(
        [
            ("before", 0, 0.2, 0.1),
            ("demographic_parity", 0.5, 0.01, 0.1),
            ("demographic_parity", 1, 0.14, 0.1),
            ("robustness", 1, 0.2, 0.7),
            ("random", 1, 0.202, 0.1),
            ("random", 1, 0.19, 0.1),
        ],
        columns=["by", "budget", "demographic_parity", "robustness_accuracy"],
    )
    script = load("trimming")
    np.testing.assert_allclose(script["changes"](found), (30, 5, 60))
    script["summary"]({"adult": found})
    verdicts = [line.split("│")[-2].strip() for line in capsys.readouterr().out.splitlines() if "adult:" in line]
    assert verdicts == ["no", "no", "yes"]


@pytest.mark.slow
def test_quick_trimming_prints_both_models_and_draws(
    load: Callable, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    load("trimming")["main"](["--quick", "--out", str(tmp_path / "figures")])
    out = capsys.readouterr().out
    for model in ("logistic", "mlp"):
        assert f"synthetic, {model}, 5% trimmed" in out
        assert f"synthetic, {model}, accuracy on attacked rows" in out
        assert (tmp_path / "figures" / f"trimming_synthetic_{model}.png").read_bytes().startswith(PNG)
    for text in ("accuracy", "DP gap, classes", "EOP gap, rates", "linear attack", "FGSM attack", "falls", "rises"):
        assert text in out


def test_quick_run_time_prints_a_line_a_table(load: Callable, capsys: pytest.CaptureFixture) -> None:
    load("runtime")["main"](["--quick"])
    line = next(line for line in capsys.readouterr().out.splitlines() if "synthetic" in line)
    cells = [cell.strip() for cell in line.split("│")[1:-1]]
    assert cells[:2] == ["synthetic", "900"]
    assert float(cells[4]) > 0
    assert cells[5:] == ["-", "-"]


def test_quick_trees_are_printed_and_drawn(load: Callable, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    script = load("trees")
    script["main"](["--quick", "--depth", "2", "--out", str(tmp_path)])
    out = capsys.readouterr().out
    for objective in script["OBJECTIVES"]:
        assert f"synthetic: influence on {objective.replace('_', ' ')}" in out
        for kind in ("tree", "regions"):
            assert (tmp_path / f"{kind}_synthetic_{objective}.png").read_bytes().startswith(PNG)
    assert out.count("all rows: ") == 3
    assert "demographic parity: gap" in out
    assert "|   |--- " in out


def test_the_boundary_is_where_the_model_is_undecided(load: Callable) -> None:
    import rayinf

    common = load("common")
    split = common["standardise"](common["partition"](frame()))
    task = rayinf.logistic_regression(split.train, features=["a", "b"])
    w, b = load("trees")["boundary"](task)
    margin = split.test[["a", "b"]].to_numpy(np.float64) @ w + b
    measured = rayinf.evaluate(task, split.test)
    assert measured["accuracy"] == pytest.approx(((margin > 0) == (split.test["label"] == 1)).mean())
    loss = np.log1p(np.exp(np.where(split.test["label"] == 1, -margin, margin)))
    assert measured["loss"] == pytest.approx(loss.mean())
