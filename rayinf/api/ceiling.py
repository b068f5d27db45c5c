"""Whether a classifier has reached its ceiling: what its rows' influence vectors leave for all classes in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rayinf.api.ceiling_report import Ceiling
from rayinf.arguments import one_of
from rayinf.data.scores import Scores
from rayinf.data.vectors import Vectors
from rayinf.engine.entry import check
from rayinf.errors import InputError
from rayinf.pareto.ceiling import Found, Options, find

_PASSES = 60
# Rows of the sample, and rows that keep a cut of their own: so many times the root of all, within these bounds, and no
# more values than that. With fewer the search takes more passes, with more each LP takes longer.
_ROOT, _LEAST, _MOST, _VALUES = 10, 5_000, 50_000, 500_000


def ceiling(
    scores: Scores,
    *,
    method: str | None = None,
    gap: float = 1e-8,
    resamples: int = 1000,
    seed: int = 0,
) -> Ceiling:
    """Whether all classes can still gain in common, or gain only at each other's cost (Nahin 2025, sections 3.3, 5.2).

    Nahin 2025 reads the regions of influence vectors and the variance along their first component. Beside these stands
    a certificate that the paper does not have: `gain`, the largest t such that row weights in [0, 2] are predicted (to
    first order) to lower the summed validation loss of every class k by at least `t b_k`, where `b_k = sum_i |P_i^k|`
    is the most that such weights could do for k alone. It lies in [0, 1]: 0 where all vectors lie in one hyperplane
    with a normal >= 0 (the paper's "all samples on the line y = -x"), 1 only if one choice of rows serves every class.

    Influence vectors are noisy, and choosing weights by them fits the noise: on pure noise `gain` is 0.58 for three
    classes. So the verdict follows `cross_fit`: weights chosen on one half of the validation rows, judged on the other.

    Args:
        scores: with a column a class, from `influence(..., objective="category")`; with `halves=True` for `cross_fit`.
            A class without any influence (`b_k = 0`) is left out, and named.
        method: "highs" gives HiGHS the whole LP, in memory; "cuts" reads the rows a few times and gives it at most
            100,000 of them at once. Both find the optimum. None: "highs" up to 5,000 rows.
        gap: the relative distance in (0, 1) between the bounds of the certificate at which the search ends; the
            result's `gap` has the distance that was reached.
        resamples: how often the bootstrap over rows draws, >= 10.
        seed: an integer >= 0 that fixes the bootstrap, and the sample of rows that "cuts" starts from.

    Returns:
        A Ceiling: `.gain`, `.cross_fit`, `.prices`, `.regions`, `.explained_variance`, `.verdict`, `.to_text()`,
        `.to_dict()`, `.plot(path)`, `.plot_classes(path)`.

    Raises:
        InputError: fewer than two classes with any influence, a value that is not finite, an option out of range.
        RunError: HiGHS gave up.

    Cost: about five passes over the rows (two where "highs" solves it), `O(K)` a row and pass and `O(K^2)` in the
    first; and for each pass an LP of 100,000 rows at most. Memory grows with rows in "highs" alone.
    """
    check(**locals())
    one_of("method", method, (None, "highs", "cuts"))
    vectors = Vectors.of(scores)
    _check(vectors)
    rows, classes = len(vectors), len(vectors.columns)
    near = max(_LEAST, min(int(_ROOT * rows**0.5), _MOST, _VALUES // classes))
    codes: dict[Any, int] = {}

    def source(labels: bool) -> Iterator[tuple[Any, ...]]:
        return vectors.joint(codes if labels else None)

    options = Options(rows if method == "highs" else near, near, float(gap), _PASSES, int(resamples), int(seed))
    found = find(source, options)
    if found.gain is None:
        raise InputError(_too_few(vectors, found), "value rows that the fit feels, on validation rows of all classes.")
    return Ceiling(found, vectors.labels, tuple(codes), vectors.has_halves)


def _check(vectors: Vectors) -> None:
    """Refuse what cannot be worked on.

    Raises:
        InputError: too few rows or classes.
    """
    if len(vectors.columns) < 2:
        raise InputError(
            f"The scores have one class, {vectors.columns[0]!r}: a ceiling is about classes in common.",
            'pass scores of objective="category", with at least two classes.',
        )
    if not len(vectors):
        raise InputError("The scores have no rows.", "pass scores of at least one row.")


def _too_few(vectors: Vectors, found: Found) -> str:
    felt = [n for n, b in zip(vectors.names, found.total, strict=True) if b > 0]
    who = f"only {felt[0]!r} has" if felt else "none has"
    return f"Of {len(vectors.columns)} classes {who} any influence: all other values are 0."
