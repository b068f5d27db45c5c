"""The trade-off of a search: the targets' gain against the other classes' change, and the front of the candidates."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rayinf.plots.figures import COLOURS, save
from rayinf.store.places import AnyPath

_MEASURED = {"checkpoint": "#9A9A9A", "unweighted": COLOURS[6], "weighted": COLOURS[1]}


def plot(candidates: pa.Table, classes: pa.Table, path: str | AnyPath) -> AnyPath:
    """Draw every candidate by its gain and its cost, the front among them, and accuracy by class.

    Args:
        candidates: `candidate`, `gain`, `others`, `front`, `chosen`; those without a model have nulls.
        classes: `class`, `target`, and for `checkpoint`, `unweighted` and `weighted` the accuracy, `_low` and `_high`.
        path: of the figure; its suffix says which format (.png, .pdf, .svg).

    Returns:
        The path.

    Raises:
        InputError: a format that is unknown, or a place that cannot be written.
    """
    figure = Figure(figsize=(11.0, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    _front(left, candidates.filter(pc.is_valid(candidates["gain"])))
    _classes(right, classes)
    return save(figure, path)


def _front(axes: Axes, table: pa.Table) -> None:
    gain, others = (100 * table[name].to_numpy() for name in ("gain", "others"))
    on, chosen = (np.asarray(table[name].to_pylist(), bool) for name in ("front", "chosen"))
    plain = np.asarray([c == "unweighted" for c in table["candidate"].to_pylist()])
    axes.axhline(0, color="#BBBBBB", linewidth=0.8)
    axes.axvline(0, color="#BBBBBB", linewidth=0.8)
    axes.scatter(others[~on & ~plain], gain[~on & ~plain], s=18, color="#AAAAAA", label="candidates")
    order = np.argsort(others[on])
    axes.plot(others[on][order], gain[on][order], color=COLOURS[0], marker="o", markersize=5, label="front")
    axes.scatter(others[plain], gain[plain], s=60, marker="s", color=COLOURS[6], zorder=3, label="unweighted epoch")
    axes.scatter(
        others[chosen], gain[chosen], s=160, marker="*", color=COLOURS[1], zorder=4, label="chosen", edgecolor="white"
    )
    axes.set_xlabel("other classes: mean change of accuracy, points")
    axes.set_ylabel("targets: mean change of accuracy, points")
    axes.set_title("Against the unweighted epoch, on the validation rows", fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def _classes(axes: Axes, table: pa.Table) -> None:
    flags = zip(table["class"].to_pylist(), table["target"].to_pylist(), strict=True)
    names = [f"{name} *" if target else name for name, target in flags]
    across, long = np.arange(len(names)), max(map(len, names)) > 4
    for k, (name, colour) in enumerate(_MEASURED.items()):
        share, low, high = (100 * table[f"{name}{end}"].to_numpy() for end in ("", "_low", "_high"))
        place = across + 0.2 * (k - 1)
        axes.errorbar(place, share, (share - low, high - share), fmt="o", ms=4, lw=1, color=colour, label=name)
    axes.set_xticks(across, names, rotation=45 if long else 0, ha="right" if long else "center")
    axes.set_xlabel("class (* target)")
    axes.set_ylabel("accuracy, %, with 95% intervals")
    axes.set_title("By class, on the validation rows", fontsize=10)
    axes.grid(alpha=0.3, axis="y")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
