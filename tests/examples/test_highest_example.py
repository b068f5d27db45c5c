"""The script on the images of highest FI: what it measures, and the whole of it on a user's small images."""

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples" / "influence_measure"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict]:
    """What the script defines. It imports its neighbours from its own folder, as it does when it is run."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("COLUMNS", "160")
    threads = torch.get_num_threads()
    yield runpy.run_path(str(FOLDER / "highest.py"))
    torch.set_num_threads(threads)
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_how_sure_and_how_right(script: dict) -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.4, 0.5]])
    assert script["measured"](p, np.array([0, 1])) == pytest.approx([60, 30, 50])


def test_whole(script: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 300)
    pixels = (rng.integers(0, 200, (300, 6, 6, 3)) + 40 * label[:, None, None, None]).astype(np.uint8)
    pd.DataFrame({"image": [x.tobytes() for x in pixels], "label": label}).to_parquet(tmp_path / "squares.parquet")
    options = ["--quick", "--data", str(tmp_path / "squares.parquet"), "--out", str(tmp_path / "deep" / "fi.png")]
    found = script["main"](options)
    printed = capsys.readouterr().out
    assert set(found) == {"fi", "entropy", "random", "whole pool"} and "5 images a way" in printed
    # The likeliest class leads by p - (1 - p) where there are two; entropy picks what is least sure.
    for ((sure, lead, _),) in found.values():
        assert lead == pytest.approx(2 * sure - 100, abs=1e-3)
    assert found["entropy"][0][0] < found["whole pool"][0][0]
    assert (tmp_path / "deep" / "fi.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        script["main"](["--shown", "0"])
