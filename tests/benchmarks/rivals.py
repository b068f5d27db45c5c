"""One network's values beside those of several, TRAK of ten and kronfluence 1.0.1: which predict retraining best.

    python tests/benchmarks/rivals.py --data mnist_train.parquet --out FOLDER [--setting mlp] [--peer-python PYTHON]

The settings, halves and trainings are those of `inverse.py`, which keeps them in FOLDER too. Ten networks are trained
on all rows, from other starts and in other orders; the first one is that of the lines of one model, and it is kept
after every second epoch, too. Values are kept in FOLDER and read at the next call. The peer runs at its default in an
environment of its own (`kronfluence/.venv`, made at the first run). Perceptrons alone: the peer reads its model from an
export.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare import HERE, peer_python
from inverse import SETTINGS, Setting, build, by_row, ceiling, read, report, retrained, side_by_side, to_table
from safetensors.torch import save_file
from torch import Tensor

import rayinf

MODELS, SOME, DIM = 10, 5, 512
PERCEPTRONS = [name for name, setting in SETTINGS.items() if setting.kind == "mlp"]
States = list[dict[str, Tensor]]


def trained(setting: Setting, x: Tensor, y: Tensor, device: str) -> dict[str, States]:
    """The parameters of ten models of all rows, the first of which is that of `inverse.py`; and its checkpoints."""
    rows = np.broadcast_to(np.arange(setting.rows), (MODELS, setting.rows))
    firsts: States = []
    p = side_by_side(
        setting,
        x.to(device),
        y.to(device),
        rows,
        list(range(100, 100 + MODELS)),
        lambda now: firsts.append({k: v[0].cpu().clone() for k, v in now.items()}),
    )
    models = [{k: v[m].cpu().clone() for k, v in p.items()} for m in range(MODELS)]
    return {"models": models, "checkpoints": firsts[1::2]}


def peer(python: str, state: dict[str, Tensor], x: Tensor, y: Tensor, rows: int) -> np.ndarray:
    """kronfluence's values `[n, VALID]`, of the mean loss's curvature: over n they are predicted changes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")
        held = {"train_x": x[:rows], "train_y": y[:rows], "valid_x": x[rows:], "valid_y": y[rows:]}
        np.savez(folder / "rows.npz", **{k: v.numpy() for k, v in held.items()})
        command = [python, str(HERE / "kronfluence" / "rows.py"), str(folder), "--out", str(folder / "found.npz")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return np.load(folder / "found.npz")["scores"] / rows


def lines(setting: Setting, x: Tensor, y: Tensor, held: dict[str, Any], python: str) -> dict[str, Callable[[], Any]]:
    """Names, and what gives the values."""
    n, table, models = setting.rows, to_table(x, y), held["models"]
    model = build(setting, 0)
    model.load_state_dict(models[0])
    task = rayinf.Task(model.eval(), fit=setting.fit)

    def ours(**how: Any) -> np.ndarray:
        return by_row(rayinf.influence(replace(task, **how), table[:n], table[n:], "slice:row"))

    def trak(count: int) -> np.ndarray:
        dim = DIM if n >= 2 * DIM else n // 4  # TRAK inverts a matrix of so many columns, which the rows must determine
        given: dict[str, Any] = {"method": "trak", "objective": "slice:row", "dim": dim, "checkpoints": models[:count]}
        return by_row(rayinf.baseline(task, table[:n], table[n:], **given))

    return {
        "default": ours,
        f"default, {SOME} models": lambda: ours(ensemble=models[:SOME]),
        f"default, {len(held['checkpoints'])} checkpoints": lambda: ours(checkpoints=held["checkpoints"]),
        "TRAK": lambda: trak(1),
        f"TRAK, {MODELS} models": lambda: trak(MODELS),
        "kronfluence": lambda: peer(python, models[0], x, y, n),
    }


def main() -> None:
    """One setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--setting", default="mlp", choices=PERCEPTRONS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peer-python", help="an interpreter that has kronfluence already")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    options.out.mkdir(parents=True, exist_ok=True)
    setting, files = SETTINGS[options.setting], [options.out / f"{options.setting}{s}.pt" for s in ("", "-all")]
    x, y = read(options.data, setting)
    for file, train in zip(files, (retrained, trained), strict=True):
        if not file.exists():
            torch.save(train(setting, x, y, options.device), file)
    held = {**torch.load(files[0], weights_only=False), **torch.load(files[1])}
    print(f"{options.setting}: ceiling {ceiling(held['losses']):.2f}")
    print(f"  {'values':<24} {'rows':>6} {'class':>6} {'slope':>6}")
    for name, value in lines(setting, x, y, held, options.peer_python or peer_python()).items():
        kept = options.out / f"{options.setting}-{name.replace(',', '').replace(' ', '-')}.npy"
        if not kept.exists():
            np.save(kept, value())
        report(name, np.load(kept), held, y[setting.rows :].numpy())


if __name__ == "__main__":
    main()
