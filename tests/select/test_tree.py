"""The influence tree against its formula, and as an estimator of scikit-learn."""

from __future__ import annotations

import pickle
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.tree import DecisionTreeRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks

import rayinf
from rayinf import InfluenceTree
from rayinf.errors import InputError
from rayinf.select.tree import shrink


def problem(n: int = 300, classes: int = 2) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Values that hang on two features and on the label."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(n, 4))
    y = rng.integers(0, classes, n)
    values = np.where(y == 0, x[:, 0] > 0.3, x[:, 1] < 0) - 0.5 + 0.1 * y + 0.05 * rng.normal(size=n)
    return x, y, values


def naive(cart: DecisionTreeRegressor, row: np.ndarray[Any, Any], lam: float, parents: bool = True) -> float:
    """The formula along a row's path, from the values and sizes of CART's own nodes."""
    t = cart.tree_
    node, out = 0, float(t.value[0, 0, 0])
    while t.children_left[node] >= 0:
        left = np.float32(row[t.feature[node]]) <= t.threshold[node]
        child = t.children_left[node] if left else t.children_right[node]
        size = t.n_node_samples[node if parents else child]
        out += float(t.value[child, 0, 0] - t.value[node, 0, 0]) / (1 + lam / size)
        node = child
    return out


@parametrize_with_checks(
    [InfluenceTree(), InfluenceTree(max_depth=None, shrinkage=0.0), InfluenceTree(append_label=False)]
)
def test_it_is_an_estimator(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("depth", [1, 4, None])
@pytest.mark.parametrize("lam", [0.0, 0.5, 10.0, 1e4])
@pytest.mark.parametrize("classes", [2, 3])
def test_shrinkage_is_the_formula_on_the_same_cart(depth: int | None, lam: float, classes: int) -> None:
    x, y, values = problem(classes=classes)
    tree = InfluenceTree(depth, lam).fit(x, y, values)
    code = y[:, None].astype(float) if classes == 2 else np.eye(3)[y]
    cart = DecisionTreeRegressor(max_depth=depth, random_state=0).fit(np.column_stack([x, code]), values)
    q = np.column_stack([x, code])
    np.testing.assert_allclose(tree.predict(x, y), [naive(cart, row, lam) for row in q], rtol=0, atol=1e-10)


def test_shrinking_by_the_child_would_be_another_tree() -> None:
    x, y, values = problem()
    tree = InfluenceTree().fit(x, y, values)
    q = np.column_stack([x, y])
    wrong = np.array([naive(tree.tree_, row, 10.0, parents=False) for row in q])
    assert np.abs(tree.predict(x, y) - wrong).max() > 1e-3


def test_no_shrinkage_is_cart_and_endless_shrinkage_the_mean() -> None:
    x, y, values = problem()
    cart = DecisionTreeRegressor(max_depth=4, random_state=0).fit(np.column_stack([x, y]), values)
    plain = InfluenceTree(shrinkage=0).fit(x, y, values).predict(x, y)
    np.testing.assert_array_equal(plain, cart.predict(np.column_stack([x, y])))
    np.testing.assert_allclose(InfluenceTree(shrinkage=1e15).fit(x, y, values).predict(x, y), values.mean(), atol=1e-10)
    np.testing.assert_array_equal(shrink(cart.tree_, 0.0)[cart.apply(np.column_stack([x, y]))], plain)


def test_labels_are_text_or_numbers_and_may_be_left_out() -> None:
    x, y, values = problem()
    by_number = InfluenceTree().fit(x, y, values)
    by_name = InfluenceTree().fit(x, np.array(["no", "yes"], object)[y], values)
    np.testing.assert_array_equal(by_number.predict(x, y), by_name.predict(x, np.array(["no", "yes"])[y]))
    np.testing.assert_array_equal(by_number.predict(x, y), by_number.predict(x, y.astype(float)))
    without = InfluenceTree().fit(x, None, values)
    np.testing.assert_array_equal(without.predict(x), InfluenceTree(append_label=False).fit(x, y, values).predict(x))
    np.testing.assert_array_equal(without.predict(x), InfluenceTree().fit(x, values).predict(x))
    assert np.abs(without.predict(x) - by_number.predict(x, y)).max() > 0.1


def test_order_of_three_classes_does_not_matter() -> None:
    x, y, values = problem(classes=3)
    names = np.array(["b", "c", "a"])
    first = InfluenceTree().fit(x, y, values).predict(x, y)
    np.testing.assert_allclose(InfluenceTree().fit(x, names[y], values).predict(x, names[y]), first, atol=1e-10)


def test_text_gives_rules_values_and_rows() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"age": rng.uniform(20, 60, 200), "sex": rng.integers(0, 2, 200)})
    job = np.where(rng.random(200) < 0.5, "clerk", "smith")
    values = np.where(job == "clerk", np.where(frame["sex"] == 1, 3.0, 1.0), np.where(frame["age"] > 40, -1.5, -2.0))
    tree = InfluenceTree(max_depth=2, shrinkage=0.0).fit(frame, job, values)
    clerks, women, old = job == "clerk", frame["sex"] == 1, frame["age"] > 40
    lines = tree.export_text().splitlines()
    assert [line for line in lines if "age" not in line] == [
        f"all rows: {values.mean():+.3g} (200 rows)",
        f"|--- label = clerk: {values[clerks].mean():+.3g} ({clerks.sum()} rows)",
        f"|   |--- sex = 0: +1 ({(clerks & ~women).sum()} rows)",
        f"|   |--- sex = 1: +3 ({(clerks & women).sum()} rows)",
        f"|--- label = smith: {values[~clerks].mean():+.3g} ({(~clerks).sum()} rows)",
    ]
    young, older = [line for line in lines if "age" in line]
    assert re.fullmatch(rf"\|   \|--- age <= (39|40)\.\d+: -2 \({(~clerks & ~old).sum()} rows\)", young)
    assert re.fullmatch(rf"\|   \|--- age > (39|40)\.\d+: -1.5 \({(~clerks & old).sum()} rows\)", older)
    three = InfluenceTree(max_depth=1).fit(frame, np.resize(["u", "v", "w"], 200), np.resize([0.0, 5.0, 0.0], 200))
    assert "|--- label is not v: " in three.export_text()
    assert "|--- label = v: " in three.export_text()
    small = InfluenceTree(max_depth=1, shrinkage=0.0).fit(frame, job, np.where(clerks, 1.25e-7, -3e-7))
    assert f": +1.2e-07 ({clerks.sum()} rows)" in small.export_text(decimals=2)
    assert InfluenceTree().fit(frame, None, np.ones(200)).export_text() == "all rows: +1 (200 rows)"


