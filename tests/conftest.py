"""Fixtures that many tests share: one Ray session for the whole run, and a small job on real gradients."""

import os
from pathlib import Path

# One thread, so that tests which run side by side with Ray's workers do not crowd each other out.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's own 15, workers hardly start while other tests compute
# Ray's work beside the tests': processes that wait for calls, metrics, lists of tasks, a look for new log files ten
# times a second. With these a local Ray costs 8 s of processor time and 2 more a minute; else 11, and 5 a minute.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
os.environ.setdefault("RAY_metrics_report_interval_ms", "600000")
os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "600000")
os.environ.setdefault("METRICS_RECORD_INTERVAL_S", "600")
os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
os.environ.setdefault("RAY_LOG_MONITOR_MANY_FILES_THRESHOLD", "0")
# Where other tests compute, a head's processes may be late with a sign of life by more than Ray's own quarter minute,
# and a head that misses one ends.
os.environ.setdefault("RAY_health_check_failure_threshold", "40")

import pytest


def pytest_collection_modifyitems(items):
    """Mark what a folder or a fixture says of a test."""
    for item in items:
        if "ray_session" in item.fixturenames:
            item.add_marker("ray")
        if "examples" in item.path.parts[-2:]:
            item.add_marker("examples")


# Files that wait more than they compute.
_WAITING = ("test_waiting.py", "test_store_runs.py", "test_parallel.py")


def pytest_xdist_make_scheduler(config, log):
    """With `--dist loadgroup`: files on the shared Ray are two groups, others one each.

    So two processes start Ray, and its workers go from file to file. (xdist's own groups do not reach pytest 9.2.)
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            text = (config.rootpath / file).read_text()
            if "ray_session" not in text and "no_workers" not in text:
                return file
            return "ray, waiting" if file.endswith(_WAITING) else "ray"

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def ray_session():
    """A local Ray with room for three workers, which runs hand to each other: each is a process that imports torch."""
    import ray

    from rayinf.engine.ray_session import connected

    # Workers find the tests' own modules, as they would find a user's that are installed.
    env = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
    ray.init(
        address="local",
        num_cpus=3,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env=env,
    )
    with connected():
        yield
    ray.shutdown()


@pytest.fixture
def no_workers(ray_session):
    """That Ray without the workers of earlier tests."""
    from rayinf.engine.ray_session import make_room

    make_room(None)


@pytest.fixture(scope="session", autouse=True)
def _no_fsync():
    """A loss of power cannot be tested, and forcing every file to the device takes minutes."""
    from rayinf.data import disk

    disk._force = lambda path: None


@pytest.fixture(scope="session")
def s3_port():
    """One S3 server of moto for the session, on loopback; credentials for it stand in the environment."""
    import store_server

    keys = {
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": store_server.SECRET_KEY,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {k: os.environ.get(k) for k in keys}
    os.environ.update(keys)
    with store_server.server() as port:
        yield port
    for name, value in before.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@pytest.fixture
def s3(s3_port):
    """A way to that server which fails on demand: a proxy, and the bucket as it is behind it."""
    import store_server

    proxy = store_server.Proxy(s3_port)
    yield proxy
    proxy.stop()


@pytest.fixture(scope="session")
def bucket(s3_port):
    """The bucket of that server, by boto3."""
    import store_server

    return store_server.Bucket(s3_port)
