"""An influence tree: which features make rows help or harm, a regression tree of influence values (C Algorithm 1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.tree import DecisionTreeRegressor
from sklearn.utils.validation import check_array, check_is_fitted, column_or_1d, validate_data

from rayinf.errors import InputError
from rayinf.report import regions
from rayinf.report import tree as drawing
from rayinf.report.tree import Node

Array = np.ndarray[Any, Any]


class InfluenceTree(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """CART on `[features, label] -> influence value`, then hierarchical shrinkage (C section 3.1, Agarwal et al. 2022).

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

    def fit(self, X: Any, y: Any, values: Any = None) -> InfluenceTree:
        """Grow the tree.

        Args:
            X: numbers `[n, d]`; a DataFrame names the features.
            y: labels `[n]`, integers or strings; None: without. Where `values` is left out, `y` are the values, as
                scikit-learn's regressors have it.
            values: influence values `[n]`.

        Raises:
            InputError: shrinkage under 0, or labels that are none.
            ValueError: NaN or infinite numbers, or lengths that do not fit (scikit-learn's own).
        """
        if not (isinstance(self.shrinkage, int | float) and 0 <= self.shrinkage < float("inf")):
            raise InputError(
                f"shrinkage={self.shrinkage!r} is no number >= 0.", "pass 0 for plain CART, 10 by default."
            )
        if values is None:
            labels, values = None, y
        else:
            labels = y if self.append_label else None
        held, target = validate_data(self, X, values, dtype=np.float64, y_numeric=True)
        self.classes_: Array | None = None
        if labels is not None:
            self.classes_ = np.unique(_labels(labels, len(held)))
            if len(self.classes_) < 2:
                raise InputError(
                    f"y holds one label, {self.classes_[0]!r}.", "pass rows of two classes, or append_label=False."
                )
        names = getattr(self, "feature_names_in_", [f"x{k}" for k in range(held.shape[1])])
        self.feature_names_ = [*map(str, names), *self._label_names()]
        q = self._columns(held, labels)
        self.tree_ = DecisionTreeRegressor(
            max_depth=self.max_depth, min_samples_leaf=self.min_samples_leaf, random_state=self.random_state
        ).fit(q, target)
        self.values_ = shrink(self.tree_.tree_, float(self.shrinkage))
        # Columns of two whole numbers (flags, the label) read better as "is" than as a threshold.
        self._pairs = {k: tuple(found) for k in range(q.shape[1]) if len(found := _two(q[:, k])) == 2}
        return self

    def predict(self, X: Any, y: Any = None) -> Array:
        """Predicted influence `[n]`.

        Args:
            X: `[n, d]`.
            y: labels `[n]`, if and only if the tree was grown with them.

        Raises:
            InputError: labels are missing, superfluous or new.
            ValueError: as in `fit`.
        """
        leaves = self.apply(X, y)
        predicted: Array = self.values_[leaves]
        return predicted

    def apply(self, X: Any, y: Any = None) -> Array:
        """The leaf of each row `[n]`, as a node's number.

        Raises:
            InputError: as `predict`.
        """
        check_is_fitted(self)
        held = validate_data(self, X, dtype=np.float64, reset=False)
        if (y is None) != (self.classes_ is None):
            raise InputError(
                "The tree was grown "
                + ("without labels." if y is not None else "with labels, and there are none here."),
                "leave y out." if y is not None else "pass y, or grow it with append_label=False.",
            )
        leaves: Array = self.tree_.apply(self._columns(held, y))
        return leaves

    def export_text(self, decimals: int = 3) -> str:
        """The tree as text, a line a node: its condition, its shrunk value, its training rows."""
        lines = []
        for node in self.nodes():
            head = "|  " * (node.depth - 1) + "|- " if node.depth else ""
            lines.append(f"{head}{node.condition}: {node.value:+.{decimals}g} ({node.rows:,} rows)")
        return "\n".join(lines)

    def plot(self, path: str | Path, title: str = "Influence tree") -> Path:
        """Draw the tree: every node's condition, shrunk value and rows, red where rows harm and blue where they help.

        Args:
            path: of the figure; its suffix says which format (.png, .pdf, .svg).
            title: over it.

        Raises:
            InputError: a format that is unknown, a place that cannot be written, or a tree too wide to be read.
        """
        return drawing.draw(self.nodes(), path, title)

    def plot_regions(
        self,
        path: str | Path,
        X: Any,
        y: Any = None,
        *,
        groups: Any = None,
        removed: Any = None,
        boundary: tuple[Any, float] | None = None,
        title: str = "",
    ) -> Path:
        """Draw where the tree calls rows helpful (green) and harmful (red), for two features (C Figure 1).

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
            InputError: other than two features, or as `predict` and `plot` do.
        """
        self.apply(X, y)
        held = check_array(X, dtype=np.float64)
        if held.shape[1] != 2:
            raise InputError(f"Regions are drawn over two features, and there are {held.shape[1]}.", "use plot.")
        labels = None if y is None else _labels(y, len(held))
        classes = [None] if self.classes_ is None else list(self.classes_)
        panels = []
        for c in classes:
            marks = slice(None) if c is None else labels == c
            value = lambda grid, c=c: self.values_[  # noqa: E731
                self.tree_.apply(self._columns(grid, None if c is None else np.full(len(grid), c)))
            ]
            rows = {
                k: None if v is None else np.asarray(v)[marks] for k, v in {"group": groups, "gone": removed}.items()
            }
            panels.append(regions.Panel("" if c is None else f"label = {c}", held[marks], value, **rows))
        return regions.draw(panels, self.feature_names_[:2], path, boundary, title)

    def nodes(self) -> list[Node]:
        """All nodes, each before its children, the left child first."""
        check_is_fitted(self)
        t = self.tree_.tree_
        out: list[Node] = []

        def visit(k: int, parent: int | None, condition: str, depth: int) -> None:
            out.append(Node(parent, depth, condition, float(self.values_[k]), int(t.n_node_samples[k])))
            place = len(out) - 1
            if t.children_left[k] >= 0:
                below, above = self._conditions(int(t.feature[k]), float(t.threshold[k]))
                visit(int(t.children_left[k]), place, below, depth + 1)
                visit(int(t.children_right[k]), place, above, depth + 1)

        visit(0, None, "all rows", 0)
        return out

    def _conditions(self, column: int, threshold: float) -> tuple[str, str]:
        """What holds left and right of a split."""
        name = self.feature_names_[column]
        if column >= self.n_features_in_ and self.classes_ is not None:
            if len(self.classes_) == 2:
                return f"label = {self.classes_[0]}", f"label = {self.classes_[1]}"
            c = self.classes_[column - self.n_features_in_]
            return f"label is not {c}", f"label = {c}"
        if column in self._pairs:
            low, high = self._pairs[column]
            if "=" in name and (low, high) == (0, 1):  # a column of a one-hot code
                return f"not {name}", name
            return f"{name} = {low:g}", f"{name} = {high:g}"
        return f"{name} <= {threshold:.4g}", f"{name} > {threshold:.4g}"

    def _label_names(self) -> list[str]:
        classes = [] if self.classes_ is None else [f"label = {c}" for c in self.classes_]
        return ["label"] if len(classes) == 2 else classes

    def _columns(self, x: Array, y: Any) -> Array:
        """Features with the label's columns, `[n, d]`, `[n, d + 1]` or `[n, d + K]`."""
        if self.classes_ is None:
            return x
        labels = _labels(y, len(x))
        codes = np.searchsorted(self.classes_, labels).clip(0, len(self.classes_) - 1)
        new = self.classes_[codes] != labels
        if new.any():
            raise InputError(
                f"Row {int(new.argmax())} has the label {labels[new.argmax()]!r}, which the tree has not seen.",
                "grow the tree on rows of every class.",
            )
        if len(self.classes_) == 2:
            return np.column_stack([x, codes.astype(float)])
        return np.column_stack([x, np.eye(len(self.classes_))[codes]])


