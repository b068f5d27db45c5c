"""Commands on runs in a store: what they write lies there too, and no secret is printed."""

import json
import uuid

import pytest
from engine import fault_jobs as jobs
from typer.testing import CliRunner

import rayinf
from rayinf.cli import app
from rayinf.data import store_lease
from rayinf.store.places import open_place


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run."""
    patch = pytest.MonkeyPatch()
    patch.setattr(store_lease, "SETTLE_SECONDS", 0.05)
    tables, where = jobs.make_tables(tmp_path_factory.mktemp("tables")), f"memory://cli/{uuid.uuid4().hex}"
    rayinf.influence(jobs.task(), tables.train, tables.valid, "category", halves=True, out=where)
    yield where
    patch.undo()


def command(*arguments):
    found = CliRunner().invoke(app, list(arguments))
    return found.exit_code, found.output


def test_what_is_written_beside_a_run(run):
    code, output = command("trim", run, "--by", rayinf.Scores.load(run).columns[0], "--budget", "5")
    assert code == 0, output
    assert {p.name for p in (open_place(run) / "trim").iterdir()} == {"kept.parquet", "removed.parquet"}
    assert f"{run}/trim/kept.parquet" in output
    code, output = command("ceiling", run)
    assert code == 0, output
    assert {p.suffix for p in (open_place(run) / "ceiling").iterdir()} == {".json", ".png"}
    json.loads((open_place(run) / "ceiling" / "ceiling.json").read_text())


def test_a_run_is_looked_at(run):
    code, output = command("verify", run)
    assert code == 0 and "all whole" in output, output
    code, output = command("status", run)
    assert code == 0 and "finished" in output, output
    code, output = command("status", "memory://cli/none")
    assert code == 2 and "does not exist" in output and "Fix: " in output


def test_no_secret_is_printed():
    for verb in ("status", "verify", "trim", "ceiling"):
        for debug in ((), ("--debug",)):
            code, output = command(verb, "nosuchscheme://me:SECRET@host/run", *debug)
            assert code == 2 and "SECRET" not in output, output
