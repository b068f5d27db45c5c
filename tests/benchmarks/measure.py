"""The influence measure FI beside its own algorithms, written as its paper has them, and beside its bare products.

    python tests/benchmarks/measure.py util  --data adult_train.parquet     FI_util against Algorithm 1, logistic
    python tests/benchmarks/measure.py pairs --data mnist_train.parquet     FI_active against Algorithm 2, last layer
    python tests/benchmarks/measure.py pool  --data celeba_attr.parquet     FI_active of a large pool: products and sort
    python tests/benchmarks/measure.py forest --data mnist_train.parquet    a subsample and a forest against all rows

The peers of the first two stand in `tests/oracles_measure.py`: dense M and a `d x d` pseudo-inverse a labelled row, all
pool rows in one product. "written" forms `H^-1 M` as the algorithms do; "hoisted" pulls the inverse out of the loop.
Each ratio is of one run, with the same threads; rows a second are those of all rows (or of the pool). "measure" leaves
out opening the tables and the curvature, on both sides; "whole" is the whole call, against the peer with its curvature.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

import rayinf

sys.path.insert(0, str(Path(__file__).parents[1]))

import oracles_measure as peer

_FITTING = ("hessian", "covariance", "basis", "lambda", "factors", "queries", "solved", "inverse", "measured")
_NO_FEATURES = ("label", "sensitive", "split", "Smiling")


def table(path: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Standardised features and labels of a table of numeric columns, shuffled."""
    frame = pd.read_parquet(path)
    x = frame[[c for c in frame.columns if c not in _NO_FEATURES]].to_numpy(np.float64)
    x = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1.0)
    order = np.random.default_rng(seed).permutation(len(x))
    return x[order], frame["label"].to_numpy(np.int64)[order]


def images(path: str, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images `[n, 1, 28, 28]` of mean 0 and variance 1, and labels."""
    frame = pd.read_parquet(path)
    order = np.random.default_rng(seed).permutation(len(frame))[:rows]
    x = np.frombuffer(b"".join(frame["image"].iloc[order]), np.uint8).reshape(-1, 1, 28, 28).astype(np.float32)
    return (x / 255 - 0.1307) / 0.3081, frame["label"].to_numpy(np.int64)[order]


def cnn() -> nn.Sequential:
    """Yu 2025, Table 6."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Dropout(0.25)),
        *(nn.Flatten(), nn.Linear(3136, 256), nn.ReLU(), nn.Linear(256, 10)),
    )


def trained(model: nn.Module, x: np.ndarray, y: np.ndarray, epochs: int) -> nn.Module:
    """Adam, batches of 64."""
    given, labels = torch.tensor(x), torch.tensor(y)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(given)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(given[rows]), labels[rows]).backward()
            optimiser.step()
    return model.eval()


def best(run: Callable[[], object], times: int = 3) -> tuple[float, object]:
    """The least of some wall-clock times, and the last result."""
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        found = run()
        seconds.append(time.perf_counter() - begin)
    return min(seconds), found


def util(data: str) -> dict[str, float]:
    """FI_util of 5,000 rows."""
    x, y = table(data, 0)
    rows, valid = slice(0, 5000), slice(5000, 7000)
    task = rayinf.logistic_regression((x[rows], y[rows]), l2=1e-3)
    opened = time.perf_counter()
    ours, scores = best(lambda: rayinf.influence_measure(task, (x[rows], y[rows]), (x[valid], y[valid]), "exact"))
    print(f"three runs in {time.perf_counter() - opened:.2f} s")
    assert isinstance(scores, rayinf.Scores)
    head = peer.Head(task.model.weight.detach(), task.model.bias.detach())
    given = [(torch.tensor(x[k]), torch.tensor(y[k])) for k in (rows, valid)]
    theirs, truth = best(lambda: peer.fi_util_dense(head, *given, 1e-3), 1)
    written, _ = best(lambda: peer.fi_util_written(head, *given, 1e-3), 1)
    curvature = best(lambda: _peer_curvature(head, given[0][0], 1e-3), 1)[0]
    stage = scores.metadata["seconds"]["scores"]
    return {
        **_compared(5000, (stage, ours), (theirs - curvature, theirs), (written - curvature, written)),
        "largest_relative_difference": float(np.abs(scores.to_numpy()[:, 0] / truth.numpy() - 1).max()),
    }


def pairs(data: str) -> dict[str, float]:
    """FI_active of 420 pool rows on 480 labelled ones, the last layer of a CNN on its inputs."""
    x, y = images(data, 900, 0)
    model = trained(cnn(), x[:480], y[:480], 30)
    with torch.no_grad():
        h = model[:-1](torch.tensor(x)).double().numpy()
    head_model = model[-1].double()
    task = rayinf.Task(head_model, l2=1e-3)
    ours, picked = best(lambda: rayinf.acquire(task, (h[:480], y[:480]), h[480:], 30, curvature="exact"))
    assert isinstance(picked, rayinf.Selection)
    head = peer.Head(head_model.weight.detach(), head_model.bias.detach())
    given = (torch.tensor(h[:480]), torch.tensor(y[:480]))
    theirs, truth = best(lambda: peer.fi_active_dense(head, given, torch.tensor(h[480:]), 1e-3), 1)
    written, _ = best(lambda: peer.fi_active_written(head, given, torch.tensor(h[480:]), 1e-3), 1)
    curvature = best(lambda: _peer_curvature(head, given[0], 1e-3), 1)[0]
    stage = sum(v for k, v in picked.metadata["seconds"].items() if k not in _FITTING)
    values = picked.to_pandas().sort_values("row_id")["value"].to_numpy()
    return {
        **_compared(420, (stage, ours), (theirs - curvature, theirs), (written - curvature, written)),
        "largest_relative_difference": float(np.abs(values / truth.numpy() - 1).max()),
    }


