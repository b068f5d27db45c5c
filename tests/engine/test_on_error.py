"""Shards that fail by their own fault: named, and the end of the run; or left out, with null values in their places."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import rayinf
from rayinf.data.run_folder import read_record
from rayinf.engine import failed_shards, stages
from rayinf.engine.worker import Worker
from rayinf.errors import SkippedWarning
from rayinf.user_code import UserCodeError

ROWS, GROUP, MANY = 120, 20, 1e6
# Rows of the shards that fail: one in each file.
BAD = [*range(20, 40), *range(80, 100)]
GOOD = np.setdiff1d(np.arange(ROWS), BAD)
SKIPPED = pytest.warns(SkippedWarning, match="rows have no value")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failed_shards, "_PAUSES", (0.0, 0.0))


class Net(nn.Sequential):
    """Raises on rows whose first feature is above a million."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        if bool((x[:, 0] > MANY).any()):
            raise ValueError("too large")
        return super().forward(x)


def net() -> Net:
    torch.manual_seed(0)
    return Net(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(ROWS, 4)).astype(np.float32), rng.integers(0, 3, ROWS)


X, Y = data()
VALID = X[:30] + np.float32(0.1), Y[:30]
SPOILT = X.copy()
SPOILT[[25, 99], 0] = 2 * MANY


def write(folder: Path, x: np.ndarray = SPOILT, rows: Any = slice(None)) -> Path:
    """Two files of three row groups each; ids are text."""
    folder.mkdir()
    table = pa.table({"features": list(x), "label": Y, "row_id": [f"r{k:03d}" for k in range(ROWS)]})
    table = table.filter(pa.array(np.isin(np.arange(ROWS), np.arange(ROWS)[rows])))
    half = table.num_rows // 2
    for k in range(2):
        pq.write_table(table.slice(k * half, half), folder / f"{k}.parquet", row_group_size=GROUP, use_dictionary=False)
    return folder


def task(**more: Any) -> rayinf.Task:
    return rayinf.Task(net(), row_id="row_id", **more)


def value(train: Any, out: Path | None = None, verb: Any = rayinf.influence, **more: Any) -> Any:
    how = {"damping": 0.01, "curvature_rows": None, "out": out, **more}
    given = (train,) if verb is rayinf.self_influence else (train, VALID)
    return verb(how.pop("task", task()), *given, **how)


def parts(run: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((run / "scores").iterdir())}


@pytest.mark.parametrize("out", [False, True])
@pytest.mark.parametrize("curvature", ["ekfac", "kfac", "ggn", "identity"])
def test_rows_that_are_skipped(tmp_path: Path, curvature: str, out: bool) -> None:
    """Null in their places; the others as with the curvature of the other rows alone, over all n."""
    train, sound = write(tmp_path / "t"), write(tmp_path / "s", X, GOOD)
    with SKIPPED:
        found = value(train, tmp_path / "run" if out else None, curvature=curvature, on_error="skip")
    plain = value(sound, curvature=curvature)
    values = found.to_numpy()[:, 0]
    assert np.flatnonzero(np.isnan(values)).tolist() == BAD
    assert found.table["total"].null_count == len(BAD)
    assert found.table["row_id"].to_pylist() == [f"r{k:03d}" for k in range(ROWS)]
    assert found.labels.tolist() == Y.tolist()
    expected = plain.to_numpy()[:, 0] * len(GOOD) / ROWS
    np.testing.assert_allclose(values[GOOD], expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    told = [s for s in found.metadata["skipped"] if s["stage"] == "scores"]
    assert [s["rows"] for s in told] == [[20, 39], [80, 99]]
    assert [Path(s["file"]).name for s in told] == ["0.parquet", "1.parquet"]
    assert {s["count"] for s in told} == {GROUP} and {s["table"] for s in told} == {"train"}
    assert all("raised ValueError: too large" in s["error"] for s in told)
    fitted = {s["stage"] for s in found.metadata["skipped"]} - {"scores"}
    assert fitted == {"ekfac": {"covariance"}, "kfac": {"covariance"}, "ggn": {"hessian"}}.get(curvature, set())
    assert found.metadata["fit"]["train"]["rows"] == len(GOOD)
    if out:
        checked = rayinf.verify(tmp_path / "run")
        assert checked.ok
        assert any("scores went on without rows 20 to 39 of train" in note for note in checked.notes)


def test_a_run_that_stops_and_goes_on(tmp_path: Path) -> None:
    """The shard is named, with its file; `on_error="skip"` goes on in the same folder, to the same bytes."""
    train = write(tmp_path / "t")
    with pytest.raises(rayinf.InputError) as caught:
        value(train, tmp_path / "run")
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("Rows 20 to 39 of train (")
    assert "0.parquet) failed 3 times: The model raised ValueError: too large (test_on_error.py, line " in text
    assert 'on_error="skip"' in caught.value.fix
    with SKIPPED:
        value(train, tmp_path / "run", on_error="skip")
        value(train, tmp_path / "other", on_error="skip")
    assert parts(tmp_path / "run") == parts(tmp_path / "other")
    assert value(train, tmp_path / "run").metadata["skipped"]  # finished: not tried again


def test_scores_of_other_shards_are_kept(tmp_path: Path) -> None:
    """Scoring stops at the second shard; the first one's part is listed and not computed again."""
    train = write(tmp_path / "t")
    with pytest.raises(rayinf.InputError, match=r"^Rows 20 to 39 of train"):
        value(train, tmp_path / "run", curvature="identity")
    assert list(parts(tmp_path / "run")) == ["part-00000.parquet"]
    with SKIPPED:
        value(train, tmp_path / "run", curvature="identity", on_error="skip")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines if line["event"] == "shard"] == [0, 2, 3, 5]


