"""rayinf's side of a comparison: fit EKFAC and score the classes of an export, in this process.

python rayinf_side.py EXPORT --fisher empirical|true --threads N --out OUT.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from networks import mlp
from safetensors.torch import load_file

import rayinf

FIT = ("covariance", "basis", "lambda", "factors")


def main() -> None:
    """One run, whole; its stages' seconds as the run itself counts them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("--fisher", choices=("empirical", "true"), required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = np.load(options.export / "rows.npz")
    model = mlp()
    model.load_state_dict(load_file(options.export / "model.safetensors"))
    train, valid = ((rows[f"{name}_x"], rows[f"{name}_y"]) for name in ("train", "valid"))
    begin = time.perf_counter()
    given = {"fisher": options.fisher, "damping": "layer_mean:0.1"}  # the peer's
    scores = rayinf.influence(rayinf.Task(model), train, valid, "category", **given)
    whole = time.perf_counter() - begin
    stages = scores.metadata["seconds"]
    fit = sum(stages[name] for name in FIT)
    seconds = {**stages, "fit": fit, "score": sum(stages.values()) - fit, "whole_call": whole}
    options.out.write_text(json.dumps({"seconds": seconds, "fisher": options.fisher, "threads": options.threads}))
    np.savez(options.out.with_suffix(".npz"), scores=scores.to_numpy())


if __name__ == "__main__":
    main()