def pool(data: str) -> dict[str, float]:
    """FI_active of 200,000 pool rows on 5,000 labelled ones."""
    x, y = table(data, 0)
    x, y = x[:205_000], y[:205_000]
    rows, rest = slice(0, 5000), slice(2000, 202_000)
    task = rayinf.logistic_regression((x[rows], y[rows]), l2=1e-3)
    whole, picked = best(lambda: rayinf.acquire(task, (x[rows], y[rows]), x[rest], 500, curvature="exact"), 2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert isinstance(picked, rayinf.Selection)
    bare = {}
    for dtype in (torch.float64, torch.float32):
        r_pn = torch.randn(80, 5000, dtype=dtype)
        seconds = [0.0, 0.0]
        for g in torch.randn(20_000, 80, dtype=dtype).split(200):
            begin = time.perf_counter()
            values = g @ r_pn
            between = time.perf_counter()
            torch.sort(values.square_(), dim=1)
            seconds = [seconds[0] + between - begin, seconds[1] + time.perf_counter() - between]
        bare[dtype] = [10 * s for s in seconds]
    return {
        "whole_seconds": whole,
        "measure_seconds": picked.metadata["seconds"]["scores"],
        "bare_products_float64": bare[torch.float64][0],
        "bare_sort_float64": bare[torch.float64][1],
        "bare_products_float32": bare[torch.float32][0],
        "bare_sort_float32": bare[torch.float32][1],
        "whole_to_bare_float32": whole / sum(bare[torch.float32]),
        "peak_mib": peak,
    }


def forest(data: str, rows: int) -> dict[str, float]:
    """All parameters of the CNN, EKFAC, input perturbed: 20 % of the rows and a forest, against all of them."""
    x, y = images(data, rows + 1000, 0)
    model = trained(cnn(), x[:rows], y[:rows], 3)
    task, train, valid = rayinf.Task(model, l2=1e-3), (x[:rows], y[:rows]), (x[rows:], y[rows:])
    whole, exact = best(lambda: rayinf.influence_measure(task, train, valid), 1)
    part, ranked = best(lambda: rayinf.influence_measure(task, train, valid, subsample=0.2), 1)
    assert isinstance(exact, rayinf.Scores)
    assert isinstance(ranked, rayinf.Scores)
    fi, rank = exact.to_numpy()[:, 0], ranked.to_pandas()["fi_rank"].to_numpy()
    scored = ranked.to_pandas()["fi"].notna().to_numpy()
    top = rows // 20
    most, chosen = (set(np.argsort(-v, kind="stable")[:top]) for v in (fi, rank))
    seconds = [{k: round(v, 2) for k, v in s.metadata["seconds"].items()} for s in (exact, ranked)]
    print("exact:", seconds[0], "\nsubsample:", seconds[1])
    fitted = [sum(v for k, v in s.items() if k in _FITTING) for s in seconds]
    return {
        "whole_seconds": whole,
        "subsample_seconds": part,
        "ratio": part / whole,
        "ratio_without_fitting": (part - fitted[1]) / (whole - fitted[0]),
        "forest_rank_correlation": ranked.metadata["forest_rank_correlation"],
        "rank_correlation_unscored": float(pd.Series(fi[~scored]).corr(pd.Series(rank[~scored]), method="spearman")),
        "overlap_of_top_5_percent": len(most & chosen) / top,
        "share_of_top_that_was_scored": statistics.mean(bool(scored[k]) for k in chosen),
    }


def _peer_curvature(head: peer.Head, x: torch.Tensor, l2: float) -> torch.Tensor:
    a = head.inputs(x)
    return peer.symmetric_inverse(peer.head_curvature(a, head.probabilities(a), l2))


def _compared(
    rows: int, ours: tuple[float, float], hoisted: tuple[float, float], written: tuple[float, float]
) -> dict[str, float]:
    """Rows a second of all three, and ratios, of the measure alone and of the whole."""
    out = {}
    for k, part in enumerate(("measure", "whole")):
        out[f"rows_a_second_{part}"] = rows / ours[k]
        for name, peer_seconds in (("hoisted", hoisted[k]), ("written", written[k])):
            out[f"{name}_rows_a_second_{part}"] = rows / peer_seconds
            out[f"ratio_{name}_{part}"] = peer_seconds / ours[k]
    return out


def main() -> None:
    """Run one comparison, print it and write it into `results/`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["util", "pairs", "pool", "forest"])
    parser.add_argument("--data", required=True, help="the Parquet file")
    parser.add_argument("--rows", type=int, default=6000, help="training rows of `forest`")
    given = parser.parse_args()
    verbs = {"util": util, "pairs": pairs, "pool": pool}
    found = forest(given.data, given.rows) if given.what == "forest" else verbs[given.what](given.data)
    for name, value in found.items():
        print(f"{name:<32}{value:,.4g}")
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"measure-{given.what}.json").write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
