"""Calls that Ctrl-C does not cut in two."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")
# A second Ctrl-C, or so many seconds, end the wait.
_SECONDS = 30.0


def in_thread(call: Callable[[], T]) -> Future[T]:
    """What a call will give. Its thread does not keep the process alive."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True, name="rayinf call").start()
    return done


def uninterrupted(call: Callable[[], T]) -> T:
    """What a call gives. It runs in another thread, to which Ctrl-C is not sent: it is waited for first.

    Raises:
        KeyboardInterrupt: it was pressed meanwhile.
    """
    done = in_thread(call)
    try:
        return done.result()
    except KeyboardInterrupt:
        wait([done], _SECONDS)
        raise
