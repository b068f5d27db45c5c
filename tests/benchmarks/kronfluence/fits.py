"""Benchmark peer: kronfluence's fit of EKFAC on a network of `networks.py`, or its scores of rows by rows.

    PYTHONPATH=.. python fits.py EXPORT_DIR --network resnet9|transformer|mlp --out OUT.npz [--seed 0] [--pairs]

Writes `seconds`, of the processor, and `scores`: of all training rows by the summed loss of each class with the factors
of this seed; with --pairs `seconds` are of scoring every training row by every validation row. All else is at
kronfluence's default, as in peer.py.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.utils.dataset import DataLoaderKwargs
from kronfluence.utils.state import release_memory
from networks import layers_of, network
from peer import (
    FIT_BATCH_SIZE,
    SCORE_BATCH_SIZE,
    ClassificationTask,
    fit,
    pairwise,
    read_rows,
    score_per_class,
    timed,
    whole_batch,
)
from safetensors.torch import load_file


class SomeLayers(ClassificationTask):
    """The layers that both sides have a rule for."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self._names = names

    def get_influence_tracked_modules(self) -> list[str]:
        """Their names."""
        return self._names


def main() -> None:
    """Fit, then score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("--network", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", action="store_true")
    options = parser.parse_args()
    time.perf_counter = time.process_time  # by which peer.py takes seconds
    model = network(options.network)
    model.load_state_dict(load_file(options.export / "model.safetensors"))
    train, valid = read_rows(options.export / "rows.npz")
    task = SomeLayers(layers_of(model))
    torch.manual_seed(options.seed)
    release_memory()  # its first call loads torch's compiler
    with tempfile.TemporaryDirectory() as cache:
        analyzer = Analyzer(
            "fits", prepare_model(model.eval(), task), task, cpu=True, disable_tqdm=True, output_dir=cache
        )
        analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=whole_batch))
        seconds = fit(analyzer, train, "true", FIT_BATCH_SIZE)
        if options.pairs:
            scored, scores = timed(lambda: pairwise(analyzer, "rows", valid, train, SCORE_BATCH_SIZE, aggregate=False))
            seconds, scores = {"scores": scored}, scores.T.contiguous().numpy()
        else:
            classes = int(valid.labels.max()) + 1
            scores = score_per_class(analyzer, train, valid, classes, FIT_BATCH_SIZE)
    np.savez(options.out, scores=scores, **{f"seconds_{k}": v for k, v in seconds.items()})


if __name__ == "__main__":
    main()
