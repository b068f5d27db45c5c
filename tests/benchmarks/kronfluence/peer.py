"""Benchmark peer: EKFAC influence scores of an exported MLP with kronfluence 1.0.1.

Measures, on one export (an MLP of ``nn.Linear`` and ReLU, its training rows and its validation rows),
the wall-clock seconds kronfluence takes

* to fit EKFAC on all training rows: covariances, eigendecomposition and lambdas, each timed alone, and
* to score every training row against every class: column ``c`` is the preconditioned inner product of
  the row's loss gradient with the summed loss gradient of the validation rows of class ``c``.

The columns are computed in two ways, and both are timed:

* ``per_class``: one run per class over that class's rows, with ``aggregate_query_gradients=True``;
* ``grouped``: one run for all classes, a query being all the rows of one class laid out as a sequence.
  kronfluence sums a linear layer's gradient over the sequence, so a query's gradient is the class's.

Everything not named here stays at kronfluence's defaults; damping is its heuristic of 0.1 x the mean
eigenvalue per layer. Reading the export and building the model are not timed; writing factors and
scores to the (temporary) cache folder is, as kronfluence offers no way around it.

    python peer.py EXPORT_DIR --fisher empirical --threads 2 --out OUT.json

writes OUT.json (seconds, rows per second, versions, settings; ``score`` is the faster of the two ways,
``total`` is ``fit`` plus ``score``) and OUT.npz (``scores``, [rows, classes], a row's help to a class > 0).
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from kronfluence.utils.dataset import DataLoaderKwargs
from kronfluence.utils.state import release_memory
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset

Batch = tuple[Tensor, Tensor]

FACTORS = "ekfac"
PADDING = -100  # the label cross entropy ignores: fills up classes with fewer rows than the largest

# The settings that suit kronfluence best on a CPU, measured on MNIST rows and a 784-512-256-10 MLP with 2
# threads of a shared 2-core machine (fastest of three interleaved rounds, seconds).
#
# Fitting lambdas on 1,024 rows, by batch size (the covariances take 0.4 s at each of them):
#     16: 13.8   32: 13.6   64: 12.4   128: 12.8   256: 13.9   512: 16.4   (1,000, one round: 26.1)
# Large batches lose to the memory traffic of per-row gradients. With use_iterative_lambda_aggregation,
# 128, 256 and 512 rows take 12.2, 12.4 and 13.0: within the noise of 64 rows without it, kronfluence's
# default, which is kept.
FIT_BATCH_SIZE = 64
#
# Scoring 2,048 rows against 10 classes of 1,000 validation rows, by batch size of the training rows:
#                 64     256    512   1,000  2,048
#     per_class   7.6    7.2    6.9    7.4    7.1
#     grouped     1.3    1.1    1.3    1.1    1.1
# A query batch holds all queries of its run. The third way, a run with one query per validation row whose
# scores are summed per class afterwards, gives the same scores (to 3e-7 of the largest) in 61 s (one round);
# it is not in this file.
SCORE_BATCH_SIZE = 1000


class ClassificationTask(Task):
    """Summed cross entropy, as the training loss and as the measurement."""

    def compute_train_loss(self, batch: Batch, model: nn.Module, sample: bool = False) -> Tensor:
        inputs, labels = batch
        logits = model(inputs)
        if sample:
            with torch.no_grad():
                labels = torch.multinomial(torch.softmax(logits, dim=-1), num_samples=1).flatten()
        return nn.functional.cross_entropy(logits, labels, reduction="sum")

    def compute_measurement(self, batch: Batch, model: nn.Module) -> Tensor:
        inputs, labels = batch
        logits = model(inputs)
        return nn.functional.cross_entropy(
            logits.flatten(0, -2), labels.flatten(), ignore_index=PADDING, reduction="sum"
        )


class Rows(Dataset):
    """Rows held in memory, handed to the loader a batch at a time: saves collating them row by row."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs = inputs
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        return self.inputs[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> Batch:
        return self.inputs[indices], self.labels[indices]


def whole_batch(batch: Batch) -> Batch:
    """Collate function for ``Rows``, whose batches come collated."""
    return batch


def read_model(path: Path) -> nn.Sequential:
    """Rebuilds the MLP from its weights: keys ``0.weight``, ``0.bias``, ``2.weight``, ..."""
    weights = load_file(path)
    positions = sorted(int(key.split(".")[0]) for key in weights if key.endswith(".weight"))
    layers: list[nn.Module] = []
    for position in positions:
        if layers:
            layers.append(nn.ReLU())
        width_out, width_in = weights[f"{position}.weight"].shape
        layers.append(nn.Linear(width_in, width_out, bias=f"{position}.bias" in weights))
    model = nn.Sequential(*layers)
    model.load_state_dict(weights)
    return model


def read_rows(path: Path) -> tuple[Rows, Rows]:
    """The training and the validation rows of an export."""
    with np.load(path) as rows:
        train, valid = (
            Rows(torch.from_numpy(rows[f"{part}_x"]), torch.from_numpy(rows[f"{part}_y"]))
            for part in ("train", "valid")
        )
    return train, valid


def open_analyzer(export: Path, cache: Path) -> Analyzer:
    """An analyzer on a freshly loaded model, so that no stage profits from what another left in it."""
    task = ClassificationTask()
    model = prepare_model(read_model(export / "model.safetensors"), task)
    analyzer = Analyzer("peer", model, task, cpu=True, disable_tqdm=True, output_dir=str(cache))
    analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=whole_batch))
    return analyzer


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Runs a function; its wall-clock seconds and what it returned."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def fit(analyzer: Analyzer, train: Rows, fisher: str, batch_size: int) -> dict[str, float]:
    """Fits EKFAC on all training rows; seconds per stage."""
    arguments = FactorArguments(
        strategy="ekfac",
        use_empirical_fisher=fisher == "empirical",
        covariance_max_examples=None,
        lambda_max_examples=None,
    )
    data = {"dataset": train, "per_device_batch_size": batch_size}
    stages = {
        "covariance": lambda: analyzer.fit_covariance_matrices(FACTORS, factor_args=arguments, **data),
        "eigendecomposition": lambda: analyzer.perform_eigendecomposition(FACTORS, factor_args=arguments),
        "lambda": lambda: analyzer.fit_lambda_matrices(FACTORS, factor_args=arguments, **data),
    }
    seconds = {stage: timed(run)[0] for stage, run in stages.items()}
    return {**seconds, "fit": sum(seconds.values())}


