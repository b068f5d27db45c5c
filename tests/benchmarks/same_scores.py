"""Whether this tree gives the numbers of another commit, to the last bit: a fixed set of runs over all verbs.

    python tests/benchmarks/same_scores.py COMMIT [--allow CASE ...]

Checks COMMIT out beside the present tree, computes every case in each, in processes of their own with one thread, and
compares the bytes. Every argument that a later version may give another default is explicit. Cases that differ by
design are named with `--allow`: their largest relative difference is printed all the same.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROWS, VALID, WIDTH, CLASSES = 240, 60, 6, 3
HOME = Path(__file__).resolve().parent.parent.parent
DAMPED: dict[str, Any] = {"fisher": "true", "damping": 0.01, "seed": 3}
# Above the most negative eigenvalue of the untrained models.
EXACT = {**DAMPED, "damping": 10.0}
STRATEGIES = (
    *("fi", "iv", "isal", "tree", "bald", "batchbald", "entropy", "margin", "least_confidence", "random"),
    *("fi_batch", "badge", "coreset", "typiclust"),
)


def table(rows: int, seed: int) -> Any:
    """Correlated features, labels, ids that are not positions, and a group."""
    import pyarrow as pa

    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(rows, WIDTH)) @ np.random.default_rng(9).normal(size=(WIDTH, WIDTH))).astype(np.float32)
    y = (x[:, :CLASSES] + rng.normal(size=(rows, CLASSES))).argmax(1)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), WIDTH)
    columns = {"features": flat, "label": y, "row_id": rng.permutation(rows) + 1000 * seed}
    return pa.table({**columns, "group": rng.integers(0, 2, rows), "two": (x[:, 0] > 0).astype(np.int64)})


def task(kind: str = "mlp", **more: Any) -> Any:
    """A small model, seeded, never trained: an MLP, one with dropout, a head, or a convolution."""
    import torch
    from torch import nn

    import rayinf

    torch.manual_seed(0)
    nets: dict[str, Callable[[], nn.Module]] = {
        "mlp": lambda: nn.Sequential(nn.Linear(WIDTH, 7), nn.Tanh(), nn.Linear(7, CLASSES)),
        "dropout": lambda: nn.Sequential(nn.Linear(WIDTH, 7), nn.Tanh(), nn.Dropout(0.3), nn.Linear(7, CLASSES)),
        "head": lambda: nn.Sequential(nn.Linear(WIDTH, CLASSES)),
        "conv": lambda: nn.Sequential(
            nn.Unflatten(1, (1, WIDTH)),
            nn.Conv1d(1, 4, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * (WIDTH - 2), CLASSES),
        ),
    }
    fit = rayinf.Fit("sgd", lr=0.05, schedule="cosine", epochs=2, batch_size=32, momentum=0.9, weight_decay=0.0)
    given = {"features": "features", "label": "label", "row_id": "row_id", "l2": 1e-3, "fit": fit, **more}
    return rayinf.Task(nets[kind]().eval(), **given)


def values(scores: Any) -> dict[str, np.ndarray]:
    """All columns of scores, and those of the halves."""
    found = {"ids": np.asarray(scores.table["row_id"])}
    halves = scores.halves or ()
    for k, held in enumerate((scores, *halves)):
        found |= {f"{k}/{column}": np.asarray(held.table[column], float) for column in held.columns}
    return found


def numbers(found: Any) -> dict[str, np.ndarray]:
    """The numeric columns of a table, but for seconds."""
    frame = found.to_pandas() if hasattr(found, "to_pandas") else found
    return {c: frame[c].to_numpy(float) for c in frame.select_dtypes("number").columns if "seconds" not in c}


def influence(
    objective: Any, curvature: str, kind: str = "mlp", rows: tuple[Any, Any] | None = None, **more: Any
) -> Any:
    import rayinf

    train, valid = rows or (table(ROWS, 1), table(VALID, 2))
    given = {**(EXACT if curvature == "exact" else DAMPED), "halves": False, "batch_size": 32, **more}
    made = given.pop("task", None) or task(kind)
    return values(rayinf.influence(made, train, valid, objective=objective, curvature=curvature, **given))


def fairness() -> Any:
    import rayinf

    two = rayinf.logistic_regression(table(ROWS, 1), 1e-2, "features", "two", "group", "row_id")
    gaps = ["demographic_parity", "equal_opportunity", "robustness", "total"]
    return influence(gaps, "exact", task=two, damping=0.0)


def by_class() -> Any:
    import rayinf

    return rayinf.influence(
        task(), table(ROWS, 1), table(VALID, 2), objective="category", curvature="ekfac", halves=True, **DAMPED
    )


def self_influence(curvature: str) -> Any:
    import rayinf

    given = EXACT if curvature == "exact" else DAMPED
    return values(rayinf.self_influence(task(), table(ROWS, 1), curvature=curvature, batch_size=32, **given))


def pairs() -> Any:
    import rayinf

    found = rayinf.pairs(task(), table(ROWS, 1), table(VALID, 2), top=5, curvature="ekfac", batch_size=32, **DAMPED)
    return {c: np.asarray(found.table[c]) for c in ("valid_row_id", "rank", "row_id", "value")}


def baseline(method: Any, **more: Any) -> Any:
    import torch

    import rayinf

    if method in ("tracin", "trak"):
        state = task().build().state_dict()
        more["checkpoints"] = [state, {k: v + 0.1 * torch.sign(v) for k, v in state.items()}]
    valid = None if isinstance(method, list) else table(VALID, 2)
    given = {"objective": ["total", "category"], "batch_size": 32, "seed": 3, **more}
    return values(rayinf.baseline(task(), table(ROWS, 1), valid, method=method, **given))


def measure(curvature: str, kind: str = "mlp", **more: Any) -> Any:
    import rayinf

    shared = EXACT if curvature == "exact" else DAMPED
    given = {"rank": None, "subsample": 1.0, "batch_size": 32, **shared, **more}
    return values(rayinf.influence_measure(task(kind), table(ROWS, 1), table(VALID, 2), curvature=curvature, **given))


def acquire(strategy: str) -> Any:
    import rayinf

    valid = table(40, 4) if strategy in ("iv", "tree") else None
    picked = rayinf.acquire(
        task("dropout"), table(VALID, 2), table(ROWS, 1), n=12, strategy=strategy, valid=valid, curvature="ekfac",
        aggregate="trimmed_mean", rank=None, subsample=1.0, samples=5, batch_size=32, **DAMPED,
    )  # fmt: skip
    return {"ids": np.asarray(picked.row_ids)}


def active_learning() -> Any:
    import rayinf

    pool = table(ROWS, 1)
    labels = dict(zip(pool["row_id"].to_pylist(), pool["label"].to_pylist(), strict=True))
    history = rayinf.active_learning(
        task(), table(VALID, 2), pool, lambda ids: [labels[i] for i in ids.tolist()], table(50, 5), rounds=2, n=8,
        strategy="entropy", seed=3,
    )  # fmt: skip
    return {"accuracy": np.asarray(history.table["accuracy"], float)}


def trim() -> Any:
    import rayinf

    chosen = rayinf.trim(by_class(), budget=20, by="category_0", floor=0)
    return {"removed": np.asarray(chosen.removed), "kept": np.asarray(chosen.kept)}


def trim_rounds() -> Any:
    import rayinf

    fitted = rayinf.logistic_regression(table(ROWS, 1), 1e-2, "features", "label", None, "row_id")
    rounds = rayinf.trim_rounds(
        fitted, table(ROWS, 1), table(VALID, 2), rounds=2, curvature="exact", damping=0.0, seed=3
    )
    return {**numbers(rounds.table), "round_of": np.asarray(rounds.round_of)}


def trim_rounds_total() -> Any:
    import rayinf

    fitted = rayinf.logistic_regression(table(ROWS, 1), 1e-2, "features", "label", None, "row_id")
    rounds = rayinf.trim_rounds(
        fitted, table(ROWS, 1), table(VALID, 2), objective="total", budget=9, held_out=table(50, 5), rounds=2,
        curvature="exact", damping=0.0, seed=3,
    )  # fmt: skip
    return {**numbers(rounds.table), "round_of": np.asarray(rounds.round_of)}


def label_issues() -> Any:
    import rayinf

    found = rayinf.label_issues(by_class(), task(), table(ROWS, 1), by="category_0", batch_size=32)
    return {"ids": np.asarray(found.table["row_id"]), **numbers(found)}


def predict_removal(curvature: str) -> Any:
    import rayinf

    given = EXACT if curvature == "exact" else DAMPED
    sets = {"first": np.arange(ROWS) < 30, "others": np.arange(ROWS) % 7 == 0}
    found = rayinf.predict_removal(
        task(), table(ROWS, 1), table(VALID, 2), sets, ["total", "category"], curvature, batch_size=32, **given
    )
    return numbers(found)


def reweight_lp() -> Any:
    import rayinf

    found = rayinf.reweight_lp(by_class(), [0], alpha=0.5, upper=2.0, radius=0.4, slack="scaled")
    return {"weights": np.asarray(found.weights), "prices": np.asarray(found.prices, float)}


def pareto_reweight() -> Any:
    import rayinf

    search = rayinf.Search(
        elites=1, mutated_elites=1, randoms=1, crossover_children=1, iterations=2, lr=0.01, radius=0.4, prefer=2.0
    )
    found = rayinf.pareto_reweight(
        task(), table(ROWS, 1), table(VALID, 2), by_class(), [0], mode="direct", search=search, seed=3
    )
    return {"weights": np.asarray(found.weights), **numbers(found.candidates)}


def ceiling() -> Any:
    import rayinf

    found = rayinf.ceiling(by_class(), resamples=50, seed=3)
    return {"gain": np.asarray(found.gain), "cross_fit": np.asarray(found.cross_fit)}


def removal_check() -> Any:
    import rayinf

    found = rayinf.removal_check(
        task(), table(ROWS, 1), table(VALID, 2), table(50, 5), by_class(), share=0.1, seeds=1, seed=3
    )
    return numbers(found.table)


def lds() -> Any:
    import rayinf

    found = rayinf.lds(
        task(), table(ROWS, 1), table(VALID, 2), by_class(), subsets=5, share=0.5, seeds=2, objective=None, seed=3
    )
    return {**numbers(found.table), "measured": found.effects.measured}


def retrain() -> Any:
    import rayinf

    fitted = rayinf.retrain(task(), table(ROWS, 1), seed=3)
    told = rayinf.evaluate(fitted, table(VALID, 2), "category")
    return {k: np.asarray(v, float) for k, v in told.items() if isinstance(v, int | float)}


def tree() -> Any:
    import rayinf

    x = np.asarray(table(ROWS, 1)["features"].to_pylist())
    y, worth = np.asarray(table(ROWS, 1)["label"]), by_class().to_numpy()[:, 0]
    found = rayinf.InfluenceTree(max_depth=4, shrinkage=10.0, min_samples_leaf=1, random_state=0).fit(x, y, worth)
    return {"predicted": found.predict(x, y)}


CASES: dict[str, Callable[[], Any]] = {
    **{
        f"influence {curvature} {kind}": lambda c=curvature, k=kind: influence(
            ["total", "category", "slice:group"], c, k
        )
        for curvature in ("ekfac", "kfac", "ggn", "exact", "identity")
        for kind in ("mlp", "conv", "head")
    },
    "influence empirical": lambda: influence("total", "ekfac", fisher="empirical"),
    "influence halves": lambda: influence("category", "ekfac", halves=True),
    "influence float64": lambda: influence("total", "ekfac", precision="fp64"),
    "influence last": lambda: influence("total", "ekfac", task=task(parameters="last")),
    "influence fairness": fairness,
    "self_influence ekfac": lambda: self_influence("ekfac"),
    "self_influence exact": lambda: self_influence("exact"),
    "pairs": pairs,
    "baseline of the row": lambda: baseline(["loss", "margin", "grad_norm", "random"]),
    "baseline grad_dot": lambda: baseline("grad_dot"),
    "baseline grad_cos": lambda: baseline("grad_cos"),
    "baseline tracin": lambda: baseline("tracin", rates=[0.5, 0.1]),
    "baseline trak": lambda: baseline("trak", dim=16),
    "baseline knn_shapley": lambda: baseline("knn_shapley", neighbors=5, space="embedding"),
    "baseline loo": lambda: baseline("loo", only=[1000, 1001, 1002], seeds=1, utility="loss"),
    **{f"measure {c} {k}": lambda c=c, k=k: measure(c, k) for c in ("ekfac", "exact") for k in ("mlp", "head")},
    "measure rank": lambda: measure("ekfac", rank=2),
    "measure forest": lambda: measure("ekfac", subsample=0.5),
    **{f"acquire {s}": lambda s=s: acquire(s) for s in STRATEGIES},
    "active_learning": active_learning,
    "trim": trim,
    "trim_rounds": trim_rounds,
    "trim_rounds total": trim_rounds_total,
    "label_issues": label_issues,
    **{f"predict_removal {c}": lambda c=c: predict_removal(c) for c in ("ekfac", "exact")},
    "reweight_lp": reweight_lp,
    "pareto_reweight": pareto_reweight,
    "ceiling": ceiling,
    "removal_check": removal_check,
    "lds": lds,
    "retrain": retrain,
    "tree": tree,
}


def compute(out: Path) -> None:
    """All cases in this process."""
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = {f"{name}|{key}": held for name, case in CASES.items() for key, held in case().items()}
    np.savez(out, **found)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """0 for equal bytes; else the largest difference over the largest value; infinite for other shapes."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return np.inf
    if a.tobytes() == b.tobytes():
        return 0.0
    a, b = a.astype(float), b.astype(float)
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return np.inf
    return float(np.nanmax(np.abs(a - b), initial=0) / max(np.nanmax(np.abs(a), initial=0), 1e-300)) or 1e-300


