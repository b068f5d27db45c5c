"""What the Dockerfile of deploy/ says, and its COPY steps into a folder, which .ci/run then installs from.

    python tests/image_steps.py FOLDER

Needs no package: .ci/run calls it before there are any.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Every instruction and what follows it; continued lines are joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.M).replace("\\\n", " ")
    lines = (line.split(None, 1) for line in text.splitlines() if line.strip())
    return [(word, rest.strip()) for word, rest in lines]


def of(word: str) -> list[str]:
    """What follows each instruction of a kind."""
    return [rest for name, rest in instructions() if name == word]


def copy_into(folder: Path) -> None:
    """Do what the COPY steps do, with a folder in the place of the image's root."""
    for step in of("COPY"):
        *sources, target = step.split()
        for source in sources:
            place = folder / target.strip("/")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, place)


if __name__ == "__main__":
    copy_into(Path(sys.argv[1]))