def test_what_passes(tmp_path: Path) -> None:
    """A transform that fails at the first two tries of each shard; and the bytes of a run without failures."""
    train, tries = write(tmp_path / "t", X), dict[bytes, int]()

    def shaky(x: np.ndarray) -> np.ndarray:
        if len(x) == GROUP:  # not the probe's rows
            tries[x.tobytes()] = tries.get(x.tobytes(), 0) + 1
            if tries[x.tobytes()] < 3:
                raise OSError("stale file handle")
        return x

    whole = value(train, curvature="identity", batch_size=GROUP)
    for on_error in ("stop", "skip"):
        tries.clear()
        of = task(transform=shaky, version="1")
        found = value(train, tmp_path / on_error, curvature="identity", on_error=on_error, task=of, batch_size=GROUP)
        assert set(tries.values()) == {3}
        assert found.table.equals(whole.table)
        assert "skipped" not in found.metadata
    assert parts(tmp_path / "stop") == parts(tmp_path / "skip")
    records = [read_record(tmp_path / name) for name in ("stop", "skip")]
    assert records[0] is not None and records[1] is not None
    assert records[0]["identity"] == records[1]["identity"]


def test_a_shard_that_is_given_up_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is killed in the fit, and after it; meanwhile all rows are mended: what was decided stays."""
    train, ready, late = write(tmp_path / "t", X), Worker.ready, {X[k, 0].item() for k in BAD}
    call, calls = stages.Lambda.__call__, 0

    def fails(self: Any, table: str, raw: Any) -> Any:
        if table == "train" and not late.isdisjoint(raw.x[:, 0].tolist()):
            raise UserCodeError("The model raised ValueError", "mend it.")
        return ready(self, table, raw)

    def stops(self: Any, item: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return call(self, item)

    monkeypatch.setattr(Worker, "ready", fails)
    with SKIPPED:
        value(train, tmp_path / "whole", on_error="skip")
    monkeypatch.setattr(stages.Lambda, "__call__", stops)
    with pytest.raises(KeyboardInterrupt):
        value(train, tmp_path / "run", on_error="skip")
    monkeypatch.setattr(stages.Lambda, "__call__", call)
    with pytest.raises(rayinf.InputError, match=r"has gone on without 2 shard.* rows 20 to 39 of train"):
        value(train, tmp_path / "run")
    monkeypatch.setattr(Worker, "ready", ready)
    with pytest.warns(SkippedWarning, match="the curvature is fitted without 40 rows"):
        again = value(train, tmp_path / "run", on_error="skip")
    assert {s["stage"] for s in again.metadata["skipped"]} == {"covariance"}  # scoring had not begun
    both = parts(tmp_path / "run"), parts(tmp_path / "whole")
    assert {n for n in both[0] if both[0][n] != both[1][n]} == {"part-00001.parquet", "part-00004.parquet"}
    (tmp_path / "whole" / "scores" / "part-00001.parquet").unlink()
    again = value(train, tmp_path / "whole", on_error="skip")
    assert parts(tmp_path / "whole") == both[1]


@pytest.mark.parametrize("earlier", ["covariance", "squares"])
def test_stages_that_fit_together_rest_on_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: str
) -> None:
    """A shard that fails in the last stage of the fit alone is taken out of those before too."""
    train, sound = write(tmp_path / "t", X), write(tmp_path / "s", X, GOOD)
    more = {"inverse": "damped", "damping": None if earlier == "squares" else 0.01}
    more |= {"inverse": "auto"} if earlier == "squares" else {}
    batch, late = stages.Lambda.batch, {X[k, 0].item() for k in BAD}

    def fails(self: Any, sums: Any, ready: Any) -> None:
        if type(self) is stages.Lambda and not late.isdisjoint(ready.x[:, 0].tolist()):
            raise UserCodeError("The model raised late", "mend it.")
        batch(self, sums, ready)

    monkeypatch.setattr(stages.Lambda, "batch", fails)
    for out in (None, tmp_path / "run"):
        with pytest.warns(SkippedWarning, match="the curvature is fitted without 40 rows"):
            found = value(train, out, on_error="skip", **more)
        assert [(s["stage"], s["rows"]) for s in found.metadata["skipped"]] == [
            ("lambda", [20, 39]),
            ("lambda", [80, 99]),
        ]
        assert not np.isnan(found.to_numpy()).any()
        if earlier == "covariance":
            expected = value(sound, **more).to_numpy() * len(GOOD) / ROWS
            np.testing.assert_allclose(found.to_numpy()[GOOD], expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_rows_that_are_drawn(tmp_path: Path) -> None:
    """Batches of drawn rows mix shards: the one that fails is still told from its neighbours."""
    train, sound = write(tmp_path / "t"), write(tmp_path / "s", X, GOOD)
    with SKIPPED:
        found = value(train, on_error="skip", curvature_rows=119)
    left = [s["rows"] for s in found.metadata["skipped"] if s["stage"] == "covariance"]
    assert set(map(tuple, left)) <= {(20, 39), (80, 99)}
    assert found.metadata["curvature_sample"]["rows"] <= ROWS - GROUP * len(left)
    assert sound.is_dir()


def test_a_damaged_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the footer, after the scan: the same size and times, so that the table counts as unchanged."""
    from rayinf.engine import run

    train = write(tmp_path / "t", X)
    scan = run.scan_table

    def then_damage(*given: Any) -> Any:
        found, file = scan(*given), train / "1.parquet"
        if given[1] == "train":
            at, held = pq.ParquetFile(file).metadata.row_group(1).column(0), file.stat()
            with file.open("r+b") as opened:
                opened.seek(at.data_page_offset)
                opened.write(b"\xff" * 16)
            os.utime(file, ns=(held.st_atime_ns, held.st_mtime_ns))
        return found

    monkeypatch.setattr(run, "scan_table", then_damage)
    with SKIPPED:
        found = value(train, tmp_path / "run", on_error="skip", curvature="identity")
    assert np.flatnonzero(np.isnan(found.to_numpy()[:, 0])).tolist() == list(range(80, 100))
    assert "cannot be read as Parquet" in found.metadata["skipped"][0]["error"]
    assert found.table["row_id"].to_pylist()[80] == "r080"


