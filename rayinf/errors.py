"""The errors a user can meet. Each says what happened, with the numbers, and how to mend it; none shows a password."""

from __future__ import annotations

import re

# In a URI: what stands between user and host, and the value of a key or signature in its query.
_USER = re.compile(r"(://)[^/\s@'\"]*:[^/\s@'\"]*@")
_QUERY = re.compile(r"([?&;](?:sig|signature|[\w-]*(?:token|secret|password|key))=)[^&;\s'\"]+", re.IGNORECASE)


def redacted(text: str) -> str:
    """A text without the passwords and keys of URIs in it."""
    return _QUERY.sub(r"\1***", _USER.sub(r"\1***@", text))


class RayinfError(Exception):
    """Base of every error that rayinf raises on purpose; the message ends in `Fix: ...`."""

    def __init__(self, what: str, fix: str) -> None:
        what, fix = redacted(what), redacted(fix)
        super().__init__(f"{what} Fix: {fix}")
        self.what = what
        self.fix = fix

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """Travel between processes with both parts (the default would pass the joined message alone)."""
        return type(self), (self.what, self.fix)


class InputError(RayinfError, ValueError):
    """The task, a table or an argument is wrong; raised before any work is done (exit code 2)."""


class RunError(RayinfError):
    """Something broke on the way: a worker that keeps dying, a full disk. What was finished is kept."""


class FitWarning(UserWarning):
    """The model does not fit the rows that it is to value: its values mean little."""
