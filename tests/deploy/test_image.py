"""The image: what its Dockerfile says, and that its steps work in a clean environment."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Every instruction and what follows it; continued lines are joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.M).replace("\\\n", " ")
    return [(word, rest.strip()) for line in text.splitlines() if line.strip() for word, rest in [line.split(None, 1)]]


def of(word: str) -> list[str]:
    return [rest for name, rest in instructions() if name == word]


def test_only_known_instructions_stand_there() -> None:
    assert {name for name, _ in instructions()} <= {"FROM", "ARG", "RUN", "COPY", "USER", "WORKDIR", "ENV", "CMD"}


def test_base_image_is_pinned_to_a_release() -> None:
    [base] = of("FROM")
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)


def test_cuda_is_a_build_argument_that_reaches_the_script() -> None:
    assert of("ARG") == ["CUDA=0"]
    assert [run for run in of("RUN") if "CUDA=${CUDA} bash /src/deploy/install.sh" in run]


def test_nothing_runs_as_root() -> None:
    [user] = of("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    names = [name for name, _ in instructions()]
    assert "RUN" not in names[names.index("USER") :]
    assert f"--uid {user.split(':')[0]}" in of("RUN")[0]


def test_image_asks_for_the_token_and_holds_no_secret() -> None:
    assert "RAY_AUTH_MODE=token" in of("ENV")[0]
    assert not re.search(r"(?i)(password|secret_?key|access_key|auth_token)\s*=", DOCKERFILE.read_text())


def test_builder_is_sent_only_what_is_copied() -> None:
    lines = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    sent = {line[1:] for line in rules if line.startswith("!")}
    copied = {source.rstrip("/") for copy in of("COPY") for source in copy.split()[:-1]}
    assert sent == copied
    assert all((ROOT / source).exists() for source in copied)


def test_script_refuses_an_unknown_cuda() -> None:
    env = {**os.environ, "CUDA": "12"}
    done = subprocess.run(["bash", ROOT / "deploy" / "install.sh"], env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "must be 0 (CPU) or 1 (CUDA)" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_steps_of_the_image_work_in_a_clean_environment(tmp_path: Path) -> None:
    """COPY as it stands, then the RUN line that installs, with the environment's Python in the place of the image's."""
    root = tmp_path / "root"
    for copy in of("COPY"):
        *sources, target = copy.split()
        for source in sources:
            place = root / target.strip("/")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, place)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    [step] = [run for run in of("RUN") if "install.sh" in run]
    step = step.replace("/src", str(root / "src"))
    kept = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME"}}
    path = f"{tmp_path / 'venv' / 'bin'}:{kept['PATH']}"
    # PyTorch from where all other packages come from: CI reaches no other index.
    env = {**kept, "PATH": path, "CUDA": "0", "TORCH_INDEX_URL": ""}
    done = subprocess.run(["bash", "-c", f"set -e; {step}"], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    pins = dict(re.findall(r"^([\w.-]+)==(.+)$", (ROOT / "constraints.txt").read_text(), re.M))
    assert f"ray {pins['ray']}, torch {pins['torch']}" in done.stdout
    assert not (root / "src").exists()
    shown = subprocess.run(["rayinf", "--version"], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert re.fullmatch(r"rayinf \d+\.\d+\.\d+", shown.stdout.strip()), shown.stderr
    held = subprocess.run(["pip", "check"], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert held.returncode == 0, held.stdout
