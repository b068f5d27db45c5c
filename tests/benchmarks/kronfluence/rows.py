"""Benchmark peer: kronfluence's influence of every training row on every validation row of an exported MLP.

    python rows.py EXPORT_DIR --out OUT.npz [--fisher true]

Everything is at kronfluence's default: EKFAC with labels drawn from the model, a damping of 0.1 x the mean eigenvalue
of each layer. Writes `scores` [rows, validation rows], positive where a row helps.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from peer import FIT_BATCH_SIZE, SCORE_BATCH_SIZE, fit, open_analyzer, pairwise, read_rows


def main() -> None:
    """Fit and score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fisher", choices=("empirical", "true"), default="true")
    options = parser.parse_args()
    torch.manual_seed(0)
    train, valid = read_rows(options.export / "rows.npz")
    with tempfile.TemporaryDirectory() as cache:
        analyzer = open_analyzer(options.export, Path(cache))
        fit(analyzer, train, options.fisher, FIT_BATCH_SIZE)
        scores = pairwise(analyzer, "rows", valid, train, SCORE_BATCH_SIZE, aggregate=False)
    np.savez(options.out, scores=scores.T.contiguous().numpy())


if __name__ == "__main__":
    main()
