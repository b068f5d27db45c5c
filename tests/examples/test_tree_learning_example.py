"""Active learning by an influence tree runs from end to end, on its own rows and a user's."""

import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "what_data_benefits" / "active.py"


@pytest.mark.parametrize("own", [False, True])
def test_active(own: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    options = ["--quick", "--out", str(tmp_path / "deep" / "active.png")]
    if own:
        rng = np.random.default_rng(0)
        y = rng.integers(0, 2, 200)
        frame = pd.DataFrame({"a": rng.normal(size=200) + y, "b": rng.normal(size=200), "label": y})
        frame["split"] = np.repeat(["init", "pool", "val", "test"], 50)
        frame.to_parquet(tmp_path / "own.parquet")
        options += ["--data", str(tmp_path / "own.parquet")]
    runpy.run_path(str(SCRIPT))["main"](options)
    printed = capsys.readouterr().out
    for word in (
        "test accuracy of the SVM, 2 seeds",
        "logistic",
        "tree",
        "isal",
        "entropy",
        "of 2",
        "Chhabra 2024: influence",
    ):
        assert word in printed
    assert (tmp_path / "deep" / "active.png").stat().st_size > 10_000
