"""The image: what its Dockerfile says, and that its steps work in a clean environment."""

import os
import re
import subprocess

from image_steps import DOCKERFILE, ROOT, instructions, of


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


def test_ci_installs_by_the_steps_of_the_image() -> None:
    """COPY as it stands, then the script that RUN calls, into a new environment; what CI tests is installed so."""
    [step] = [run for run in of("RUN") if "install.sh" in run]
    assert "bash /src/deploy/install.sh" in step
    commands = (ROOT / ".ci" / "run").read_text()
    copied, installed = "python tests/image_steps.py .ci/image", "bash .ci/image/src/deploy/install.sh"
    assert 0 < commands.index(copied.removeprefix("python")) < commands.index(installed)
    assert "pip check" in commands
