"""The commands beside influence: what they print and write, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from cli_cases import TASK, call, imports_of, make_folder, refused
from click.testing import Result
from run_folders import edit_record

import rayinf
from rayinf import config
from rayinf.api.history import History
from rayinf.data.scores import Scores

COMMON = {"task": "mytask.py:task"}
MEASURE = {**COMMON, "train": "train.parquet", "valid": "valid.parquet", "out": "runs/m"}
ACQUIRE = {**COMMON, "labeled": "train.parquet", "pool": "pool.parquet", "n": 7, "out": "runs/q"}
ACTIVE = {**ACQUIRE, "oracle": "pool.parquet", "test": "test.parquet", "rounds": 2, "out": "runs/l"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with data and a task; the current one is elsewhere."""
    monkeypatch.chdir(tmp_path)
    with imports_of(tmp_path):
        yield make_folder(tmp_path / "conf")


def write(folder: Path, values: dict[str, Any]) -> Path:
    file = folder / "run.yaml"
    file.write_text("".join(f"{k}: {v}\n" for k, v in values.items()))
    return file


def run(command: str, folder: Path, values: dict[str, Any], *changes: str) -> Result:
    return call(command, write(folder, values), *(w for c in changes for w in ("--set", c)))


def cells(result: Result) -> list[list[str]]:
    """The printed tables' cells, line by line."""
    return [[c.strip() for c in x.split("│")[1:-1]] for x in result.stdout.splitlines() if x.startswith("│")]


class TestMeasure:
    def test_writes_scores_and_names_the_highest_rows(self, folder: Path) -> None:
        result = run("measure", folder, MEASURE)
        assert result.exit_code == 0, result.output
        scores = Scores.load(folder / "runs" / "m")
        assert scores.columns == ["fi"]
        frame = scores.to_pandas().sort_values("fi", ascending=False)
        assert [line[0] for line in cells(result)] == list(frame.row_id[:5])
        assert float(cells(result)[0][1]) == pytest.approx(frame.fi.iloc[0], rel=1e-3)
        assert "whose fi is 0: 0" in result.stdout
        for word in ("Forest", "Rank", "already"):
            assert word not in result.stdout
        expected = rayinf.influence_measure(**{**config.read_config(folder / "run.yaml", (), "measure"), "out": None})
        np.testing.assert_allclose(scores.to_numpy(), expected.to_numpy(), rtol=1e-4)

    def test_rank_and_subsample(self, folder: Path) -> None:
        result = run("measure", folder, MEASURE, "rank=2", "subsample=0.5")
        assert result.exit_code == 0, result.output
        scores = Scores.load(folder / "runs" / "m")
        metadata = scores.metadata
        assert f"60 rows, {metadata['rows_measured']} of them measured" in result.stdout
        assert f"Rank 2 keeps {metadata['captured_share']:.1%} of a row's norm" in result.stdout
        assert f"rank correlation {metadata['forest_rank_correlation']:.3f} over" in result.stdout
        frame = scores.to_pandas().sort_values("fi_rank", ascending=False, kind="stable")
        assert [line[0] for line in cells(result)] == list(frame.row_id[:5])

    def test_a_weak_forest_is_a_warning_of_one_line(self, folder: Path) -> None:
        result = run("measure", folder, MEASURE, "subsample=0.5")
        weak = Scores.load(folder / "runs" / "m").metadata["forest_rank_correlation"] < 0.5
        assert len(result.stderr.splitlines()) == weak
        assert result.stderr.startswith("Warning: The random forest" if weak else "")

    def test_again_does_nothing(self, folder: Path) -> None:
        first, second = (run("measure", folder, MEASURE) for _ in range(2))
        assert second.stdout == "already finished: nothing was computed\n" + first.stdout

    @pytest.mark.parametrize(
        ("change", "part"),
        [
            ("rank=99", "rank=99: the mixed derivative of a row is 15 x 4"),
            ("subsample=0.1", "leaves 6: too few"),
            ("subsample=2", "subsample=2.0: subsample must be a number in (0, 1]"),
            ("out=null", "has no out: the results would be lost"),
            ("halves=true", "halves is a key of influence, not of measure"),
        ],
    )
    def test_refusals(self, folder: Path, change: str, part: str) -> None:
        assert part in refused(run("measure", folder, MEASURE, change))
        assert not (folder / "runs").exists()


