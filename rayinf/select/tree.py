"""An influence tree: which features make rows help or harm, a regression tree of influence values.

See Chhabra 2024, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.tree import DecisionTreeRegressor
from sklearn.utils.validation import check_array, check_is_fitted, column_or_1d, validate_data

from rayinf.errors import InputError
from rayinf.store.places import AnyPath

if TYPE_CHECKING:
    from rayinf.plots.tree import TreeView

Array = np.ndarray[Any, Any]

_LARGEST = float(np.finfo(np.float32).max)  # scikit-learn's trees hold features as float32
_FIX = "pass X [n, d] of numbers, one value a row, max_depth and min_samples_leaf of at least 1."


class InfluenceTree(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """CART on `[features, label] -> influence value`, then hierarchical shrinkage.

    See Chhabra 2024, section 3.1, Agarwal et al. 2022.

    `h(q) = xi(t_0) + sum_j (xi(t_j) - xi(t_{j-1})) / (1 + shrinkage / N(t_{j-1}))` along the path of q from the root
    t_0 to its leaf, xi a node's mean value and N its rows. A scikit-learn estimator.

    Args:
        max_depth: splits between the root and a leaf, at most; None: until the leaves are pure.
        shrinkage: lambda >= 0; 0 is plain CART.
        min_samples_leaf: rows of a leaf, at least.
        append_label: whether labels join the features, where they are given: what a row is worth depends on its label.
            Two classes make one column, more make one each.
        random_state: settles which of equally good splits is taken.

    Attributes:
        tree_: the fitted `DecisionTreeRegressor`.
        values_: the shrunk value of every node.
        classes_: the labels that joined the features; None without.
        feature_names_: of all columns, the label's among them.
    """

    tree_: DecisionTreeRegressor
    values_: Array
    classes_: Array | None
    feature_names_: list[str]
    _pairs: list[tuple[str, str] | None]
    _digits: int

    def __init__(
        self,
        max_depth: int | None = 4,
        shrinkage: float = 10.0,
        *,
        min_samples_leaf: int = 1,
        append_label: bool = True,
        random_state: int | None = 0,
    ) -> None:
        self.max_depth = max_depth
        self.shrinkage = shrinkage
        self.min_samples_leaf = min_samples_leaf
        self.append_label = append_label
        self.random_state = random_state

    def fit(self, X: Any, y: Any, values: Any = None, *, feature_names: Any = None) -> InfluenceTree:
        """Grow the tree.

        Cost: `d n log n` comparisons a level: 0.1 s for 30,000 rows of 100 features and 3 levels.

        Args:
            X: numbers `[n, d]`; a DataFrame names the features.
            y: labels `[n]`, integers or strings; None: without. Where `values` is left out, `y` are the values, as
                scikit-learn's regressors have it.
            values: influence values `[n]`.
            feature_names: `[d]`, for text and drawings, instead of the DataFrame's.

        Raises:
            InputError: a parameter out of its range, NaN or infinite numbers, lengths that do not fit, or labels that
                are neither
                integers nor text.
        """
        if not (isinstance(self.shrinkage, Real) and 0 <= self.shrinkage < float("inf")):
            raise InputError(
                f"shrinkage={self.shrinkage!r} must be a number >= 0.", "pass 0 for plain CART; the default is 10."
            )
        with _explained(_FIX):
            held, target = validate_data(
                self, X, _target(y, values), dtype=np.float64, y_numeric=True, ensure_all_finite=False
            )
        _check_features(held)
        labels = y if values is not None and self.append_label else None
        self.classes_ = None
        if labels is not None:
            self.classes_ = np.unique(_labels(labels, len(held)))
            if len(self.classes_) < 2:
                raise InputError(
                    f"y holds one label, {self.classes_[0].item()!r}.",
                    "pass rows of two classes, or append_label=False.",
                )
        names = self._named(feature_names)
        names_of_label, pairs_of_label = self._label_columns()
        self.feature_names_ = [*names, *names_of_label]
        self._pairs = [*map(_two_sides, names, held.T), *pairs_of_label]
        self._digits = _threshold_digits(held)
        q = self._columns(held, labels)
        with _explained(_FIX):
            self.tree_ = DecisionTreeRegressor(
                max_depth=self.max_depth, min_samples_leaf=self.min_samples_leaf, random_state=self.random_state
            ).fit(q, target)
        self.values_ = shrink(self.tree_.tree_, float(self.shrinkage))
        return self

    def predict(self, X: Any, y: Any = None) -> Array:
        """Predicted influence `[n]`.

        Args:
            X: `[n, d]`.
            y: labels `[n]`, if and only if the tree was grown with them.

        Raises:
            InputError: labels are missing, superfluous or new, or X is not as in `fit`.
        """
        leaves = self.apply(X, y)
        predicted: Array = self.values_[leaves]
        return predicted

    def score(self, X: Any, y: Any, values: Any = None) -> float:
        """The share of the values' variance that the tree explains, R^2; arguments and errors as in `fit`."""
        labels = y if values is not None and self.append_label else None
        return float(r2_score(_target(y, values), self.predict(X, labels)))

    def apply(self, X: Any, y: Any = None) -> Array:
        """The leaf of each row `[n]`, as a node's number.

        Raises:
            InputError: as `predict`.
        """
        check_is_fitted(self)
        with _explained("pass X [n, d] of numbers, with the features that the tree was grown on."):
            held = validate_data(self, X, dtype=np.float64, reset=False, ensure_all_finite=False)
        _check_features(held)
        if (y is None) != (self.classes_ is None):
            raise InputError(
                "The tree was grown "
                + ("without labels." if y is not None else "with labels, and none are passed here."),
                "leave y out." if y is not None else "pass y, or grow it with append_label=False.",
            )
        leaves: Array = self.tree_.apply(self._columns(held, y))
        return leaves

    def export_text(self, decimals: int = 3) -> str:
        """The tree as text, by scikit-learn's `export_text`: a line a node, its rule, its shrunk value and its rows.

        Thresholds are rounded as the columns allow; `tree_` has them in full.

        Args:
            decimals: significant digits of a value, at least 1.

        Raises:
            InputError: fewer digits, or a tree too deep to be read.
        """
        if decimals < 1:
            raise InputError(f"decimals={decimals} leaves no digit of a value.", "pass 1 or more.")
        from rayinf.plots.tree import export_text

        return export_text(self._view(), decimals)

    def plot(self, path: str | AnyPath, title: str = "Influence tree") -> AnyPath:
        """Draw the tree by scikit-learn's `plot_tree`: a box a node, with its rule, its shrunk value and its rows.

        The left branch is where the rule holds. Boxes are red where rows harm and blue where they help.

        Args:
            path: of the figure; its suffix says which format (.png, .pdf, .svg).
            title: over it.

        Raises:
            InputError: a format that is unknown, a place that cannot be written, or a tree too wide to be read.
        """
        from rayinf.plots.tree import draw

        return draw(self._view(), path, title)

    def plot_regions(
        self,
        path: str | AnyPath,
        X: Any,
        y: Any = None,
        *,
        groups: Any = None,
        removed: Any = None,
        boundary: tuple[Any, float] | None = None,
        title: str = "",
    ) -> AnyPath:
        """Draw where the tree calls rows helpful (green) and harmful (red), for two features (Chhabra 2024, Figure 1).

        A tree with labels has other regions for each class: a panel each.

        Args:
            path: of the figure.
            X: the rows to draw, `[n, 2]`.
            y: their labels, where the tree has them.
            groups: `[n]`, two or more values that set the markers.
            removed: `[n]`, whether a row is marked as trimmed.
            boundary: `(w [2], b)` draws the line `w'x + b = 0`.
            title: over it.

        Raises:
            InputError: other than two features, groups or removed of another length, a boundary that is not a line, or
                as `predict` and `plot` do.
        """
        from rayinf.plots import regions  # matplotlib is imported where something is drawn

        self.apply(X, y)
        held = check_array(X, dtype=np.float64)
        if held.shape[1] != 2:
            raise InputError(f"Regions are drawn over two features, and there are {held.shape[1]}.", "use plot.")
        labels = None if y is None else _labels(y, len(held))
        marks = {"group": _mark("groups", groups, len(held)), "gone": _mark("removed", removed, len(held), bool)}
        panels = []
        for c in [None] if self.classes_ is None else list(self.classes_):
            rows = slice(None) if c is None else labels == c
            held_marks = {k: None if v is None else v[rows] for k, v in marks.items()}
            over = "" if c is None else f"label = {c}"
            panels.append(regions.Panel(over, held[rows], partial(self._value_of, c), **held_marks))
        return regions.draw(panels, self.feature_names_[:2], path, _checked_line(boundary), title)

    def _value_of(self, label: Any, points: Array) -> Array:
        """Values of points `[m, d]` that all have one label; None: a tree without."""
        labels = None if label is None else np.full(len(points), label)
        found: Array = self.values_[self.tree_.apply(self._columns(points, labels))]
        return found

    def _view(self) -> TreeView:
        from rayinf.plots.tree import TreeView

        check_is_fitted(self)
        return TreeView(self.tree_, self.values_, self.feature_names_, self._pairs, self._digits)

    def _named(self, given: Any) -> list[str]:
        """Names of the features."""
        names = getattr(self, "feature_names_in_", [f"x{k}" for k in range(self.n_features_in_)])
        if given is not None:
            names = list(given)
        if len(names) != self.n_features_in_:
            raise InputError(
                f"There are {len(names)} feature_names for {self.n_features_in_} features.", "name each once."
            )
        return [*map(str, names)]

    def _label_columns(self) -> tuple[list[str], list[tuple[str, str]]]:
        """Names of the label's columns, and what holds left and right of a split of each."""
        named = [] if self.classes_ is None else [f"label = {c}" for c in self.classes_]
        if len(named) == 2:
            return ["label"], [(named[0], named[1])]
        return named, [(n.replace("=", "is not", 1), n) for n in named]

    def _columns(self, x: Array, y: Any) -> Array:
        """Features with the label's columns, `[n, d]`, `[n, d + 1]` or `[n, d + K]`."""
        if self.classes_ is None:
            return x
        labels = _labels(y, len(x))
        codes = np.searchsorted(self.classes_, labels).clip(0, len(self.classes_) - 1)
        new = self.classes_[codes] != labels
        if new.any():
            raise InputError(
                f"Row {int(new.argmax())} has the label {labels[new.argmax()].item()!r}, which the tree has not seen.",
                "grow the tree on rows of every class.",
            )
        if len(self.classes_) == 2:
            return np.column_stack([x, codes.astype(float)])
        return np.column_stack([x, np.eye(len(self.classes_))[codes]])


