"""One writer a run in a store: a lease object, by conditional puts where the store has them; else by a heartbeat alone.

With conditional puts the object is created only where there is none, and taken over or renewed only over the version
that was read, so that of several processes one succeeds. Without them it is written, and read again after a delay in
which any other writer would have written too.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rayinf.data import disk
from rayinf.data.files import temporary
from rayinf.store.conditional import ConditionalObject, ConflictError, UnsupportedError
from rayinf.store.places import StorePath

# The holder renews the object this often; one that is not renewed for so long is dead. Each renewal is a request.
BEAT_SECONDS, STALE_SECONDS = 10.0, 60.0
# Between writing a lease and reading it again, in stores without conditional puts.
SETTLE_SECONDS = 2.0
_POLL_SECONDS = 1.0
Content = dict[str, Any]


class LeaseObject:
    """The lease of a folder in a store.

    Args:
        place: of the object.
        content: its holder, with a `name` that is unique.
    """

    def __init__(self, place: StorePath, content: Content) -> None:
        self._place, self._content = place, content
        self._object = ConditionalObject(place)
        self._conditions = True
        self._tag = ""
        self._beats = 0

    def take(self) -> bool:
        """Make the lease; False where there is one.

        Raises:
            OSError: it cannot be written.
        """
        if self.read() is not None:  # a store that ignores conditions would overwrite it
            return False
        if self._conditions:
            try:
                return self._create()
            except UnsupportedError:
                self._conditions = False
        return self._settle()

    def _create(self) -> bool:
        with temporary(self._place) as held:
            disk.used.fill(held, lambda p: p.write_text(_text(self._content)))
            try:
                disk.used.link(held, self._place)
            except FileExistsError:
                return self._is_mine()  # the put may have succeeded and its answer been lost
        if not self._is_mine():
            return False
        try:  # a second create must fail: a store that ignores conditions accepts it
            self._object.create(_text(self._content).encode())
        except ConflictError:
            return True
        raise UnsupportedError(str(self._place))

    def take_over(self, seen: Content | None) -> bool:
        """Replace a dead lease; False where another process was faster.

        Args:
            seen: its content; None where it cannot be read.

        Raises:
            OSError: it cannot be written.
        """
        if self._conditions:
            with suppress(UnsupportedError):
                found = self._object.read()
                if found is None or content_of(found[0]) != seen:
                    return False
                try:
                    self._tag = self._object.replace(_text(self._content).encode(), found[1])
                except ConflictError:
                    return self._is_mine()
                return True
            self._conditions = False
        if self.read() != seen:
            return False
        return self._settle()

    def _settle(self) -> bool:
        """Write the lease, and read it again after a delay: the last writer has it.

        Raises:
            OSError: it cannot be written.
        """
        self._place.put(_text(self._content).encode())
        time.sleep(SETTLE_SECONDS)
        return self._is_mine()

    def renew(self) -> bool:
        """A sign of life; False where another process has the lease.

        Raises:
            OSError: the store does not answer.
        """
        self._beats += 1
        fresh = {**self._content, "beat": self._beats, "renewed": time.time()}
        if self._conditions:
            try:
                self._tag = self._object.replace(_text(fresh).encode(), self._tag)
            except ConflictError:
                return self._is_mine()
            return True
        if not self._is_mine():
            return False
        self._place.put(_text(fresh).encode())
        return True

    def read(self) -> Content | None:
        """The content of the lease; None where it is missing or damaged."""
        try:
            return content_of(self._place.read_bytes())
        except FileNotFoundError:
            return None

    def is_renewed(self) -> bool:
        """Whether the lease is renewed within `STALE_SECONDS`; else its holder is dead. Clocks are never compared."""
        end, first = time.monotonic() + STALE_SECONDS, self.read()
        while time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
            now = self.read()
            if now != first:
                return now is not None
        return False

    def _is_mine(self) -> bool:
        """Whether the lease in the store is this object's; if so, its tag is kept for the next renewal."""
        if not self._conditions:
            return (self.read() or {}).get("name") == self._content["name"]
        found = self._object.read()
        if found is None or (content_of(found[0]) or {}).get("name") != self._content["name"]:
            return False
        self._tag = found[1]
        return True


class Heartbeat:
    """A thread that renews a lease until it is stopped, or finds that another process has it.

    Args:
        renew: a sign of life; False where another process has the lease. It is called again after an OSError.
        seconds: between two calls.
    """

    def __init__(self, renew: Callable[[], bool], seconds: float) -> None:
        self._renew, self._seconds = renew, seconds
        self._stop = threading.Event()
        self.lost = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="rayinf lease")
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Stop renewing it; a call that is under way is waited for, at most so many seconds."""
        self._stop.set()
        self._thread.join(timeout=seconds)

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            with suppress(OSError):
                if not self._renew() and not self._stop.is_set():
                    self.lost = True
                    return


def content_of(held: bytes) -> Content | None:
    """The content of a lease from its bytes; None where they are damaged."""
    try:
        found = json.loads(held)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "name" in found else None


def _text(content: Content) -> str:
    return json.dumps(content) + "\n"