class TestAcquire:
    @pytest.mark.parametrize("strategy", ["fi", "entropy"])
    def test_writes_picks_and_values(self, folder: Path, strategy: str) -> None:
        result = run("acquire", folder, ACQUIRE, f"strategy={strategy}")
        assert result.exit_code == 0, result.output
        out = folder / "runs" / "q"
        scores = Scores.load(out)
        best = scores.to_pandas().sort_values(strategy, ascending=False, kind="stable")[:7]
        picked = pq.read_table(out / "picked.parquet").to_pandas()
        assert list(picked.columns) == ["row_id", "rank", "value"]
        assert list(picked.row_id) == list(best.row_id)
        assert list(picked["rank"]) == [1, 2, 3, 4, 5, 6, 7]
        assert list(picked.value) == list(best[strategy])
        assert f"7 of 50 rows picked by {strategy}" in result.stdout
        assert [line[:2] for line in cells(result)] == [[str(k + 1), v] for k, v in enumerate(picked.row_id[:5])]
        assert f"Picked rows: {out / 'picked.parquet'}" in result.stdout
        assert f"Values of all rows of the pool: {out / 'scores'}" in result.stdout

    def test_again_computes_nothing_and_may_pick_more_or_other_rows(self, folder: Path) -> None:
        first, second = (run("acquire", folder, ACQUIRE) for _ in range(2))
        assert second.stdout == "already finished: nothing was computed\n" + first.stdout
        file = folder / "runs" / "q" / "picked.parquet"
        before = pq.read_table(file)["row_id"].to_pylist()
        more = run("acquire", folder, ACQUIRE, "n=9", f"exclude=[{before[0]}]")
        assert more.stdout.startswith("already finished: nothing was computed\n9 of 50 rows")
        assert pq.read_table(file)["row_id"].to_pylist()[:6] == before[1:]

    @pytest.mark.parametrize(
        ("change", "part"),
        [
            ("n=51", "n=51 rows are wanted, and the pool has 50"),
            ("n=0", "n=0: n must be an integer >= 1"),
            ("strategy=best", "strategy=best is unknown"),
            ("strategy=iv", "needs validation rows"),
            ("strategy=bald", "dropout"),
            ("aggregate=most", "aggregate=most is unknown"),
            ("out=null", "has no out: the results would be lost"),
            ("train=a", "train is a key of influence, measure, self-influence, pairs, "),
        ],
    )
    def test_refusals(self, folder: Path, change: str, part: str) -> None:
        assert part in refused(run("acquire", folder, ACQUIRE, change))
        assert not (folder / "runs").exists()


class TestActiveLearning:
    def test_prints_the_learning_curve_and_draws_it(self, folder: Path) -> None:
        result = run("active-learning", folder, ACTIVE, "strategy=[margin, random]", "seed=[0, 1]")
        assert result.exit_code == 0, result.output
        out = folder / "runs" / "l"
        history = History.load(out)
        frame = history.to_pandas()
        assert len(frame) == 12
        curve = frame.groupby(["round", "labeled", "strategy"])["accuracy"].mean().unstack()
        assert cells(result) == [
            [str(r), str(labeled), f"{line['margin']:.4f}", f"{line['random']:.4f}"]
            for (r, labeled), line in curve.iterrows()
        ]
        for line in history.mean().itertuples():
            assert f"Mean accuracy over rounds by {line.strategy}: {line.accuracy:.4f}, standard" in result.stdout
        assert "Accuracy, the mean of 2 seeds" in result.stdout
        assert f"Learning curve: {out / 'learning_curve.png'}" in result.stdout
        assert (out / "learning_curve.png").read_bytes().startswith(b"\x89PNG")

    def test_again_does_nothing(self, folder: Path) -> None:
        first, second = (run("active-learning", folder, ACTIVE, "strategy=entropy") for _ in range(2))
        assert second.exit_code == 0, second.output
        assert second.stdout == "already finished: nothing was computed\n" + first.stdout

    def test_labels_that_are_awaited(self, folder: Path) -> None:
        (folder / "drop").mkdir()
        expected = run("active-learning", folder, ACTIVE, "strategy=entropy", "out=runs/other")
        held = pq.read_table(folder / "pool.parquet").select(["row_id", "label"]).to_pandas().set_index("row_id")
        for k in (1, 2):
            for _ in range(2):
                result = run("active-learning", folder, ACTIVE, "strategy=entropy", "oracle=drop")
                assert result.exit_code == 0, result.output
                assert "already finished" not in result.stdout
                file = folder / "drop" / f"labels-entropy-0-round-{k}.parquet"
                assert f"Labels are awaited: {file} (row_id, label)" in result.stdout
                assert "run the same command again" in result.stdout
            questions = pq.read_table(folder / "drop" / f"ask-entropy-0-round-{k}.parquet").to_pandas()
            held.loc[questions.row_id].reset_index().to_parquet(file)
        last = run("active-learning", folder, ACTIVE, "strategy=entropy", "oracle=drop")
        assert "Labels are awaited" not in last.stdout
        assert cells(last) == cells(expected)

    def test_an_oracle_of_the_users_own(self, folder: Path) -> None:
        oracle = "def oracle(ids):\n    return [int(i.split('-')[1]) % 3 for i in ids]\n"
        (folder / "mytask.py").write_text(TASK + oracle)
        own = run("active-learning", folder, ACTIVE, "oracle=mytask.py:oracle", "strategy=margin")
        table = run("active-learning", folder, ACTIVE, "strategy=margin", "out=runs/other")
        assert own.exit_code == table.exit_code == 0, own.output
        assert cells(own) == cells(table)

    @pytest.mark.parametrize(
        ("change", "part"),
        [
            ("n=26", "2 rounds of n=26 want 52 rows, and the pool has 50"),
            ("rounds=0", "rounds=0: rounds must be an integer >= 1"),
            ("strategy=[fi, best]", "strategy=best is unknown"),
            ("seed=[1, 1]", "seed=[1, 1] holds no seed, or one twice"),
            ("oracle=nothing", "there is no table and no folder"),
            ("out=null", "has no out: the results would be lost"),
            (
                "factors=runs/m",
                "factors is a key of influence, measure, self-influence, pairs, predict-removal, acquire, not of",
            ),
        ],
    )
    def test_refusals(self, folder: Path, change: str, part: str) -> None:
        assert part in refused(run("active-learning", folder, ACTIVE, change))
        assert not (folder / "runs").exists()

    def test_a_table_without_the_labels_that_are_wanted(self, folder: Path) -> None:
        result = run("active-learning", folder, ACTIVE, "oracle=valid.parquet")
        assert result.exit_code == 2
        assert "no label in round 1" in result.stderr.splitlines()[-1]


