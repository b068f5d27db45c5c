"""Figures, from plain values and tables. No runs, no scores."""