def _two_sides(name: str, values: Array) -> tuple[str, str] | None:
    """What holds on both sides of any split of a column `[n]` of two whole numbers; None of other columns."""
    found = np.unique(values)
    if len(found) != 2 or (found != np.rint(found)).any():
        return None
    if "=" in name and found.tolist() == [0, 1]:  # a column of a one-hot code
        return f"not {name}", name
    return f"{name} = {found[0]:.0f}", f"{name} = {found[1]:.0f}"


def _threshold_digits(columns: Array) -> int:
    """Digits after the point that show thresholds to a thousandth of each column's range `[n, d]`, 2 at least."""
    fine = (columns != np.rint(columns)).any(0)  # between whole numbers, a split lies on a half
    spans = np.ptp(columns[:, fine], axis=0)
    return int(np.clip(3 - np.floor(np.log10(spans[spans > 0].min(initial=10.0))), 2, 17))


def shrink(tree: Any, shrinkage: float) -> Array:
    """Shrunk values of all nodes, from scikit-learn's arrays of a tree; a parent precedes its children."""
    mean, rows = tree.value[:, 0, 0], tree.n_node_samples
    out: Array = mean.astype(float).copy()
    for parent in range(tree.node_count if shrinkage else 0):  # without, to the last bit CART's own
        for child in (tree.children_left[parent], tree.children_right[parent]):
            if child >= 0:
                out[child] = out[parent] + (mean[child] - mean[parent]) / (1 + shrinkage / rows[parent])
    return out