def test_other_verbs(tmp_path: Path) -> None:
    train = write(tmp_path / "t")
    for verb, curvature, out in (
        (rayinf.self_influence, "kfac", None),
        (rayinf.influence_measure, "identity", tmp_path / "run"),
    ):
        with SKIPPED:
            found = value(train, out, verb, on_error="skip", curvature=curvature)
        assert np.flatnonzero(np.isnan(found.to_numpy()[:, 0])).tolist() == BAD
    with pytest.raises(rayinf.InputError, match=r'subsample=0.5 with on_error="skip"'):
        value(train, None, rayinf.influence_measure, on_error="skip", subsample=0.5)


def test_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No row of a skipped shard is in a list; `top` over the rows that are left gives all of these."""
    from rayinf.engine import pair_pipeline

    monkeypatch.setattr(pair_pipeline, "tile_rows", lambda parameters: 12)
    train, sound = write(tmp_path / "t"), write(tmp_path / "s", X, GOOD)
    plain = value(sound, None, rayinf.pairs, top=100)
    for out in (None, tmp_path / "run"):
        with SKIPPED:
            found = value(train, out, rayinf.pairs, top=100, on_error="skip")
        assert found.metadata["fit"]["train"]["rows"] == len(GOOD)
        names = [n for n in plain.table.column_names if not pa.types.is_floating(plain.table.schema.field(n).type)]
        assert found.table.select(names).equals(plain.table.select(names))


def test_pairs_of_earlier_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that fails at the second tile of validation rows alone is in no list of the first either."""
    from rayinf.engine import pair_pipeline, pair_stages

    monkeypatch.setattr(pair_pipeline, "tile_rows", lambda parameters: 12)
    call, tiles = pair_stages.Pairs.__call__, list[int]()

    def fails(self: Any, shard: Any) -> Any:
        if not shard.index:
            tiles.append(1)
        if len(tiles) == 2 and shard.index == 1:
            raise UserCodeError("The model raised late", "mend it.")
        return call(self, shard)

    monkeypatch.setattr(pair_stages.Pairs, "__call__", fails)
    train = write(tmp_path / "t", X)
    for out in (None, tmp_path / "run"):
        tiles.clear()
        with SKIPPED:
            found = value(train, out, rayinf.pairs, top=2, on_error="skip", curvature="identity")
        assert len(tiles) == 5  # two and three, of three tiles
        assert set(found.table["row_id"].to_pylist()).isdisjoint({f"r{k:03d}" for k in range(20, 40)})


