"""Repeats requests to a store that fails: with growing pauses, for a bounded time, and with a message."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import TypeVar

from rayinf.store.failures import StoreAwayError, away, lasting, may_pass, short

T = TypeVar("T")
# How long requests to a store are repeated; for less where it has never answered, since its address may be wrong.
RETRY_SECONDS, FIRST_SECONDS = 120.0, 20.0
# The first pause, the longest, and after how long a message is printed.
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.1, 5.0
_QUIET_SECONDS = 2.0


def _print(line: str) -> None:
    print(f"rayinf: {line}", file=sys.stderr, flush=True)


# Called with a line when the store does not answer, and when it answers again.
listeners: list[Callable[[str], None]] = [_print]


class Retries:
    """The retries of one store in one process. Requests share the time since which it has not answered.

    Once a request has been given up, further ones are tried once, without waiting, until one succeeds.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._since: float | None = None
        self._answered = self._reported = False

    @property
    def limit(self) -> float:
        """Seconds for which requests are repeated."""
        return RETRY_SECONDS if self._answered else FIRST_SECONDS

    @property
    def longest(self) -> float:
        """Seconds after which any request has ended or been given up; 0 before the store has ever answered."""
        return RETRY_SECONDS + 6 * _LONGEST_SECONDS if self._answered else 0.0

    def call(self, request: Callable[[], T], place: str) -> T:
        """The answer to a request that may be made again.

        Args:
            request: is called once or more often.
            place: of the request, for errors.

        Raises:
            FileNotFoundError: the file does not exist.
            StoreAwayError: no answer for too long.
            StoreDeniedError: access is denied.
            StoreMissingError: the bucket does not exist.
        """
        begin, pause = time.monotonic(), _SHORTEST_SECONDS
        while True:
            try:
                found = request()
            except FileNotFoundError as error:
                self._succeeded()
                if problem := lasting(place, error):
                    raise problem from error
                raise
            except Exception as error:
                if not may_pass(error):
                    problem = lasting(place, error)
                    if problem is None:
                        raise
                    raise problem from error
                waited = self._failed(begin, error)
                if waited > self.limit:
                    raise StoreAwayError(*away(place, waited, error)) from error
            else:
                self._succeeded()
                return found
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_SECONDS)

    def _failed(self, begin: float, error: BaseException) -> float:
        """Seconds since the store has stopped answering or this request began, whichever is longer ago."""
        now = time.monotonic()
        with self._lock:
            self._since = now if self._since is None else self._since
            # A request that began before the store failed has been waiting for longer than the store has failed.
            waited = now - min(begin, self._since)
            reports = waited > _QUIET_SECONDS and not self._reported
            self._reported = self._reported or reports
        if reports:
            _report(f"{self.name} does not answer ({short(error)}): trying again for up to {self.limit:.0f} s.")
        return waited

    def _succeeded(self) -> None:
        if self._since is None and self._answered:
            return
        with self._lock:
            since, reported = self._since, self._reported
            self._since, self._reported, self._answered = None, False, True
        if reported and since is not None:
            _report(f"{self.name} answers again after {time.monotonic() - since:.0f} s.")


def _report(line: str) -> None:
    for listener in tuple(listeners):
        listener(line)


@cache
def retries_of(uri: str, name: str) -> Retries:
    """The retries of a store in this process.

    Args:
        uri: of the store, with its credentials.
        name: of the store, without secrets.
    """
    return Retries(name)
