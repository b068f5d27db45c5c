"""Runs from and to an object store: the bytes of a local run, whatever the server does and whoever is killed."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from engine import small_job as job

import rayinf
from rayinf.data.files import unsealed

HERE = Path(__file__).parent
CODE = (
    "import sys; sys.path.insert(0, sys.argv[1])\n"
    "from engine import small_job as job\n"
    "if __name__ == '__main__':\n"
    "    job.run(*sys.argv[2:5], transform=job.slow, batch_size=20)\n"
)
# Of a run's record: what depends on where the files lie, and when they were read.
_PLACES = ("files", "seconds")


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    return job.write(folder / "train.parquet", 160, 1, 40), job.write(folder / "valid.parquet", 30, 2, 30)


@pytest.fixture(scope="module")
def remote(tables, bucket):
    """The same tables in the bucket: their URIs without options."""
    for table in tables:
        bucket.write(f"tables/{table.name}", table)
    return [f"s3://bucket/tables/{table.name}" for table in tables]


@pytest.fixture(scope="module")
def calm(tables, tmp_path_factory):
    """A local run in peace."""
    out = tmp_path_factory.mktemp("calm") / "run"
    job.run(*tables, out, transform=job.slow, batch_size=20)
    return out


def assert_same(calm, bucket, prefix):
    """Every file is the same to the last bit; the record and the log, but for places and times.

    A local table that was just written is not known by its times, and its scan is not kept.
    """
    local = {p.relative_to(calm).as_posix(): p for p in calm.rglob("*") if p.is_file()}
    local.pop("scans.json", None)
    assert {*bucket.keys(prefix)} - {"scans.json"} == set(local)
    for name, file in local.items():
        held = bucket.read(f"{prefix}/{name}")
        if name == "run.json":
            mine, theirs = (unsealed(json.loads(text)) for text in (file.read_bytes(), held))
            for record in (mine, theirs):
                for key in _PLACES:
                    record["metadata"].pop(key, None)
            assert mine == theirs
        elif name != "log.jsonl":
            assert held == file.read_bytes(), name
    events = [json.loads(line)["event"] for line in bucket.read(f"{prefix}/log.jsonl").splitlines()]
    assert events[-1] == "finish"


def start(s3, uris, out):
    env = {**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    env["AWS_ENDPOINT_URL"] = f"http://{s3.address}"
    command = [sys.executable, "-W", "ignore", "-c", CODE, str(HERE.parent), *uris, out]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=env)


def wait_for(condition, process, seconds=200.0):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()[-2000:]
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_requests_fail_and_the_driver_is_killed_twice(s3, bucket, remote, calm):
    s3.share, out = 0.1, "killed"
    for parts, folder in ((1, "factors"), (2, "scores")):
        process = start(s3, remote, f"s3://bucket/{out}")
        wait_for(lambda p=parts, f=folder: sum(k.startswith(f"{f}/") for k in bucket.keys(out)) > p, process)
        process.kill()
        process.communicate()
        assert json.loads(bucket.read(f"{out}/run.json"))["status"] == "running"
    process = start(s3, remote, f"s3://bucket/{out}")
    told = process.communicate(timeout=280)[1]
    assert process.returncode == 0, told[-3000:]
    assert sum(s3.failed.values()) > 10 and set(s3.failed) == {"503", "429", "reset", "lost"}
    assert_same(calm, bucket, out)


@pytest.mark.slow
def test_a_server_that_is_away_for_twenty_seconds(s3, bucket, remote, calm):
    out = "away"
    process = start(s3, remote, f"s3://bucket/{out}")
    wait_for(lambda: any(k.startswith("factors/") for k in bucket.keys(out)), process)
    back = s3.go_away(20)
    told = process.communicate(timeout=280)[1]
    back.join()
    assert process.returncode == 0, told[-3000:]
    assert "s3://bucket does not answer" in told and "trying again for up to 120 s" in told
    assert "s3://bucket answers again after" in told
    assert b'"event": "store"' in bucket.read(f"{out}/log.jsonl")
    assert_same(calm, bucket, out)


@pytest.mark.slow
def test_the_second_of_two_writers_is_refused(s3, bucket, remote, calm):
    out = "two"
    process = start(s3, remote, f"s3://bucket/{out}")
    wait_for(lambda: "run.lock" in bucket.keys(out), process)
    where = f"s3://bucket/{out}{s3.options}"
    with pytest.raises(rayinf.InputError, match=rf"s3://bucket/{out} is in use: process {process.pid} on .*Fix: wait"):
        job.run(*(uri + s3.options for uri in remote), where, transform=job.slow, batch_size=20)
    assert rayinf.status(where).state == "running"
    assert process.wait(timeout=200) == 0
    assert_same(calm, bucket, out)
    assert "run.lock" not in bucket.keys(out)
    assert rayinf.status(where).state == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_tables_from_a_server_that_fails(share, s3, remote, calm):
    s3.share, s3.kinds = share, ("503",)
    scores = job.run(*(uri + s3.options for uri in remote), transform=job.slow, batch_size=20)
    assert scores.table.equals(rayinf.Scores.load(calm).table)
    assert s3.failed["503"] > 3


@pytest.mark.slow
def test_a_finished_run_in_a_store_is_read_and_used(s3, bucket, tables, remote, calm, tmp_path):
    where = f"s3://bucket/used{s3.options}"
    job.run(*tables, where, transform=job.slow, batch_size=20)
    held, local = rayinf.Scores.load(where), rayinf.Scores.load(calm)
    assert held.table.equals(local.table)
    before = bucket.keys("used")
    again = job.run(*tables, where, transform=job.slow, batch_size=20)  # nothing is left to do
    assert again.table.equals(local.table) and bucket.keys("used") == before
    assert rayinf.verify(where).ok, rayinf.verify(where).to_text()
    borrowed = job.run(*tables, factors=where, transform=job.slow, batch_size=20)
    assert borrowed.table.equals(local.table)
    bucket.write("used/scores/part-00001.parquet", b"PAR1")
    assert "scores/part-00001.parquet has 4 bytes" in rayinf.verify(where).to_text()
    with pytest.raises(rayinf.InputError, match=r"part-00001\.parquet is damaged"):
        rayinf.Scores.load(where).table  # noqa: B018
    mended = job.run(*tables, where, transform=job.slow, batch_size=20)
    assert mended.table.equals(local.table) and rayinf.verify(where).ok


@pytest.mark.slow
def test_workers_on_ray_write_to_the_store(s3, bucket, tables, calm, ray_session):
    where = f"s3://tester:plain@bucket/ray{s3.options}"
    scores = job.run(*tables, where, rayinf.Cluster(workers=1), transform=job.slow, batch_size=20)
    assert scores.table.equals(rayinf.Scores.load(calm).table)
    assert_same(calm, bucket, "ray")


@pytest.mark.slow
def test_secrets_are_nowhere_in_a_run(s3, bucket, remote):
    secret = "pl%61in"  # as good as "plain", and easy to find
    uris = [uri.replace("s3://", f"s3://tester:{secret}@") + s3.options for uri in remote]
    out = uris[0].replace("tables/train.parquet", "secrets")
    scores = job.run(*uris, out)
    first = json.loads(bucket.read("secrets/run.json"))["identity"]
    factors = job.run(*uris, out.replace("secrets", "secrets2"), factors=out)
    with pytest.raises(rayinf.InputError, match="another config") as caught:
        rayinf.self_influence(rayinf.Task(job.model()), uris[0], out=out)
    held = [bucket.read(f"{p}/{k}") for p in ("secrets", "secrets2") for k in bucket.keys(p)]
    texts = [h.decode("latin1") for h in held] + [str(scores.metadata), str(factors.metadata), repr(scores)]
    texts += [str(caught.value), rayinf.verify(out).to_text(), rayinf.status(out).to_text(), repr(factors.path)]
    assert not any(secret in text or ":plain" in text for text in texts)
    again = job.run(*(uri + s3.options for uri in remote), f"s3://bucket/secrets{s3.options}")  # with other credentials
    assert again.table.equals(scores.table)
    assert json.loads(bucket.read("secrets/run.json"))["identity"] == first


def test_an_out_inside_the_tables_folder_is_refused(s3, bucket, remote):
    with pytest.raises(rayinf.InputError, match=r"out='s3://bucket/tables/run' lies inside train"):
        job.run(f"s3://bucket/tables{s3.options}", remote[1] + s3.options, f"s3://bucket/tables/run{s3.options}")
    assert not bucket.keys("tables/run")


@pytest.mark.parametrize("what", ["tables", "out"])
def test_access_that_is_denied_is_said_so(what, s3, tables, remote):
    s3.denies = True
    given = [uri + s3.options for uri in remote] if what == "tables" else tables
    out = None if what == "tables" else f"s3://k:SECRET@bucket/denied{s3.options}"
    with pytest.raises(rayinf.InputError, match=r"access is denied.*Fix: check the credentials") as caught:
        job.run(*given, out)
    assert "restore" not in str(caught.value) and "SECRET" not in str(caught.value)


def test_a_bucket_that_is_not_there(s3, tables):
    with pytest.raises(rayinf.InputError, match=r"container 'nosuchbucket' does not exist.*Fix: create it"):
        job.run(*tables, f"s3://nosuchbucket/run{s3.options}")


@pytest.mark.slow
def test_a_server_that_dies_for_good_is_no_damage(s3, remote, monkeypatch):
    from rayinf.store import retries

    monkeypatch.setattr(retries, "RETRY_SECONDS", 1.0)
    threading.Timer(2.0, s3.stop).start()

    def run():
        while True:
            job.run(*(uri + s3.options for uri in remote), transform=job.slow, batch_size=20)

    with pytest.raises(rayinf.RunError, match=r"s3://bucket/\S+ cannot be reached: tried for .*Fix: check the network"):
        run()


def test_globs_in_uris(s3, bucket, tables):
    import pyarrow.parquet as pq

    table = pq.read_table(tables[0])
    for day in range(3):
        for part in range(2):
            at = 80 * day + 40 * part
            pq.write_table(table.slice(at, 40), tables[0].with_name("piece.parquet"))
            bucket.write(f"globs/day={day}/part-{part}.parquet", tables[0].with_name("piece.parquet"))
    for hidden in ("globs/day=0/.part-9.parquet", "globs/day=0/_part.parquet", "globs/.day=7/part-0.parquet"):
        bucket.write(hidden, tables[0].with_name("piece.parquet"))
    valid = f"file://{tables[1]}"
    whole = job.run(tables[0], valid, curvature="identity")
    for pattern in ("day=*/part-*.parquet", "day=?/part-?.parquet", "**/*.parquet", "day=[0-2]/*.parquet", "*/part*"):
        found = job.run(f"s3://bucket/globs/{pattern}{s3.options}", valid, curvature="identity")
        assert found.table.equals(whole.table), pattern
        assert len(found.metadata["files"]) == 6
