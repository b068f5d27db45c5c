"""The command line: parse, call a verb, print, exit. No maths."""

from rayinf.cli import configured, finished, planned
from rayinf.cli.app import app

__all__ = ["app", "configured", "finished", "main", "planned"]


def main() -> None:
    """The entry point `rayinf`."""
    app()
