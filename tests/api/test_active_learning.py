"""Active learning: what it does in a round, how it goes on after a fault, and what it refuses."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from engine import fault_jobs
from torch import nn
from training import small_learning as small

import rayinf
from rayinf.api import active_learning as verb
from rayinf.api.evaluate import evaluate
from rayinf.api.retrain import retrain
from rayinf.training import trajectory
from rayinf.training.steps import Steps


def as_table(x: np.ndarray, **columns: Any) -> pa.Table:
    return pa.table({"features": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1]), **columns})


class TestRounds:
    def test_against_the_steps_by_hand(self) -> None:
        history = small.learn(rounds=3)
        (x, y), picked, trained = small.LABELED, np.zeros(0, int), small.task()
        for r in range(4):
            if r:
                ids = rayinf.acquire(
                    trained, (x, y), small.POOL[0], 8, "fi", curvature="exact", exclude=list(picked)
                ).row_ids
                assert history.picked["fi", 0][r - 1].tolist() == ids.tolist()
                x, y = np.concatenate([x, small.POOL[0][ids]]), np.concatenate([y, small.POOL[1][ids]])
                picked = np.concatenate([picked, ids])
            trained = retrain(small.task(), (x, y))
            truth, line = evaluate(trained, small.TEST), history.table.slice(r, 1).to_pylist()[0]
            assert (line["round"], line["labeled"]) == (r, len(y))
            for name in ("loss", "accuracy", "accuracy_0", "accuracy_1", "accuracy_2"):
                assert line[name] == pytest.approx(truth[name], rel=1e-12)
        assert len(set(picked)) == 24

    def test_the_table(self) -> None:
        history = small.learn(strategy="random", seed=3)
        assert history.table.schema.names == [
            *("strategy", "seed", "round", "labeled", "accuracy", "accuracy_0", "accuracy_1", "accuracy_2", "loss"),
            *("seconds", "acquire_seconds", "oracle_seconds", "train_seconds"),
        ]
        frame = history.to_pandas()
        assert frame["round"].tolist() == [0, 1, 2]
        assert frame["labeled"].tolist() == [24, 32, 40]
        assert set(frame["strategy"]) == {"random"} and set(frame["seed"]) == {3}
        assert frame["acquire_seconds"].isna().tolist() == [True, False, False]
        parts = frame[["acquire_seconds", "oracle_seconds", "train_seconds"]].sum(axis=1)
        assert np.allclose(frame["seconds"], parts)
        assert history.waiting == ()

    @pytest.mark.parametrize("strategy", ["iv", "isal", "entropy", "margin", "least_confidence"])
    def test_other_strategies(self, strategy: str) -> None:
        history = small.learn(strategy=strategy, valid=small.rows(30, 5), rounds=1)
        assert len(history.picked[strategy, 0][0]) == 8

    def test_a_network_with_dropout(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(small.WIDTH, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))
        task = rayinf.Task(model, fit=rayinf.Fit(epochs=2, batch_size=8))
        history = small.learn(task=task, strategy=["fi", "bald"], rounds=1, samples=3, curvature="ekfac")
        assert [len(p[0]) for p in history.picked.values()] == [8, 8]

    def test_random_differs_by_seed_alone(self) -> None:
        history = small.learn(strategy="random", seed=[0, 1, 2], rounds=1)
        picks = [set(p[0].tolist()) for p in history.picked.values()]
        assert all(a != b for a, b in itertools.combinations(picks, 2))
        assert picks[1] == set(small.learn(strategy="random", seed=1, rounds=1).picked["random", 1][0].tolist())

    @pytest.mark.filterwarnings("ignore:The random forest")
    def test_options_reach_acquire(self) -> None:
        plain = small.learn(rounds=1).picked["fi", 0][0]
        assert plain.tolist() != small.learn(rounds=1, aggregate=0.99).picked["fi", 0][0].tolist()
        with pytest.raises(rayinf.InputError, match=r"subsample=.*too few for a forest"):
            small.learn(rounds=1, subsample=0.01)

    def test_options_of_fi_reach_its_strategies_alone(self) -> None:
        """Beside FI, other strategies go without them; where none takes FI, they are refused."""
        found = small.learn(rounds=1, strategy=["fi", "fi_batch", "entropy"], scale="sum").picked
        plain = small.learn(rounds=1, strategy=["fi", "fi_batch", "entropy"]).picked
        assert [found[s, 0][0].tolist() == plain[s, 0][0].tolist() for s in ("fi", "entropy")] == [False, True]
        with pytest.raises(rayinf.InputError, match=r"scale='sum' is for FI, not for 'entropy'"):
            small.learn(rounds=1, strategy=["entropy", "random"], scale="sum")


class TestForms:
    def test_parquet_of_many_row_groups_picks_the_same_as_arrays(self, tmp_path: Path) -> None:
        pq.write_table(as_table(small.POOL[0], label=small.POOL[1]), tmp_path / "pool.parquet", row_group_size=17)
        pq.write_table(as_table(small.TEST[0], label=small.TEST[1]), tmp_path / "test.parquet", row_group_size=50)
        pq.write_table(as_table(small.LABELED[0], label=small.LABELED[1]), tmp_path / "l.parquet", row_group_size=7)
        found = small.learn(
            labeled=tmp_path / "l.parquet",
            pool=str(tmp_path / "pool.parquet"),
            test=tmp_path / "test.parquet",
            oracle=tmp_path / "pool.parquet",
        )
        plain = small.learn()
        assert small.measures(found) == small.measures(plain)
        for a, b in zip(found.picked["fi", 0], plain.picked["fi", 0], strict=True):
            assert a.tolist() == b.tolist()

    def test_the_pool_may_store_its_features_otherwise(self) -> None:
        lists = pa.table({"features": pa.array(small.POOL[0].tolist(), pa.list_(pa.float32()))})
        assert small.measures(small.learn(pool=lists)) == small.measures(small.learn())

    def test_numeric_columns_of_a_frame(self) -> None:
        names = list("abcde")

        def frame(x: np.ndarray, y: np.ndarray) -> pd.DataFrame:
            return pd.DataFrame(x, columns=names).assign(label=y)

        task = rayinf.logistic_regression(frame(*small.LABELED), l2=1e-2, features=names)
        pool = frame(*small.POOL)
        found = small.learn(task=task, labeled=frame(*small.LABELED), pool=pool, oracle=pool, test=frame(*small.TEST))
        assert [p.tolist() for p in found.picked["fi", 0]] == [p.tolist() for p in small.learn().picked["fi", 0]]

    def test_ids_and_labels_of_text(self, tmp_path: Path) -> None:
        names = np.array(["ash", "beech", "cedar"])
        labeled, test = ((x, names[y]) for x, y in (small.LABELED, small.TEST))
        ids = np.array([f"row {k:03d}" for k in range(200)])
        pool = as_table(small.POOL[0], tree_id=ids)
        task = rayinf.logistic_regression(labeled, l2=1e-2, row_id="tree_id")

        def oracle(asked: np.ndarray) -> dict[str, str]:
            return {i: names[small.POOL[1][int(i[4:])]] for i in asked}

        found = small.learn(task=task, labeled=labeled, pool=pool, oracle=oracle, test=test, out=tmp_path / "run")
        plain = small.learn()
        assert [p.tolist() for p in found.picked["fi", 0]] == [ids[p].tolist() for p in plain.picked["fi", 0]]
        assert found.table.schema.names[5] == "accuracy_ash"
        added = pq.read_table(tmp_path / "run" / "fi-seed0" / "round-1.parquet")
        assert added.schema.names == ["row_id", "position", "label", "value"]
        assert added["label"].to_pylist() == [names[small.POOL[1][k]] for k in added["position"].to_pylist()]

    def test_a_trainer_gets_a_table(self, tmp_path: Path) -> None:
        given = []

        def fit(task: rayinf.Task, train: pa.Table, weights: Any, seed: int) -> nn.Module:
            given.append((train.schema.names, train.num_rows, weights, seed))
            return nn.Linear(small.WIDTH, small.CLASSES)

        torch.manual_seed(0)
        task = rayinf.Task(nn.Linear(small.WIDTH, small.CLASSES), fit=fit)
        small.learn(task=task, strategy="random", seed=4)
        assert given == [(["features", "label"], rows, None, 4) for rows in (24, 32, 40)]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    """What a run in peace gives."""
    out = tmp_path_factory.mktemp("calm") / "run"
    return small.digest(small_out(out)), small.measures(rayinf.History.load(out))


class CrashError(Exception):
    """What stands for a kill."""


class TestGoingOn:
    @pytest.mark.slow
    def test_after_a_crash_before_and_after_any_step(
        self, tmp_path: Path, calm: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps = [(trajectory, "train_anew"), (trajectory, "measure_model"), (verb, "acquire"), (Steps, "write")]
        left = itertools.count()

        def watch(home: Any, name: str) -> None:
            plain = getattr(home, name)

            def deadly(*given: Any, **options: Any) -> Any:
                check()
                found = plain(*given, **options)
                check()
                return found

            monkeypatch.setattr(home, name, deadly)

        def check() -> None:
            if next(left) == crash:
                raise CrashError

        for home, name in steps:
            watch(home, name)
        for crash in range(200):
            left, out = itertools.count(), tmp_path / f"run{crash}"
            try:
                small_out(out)
            except CrashError:
                assert json.loads((out / "run.json").read_text())["status"] == "running"
            else:
                break
            left = itertools.count(1000)
            assert small.digest(small_out(out)) == calm[0]
            assert small.measures(rayinf.History.load(out)) == calm[1]
        assert 30 < crash < 199

    @pytest.mark.chaos
    def test_after_sigkill_in_training_and_at_the_oracle(self, tmp_path: Path) -> None:
        marks, still = tmp_path / "marks", tmp_path / "still"
        marks.mkdir()
        for spared in ("fit-24", "fit-40"):
            (marks / spared).touch()
        command = [sys.executable, small.__file__, str(marks), str(tmp_path / "run")]
        tests = Path(small.__file__).parents[1]
        env = {**os.environ, "PYTHONPATH": f"{tests}:{tests.parent}"}
        for mark in ("oracle-", "fit-32", "oracle-"):
            done = subprocess.run(command, env=env, capture_output=True, timeout=100, check=False)
            assert done.returncode == -9, done.stderr.decode()[-2000:]
            newest = max(marks.iterdir(), key=lambda f: f.stat().st_mtime_ns)
            assert newest.name.startswith(mark)
        found = small.deadly_run(marks, tmp_path / "run")
        calm = small.deadly_run(marks, still)  # all marks are there: nothing dies
        assert small.digest(tmp_path / "run") == small.digest(still)
        assert small.measures(found) == small.measures(calm)

    def test_damaged_files_are_made_again(self, tmp_path: Path, calm: tuple[str, list[dict[str, Any]]]) -> None:
        small_out(tmp_path / "run")
        (tmp_path / "run" / "fi-seed0" / "round-2.parquet").write_bytes(b"PAR1")
        (tmp_path / "run" / "fi-seed0" / "round-1.json").write_text("{")
        assert small.digest(small_out(tmp_path / "run")) == calm[0]

    def test_a_finished_run_does_nothing(self, tmp_path: Path) -> None:
        small_out(tmp_path / "run")
        before = {f: f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*") if f.is_file()}
        again = small.learn(out=tmp_path / "run", oracle=lambda ids: pytest.fail("was asked"))
        assert {f: f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*") if f.is_file()} == before
        loaded = rayinf.History.load(tmp_path / "run")
        assert loaded.table.equals(again.table)
        assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"

    @pytest.mark.parametrize(
        ("key", "value", "said"),
        [
            ("n", 9, "n: 8 -> 9"),
            ("aggregate", "mean", "aggregate: trimmed_mean -> mean"),
            ("test", small.rows(90, 7), "the test table has other values"),
            ("pool", small.rows(200, 7)[0], "the pool has other values"),
        ],
    )
    def test_another_config_is_refused(self, tmp_path: Path, key: str, value: Any, said: str) -> None:
        out = tmp_path / "run"
        out.mkdir()
        small.learn(out=out, rounds=1)
        with pytest.raises(rayinf.InputError, match="another config") as error:
            small.learn(out=out, rounds=1, **{key: value})
        assert said in str(error.value)

    @pytest.mark.parametrize(
        ("first", "then"),
        [
            ({"rounds": 2}, {"rounds": 3}),
            ({"seed": [0]}, {"seed": [0, 1]}),
            ({"seed": 1}, {"seed": [0, 1]}),
            ({"strategy": "random"}, {"strategy": ["random", "iv"]}),
            ({"strategy": "iv"}, {"strategy": ["iv", "random"], "rounds": 2}),
        ],
    )
    def test_more_goes_on_from_what_is_there(
        self, tmp_path: Path, first: dict[str, Any], then: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shared = {"strategy": "random", "rounds": 1, "seed": 0, "valid": small.rows(30, 5)}
        part = small.learn(**{**shared, **first}, out=tmp_path / "run")
        calls, plain = [], verb.acquire
        monkeypatch.setattr(verb, "acquire", lambda *a, **o: calls.append(1) or plain(*a, **o))
        grown = small.learn(**{**shared, **then}, out=tmp_path / "run")
        more = len(calls)
        whole = small.learn(**{**shared, **then}, out=tmp_path / "whole")
        assert more == len(calls) - more - sum(map(len, part.picked.values()))
        assert fault_jobs.digest(tmp_path / "run") == fault_jobs.digest(tmp_path / "whole")
        assert small.measures(grown) == small.measures(whole) and list(grown.picked) == list(whole.picked)
        loaded = rayinf.History.load(tmp_path / "run")
        assert sorted(map(str, small.measures(loaded))) == sorted(map(str, small.measures(whole)))
        assert rayinf.verify(tmp_path / "run").ok
        before, calls[:] = fault_jobs.digest(tmp_path / "run"), []
        again = small.learn(**{**shared, **first}, out=tmp_path / "run")  # less than is there: the first ones
        assert again.table.equals(part.table) and not calls
        assert {k: [i.tolist() for i in p] for k, p in again.picked.items()} == {
            k: [i.tolist() for i in p] for k, p in part.picked.items()
        }
        assert fault_jobs.digest(tmp_path / "run") == before

    def test_other_strategies_need_not_see_the_validation_rows(self, tmp_path: Path) -> None:
        """Those of the first call stay part of the run all the same."""
        valid = small.rows(30, 5)
        small.learn(strategy="iv", valid=valid, rounds=1, out=tmp_path / "run")
        small.learn(strategy="random", rounds=1, out=tmp_path / "run")
        assert list(rayinf.History.load(tmp_path / "run").picked) == [("iv", 0), ("random", 0)]
        with pytest.raises(rayinf.InputError, match="another config: the validation table"):
            small.learn(strategy="iv", valid=small.rows(30, 6), rounds=1, out=tmp_path / "run")

    def test_more_that_is_stopped_goes_on(self, tmp_path: Path) -> None:
        """What the first call finished stays finished, and a call for less than was asked for last ends the run."""

        def broken(ids: np.ndarray) -> np.ndarray:
            raise ZeroDivisionError

        out = tmp_path / "run"
        first = small.learn(strategy="random", rounds=1, out=out)
        with pytest.raises(rayinf.InputError, match="ZeroDivisionError"):
            small.learn(strategy=["random", "margin"], rounds=2, out=out, oracle=broken)
        record = json.loads((out / "run.json").read_text())
        assert (record["status"], record["complete"]) == ("running", {"random-seed0": 1})
        assert record["extent"] == {"random-seed0": 2, "margin-seed0": 2}
        assert small.learn(strategy="random", rounds=1, out=out).table.equals(first.table)
        record = json.loads((out / "run.json").read_text())
        assert (record["status"], record["extent"]) == ("finished", {"random-seed0": 1})
        small.learn(strategy=["random", "margin"], rounds=2, out=out)
        small.learn(strategy=["random", "margin"], rounds=2, out=tmp_path / "whole")
        assert fault_jobs.digest(out) == fault_jobs.digest(tmp_path / "whole")

    def test_a_table_that_changes_on_the_way(self, tmp_path: Path) -> None:
        def write(x: np.ndarray) -> None:
            pq.write_table(as_table(x), tmp_path / "pool.parquet")

        def oracle(ids: np.ndarray) -> np.ndarray:
            write(np.concatenate([small.POOL[0], small.POOL[0]]))
            return small.truth(ids)

        write(small.POOL[0])
        with pytest.raises(rayinf.RunError, match=r"pool \(.*pool.parquet\) changed"):
            small.learn(pool=tmp_path / "pool.parquet", oracle=oracle)

    def test_load_of_no_such_run(self, tmp_path: Path) -> None:
        with pytest.raises(rayinf.InputError, match="holds no run of active learning"):
            rayinf.History.load(tmp_path)


def small_out(out: Path) -> Path:
    small.learn(out=out)
    return out


class TestLabelFolder:
    def test_it_waits_and_goes_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "labels").mkdir()
        calls = []
        plain = verb.acquire
        monkeypatch.setattr(verb, "acquire", lambda *a, **o: calls.append(1) or plain(*a, **o))
        for r in (1, 2):
            for _ in range(2):  # nothing has come meanwhile
                history = small.learn(oracle=str(tmp_path / "labels"), out=tmp_path / "run")
                awaited = tmp_path / "labels" / f"labels-fi-0-round-{r}.parquet"
                assert history.waiting == rayinf.History.load(tmp_path / "run").waiting == (awaited,)
                assert history.table.num_rows == r
                assert len(calls) == r
            self.answer(awaited)
        history = small.learn(oracle=str(tmp_path / "labels"), out=tmp_path / "run")
        assert history.waiting == ()
        assert small.measures(history) == small.measures(small.learn())
        small_out(tmp_path / "calm")
        assert small.digest(tmp_path / "run") == small.digest(tmp_path / "calm")

    def test_without_out_and_with_several_trajectories(self, tmp_path: Path) -> None:
        folder = rayinf.LabelFolder(tmp_path / "new" / "labels")
        for r in (1, 2):
            history = small.learn(oracle=folder, strategy=["fi", "random"])
            assert [f.name for f in history.waiting] == [f"labels-{s}-0-round-{r}.parquet" for s in ("fi", "random")]
            for file in history.waiting:
                self.answer(file)
        assert small.measures(small.learn(oracle=folder, strategy=["fi", "random"])) == small.measures(
            small.learn(strategy=["fi", "random"])
        )

    def test_wrong_labels_are_not_kept(self, tmp_path: Path) -> None:
        folder = rayinf.LabelFolder(tmp_path / "labels")
        (file,) = small.learn(oracle=folder, out=tmp_path / "run").waiting
        asked = pq.read_table(tmp_path / "labels" / "ask-fi-0-round-1.parquet")
        ids = asked["row_id"].to_numpy()
        pq.write_table(pa.table({"row_id": ids, "label": np.full(8, 7)}), file)
        with pytest.raises(rayinf.InputError, match="not classes of the task"):
            small.learn(oracle=folder, out=tmp_path / "run")
        assert not list((tmp_path / "run").glob("*/round-1.parquet"))
        self.answer(file)
        assert len(small.learn(oracle=folder, out=tmp_path / "run").picked["fi", 0]) == 1

    @staticmethod
    def answer(file: Path) -> None:
        asked = pq.read_table(file.with_name(file.name.replace("labels-", "ask-")))
        assert asked.schema.names == ["row_id", "rank", "value"]
        assert asked["rank"].to_pylist() == list(range(1, 9))
        ids = asked["row_id"].to_numpy()[::-1]
        pq.write_table(pa.table({"row_id": ids, "label": small.POOL[1][ids]}), file)


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"n": 101}, "2 rounds of n=101 want 202 rows, and the pool has 200."),
            ({"rounds": 26}, "26 rounds of n=8 want 208 rows"),
            ({"rounds": 0}, "rounds=0: rounds must be an integer >= 1"),
            ({"rounds": 1.5}, "rounds=1.5: rounds must be an integer"),
            ({"n": 0}, "n=0: n must be an integer >= 1"),
            ({"strategy": "fii"}, "strategy='fii' is unknown"),
            ({"strategy": []}, "strategy must be a strategy, or a list"),
            ({"strategy": ["fi", "fi"]}, "names 'fi' twice"),
            ({"seed": [1, 1]}, "one twice"),
            ({"seed": -1}, "seed=-1: seed must be an integer"),
            ({"seed": True}, "seed=True: seed must be an integer"),
            ({"strategy": ["fi", "iv"]}, "needs validation rows"),
            ({"strategy": ["fi", "bald"]}, "ropout"),
            ({"aggregate": "most"}, "most"),
            ({"damping": -1.0}, "damping=-1.0"),
            ({"test": (small.TEST[0], small.TEST[1] + 1)}, "labels that the model has no logit for"),
            ({"pool": small.POOL[0][:, :4]}, "features of different shapes"),
            ({"oracle": small.rows(199, 1)}, "199 rows and no column 'row_id'"),
            ({"oracle": "nowhere.parquet"}, "no Parquet file"),
            ({"pool": None}, "pool is a NoneType"),
            ({"oracle": 3}, "oracle is a int"),
            ({"task": rayinf.Task(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))}, "how its model is"),
            ({"out": "https://host/run"}, "lies on a web server"),
        ],
    )
    def test_before_any_work(self, tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
        asked = []
        given = {"out": tmp_path / "run", "oracle": asked.append, **arguments}
        with pytest.raises(rayinf.InputError) as error:
            small.learn(**given)
        assert said in str(error.value)
        assert not asked
        assert not (tmp_path / "run").exists()


MANY: dict[str, Any] = {"strategy": ["fi", "random", "entropy"], "seed": [0, 1]}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    """What several trajectories give in this process."""
    out = tmp_path_factory.mktemp("plain") / "run"
    history = small.learn(**MANY, out=out)
    return small.digest(out), small.measures(history)


class TestSideBySide:
    @pytest.mark.chaos
    def test_workers_that_die(self, tmp_path: Path, ray_session: None) -> None:
        marks, pair = tmp_path / "marks", {"strategy": ["fi", "random"], "rounds": 1}
        marks.mkdir()
        calm = small.learn(**pair, out=tmp_path / "calm")
        cluster = rayinf.Cluster(workers=2)
        found = small.learn(**pair, out=tmp_path / "run", cluster=cluster, oracle=small.Deadly(marks))
        assert len(list(marks.iterdir())) == 2  # each trajectory did lose its worker
        assert small.measures(found) == small.measures(calm)
        assert small.digest(tmp_path / "run") == small.digest(tmp_path / "calm")

    @pytest.mark.slow
    def test_one_trajectory_spreads_its_pool(self, tmp_path: Path, ray_session: None) -> None:
        pq.write_table(as_table(small.POOL[0]), tmp_path / "pool.parquet", row_group_size=40)
        given = {"pool": tmp_path / "pool.parquet", "out": tmp_path / "run", "rounds": 1}
        found = small.learn(**given, cluster=rayinf.Cluster(workers=2))
        assert small.measures(found) == small.measures(small.learn(rounds=1))
        assert small.learn(**given).table.equals(found.table)  # the cluster is no part of the config


class TestHistory:
    def test_mean_is_over_rounds_then_over_seeds(self) -> None:
        history = small.learn(strategy=["random", "margin"], seed=[0, 1, 2])
        frame = history.to_pandas()
        found = history.mean().set_index("strategy")
        assert found.index.tolist() == ["random", "margin"]
        for strategy in ("random", "margin"):
            held = frame[(frame["strategy"] == strategy) & (frame["round"] > 0)]
            runs = [held[held["seed"] == seed]["accuracy"].mean() for seed in range(3)]
            assert found.loc[strategy, "accuracy"] == pytest.approx(np.mean(runs))
            assert found.loc[strategy, "std"] == pytest.approx(np.std(runs, ddof=1))
            assert found.loc[strategy, "seeds"] == 3

    def test_rounds_are_told(self, capfd: pytest.CaptureFixture[str]) -> None:
        small.learn(rounds=1)
        lines = [line for line in capfd.readouterr().err.splitlines() if "active_learning" in line]
        assert lines[0].startswith("rayinf active_learning fi, seed 0: round 0 of 1, 24 labelled, accuracy ")
        assert "round 1 of 1, 32 labelled" in lines[1]

    def test_plot(self, tmp_path: Path) -> None:
        history = small.learn(rounds=1)
        assert history.plot(tmp_path / "curve.png").stat().st_size > 1000
