"""HiGHS as it is used here: silent, and on one thread whatever else in the process uses it."""

from __future__ import annotations

from collections.abc import Mapping

import highspy


class Highs(highspy.Highs):
    """A serial solver that prints nothing.

    HiGHS has one scheduler a process. It refuses a number of threads other than the one with which somebody has started
    it, unless that is left open; without `parallel` the simplex is serial either way.

    Args:
        options: of HiGHS, by name.
    """

    def __init__(self, options: Mapping[str, bool | int | float | str]) -> None:
        super().__init__()
        for name, value in {"output_flag": False, "threads": 1, "parallel": "off", **options}.items():
            self.setOptionValue(name, value)

    def enableCallbacks(self) -> None:  # noqa: N802
        """No callbacks, the setting up of which prints a banner."""

    def outcome(self) -> highspy.HighsModelStatus:
        """Run, and say how it ended."""
        self.run()
        status = self.getModelStatus()
        if status == highspy.HighsModelStatus.kNotset:
            self.setOptionValue("threads", 0)
            self.run()
            status = self.getModelStatus()
        return status
