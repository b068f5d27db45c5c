"""What `docs/inverse.md` reports: how well values predict retraining under several inverses, on MNIST and AG News.

    python tests/benchmarks/inverse.py --data mnist_train.parquet --out FOLDER [--settings mlp ...] [--device cuda]
    python tests/benchmarks/inverse.py --texts FOLDER --out FOLDER --settings transformer minilm --device cuda

For each setting one model is trained on all rows, and again on random halves of them under several seeds: side by side,
as one batch of models, or one after another where BatchNorm forbids that. The losses are kept in FOLDER and read at the
next call; values are then computed on the processor, those of transformers on the device. Prints the mean over rows of
validation of the rank correlation of predicted and retrained loss, the same of each class's sum, and the slope of
retrained on predicted class sums. `texts.py` makes the files of the transformers.
`rayinf.lds` measures the same of any task; this trains all halves at once, which takes seconds on a GPU.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import texts
import torch
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional

import rayinf

VALID = 300


@dataclass(frozen=True)
class Setting:
    """A model and its training.

    Attributes:
        kind: of model.
        fit: its training.
        rows: to train on.
        hidden: width of a perceptron.
        halves: of the rows, that models are trained on again.
        seeds: trainings a half.
        top: a transformer's last layers that are valued, beside its head.
        folder: of a transformer's files.
    """

    kind: str
    fit: rayinf.Fit
    rows: int = 2000
    hidden: int = 64
    halves: int = 40
    seeds: int = 2
    top: int = 0
    folder: Path = Path()

    @property
    def is_transformer(self) -> bool:
        """Whether its rows are texts."""
        return self.top > 0


def sgd(lr: float, epochs: int, momentum: float = 0.0, decay: float = 1e-3, batch: int = 32) -> rayinf.Fit:
    return rayinf.Fit("sgd", lr, "cosine", epochs, batch, momentum, decay)


def adam(kind: str, lr: float, epochs: int, decay: float, batch: int = 32) -> rayinf.Fit:
    return rayinf.Fit(kind, lr, "cosine", epochs, batch, 0.0, decay)


SETTINGS = {
    "mlp": Setting("mlp", sgd(0.1, 15)),
    "mlp-500": Setting("mlp", sgd(0.1, 15), rows=500),
    "mlp-6000": Setting("mlp", sgd(0.1, 15), rows=6000, hidden=32, halves=24),
    "mlp-momentum": Setting("mlp", sgd(0.02, 15, 0.9)),
    "mlp-adam": Setting("mlp", adam("adam", 1e-3, 15, 0.0)),
    "mlp-adamw": Setting("mlp", adam("adamw", 1e-3, 15, 1e-2)),
    "cnn-momentum": Setting("cnn", sgd(0.02, 10, 0.9), seeds=5),
    "cnn-sgd": Setting("cnn", sgd(0.1, 30), seeds=5),
    "cnn-adamw": Setting("cnn", adam("adamw", 2e-3, 10, 1e-2), seeds=5),
    "resnet-momentum": Setting("resnet", sgd(0.05, 15, 0.9, 5e-4, 64), halves=32),
    "resnet-adamw": Setting("resnet", adam("adamw", 3e-3, 12, 1e-2, 64), halves=24),
    "transformer": Setting("transformer", adam("adamw", 1e-3, 3, 1e-2), seeds=4, top=2),
    "minilm": Setting("minilm", adam("adamw", 1e-4, 3, 1e-2, 16), halves=24, top=2),
}
IMAGES = [name for name, setting in SETTINGS.items() if not setting.is_transformer]


class Residual(nn.Module):
    """Two convolutions with BatchNorm beside a shortcut."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.norm_one, self.norm_two, self.act, self.end = nn.BatchNorm2d(o), nn.BatchNorm2d(o), nn.ReLU(), nn.ReLU()
        shortcut = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))
        self.short = nn.Identity() if i == o and stride == 1 else shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.short(x) + self.norm_two(self.two(self.act(self.norm_one(self.one(x))))))


