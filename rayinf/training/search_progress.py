"""What a search shows while it goes on: a live table on a terminal, a plain line a generation elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from rayinf.training.generations import Candidate, Generations

# Of a table of very many classes, the targets and the first others.
_MOST_CLASSES = 30
_SHOWN = ("checkpoint", "unweighted", "best", "change")


@dataclass
class SearchProgress:
    """Shows every candidate and every generation.

    Attributes:
        names: of the classes.
        live: where there is a terminal.
    """

    names: Sequence[str]
    live: Live | None
    _begin: float = field(default_factory=time.monotonic)
    _line: str = "training the unweighted epoch"
    _state: Generations | None = None

    def trained(self, done: int, count: int) -> None:
        """So many candidates of a generation are trained."""
        if self.live is not None:
            self.live.update(self._table(f"{self._line}\ncandidate {done} of {count}"), refresh=True)

    def generation(self, g: int, ranked: Sequence[Candidate], trained: int, state: Generations) -> None:
        """A generation is done."""
        best, lost = state.best, sum(c.evaluation.problem is not None for c in ranked)
        without = f", {lost} without a model" if lost else ""
        seconds, self._state = time.monotonic() - self._begin, state
        self._line = (
            f"generation {g + 1} of {state.search.iterations}: {trained} trained{without}, {seconds:.1f} s; best "
            f"fitness {best.fitness:.4g}, against the unweighted epoch targets {100 * best.gain:+.2f}, others "
            f"{100 * best.others:+.2f} points"
        )
        if self.live is not None:
            self.live.update(self._table(self._line), refresh=True)
        else:
            print(f"rayinf pareto_reweight: {self._line}", file=sys.stderr, flush=True)

    def _table(self, title: str) -> Table:
        """Accuracy by class, once a generation is done."""
        table = Table("class", *(Column(n, justify="right") for n in _SHOWN), title=title, title_justify="left")
        if self._state is None:
            return table
        state, best = self._state, self._state.best
        before, plain, after = (e.accuracy for e in (state.checkpoint, state.plain, best.evaluation))
        targets = list(state.targets)
        order = [*targets, *np.delete(np.arange(len(self.names)), targets)][:_MOST_CLASSES]
        for k in order:
            name = f"{self.names[k]} (target)" if k in targets else self.names[k]
            shares = (f"{100 * v[k]:.1f}" for v in (before, plain, after))
            table.add_row(Text(name), *shares, f"{100 * (after[k] - plain[k]):+.1f}")
        return table


@contextmanager
def search_progress(names: Sequence[str]) -> Generator[SearchProgress]:
    """What shows a search, for as long as the context lasts."""
    if not sys.stderr.isatty():
        yield SearchProgress(names, None)
        return
    with Live(console=Console(stderr=True), transient=True) as live:
        yield SearchProgress(names, live)
