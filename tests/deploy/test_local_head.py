"""What deploy/ runs on a cluster, run on a head of this machine that asks for a token: the RayJob's command as KubeRay
submits it, and the commands of the README's first steps as they stand there.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import rayinf

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BASH = re.compile(r"```bash\n(.*?)```", re.S)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def load_local_head() -> Any:
    spec = importlib.util.spec_from_file_location("local_head", ROOT / "examples" / "cluster" / "local_head.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["local_head"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def head() -> Iterator[Any]:
    with load_local_head().local_head(cpus=2) as running:
        yield running


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a copy of deploy/, as the root of the repository does."""
    folder = tmp_path_factory.mktemp("root")
    shutil.copytree(DEPLOY, folder / "deploy", ignore=shutil.ignore_patterns("store", "__pycache__"))
    return folder


def run(command: str, env: Mapping[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    told = {"env": dict(env), "cwd": folder, "timeout": 600, "capture_output": True, "text": True}
    return subprocess.run(["bash", "-euo", "pipefail", "-c", command], **told)


def steps(text: str) -> list[str]:
    """The commands of the README that run on one machine."""
    return [line for block in BASH.findall(text) for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def here_instead(line: str, head: Any, folder: Path) -> str | None:
    """A command of the README on the test's own head and folder; None for what is there already."""
    if line.startswith(("pip install ", "ray start ", "export ", "ray get-auth-token ", "chmod ")):
        return None
    return line.replace("http://127.0.0.1:8265", head.dashboard).replace("/tmp/rayinf-job", str(folder / "job"))


def total(run_folder: Path) -> np.ndarray:
    return rayinf.Scores.load(run_folder).to_pandas().sort_values("row_id")["total"].to_numpy()


def test_steps_of_the_readme_run_as_they_stand(head: Any, here: Path) -> None:
    lines = steps((DEPLOY / "README.md").read_text())
    assert [line.split()[0] for line in lines].count("rayinf") >= 6
    env = {**os.environ, **head.env, "COLUMNS": "120"}
    for line in lines:
        command = here_instead(line, head, here)
        if command is not None:
            done = run(command, env, here)
            assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    runs = here / "deploy" / "job" / "store" / "runs"
    first = total(runs / "first")
    for other in ("on-ray", "as-job"):
        np.testing.assert_allclose(total(runs / other), first, atol=1e-5 * np.abs(first).max())


def test_entrypoint_of_the_ray_job_runs_on_a_head(head: Any, here: Path) -> None:
    manifest = yaml.safe_load((DEPLOY / "kuberay" / "rayjob.yaml").read_text())
    mounted, store = here / "mounted", here / "bucket"
    env = {**os.environ, **head.env}
    made = run(f"python deploy/job/prepare.py --store {store}", env, here)
    assert made.returncode == 0, made.stderr
    mounted.mkdir()
    # What the ConfigMap holds. A bucket and four workers with 4 CPUs are a folder and one with one here.
    for name in ("task.py", "cluster.yaml"):
        text = (here / "deploy" / "job" / name).read_text()
        (mounted / name).write_text(text.replace("s3://BUCKET/rayinf", str(store)))
    config = yaml.safe_load((mounted / "cluster.yaml").read_text())
    config["cluster"] |= {"workers": 1, "cpus_per_worker": 1}
    (mounted / "cluster.yaml").write_text(yaml.safe_dump(config))
    entrypoint = manifest["spec"]["entrypoint"].replace("/home/rayinf/job", str(mounted))
    assert entrypoint.endswith("cluster.yaml --address auto")
    submit = f"ray job submit --address {head.dashboard} -- {entrypoint}"

    refused = run(submit, {**env, "RAY_AUTH_TOKEN": "0" * 64}, here)
    assert refused.returncode != 0
    assert "oken" in refused.stderr + refused.stdout
    assert not (store / "runs").exists()

    done = run(submit, env, here)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    scores = rayinf.Scores.load(store / "runs" / "first")
    assert len(scores.to_numpy()) == 1297
