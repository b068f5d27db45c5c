"""A disk that fills up at many sizes, then has room: the same call ends at the same bytes. Needs the right to mount.

    python tests/engine/full_disk.py FOLDER [--verbs influence ...] [--sizes 20]

Mounts a tmpfs of each size at FOLDER/disk, runs a verb into it until it is full, makes it large, and runs it again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from engine import fault_jobs as jobs

from rayinf.errors import RayinfError

_LARGE = 64 << 20


def mount(place: Path, size: int, *, again: bool = False) -> None:
    """A tmpfs of so many bytes, or another size for the one that is there."""
    options = f"remount,size={size}" if again else f"size={size}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)


def trial(verb: str, tables: jobs.Tables, place: Path, size: int, truth: dict[str, str]) -> str:
    """One size: what was wrong in the end, or how the full disk was reported."""
    mount(place, size)
    try:
        try:
            jobs.run(verb, tables, place / "run")
            first = "fitted"
        except RayinfError as error:
            first = "one line" if "Fix:" in str(error) else f"WRONG no mend: {error}"
        except Exception as error:
            first = f"WRONG raw {type(error).__name__}: {error}"
        mount(place, _LARGE, again=True)
        try:
            jobs.run(verb, tables, place / "run")
        except Exception as error:
            return f"WRONG stuck: {error}"
        if jobs.digest(place / "run") != truth:
            return "WRONG other bytes"
        return f"WRONG left {jobs.leftovers(place / 'run')}" if jobs.leftovers(place / "run") else first
    finally:
        subprocess.run(["umount", str(place)], check=True)


def main() -> None:
    """All verbs and sizes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--verbs", nargs="+", default=list(jobs.VERBS))
    parser.add_argument("--sizes", type=int, default=20)
    options = parser.parse_args()
    place = options.folder / "disk"
    place.mkdir(parents=True, exist_ok=True)
    tables = jobs.make_tables(options.folder)
    for verb in options.verbs:
        calm = options.folder / f"{verb}-calm"
        shutil.rmtree(calm, ignore_errors=True)
        jobs.run(verb, tables, calm)
        truth = jobs.digest(calm)
        # tmpfs counts pages: every file takes at least one.
        whole = sum(-(-p.stat().st_size // 4096) * 4096 for p in calm.rglob("*") if p.is_file())
        most = 2 * whole
        found = [trial(verb, tables, place, 4096 + most * k // options.sizes, truth) for k in range(options.sizes)]
        wrong = [f for f in found if f.startswith("WRONG")]
        full = sum(f == "one line" for f in found)
        told = f"{len(found)} sizes up to {most >> 10} KiB: full {full} times, {len(wrong)} wrong {wrong[:3]}"
        print(f"{verb:<18} {told}", flush=True)


if __name__ == "__main__":
    main()
