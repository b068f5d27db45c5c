"""The command line: parse, call a verb, print, exit. No maths."""

from rayinf.cli import configured, finished, planned, submitted
from rayinf.cli.app import app

__all__ = ["app", "configured", "finished", "main", "planned", "submitted"]


def main() -> None:
    """The entry point `rayinf`."""
    app()
