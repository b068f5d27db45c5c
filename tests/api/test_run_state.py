"""`verify` names whatever is wrong with a run's folder; `status` says where it stands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_cases import call
from data.samples import VALID, X, Y, table, task
from run_folders import edit_record, write_run

import rayinf
from rayinf.data.files import write_part
from rayinf.data.lease import Lease

TRAIN = table(X, Y)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done") / "run"
    rayinf.influence(task(), TRAIN, VALID, "category", out=out)
    return out


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "run"))


def test_a_whole_run(done: Path) -> None:
    found = rayinf.verify(done)
    assert found.ok and found.problems == ()
    assert found.files == sum(p.suffix in (".parquet", ".safetensors") for p in done.rglob("*"))
    assert call("verify", done).exit_code == 0
    seen = rayinf.status(done)
    assert (seen.verb, seen.state, seen.done, seen.parts, seen.holder) == ("influence", "finished", 1, 1, None)
    assert "finished, 1 of 1 parts written" in call("status", done).output


def flip(file: Path) -> None:
    held = bytearray(file.read_bytes())
    held[len(held) // 2] ^= 1
    file.write_bytes(held)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of a part": (lambda run: flip(run / "scores/part-00000.parquet"), "part-00000.parquet has another checksum"),
    "a cut part": (lambda run: (run / "scores/part-00000.parquet").write_bytes(b"PAR1"), "has 4 bytes instead of"),
    "a part is gone": (lambda run: (run / "scores/part-00000.parquet").unlink(), "part-00000.parquet is missing"),
    "a stray": (lambda run: (run / "scores/part-00001.parquet").write_bytes(b""), "part-00001.parquet is not in the"),
    "a bit of an array": (lambda run: flip(run / "factors/factors.safetensors"), "factors.safetensors has another"),
    "a bit of a manifest": (lambda run: flip(run / "manifest.jsonl"), "manifest.jsonl is missing, or differs"),
    "no manifest": (lambda run: (run / "manifest.jsonl").unlink(), "manifest.jsonl is missing, or differs"),
    "an edited record": (
        lambda run: (run / "run.json").write_text((run / "run.json").read_text().replace('"seed": 0', '"seed": 1')),
        "run.json is damaged, was edited",
    ),
    "a cut record": (lambda run: (run / "run.json").write_text('{"identity": {'), "run.json is damaged"),
    "null": (lambda run: (run / "run.json").write_text("null"), "run.json is damaged"),
    "not finished": (lambda run: edit_record(run, status="running"), "The run is not finished"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(kind: str, copy: Path) -> None:
    harm, said = DAMAGE[kind]
    harm(copy)
    found = rayinf.verify(copy)
    assert not found.ok
    assert any(said in line for line in found.problems), found.problems
    result = call("verify", copy)
    assert result.exit_code == 2
    assert said in result.output and "Traceback" not in result.output


@pytest.mark.parametrize("kind", [k for k in DAMAGE if "record" not in k and k not in ("null", "a stray")])
def test_the_same_call_mends_it(kind: str, copy: Path, done: Path) -> None:
    DAMAGE[kind][0](copy)
    rayinf.influence(task(), TRAIN, VALID, "category", out=copy)
    assert rayinf.verify(copy).ok
    for name in ("scores/part-00000.parquet", "factors/factors.safetensors", "run.json", "manifest.jsonl"):
        assert (copy / name).read_bytes() == (done / name).read_bytes()


def part(ids: list[int]) -> pa.Table:
    return pa.table({"row_id": ids, "total": [0.5] * len(ids)})


@pytest.mark.parametrize(
    ("ids", "rows", "said"),
    [
        ([[5, 6], [7, 6]], 4, "1 rows repeat a row_id; the first: 6"),
        ([[5, 6], [7]], 4, "hold 3 rows, and the table had 4"),
    ],
)
def test_rows_and_ids_are_whole(ids: list[list[int]], rows: int, said: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", [part(i) for i in ids], {"rows": {"train": rows}})
    assert rayinf.verify(tmp_path / "run").problems == (next(p for p in rayinf.verify(tmp_path / "run").problems),)
    assert said in rayinf.verify(tmp_path / "run").problems[0]


def test_other_versions_are_noted(copy: Path) -> None:
    record = json.loads((copy / "run.json").read_text())
    edit_record(copy, versions={**record["versions"], "numpy": "1.0"})
    found = rayinf.verify(copy)
    assert found.ok
    assert any("computed with numpy 1.0" in note for note in found.notes)


def test_where_there_is_no_run(tmp_path: Path) -> None:
    for look in (rayinf.verify, rayinf.status):
        with pytest.raises(rayinf.InputError, match="holds no run"):
            look(tmp_path)
        with pytest.raises(rayinf.InputError, match="does not exist"):
            look(tmp_path / "nowhere")


def test_a_run_that_is_going_and_one_that_was_stopped(copy: Path) -> None:
    edit_record(copy, status="running")
    assert rayinf.status(copy).state == "stopped"
    held = Lease.acquire(copy)
    seen = rayinf.status(copy)
    assert seen.state == "running" and seen.holder is not None
    assert "has been writing since" in seen.to_text()
    held.release()


def test_parts_from_100_000_on_keep_their_order(tmp_path: Path) -> None:
    """Textually, part-100000 comes before part-99999."""
    folder = tmp_path / "run"
    write_run(folder, [part([k]) for k in range(3)], {"rows": {"train": 3}})
    from rayinf.data.part_files import PartPlace
    from rayinf.data.run_folder import RunFolder

    with RunFolder(tmp_path / "large") as run:
        record = {"identity": {}, "verb": "influence", "parts": 3, "metadata": {}}
        run.begin(record)
        place = PartPlace(run.path, "scores")
        for index in (100_000, 99_999, 99_998):
            run.files.add(place.write(index, part([index])))
        run.finish(record)
    assert rayinf.Scores.load(tmp_path / "large").table["row_id"].to_pylist() == [99_998, 99_999, 100_000]


def test_trim_does_not_write_over_another_selection(copy: Path) -> None:
    assert call("trim", copy, "--by", "category_0", "--budget", "3").exit_code == 0
    before = (copy / "trim/kept.parquet").read_bytes()
    assert call("trim", copy, "--by", "category_0", "--budget", "3").exit_code == 0  # the same one
    result = call("trim", copy, "--by", "category_1", "--budget", "4")
    assert result.exit_code == 2 and "is there already" in result.output and "--overwrite" in result.output
    assert (copy / "trim/kept.parquet").read_bytes() == before
    assert call("trim", copy, "--by", "category_1", "--budget", "4", "--overwrite").exit_code == 0
    assert (copy / "trim/kept.parquet").read_bytes() != before
    write_part(copy / "trim/kept.parquet", pq.read_table(copy / "trim/removed.parquet"))


def test_a_run_in_rounds(tmp_path: Path) -> None:
    head = rayinf.logistic_regression(TRAIN, l2=0.1)
    rayinf.trim_rounds(head, TRAIN, VALID, rounds=1, out=tmp_path / "run")
    files = [p for p in (tmp_path / "run").iterdir() if p.name.startswith("round-")]
    seen = rayinf.status(tmp_path / "run")
    assert (seen.verb, seen.state, seen.done, seen.parts) == ("trim_rounds", "finished", len(files), None)
    assert rayinf.verify(tmp_path / "run").files == len(files) >= 2
    edit_record(tmp_path / "run", status="running")
    assert rayinf.status(tmp_path / "run").state == "stopped"
    flip(tmp_path / "run" / "round-1.parquet")
    assert any("round-1.parquet has another checksum" in line for line in rayinf.verify(tmp_path / "run").problems)
