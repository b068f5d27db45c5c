"""The numbers of all verbs are those of `benchmarks/same_scores.npz`: computed with 2e1ec81, newer verbs with 02be3c2.

A change by design: name the case in `CHANGED`, with the reason; or compute the file anew, which says which commit:
`python tests/benchmarks/same_scores.py --compute tests/benchmarks/same_scores.npz`.
"""

from pathlib import Path

import numpy as np
import pytest
from benchmarks import same_scores

HELD = Path(same_scores.__file__).with_suffix(".npz")
# Case -> why its numbers are others now.
CHANGED: dict[str, str] = {}


@pytest.mark.slow
def test_every_case(tmp_path):
    found = same_scores.run(Path(__file__).parent.parent, tmp_path / "now.npz")
    with np.load(HELD) as held:
        worst = same_scores.compare(dict(held), found)
    assert len(worst) >= 64
    assert {case: error for case, error in worst.items() if error > 1e-6 and case not in CHANGED} == {}
    assert set(CHANGED) <= set(worst)


def test_what_differs_is_seen():
    with np.load(HELD) as file:
        held = dict(file)
    name = next(k for k, v in held.items() if v.dtype.kind == "f" and v.size > 9)
    other = {**held, name: held[name].copy()}
    other[name].flat[np.nanargmax(np.abs(held[name]))] *= 1 + 1e-5
    assert same_scores.compare(held, held)[name.split("|")[0]] == 0
    assert same_scores.compare(held, other)[name.split("|")[0]] > 1e-6
    assert same_scores.compare(held, {k: v for k, v in held.items() if k != name})[name.split("|")[0]] == np.inf
