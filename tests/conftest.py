"""Fixtures that many tests share: one Ray session for the whole run, and a small job on real gradients."""

import os
from pathlib import Path

# One thread, so that tests which run side by side with Ray's workers do not crowd each other out.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import pytest


def pytest_collection_modifyitems(items):
    """Mark what a folder or a fixture says of a test."""
    for item in items:
        if "ray_session" in item.fixturenames:
            item.add_marker("ray")
        if "examples" in item.path.parts[-2:]:
            item.add_marker("examples")


@pytest.fixture(scope="session")
def ray_session():
    """A local Ray with room for three workers."""
    import ray

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
    yield
    ray.shutdown()


@pytest.fixture(scope="session", autouse=True)
def _no_fsync():
    """A loss of power cannot be tested, and forcing every file to the device takes minutes."""
    from rayinf.data import disk

    disk._force = lambda path: None
