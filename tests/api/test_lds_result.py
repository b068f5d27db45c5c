"""Figures of a linear datamodelling score from effects by hand: columns together, intervals, what is undefined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.stats import pearsonr, spearmanr

from rayinf.api.lds_result import LDS, Effects
from rayinf.plots import agreement

J, COLUMNS = 9, ("total", "category_a", "category_b", "category_c")
RNG = np.random.default_rng(3)
MEASURED = RNG.normal(size=(3, J, 4))
MEASURED[:, :, 3] = 0.25
PREDICTED = MEASURED.mean(0) + RNG.normal(size=(J, 4))
METADATA = {"subsets": J, "share": 0.5, "kept": 20, "seeds": 3, "rows": {"train": 40, "valid": 30}}


def score(seeds: int = 3) -> LDS:
    """Scores with all columns, scores without the first, and a rival."""
    predicted = {"all": PREDICTED, "some": 2 * PREDICTED, "random": RNG.normal(size=(J, 4))}
    predicted["some"][:, 0] = np.nan
    objectives = ("total", "category", "category", "category")
    effects = Effects(COLUMNS, objectives, MEASURED[:seeds], predicted, ("random",))
    return LDS.of(effects, ["mind"], {**METADATA, "seeds": seeds})


def test_figures() -> None:
    found, measured = score(), MEASURED.mean(0)
    assert list(found.summary) == ["all", "some", "random"]
    assert list(found.summary["some"]) == ["category"]
    two = [1, 2]  # the third class has no score
    held = found.summary["all"]["category"]
    assert (held["columns"], held["undefined"]) == (3, 1)
    assert held["spearman"] == pytest.approx(np.mean([spearmanr(PREDICTED[:, k], measured[:, k])[0] for k in two]))
    assert held["pearson"] == pytest.approx(np.mean([pearsonr(PREDICTED[:, k], measured[:, k])[0] for k in two]))
    first, rest = MEASURED[:1].mean(0), MEASURED[1:].mean(0)
    assert held["ceiling"] == pytest.approx(np.mean([spearmanr(first[:, k], rest[:, k])[0] for k in two]))
    p, m = (v[:, 1:] - v[:, 1:].mean(0) for v in (PREDICTED, measured))
    assert held["slope"] == pytest.approx((p * m).sum() / (p * p).sum())
    assert found.summary["some"]["category"]["slope"] == pytest.approx(held["slope"] / 2)
    assert found.summary["random"]["category"]["slope"] is None
    lines = found.to_pandas()
    assert lines["scores"].tolist() == ["all"] * 4 + ["some"] * 3 + ["random"] * 4
    assert lines["column"].tolist() == [*COLUMNS, *COLUMNS[1:], *COLUMNS]
    own = lines.query("column == 'category_c'")
    assert own[["spearman", "low", "high", "pearson", "ceiling"]].isna().all(axis=None)
    assert found.notes[0] == "mind" and "1 of 3 columns of category have no score by all" in found.notes[1]


def test_intervals_are_those_of_resampled_subsets() -> None:
    counts = np.random.default_rng(0).multinomial(J, np.full(J, 1 / J), size=1000)
    measured, means = MEASURED.mean(0), []
    for count in counts:
        at = np.repeat(np.arange(J), count)
        means.append([spearmanr(PREDICTED[at, k], measured[at, k])[0] for k in (1, 2)])
    ends = np.nanquantile(np.mean(means, axis=1), [0.025, 0.975])
    held = score().summary["all"]["category"]
    assert (held["low"], held["high"]) == pytest.approx(tuple(ends))
    one = score().to_pandas().query("scores == 'all' and column == 'category_a'").iloc[0]
    assert (one["low"], one["high"]) == pytest.approx(tuple(np.nanquantile(np.array(means)[:, 0], [0.025, 0.975])))


def test_text() -> None:
    shown = str(score())
    assert shown.startswith("Linear datamodelling score: 9 subsets of 20 of 40 rows, 3 seeds averaged")
    assert " ".join(shown.splitlines()[1].split()) == "scores objective columns LDS 95% interval Pearson slope ceiling"
    held = score().summary["some"]["category"]
    cells = f"{held['spearman']:.2f} {held['low']:.2f} to {held['high']:.2f} {held['pearson']:.2f} {held['slope']:.2f}"
    assert shown.splitlines()[4].split() == ["some", "category", "3", *cells.split(), f"{held['ceiling']:.2f}"]
    assert "Note: mind" in shown
    alone = score(1)
    assert all(s["ceiling"] is None for s in alone.summary["all"].values())
    assert "not known" in str(alone) and "one seed" in str(alone)


def test_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(agreement, "save", lambda figure, path: drawn.append(figure) or Path(path))
    score().plot("x.png")
    panels = drawn[0].axes
    assert [p.get_title() for p in panels] == ["total", "category, mean of 3 columns"]
    assert [t.get_text() for t in panels[0].get_yticklabels()] == ["all", "random"]
    assert [t.get_text() for t in panels[1].get_yticklabels()] == ["all", "some", "random"]
    held = score().summary["all"]["category"]
    assert panels[1].lines[0].get_xdata()[0] == pytest.approx(held["spearman"])
    assert list(panels[1].lines[1].get_xdata()) == pytest.approx([held["low"], held["high"]])
