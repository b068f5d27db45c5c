"""The errors that users see. Each states what happened, with the numbers, and how to fix it, without secrets."""

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


class RowsError(InputError):
    """Some rows of a table cannot be worked on, by their own fault; others can."""


class ReadError(RowsError):
    """The system could not read rows of a file. The error may pass; the rows need not be damaged."""


class RunError(RayinfError):
    """A run failed: a worker that keeps dying, a full disk. Finished work is kept."""


class FitWarning(UserWarning):
    """The model fits the rows that it values badly: their values mean little."""


class SkippedWarning(UserWarning):
    """Rows were left out of a run, because they cannot be worked on."""