def test_it_is_cloned_pickled_and_deterministic() -> None:
    x, y, values = problem()
    tree = InfluenceTree(max_depth=None, shrinkage=2.0).fit(x, y, values)
    again = clone(tree).fit(x, y, values)
    assert again.get_params() == tree.get_params()
    for other in (again, pickle.loads(pickle.dumps(tree))):
        np.testing.assert_array_equal(other.predict(x, y), tree.predict(x, y))


def test_it_fits_scores_of_a_run() -> None:
    x, y, _ = problem()
    task = rayinf.logistic_regression((x, y), l2=0.01)
    scores = rayinf.influence(task, (x, y), (x[:50], y[:50]), curvature="exact")
    tree = InfluenceTree().fit(x, y, scores.to_numpy()[:, 0])
    assert np.corrcoef(tree.predict(x, y), scores.to_numpy()[:, 0])[0, 1] > 0.5


def refused(call: Any, what: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        call()
    assert "Fix: " in str(caught.value)


def test_bad_input_is_refused() -> None:
    x, y, values = problem()
    tree = InfluenceTree().fit(x, y, values)
    refused(lambda: InfluenceTree(shrinkage=-1).fit(x, y, values), "shrinkage=-1")
    refused(lambda: InfluenceTree().fit(x, y[:10], values), "10 labels for 300 rows")
    refused(lambda: InfluenceTree().fit(x, y + 0.5, values), "fractions")
    refused(lambda: InfluenceTree().fit(x, np.zeros(300, int), values), "one label")
    refused(lambda: tree.predict(x), "with labels")
    refused(lambda: InfluenceTree().fit(x, None, values).predict(x, y), "without labels")
    refused(lambda: tree.predict(x, y + 5), "has not seen")
    refused(lambda: tree.predict(x[:, :2], y), "features")


def test_object_columns_hold_numbers_and_text_alike() -> None:
    x, y, values = problem()
    tree = InfluenceTree().fit(x, y.astype(object), values)
    np.testing.assert_array_equal(tree.predict(x, y), InfluenceTree().fit(x, y, values).predict(x, y))
    np.testing.assert_array_equal(tree.predict(x, pd.Series(y).astype("Int64")), tree.predict(x, y))


def test_score_is_the_share_of_variance() -> None:
    x, y, values = problem()
    labelled, plain = InfluenceTree().fit(x, y, values), InfluenceTree(append_label=False).fit(x, y, values)
    for tree, predicted in ((labelled, labelled.predict(x, y)), (plain, plain.predict(x))):
        share = 1 - ((values - predicted) ** 2).sum() / ((values - values.mean()) ** 2).sum()
        assert tree.score(x, y, values) == pytest.approx(share, abs=1e-12)
    assert plain.score(x, values) == plain.score(x, y, values)


@pytest.mark.parametrize(
    ("column", "cut", "at"),
    [
        ([2014, 2015, 2016, 2017], 2015.5, "2015.50"),  # four digits would say 2016
        ([10.0, 40_000, 60_000, 90_000.0], 5e4, "50000.00"),
        ([2014.1, 2014.2, 2014.3, 2014.4], 2014.25, "2014.2500"),
        ([1e-6, 2e-6, 3e-6, 4e-6], 2.5e-6, "0.000002500"),
    ],
)
def test_a_threshold_parts_the_rows_that_the_tree_parts(column: list[float], cut: float, at: str) -> None:
    x = np.repeat(column, 5)[:, None]
    tree = InfluenceTree(max_depth=1).fit(x, None, np.where(x[:, 0] > cut, 1.0, -1.0), feature_names=["year"])
    _, left, right = (line.rpartition(":")[0] for line in tree.export_text().splitlines())
    assert (left, right) == (f"|--- year <= {at}", f"|--- year > {at}")
    np.testing.assert_array_equal(x[:, 0] > float(at), tree.predict(x) > 0)


def test_names_are_given_or_the_frames() -> None:
    x, y, values = problem()
    names = ["a", "b", "c", "d"]
    given, framed = InfluenceTree().fit(x, y, values, feature_names=names), InfluenceTree()
    framed.fit(pd.DataFrame(x, columns=names), y, values)
    assert given.feature_names_ == framed.feature_names_ == [*names, "label"]
    assert given.export_text() == framed.export_text() != InfluenceTree().fit(x, y, values).export_text()
    assert InfluenceTree().fit(x, y % 3 + (x[:, 0] > 1), values).feature_names_[4:] == [
        f"label = {k}" for k in range(3)
    ]


def test_a_tree_thousands_deep_is_used_and_its_text_is_refused() -> None:
    x = np.arange(1500.0)[:, None]
    values = np.exp(0.4 * x[:, 0])
    tree = InfluenceTree(max_depth=None, shrinkage=0.0).fit(x, None, values)
    assert tree.tree_.get_depth() > 1000
    np.testing.assert_array_equal(tree.predict(x), tree.tree_.predict(x))
    refused(tree.export_text, "levels cannot be read as text")


def test_numbers_that_are_none_are_refused() -> None:
    x, y, values = problem()
    hole = x.copy()
    hole[7, 2] = np.nan
    refused(lambda: InfluenceTree().fit(hole, y, values), "first in row 7, column 2")
    refused(lambda: InfluenceTree().fit(x, y, values).predict(hole, y), "first in row 7, column 2")
    refused(lambda: InfluenceTree().fit(x * 1e39, y, values), "over 3.4e38")
    refused(lambda: InfluenceTree().fit(x, y, np.where(np.arange(300) == 5, np.inf, values)), "values holds 1 .* row 5")
    refused(lambda: InfluenceTree().fit(x, y, np.stack([values, values], 1)), r"values has the shape \(300, 2\)")
    refused(lambda: InfluenceTree().fit(x, y, values[:9]), "inconsistent")
    refused(lambda: InfluenceTree().fit(x, np.where(y == 1, "a", None), values), "have no label")
    refused(lambda: InfluenceTree().fit(x, y.astype("datetime64[D]"), values), "cannot be labels")
    refused(lambda: InfluenceTree(max_depth=0).fit(x, y, values), "max_depth")
    refused(lambda: InfluenceTree().fit(x, y, values, feature_names=["a"]), "1 feature_names for 4")
    refused(lambda: InfluenceTree().fit(x, y, values).export_text(decimals=0), "decimals=0")