def build(setting: Setting, seed: int) -> nn.Module:
    """A model with fresh parameters, of flat pixels or of tokens."""
    if setting.is_transformer:
        return texts.build(setting.kind, setting.folder, seed)
    torch.manual_seed(seed)
    if setting.kind == "mlp":
        return nn.Sequential(nn.Linear(784, setting.hidden), nn.ReLU(), nn.Linear(setting.hidden, 10))
    image = nn.Unflatten(1, (1, 14, 14))
    if setting.kind == "cnn":
        first, second = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 24, 3, padding=1)
        ends = nn.Flatten(), nn.Linear(24 * 9, 10)
        return nn.Sequential(image, first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.MaxPool2d(2), *ends)
    first = nn.Conv2d(1, 12, 3, 1, 1, bias=False)
    blocks = Residual(12, 12, 1), Residual(12, 24, 2), Residual(24, 24, 2)
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)
    return nn.Sequential(image, first, nn.BatchNorm2d(12), nn.ReLU(), *blocks, *ends)


def read(path: Path | None, setting: Setting) -> tuple[Tensor, Tensor]:
    """Pixels `[n + VALID, d]` in [0, 1] and labels, averaged to 14 x 14 for convolutions; or a transformer's tokens."""
    if setting.is_transformer:
        return texts.read(setting.folder, setting.rows + VALID)
    assert path is not None
    table = pq.read_table(path)
    picked = np.random.default_rng(0).permutation(table.num_rows)[: setting.rows + VALID]
    held = table.take(picked)
    x = np.stack([np.frombuffer(b, np.uint8) for b in held["image"].to_pylist()]).astype(np.float32) / 255
    if setting.kind != "mlp":
        x = x.reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(len(x), -1)
    return torch.from_numpy(x), torch.from_numpy(held["label"].to_numpy().astype(np.int64))


def rate(fit: rayinf.Fit, step: int, steps: int) -> float:
    return fit.lr * 0.5 * (1 + math.cos(math.pi * step / steps))


