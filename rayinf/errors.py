"""The errors a user can meet. Each says what happened, with the numbers, and how to mend it; none shows a password."""

from __future__ import annotations

from rayinf.redaction import redact


class RayinfError(Exception):
    """Base of every error that rayinf raises on purpose; the message ends in `Fix: ...` and holds no secret."""

    def __init__(self, what: str, fix: str) -> None:
        what, fix = redact(what), redact(fix)
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
