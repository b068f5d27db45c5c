"""Online learning from a trimmed stream runs from end to end, on its own rows and a user's."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "what_data_benefits"


@pytest.mark.parametrize("own", [False, True])
def test_online(own: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.syspath_prepend(FOLDER)
    options = ["--quick", "--out", str(tmp_path / "deep" / "online.png")]
    if own:
        rng = np.random.default_rng(0)
        y = rng.integers(0, 2, 300)
        frame = pd.DataFrame({"a": rng.normal(size=300) + y, "b": rng.normal(size=300), "label": y})
        frame.assign(sensitive=rng.integers(0, 2, 300)).to_parquet(tmp_path / "own.parquet")
        options += ["--data", str(tmp_path / "own.parquet")]
    try:
        runpy.run_path(str(FOLDER / "online.py"))["main"](options)
    finally:
        sys.modules.pop("common", None)
    printed = capsys.readouterr().out
    for word in ("own" if own else "synthetic", "2 seeds", "logistic", "SVM", "trimmed by SVM", "0.33", "not on Bank"):
        assert word in printed
    assert (tmp_path / "deep" / "online.png").stat().st_size > 10_000
