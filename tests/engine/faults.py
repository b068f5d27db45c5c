"""Let every change to files fail in turn, of every verb, and see whether the same call then ends at the same bytes.

    python tests/engine/faults.py STATE [--verbs influence pairs ...] [--share 1.0] [--seed 0] [--part 0/1]

STATE is a folder: results are kept in it line by line, so that the command goes on where it stopped. Prints a table of
verbs and kinds of faults: how many were tried, how many runs could not go on, and how many ended at other bytes.
`--part k/n` tries every n-th fault, from the k-th, so that n processes with folders of their own can share the work.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from engine import fault_jobs as jobs
from engine.faulty_disk import KINDS, FaultyDisk, Killed

from rayinf.data import disk
from rayinf.errors import RayinfError
from rayinf.store.places import AnyPath


@dataclass(frozen=True)
class Calm:
    """An undisturbed run: its files, and how often it changed any."""

    digest: dict[str, str]
    changes: int


def calm(verb: str, tables: jobs.Tables, place: AnyPath) -> Calm:
    """Run a verb in peace."""
    out, counted = place / f"{verb}-calm", FaultyDisk()
    clear(out)
    with used(counted):
        jobs.run(verb, tables, out)
    found = Calm(jobs.digest(out), counted.count)
    clear(out)
    return found


def trial(verb: str, tables: jobs.Tables, place: AnyPath, fault: tuple[int, str], truth: Calm) -> dict[str, object]:
    """One fault, then the same call again: what failed, and what was wrong in the end ("" where nothing was)."""
    out, faulty = place / f"{verb}-{fault[0]}", FaultyDisk(*fault)
    first = wrong = ""
    try:
        with used(faulty):
            jobs.run(verb, tables, out)
        first = "went through"
    except Killed:
        first = "killed"
    except RayinfError as error:
        first = "one line" if "Fix:" in str(error) else f"no mend: {error}"
    except Exception as error:
        first = wrong = f"raw {type(error).__name__}: {error}"
    try:
        jobs.run(verb, tables, out)
        found = jobs.digest(out)
        if found != truth.digest:
            names = [n for n in {*found, *truth.digest} if found.get(n) != truth.digest.get(n)]
            wrong = wrong or f"other bytes: {sorted(names)[:5]}"
        if left := jobs.leftovers(out):
            wrong = wrong or f"left behind: {left[:5]}"
    except Exception as error:
        wrong = f"stuck: {type(error).__name__}: {error}"
    clear(out)
    return {"verb": verb, "at": fault[0], "kind": fault[1], "change": faulty.struck, "first": first, "wrong": wrong}


def clear(out: AnyPath) -> None:
    """Remove a run."""
    if isinstance(out, Path):
        shutil.rmtree(out, ignore_errors=True)
    else:
        out.discard()


class used:  # noqa: N801
    """A context in which another disk is used."""

    def __init__(self, other: disk.Disk) -> None:
        self._other, self._plain = other, disk.used

    def __enter__(self) -> None:
        disk.used = self._other

    def __exit__(self, *error: object) -> None:
        disk.used = self._plain


def faults(changes: int, share: float, seed: int) -> list[tuple[int, str]]:
    """All faults of a run with so many changes, or a share of them drawn by a seed.

    Killed after a change leaves what killed before the next one leaves: it is tried for the last change alone.
    """
    last = changes - 1
    every = [(at, kind) for at in range(changes) for kind in KINDS if kind != "killed after" or at == last]
    return every if share >= 1 else random.Random(seed).sample(every, max(1, round(share * len(every))))


def main() -> None:
    """All faults that are not in the results yet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("state", type=Path)
    parser.add_argument("--verbs", nargs="+", default=list(jobs.VERBS))
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", default="0/1")
    options = parser.parse_args()
    options.state.mkdir(parents=True, exist_ok=True)
    results = options.state / "results.jsonl"
    held = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(r["verb"], r["at"], r["kind"]) for r in held}
    tables = jobs.make_tables(options.state)
    first, step = map(int, options.part.split("/"))
    for verb in options.verbs:
        truth = calm(verb, tables, options.state)
        again = calm(verb, tables, options.state)
        assert again.digest == truth.digest, f"{verb} differs between two undisturbed runs"
        todo = [f for f in faults(truth.changes, options.share, options.seed)[first::step] if (verb, *f) not in done]
        print(f"{verb}: {truth.changes} changes to files, {len(todo)} faults to try", flush=True)
        for fault in todo:
            found = trial(verb, tables, options.state, fault, truth)
            if found["wrong"]:
                print(found, flush=True)
            held.append(found)
            with results.open("a") as file:
                file.write(json.dumps(found) + "\n")
    show(held, options.verbs)


def show(held: list[dict[str, object]], verbs: list[str]) -> None:
    """The table."""
    tried = Counter((r["verb"], r["kind"]) for r in held)
    wrong = Counter((r["verb"], r["kind"]) for r in held if r["wrong"])
    print(f"{'faults tried / runs that went wrong':<36}" + "".join(f"{k:>16}" for k in KINDS))
    for verb in verbs:
        print(f"{verb:<36}" + "".join(f"{tried[verb, k]:>10} / {wrong[verb, k]:<3}" for k in KINDS))
    print(f"in all {sum(tried.values()):,} / {sum(wrong.values()):,}")


if __name__ == "__main__":
    main()
