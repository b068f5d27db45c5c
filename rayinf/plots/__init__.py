"""Figures, from plain tables: this package knows nothing of runs."""