@contextmanager
def _explained(fix: str) -> Iterator[None]:
    """Raise an InputError for a ValueError of scikit-learn."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error), fix) from error


def _target(y: Any, values: Any) -> Any:
    """The influence values, which are `y` where `values` is left out. Errors about `values` name it."""
    if values is None:
        return y
    with _explained("pass numbers [n]."):
        held = np.asarray(values, np.float64)
    if held.ndim == 2 and held.shape[1] == 1:
        held = held[:, 0]
    if held.ndim != 1:
        raise InputError(f"values has the shape {held.shape}.", "pass one number a row, of one objective.")
    bad = ~np.isfinite(held)
    if bad.any():
        raise InputError(
            f"values holds {int(bad.sum()):,} NaN or infinite numbers, the first in row {int(bad.argmax())}.",
            "leave those rows out of X, y and values.",
        )
    return held


def _check_features(x: Array) -> None:
    bad = ~(np.abs(x) <= _LARGEST)
    if bad.any():
        row, column = map(int, np.argwhere(bad)[0])
        raise InputError(
            f"X holds {int(bad.sum()):,} numbers that are NaN, infinite or over 3.4e38: the first in row {row}, column "
            f"{column}.",
            "fill them in, or leave those rows out of X, y and values.",
        )


def _labels(y: Any, rows: int) -> Array:
    """Labels `[n]` as integers, flags or text."""
    import pandas as pd

    with _explained("pass one label a row."):
        held: Array = column_or_1d(np.asarray(y), dtype=None)
    if len(held) != rows:
        raise InputError(f"There are {len(held)} labels for {rows} rows.", "pass one label a row.")
    missing = np.asarray(pd.isna(held))
    if missing.any():
        raise InputError(
            f"{int(missing.sum()):,} rows have no label in y, the first is row {int(missing.argmax())}.",
            "leave those rows out of X, y and values.",
        )
    if held.dtype.kind == "f":
        if not (np.isfinite(held).all() and (held == held.round()).all()):
            raise InputError("y holds fractions, which cannot be labels.", "pass integers or strings.")
        return held.astype(np.int64)
    if held.dtype.kind == "O":
        held = np.array(held.tolist())
    if held.dtype.kind not in "iubU":
        raise InputError(f"y holds {held.dtype}, which cannot be labels.", "pass integers or strings.")
    return held


def _mark(name: str, given: Any, rows: int, kind: type | None = None) -> Array | None:
    """Values that set how rows are marked in a picture, `[n]`, of the given type."""
    held = None if given is None else np.asarray(given)
    if held is not None and (held.shape != (rows,) or (kind is not None and held.dtype != kind)):
        raise InputError(
            f"{name} is {held.dtype} of the shape {held.shape}, and there are {rows} rows.",
            f"pass {'True or False' if kind is bool else 'one value'} for each row.",
        )
    return held


def _checked_line(boundary: tuple[Any, float] | None) -> tuple[Array, float] | None:
    if boundary is None:
        return None
    w, b = np.asarray(boundary[0], float), float(boundary[1])
    if w.shape != (2,) or not w.any() or not np.isfinite([*w, b]).all():
        raise InputError(f"boundary={boundary!r} is not a line.", "pass (w, b), w two numbers of which one is not 0.")
    return w, b