def side_by_side(
    setting: Setting,
    x: Tensor,
    y: Tensor,
    sets: np.ndarray,
    seeds: list[int],
    after_epoch: Callable[[dict[str, Tensor]], None] = lambda parameters: None,
) -> dict[str, Tensor]:
    """Parameters `[models, ...]` after training each model on its rows `[models, rows]`."""
    fit, base, size = setting.fit, build(setting, 0).to(x.device), sets.shape[1]
    starts = [{k: v for k, v in build(setting, s).named_parameters() if v.requires_grad} for s in seeds]
    p = {k: torch.stack([s[k].detach().to(x.device) for s in starts]) for k in starts[0]}
    first, second = ({k: torch.zeros_like(v) for k, v in p.items()} for _ in range(2))
    orders = [np.random.default_rng([s, 7]) for s in seeds]
    steps, step = fit.epochs * -(-size // fit.batch_size), 0

    def loss(params: dict[str, Tensor], rows: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(torch.func.functional_call(base, params, (rows,)), labels)

    gradient = torch.func.vmap(torch.func.grad(loss))
    for _ in range(fit.epochs):
        order = torch.from_numpy(np.stack([s[o.permutation(size)] for s, o in zip(sets, orders, strict=True)]))
        for at in order.to(x.device).split(fit.batch_size, 1):
            g, lr = gradient(p, x[at], y[at]), rate(fit, step, steps)
            step += 1
            for k in p:
                own = g[k] if fit.optimizer == "adamw" else g[k] + fit.weight_decay * p[k]
                if fit.optimizer == "sgd":
                    first[k] = fit.momentum * first[k] + own
                    p[k] = p[k] - lr * first[k]
                    continue
                first[k] = 0.9 * first[k] + 0.1 * own
                second[k] = 0.999 * second[k] + 0.001 * own.square()
                kept = p[k] * (1 - lr * fit.weight_decay) if fit.optimizer == "adamw" else p[k]
                mean, spread = first[k] / (1 - 0.9**step), (second[k] / (1 - 0.999**step)).sqrt()
                p[k] = kept - lr * mean / (spread + 1e-8)
        after_epoch(p)
    return p


def one_by_one(setting: Setting, x: Tensor, y: Tensor, rows: np.ndarray, seed: int) -> nn.Module:
    """One model trained on its rows."""
    fit, model, order = setting.fit, build(setting, seed).to(x.device).train(), np.random.default_rng([seed, 7])
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), fit.lr, weight_decay=fit.weight_decay)
    if fit.optimizer == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), fit.lr, fit.momentum, weight_decay=fit.weight_decay)
    steps, step = fit.epochs * -(-len(rows) // fit.batch_size), 0
    for _ in range(fit.epochs):
        for at in torch.from_numpy(rows[order.permutation(len(rows))]).to(x.device).split(fit.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = rate(fit, step, steps)
            optimizer.zero_grad()
            functional.cross_entropy(model(x[at]), y[at]).backward()
            optimizer.step()
            step += 1
    return model.eval()


def retrained(setting: Setting, x: Tensor, y: Tensor, device: str) -> dict[str, Any]:
    """The model of all rows, which rows each half keeps, and losses `[halves, seeds, VALID]`."""
    n, rng = setting.rows, np.random.default_rng(1)
    kept = np.stack([np.sort(rng.choice(n, n // 2, replace=False)) for _ in range(setting.halves)])
    x, y = x.to(device), y.to(device)

    def losses(logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits, y[n:], reduction="none").detach().cpu()

    keys = [(k, 200 + s) for k in range(setting.halves) for s in range(setting.seeds)]
    if setting.kind == "resnet":
        state = one_by_one(setting, x, y, np.arange(n), 100).state_dict()
        with torch.no_grad():
            found = [losses(one_by_one_model(x[n:])) for one_by_one_model in halves_of(setting, x, y, kept, keys)]
    else:
        base = build(setting, 0).to(device)
        whole = side_by_side(setting, x, y, np.arange(n)[None], [100])
        state, found = {**base.state_dict(), **{k: v[0] for k, v in whole.items()}}, []
        for start in range(0, len(keys), 40 if device == "cpu" else len(keys)):
            some = keys[start : start + (40 if device == "cpu" else len(keys))]
            p = side_by_side(setting, x, y, kept[[k for k, _ in some]], [s for _, s in some])
            call = torch.func.vmap(lambda q: torch.func.functional_call(base, q, (x[n:],)), chunk_size=8)
            logits = call(p).detach()
            found += [losses(z) for z in logits]
    shape = (setting.halves, setting.seeds, VALID)
    return {"state": {k: v.cpu() for k, v in state.items()}, "kept": kept, "losses": torch.stack(found).view(shape)}


def halves_of(setting: Setting, x: Tensor, y: Tensor, kept: np.ndarray, keys: list[tuple[int, int]]) -> Any:
    """The models of the halves, one after another."""
    for k, seed in keys:
        with torch.enable_grad():
            yield one_by_one(setting, x, y, kept[k], seed)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """The mean over columns of Spearman's, `[halves, columns]`."""
    ra, rb = (np.apply_along_axis(rankdata, 0, v) for v in (a, b))
    ra, rb = ra - ra.mean(0), rb - rb.mean(0)
    return float(np.nanmean((ra * rb).sum(0) / np.sqrt((ra**2).sum(0) * (rb**2).sum(0))))


def ceiling(losses_ksv: Tensor) -> float:
    """The score of one half of the seeds for the other, corrected for their number."""
    seeds = losses_ksv.shape[1]
    half = seeds // 2
    r = correlation(losses_ksv[:, :half].mean(1).numpy(), losses_ksv[:, half : 2 * half].mean(1).numpy())
    more = seeds / half
    return math.sqrt(max(more * r / (1 + (more - 1) * r), 0))


def report(name: str, values: np.ndarray, held: dict[str, Any], labels: np.ndarray) -> None:
    """A line: scores by row and by class, and the slope."""
    gone = np.ones((len(held["kept"]), len(values)), bool)
    np.put_along_axis(gone, held["kept"], False, 1)
    predicted, measured = gone @ values, held["losses"].mean(1).numpy()
    sums = [np.stack([v[:, labels == c].sum(1) for c in range(10)], 1) for v in (predicted, measured)]
    p, m = (v - v.mean(0) for v in sums)
    slope = (p * m).sum() / (p**2).sum()
    print(f"  {name:<24} {correlation(predicted, measured):6.3f} {correlation(*sums):6.3f} {slope:6.2f}", flush=True)


def to_table(x: Tensor, y: Tensor) -> pa.Table:
    """Rows with a column `row` that numbers them, to value them for each validation row apart."""
    flat = pa.FixedSizeListArray.from_arrays(pa.array(x.numpy().reshape(-1)), x.shape[1])
    return pa.table({"features": flat, "label": y.numpy(), "row": np.arange(len(y))})


def by_row(scores: rayinf.Scores) -> np.ndarray:
    """Values of `slice:row`, `[n, VALID]`, in the order of the validation rows."""
    columns = sorted(scores.value_columns, key=lambda c: int("".join(filter(str.isdigit, c))))
    return scores.select(columns).to_pandas()[columns].to_numpy(float)


def task_of(setting: Setting, state: dict[str, Tensor], device: str) -> rayinf.Task:
    """The trained model and what is valued of it; on the processor where it is small."""
    model = build(setting, 0)
    model.load_state_dict(state)
    if not setting.is_transformer:
        return rayinf.Task(model.eval(), fit=setting.fit, parameters="supported")
    named = texts.linear_layers(model, setting.top)
    return rayinf.Task(model.eval().to(device), fit=setting.fit, parameters=named, mask=texts.words)


def evaluate(setting: Setting, x: Tensor, y: Tensor, held: dict[str, Any], device: str) -> None:
    """All inverses."""
    n, table, task = setting.rows, to_table(x, y), task_of(setting, held["state"], device)
    with tempfile.TemporaryDirectory() as folder:

        def values(of: rayinf.Task, **how: Any) -> np.ndarray:
            factors = None if how.get("curvature") == "identity" else folder
            return by_row(rayinf.influence(of, table[:n], table[n:], "slice:row", factors=factors, **how))

        first = rayinf.influence(task, table[:n], table[n:], out=folder)
        times = first.metadata["training_time"]
        ends = (min(times.values()), max(times.values())) if isinstance(times, dict) else (times, times)
        print(f"  h {first.metadata.get('held_out_curvature', 1):.1f}, T {ends[0]:.3g} to {ends[1]:.3g}")
        labels = y[n:].numpy()
        report("identity", values(task, curvature="identity"), held, labels)
        report("layer_mean:0.1", values(task, damping="layer_mean:0.1"), held, labels)
        report("unrolled", values(task, inverse="unrolled"), held, labels)
        report("auto", values(task), held, labels)
        report("auto, without a fit", values(replace(task, fit=None)), held, labels)


def main() -> None:
    """Every setting."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="MNIST")
    parser.add_argument("--texts", type=Path, help="the folder that texts.py made")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--settings", nargs="+", default=IMAGES, choices=SETTINGS)
    parser.add_argument("--top", type=int, help="a transformer's last layers that are valued")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    for name in options.settings:
        kind, given = ("--texts", options.texts) if SETTINGS[name].is_transformer else ("--data", options.data)
        if given is None:
            parser.error(f"{name} needs {kind}")
    warnings.simplefilter("ignore")
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"  {'inverse':<24} {'rows':>6} {'class':>6} {'slope':>6}")
    for name in options.settings:
        setting, file = SETTINGS[name], options.out / f"{name}.pt"
        if setting.is_transformer:
            setting = replace(setting, folder=options.texts, top=options.top or setting.top)
        x, y = read(options.data, setting)
        if not file.exists():
            torch.save(retrained(setting, x, y, options.device), file)
        held = torch.load(file, weights_only=False)
        print(f"{name}: ceiling {ceiling(held['losses']):.2f}")
        evaluate(setting, x, y, held, options.device)


if __name__ == "__main__":
    main()