class TestTrim:
    @pytest.fixture
    def finished(self, folder: Path) -> Path:
        assert call("influence", folder / "run.yaml").exit_code == 0
        return folder / "runs" / "a"

    def test_writes_both_parts(self, finished: Path) -> None:
        result = call("trim", finished, "--budget", 4, "--by", "total")
        assert result.exit_code == 0, result.output
        assert "4 of 60 rows removed: most negative total" in result.stdout
        frame = Scores.load(finished).to_pandas()
        worst = frame.sort_values("total")[:4]
        gone = pq.read_table(finished / "trim" / "removed.parquet").to_pandas()
        kept = pq.read_table(finished / "trim" / "kept.parquet").to_pandas()
        assert list(gone.columns) == list(kept.columns) == ["row_id", "value"]
        assert list(gone.row_id) == list(worst.row_id)
        assert list(gone.value) == list(worst.total)
        assert list(kept.row_id) == [v for v in frame.row_id if v not in set(worst.row_id)]
        rows = [line[0] for line in cells(result)]
        assert rows == [*worst.row_id, "0", "1", "2"]
        removed = [int(line[2]) for line in cells(result)[4:]]
        assert removed == [sum(int(v.split("-")[1]) % 3 == k for v in worst.row_id) for k in range(3)]
        assert f"Removed rows: {finished / 'trim' / 'removed.parquet'}" in result.stdout
        assert call("influence", finished.parent.parent / "run.yaml").exit_code == 0

    def test_floor_and_fewer_than_the_budget(self, finished: Path) -> None:
        result = call("trim", finished, "--budget", 60, "--by", "total", "--floor", 19)
        assert result.exit_code == 0, result.output
        assert [line[2:] for line in cells(result)[-3:]] == [["1", "19"]] * 3
        assert "less than the budget of 60: no other row is negative, and of a class over its floor of 19" in (
            result.stdout
        )

    @pytest.mark.parametrize(
        ("out", "names"),
        [("here", ("here/kept.parquet", "here/removed.parquet")), ("b.parquet", ("b.parquet", "b_removed.parquet"))],
    )
    def test_out(self, finished: Path, out: str, names: tuple[str, str]) -> None:
        result = call("trim", finished, "--budget", 4, "--by", "total", "--out", out)
        assert result.exit_code == 0, result.output
        assert [pq.read_table(n).num_rows for n in names] == [56, 4]
        assert not (finished / "trim").exists()

    def test_the_one_column_of_fi_needs_no_name(self, folder: Path) -> None:
        run("measure", folder, MEASURE)
        result = call("trim", folder / "runs" / "m", "--budget", 3)
        assert "3 of 60 rows removed: largest fi\n" in result.stdout

    def test_nothing_to_remove(self, finished: Path) -> None:
        result = call("trim", finished, "--budget", 0, "--by", "total")
        assert "0 of 60 rows removed" in result.stdout
        assert pq.read_table(finished / "trim" / "removed.parquet").num_rows == 0

    @pytest.mark.parametrize(
        ("options", "part"),
        [
            ([], "The scores have 4 columns"),
            (["--by", "fi"], "by=fi is not a column"),
            (["--by", "total"], "budget=100 is more than the 60 rows"),
            (["--by", "total", "--budget", "-1"], "budget=-1: budget must be an integer >= 0"),
            (["--by", "total", "--budget", "1", "--floor", "-1"], "floor=-1: floor must be an integer >= 0"),
        ],
    )
    def test_refusals(self, finished: Path, options: list[str], part: str) -> None:
        assert part in refused(call("trim", finished, *options))
        assert not (finished / "trim").exists()

    def test_no_run_of_training_rows(self, folder: Path) -> None:
        assert "holds no run" in refused(call("trim", folder))
        run("acquire", folder, ACQUIRE)
        assert "holds a run of acquire" in refused(call("trim", folder / "runs" / "q"))

    def test_an_unfinished_run(self, finished: Path) -> None:
        edit_record(finished, status="running")
        assert "is not finished" in refused(call("trim", finished))


