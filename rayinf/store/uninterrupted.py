"""Calls in threads of their own, which Ctrl-C does not interrupt."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")
# After Ctrl-C the call is waited for at most so long; a second Ctrl-C ends the wait.
_SECONDS = 30.0


def in_thread(call: Callable[[], T]) -> Future[T]:
    """The future result of a call in a daemon thread."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True, name="rayinf call").start()
    return done


def uninterrupted(call: Callable[[], T]) -> T:
    """The result of a call that Ctrl-C does not interrupt: it runs in another thread, and is waited for.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed meanwhile.
    """
    done = in_thread(call)
    try:
        return done.result()
    except KeyboardInterrupt:
        wait([done], _SECONDS)
        raise
