"""HiGHS without a word on the terminal."""

from __future__ import annotations

import highspy


class Highs(highspy.Highs):
    """A solver that prints nothing; highspy 1.16 prints its licence when it turns its callbacks on."""

    def enableCallbacks(self) -> None:  # noqa: N802
        """Turn the output off first."""
        self.silent()
        super().enableCallbacks()