class TestPlan:
    @pytest.fixture
    def planned(self, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
        seen: list[dict[str, Any]] = []
        cost = SimpleNamespace(to_text=lambda: "scores: 60 rows")
        monkeypatch.setattr(rayinf, "plan", lambda **given: seen.append(given) or cost)
        return seen

    def test_of_influence(self, folder: Path, planned: list[dict[str, Any]]) -> None:
        result = call("plan", folder / "run.yaml", "--set", "seed=4", "--set", "out=null")
        assert result.exit_code == 0, result.output
        assert result.stdout == "Plan of influence\nscores: 60 rows\n"
        assert planned[0]["seed"] == 4
        assert "factors" not in planned[0]
        assert not (folder / "runs").exists()

    @pytest.mark.parametrize(
        ("values", "options", "expected"),
        [
            ({**MEASURE, "rank": 2}, [], {"verb": "influence_measure", "rank": 2, "subsample": 1.0}),
            (MEASURE, ["--for", "measure"], {"verb": "influence_measure", "rank": None}),
            (ACQUIRE, ["--set", "strategy=isal"], {"verb": "acquire", "strategy": "isal", "valid": None}),
        ],
    )
    def test_of_other_verbs(
        self,
        folder: Path,
        planned: list[dict[str, Any]],
        values: dict[str, Any],
        options: list[str],
        expected: dict[str, Any],
    ) -> None:
        result = call("plan", write(folder, values), *options)
        assert result.exit_code == 0, result.output
        assert {k: planned[0][k] for k in expected} == expected
        assert planned[0]["train"] == str(folder / "train.parquet")
        if "pool" in values:
            assert planned[0]["pool"] == str(folder / "pool.parquet")

    def test_of_active_learning_is_a_round_of_each_strategy(self, folder: Path, planned: list[dict[str, Any]]) -> None:
        result = run("plan", folder, ACTIVE, "strategy=[fi, random]", "seed=[3, 4]")
        assert result.exit_code == 0, result.output
        assert [(a["verb"], a["strategy"], a["seed"]) for a in planned] == [
            ("acquire", "fi", 3),
            ("acquire", "random", 3),
        ]
        assert "by random, the first of 2 rounds and 2 seeds" in result.stdout

    def test_a_command_without_one(self, folder: Path, planned: list[dict[str, Any]]) -> None:
        assert "trim has no plan" in refused(call("plan", folder / "run.yaml", "--for", "trim"))
        assert "objective is a key of influence" in refused(call("plan", folder / "run.yaml", "--for", "measure"))
        assert not planned

    @pytest.mark.parametrize("values", [{**MEASURE, "subsample": 0.5}, ACQUIRE, ACTIVE])
    def test_the_real_thing(self, folder: Path, values: dict[str, Any]) -> None:
        result = call("plan", write(folder, values))
        assert result.exit_code == 0, result.output
        assert "total" in result.stdout
        assert not (folder / "runs").exists()


def test_help_of_trim_and_plan() -> None:
    shown = call("trim", "--help").stdout
    assert all(option in shown for option in ("--budget", "--by", "--floor", "--out"))
    shown = " ".join(call("plan", "--help").stdout.split())
    assert "influence, self-influence, pairs, measure, acquire, active-learning, reweight, removal-check" in shown
    assert "--for" in shown