def test_what_is_no_fault_of_a_shard(tmp_path: Path) -> None:
    """Validation rows, all shards, values of the last shard."""
    train = write(tmp_path / "t", X)
    wrong = VALID[0].copy()
    wrong[17, 0] = 2 * MANY
    with pytest.raises(rayinf.InputError, match=r"Rows 0 to 29 of valid failed 3 times: The model raised ValueError"):
        rayinf.influence(task(), train, (wrong, VALID[1]), on_error="skip")
    every = X.copy()
    every[10::GROUP, 0] = 2 * MANY
    for curvature in ("identity", "ekfac"):
        with pytest.raises(rayinf.InputError, match="5 more shards failed too") as caught:
            value(write(tmp_path / curvature, every), curvature=curvature, on_error="skip")
        assert "on_error" not in caught.value.fix


@pytest.mark.parametrize("curvature", ["identity", "exact"])
def test_checks_before_any_work_pass_over_rows_that_fail(curvature: str) -> None:
    """The order of labels that are text, and whether a network is at a minimum, rest on some of the rows."""
    torch.manual_seed(0)
    model = Net(nn.Linear(4, 40), nn.Tanh(), nn.Linear(40, 3))
    train = pa.table({"features": list(SPOILT), "label": np.array(list("abc"))[Y]})
    valid = pa.table({"features": list(VALID[0]), "label": np.array(list("abc"))[VALID[1]]})
    damping = 1e3 if curvature == "exact" else None
    with pytest.raises(rayinf.InputError, match="failed 3 times") as caught:
        rayinf.influence(rayinf.Task(model), train, valid, curvature=curvature, damping=damping, on_error="skip")
    assert "on_error" not in caught.value.fix  # one shard in memory: none is left


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    """An overflow on one row: that shard's fault, in sums and in scores."""
    x = X.copy()
    x[70] = 3e38

    class Flat(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 100

    torch.manual_seed(0)
    of = rayinf.Task(Flat(nn.Linear(4, 3)), row_id="row_id")
    with SKIPPED:
        found = value(write(tmp_path / "t", x), task=of, on_error="skip", curvature="ggn")
    assert np.flatnonzero(np.isnan(found.to_numpy()[:, 0])).tolist() == list(range(60, 80))
    assert {s["stage"] for s in found.metadata["skipped"]} == {"hessian", "scores"}