def pairwise(analyzer: Analyzer, name: str, queries: Rows, train: Rows, batch_size: int, aggregate: bool) -> Tensor:
    """One kronfluence run, all queries in one batch: scores [queries, rows], [1, rows] if aggregated."""
    analyzer.compute_pairwise_scores(
        name,
        FACTORS,
        query_dataset=queries,
        train_dataset=train,
        per_device_query_batch_size=len(queries),
        per_device_train_batch_size=batch_size,
        score_args=ScoreArguments(damping_factor=None, aggregate_query_gradients=aggregate),
    )
    return analyzer.load_pairwise_scores(name)["all_modules"]


def score_per_class(analyzer: Analyzer, train: Rows, valid: Rows, classes: int, batch_size: int) -> np.ndarray:
    """Scores [rows, classes], one run per class."""
    columns = torch.zeros(classes, len(train))
    for label in range(classes):
        members = (valid.labels == label).nonzero().flatten()
        if len(members):
            queries = Rows(valid.inputs[members], valid.labels[members])
            columns[label] = pairwise(analyzer, f"class_{label}", queries, train, batch_size, True)[0]
    return columns.T.contiguous().numpy()


def score_grouped(analyzer: Analyzer, train: Rows, valid: Rows, classes: int, batch_size: int) -> np.ndarray:
    """Scores [rows, classes], one run: query ``c`` is the sequence of all rows of class ``c``, padded."""
    longest = int(torch.bincount(valid.labels, minlength=classes).max())
    inputs = torch.zeros(classes, longest, valid.inputs.shape[1])
    labels = torch.full((classes, longest), PADDING)
    for label in range(classes):
        members = (valid.labels == label).nonzero().flatten()
        inputs[label, : len(members)] = valid.inputs[members]
        labels[label, : len(members)] = label
    scores = pairwise(analyzer, "grouped", Rows(inputs, labels), train, batch_size, False)
    return scores.T.contiguous().numpy()


def measure(options: argparse.Namespace, cache: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Fits, scores both ways; the report (``score`` is the faster way) and the per-class scores."""
    train, valid = read_rows(options.export / "rows.npz")
    widths = [layer.out_features for layer in read_model(options.export / "model.safetensors")[::2]]
    widths.insert(0, train.inputs.shape[1])
    seconds = fit(open_analyzer(options.export, cache), train, options.fisher, options.batch_size)
    scores = {}
    ways = {"per_class": score_per_class, "grouped": score_grouped}
    for way, score in ((w, ways[w]) for w in (ways if options.way is None else [options.way])):
        analyzer = open_analyzer(options.export, cache)
        arguments = (analyzer, train, valid, widths[-1], options.score_batch_size)
        seconds[f"score_{way}"], scores[way] = timed(lambda score=score, a=arguments: score(*a))
    seconds["score"] = min(seconds[f"score_{way}"] for way in scores)
    seconds["total"] = seconds["fit"] + seconds["score"]
    first, last = next(iter(scores.values())), next(reversed(scores.values()))
    gap = np.abs(first - last).max()
    report = {
        "peer": "kronfluence",
        "fisher": options.fisher,
        "rows": {"train": len(train), "valid": len(valid)},
        "widths": widths,
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "rows_per_second": {stage: round(len(train) / value, 1) for stage, value in seconds.items()},
        "largest_gap_between_ways": float(gap / np.abs(first).max()),
    }
    return report, first


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time EKFAC fitting and scoring with kronfluence.")
    parser.add_argument("export", type=Path, help="folder with model.safetensors and rows.npz")
    parser.add_argument("--fisher", choices=("empirical", "true"), required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the report, a .json file")
    parser.add_argument("--batch-size", type=int, default=FIT_BATCH_SIZE, help="rows per batch in fitting")
    parser.add_argument(
        "--score-batch-size", type=int, default=SCORE_BATCH_SIZE, help="training rows per batch in scoring"
    )
    parser.add_argument("--way", choices=("per_class", "grouped"), help="one of the two alone; None: both")
    parser.add_argument("--seed", type=int, default=0, help="for the labels drawn under --fisher true")
    return parser.parse_args(arguments)


def main() -> None:
    """Measures and writes the report and the scores."""
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    release_memory()  # kronfluence calls this in every stage; its first call loads torch's compiler, over 1 s
    with tempfile.TemporaryDirectory() as cache:
        report, scores = measure(options, Path(cache))
    packages = ("kronfluence", "torch", "accelerate", "opt-einsum", "numpy")
    report["versions"] = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    report["threads"] = torch.get_num_threads()
    report["settings"] = {
        "batch_size": options.batch_size,
        "score_batch_size": options.score_batch_size,
        "seed": options.seed,
        "damping_factor": None,
        "strategy": "ekfac",
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    np.savez(options.out.with_suffix(".npz"), scores=scores)
    print(json.dumps(report["seconds"]))


if __name__ == "__main__":
    main()