def compare(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> dict[str, float]:
    """The largest difference of each case."""
    worst: dict[str, float] = {}
    for key in sorted({*before, *after}):
        case = key.split("|")[0]
        found = difference(before[key], after[key]) if key in before and key in after else np.inf
        worst[case] = max(worst.get(case, 0.0), found)
    return worst


def run(tree: Path, out: Path) -> dict[str, np.ndarray]:
    """All cases of a tree, in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--compute", str(out)]
    subprocess.run(command, env=env, check=True, cwd=out.parent, stderr=subprocess.DEVNULL)
    with np.load(out) as held:
        return dict(held)


def main() -> None:
    """Both trees, compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?")
    parser.add_argument("--allow", nargs="*", default=[])
    parser.add_argument("--compute", type=Path)
    options = parser.parse_args()
    if options.compute:
        compute(options.compute)
        return
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "old"
        subprocess.run(["git", "clone", "-q", str(HOME), str(old)], check=True)
        subprocess.run(["git", "-C", str(old), "checkout", "-q", options.commit], check=True)
        worst = compare(run(old, Path(folder) / "old.npz"), run(HOME, Path(folder) / "new.npz"))
    for case, found in worst.items():
        print(f"{case:<40} {'equal' if found == 0 else f'differs by {found:.1e}'}")
    wrong = [c for c, found in worst.items() if found and c not in options.allow]
    print(f"{len(worst)} cases, {sum(v == 0 for v in worst.values())} equal to the last bit")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