def shrink(tree: Any, shrinkage: float) -> Array:
    """Shrunk values of all nodes, from scikit-learn's arrays of a tree; a parent stands before its children."""
    mean, rows = tree.value[:, 0, 0], tree.n_node_samples
    out: Array = mean.astype(float).copy()
    for parent in range(tree.node_count if shrinkage else 0):  # without, to the last bit CART's own
        for child in (tree.children_left[parent], tree.children_right[parent]):
            if child >= 0:
                out[child] = out[parent] + (mean[child] - mean[parent]) / (1 + shrinkage / rows[parent])
    return out


def _labels(y: Any, rows: int) -> Array:
    held: Array = column_or_1d(np.asarray(y), dtype=None)
    if len(held) != rows:
        raise InputError(f"There are {len(held)} labels for {rows} rows.", "pass one label a row.")
    if held.dtype.kind == "f":
        whole = np.isfinite(held).all() and (held == held.round()).all()
        if not whole:
            raise InputError("y holds fractions or NaN, which are no labels.", "pass integers or strings.")
        return held.astype(np.int64)
    return held.astype(str) if held.dtype == object else held


def _two(column: Array) -> Array:
    """The two whole numbers that a column holds; none if it holds anything else."""
    low, high = column.min(), column.max()
    flag = low != high and low == round(low) and high == round(high) and ((column == low) | (column == high)).all()
    return np.array([low, high]) if flag else np.zeros(0)
