"""One bar in the driver, fed by finished shards: rate and time left; plain lines without a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# Stages shorter than this print nothing, and plain lines come this often.
_QUIET_SECONDS = 5.0


@contextmanager
def bar(stage: str, total: int, done: int = 0, unit: str = "rows") -> Generator[Callable[[int], None]]:
    """A context whose value is called with the rows of each finished shard (or whatever else is counted).

    Args:
        stage: its name.
        total: rows in all.
        done: rows that an earlier run has finished.
        unit: what is counted.
    """
    if sys.stderr.isatty():
        console = Console(stderr=True)
        text = TextColumn("{task.fields[rate]}")
        columns = (TextColumn("{task.description:<10}"), BarColumn(), TaskProgressColumn(), text, TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
            task = progress.add_task(stage, total=total, completed=done, rate="")
            begin, count = time.monotonic(), 0

            def advance(rows: int) -> None:
                nonlocal count
                count += rows
                rate = count / max(time.monotonic() - begin, 1e-9)
                progress.update(task, advance=rows, rate=_speed(rate, unit))

            yield advance
    else:
        yield _lines(stage, total, done, unit)


def _lines(stage: str, total: int, done: int, unit: str) -> Callable[[int], None]:
    begin, count = time.monotonic(), 0
    printed = begin

    def advance(rows: int) -> None:
        nonlocal count, printed
        count += rows
        now = time.monotonic()
        if now - printed < _QUIET_SECONDS:
            return
        printed = now
        rate = count / (now - begin)
        left = (total - done - count) / rate if rate else float("inf")
        share = (done + count) / max(total, 1)
        print(
            f"rayinf {stage}: {done + count:,} of {total:,} {unit} ({share:.0%}), {_speed(rate, unit)}, "
            f"{left:,.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    return advance


def _speed(rate: float, unit: str) -> str:
    return f"{rate:,.0f} {unit}/s" if rate >= 10 else f"{rate:.2g} {unit}/s"
