"""Poisoning, distribution shift and evasion run from end to end, on their own rows and a user's."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "what_data_benefits"
PRINTED = {
    "poisoning": ["clean", "poisoned", "trimmed", "overshoot"],
    "shift": ["plain", "reweighed", "DP", "EOP", "Chhabra 2024 (a picture"],
    "evasion": ["pre-attack", "post-attack", "trimmed", "aimed at trimmed", "random trim"],
}


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("script", PRINTED)
def test_script(
    script: str, own: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.syspath_prepend(FOLDER)
    options = ["--quick", "--out", str(tmp_path / "deep" / "figure.png")]
    if own:
        rng = np.random.default_rng(0)
        group = rng.integers(0, 2, 600)
        x = rng.normal(size=(600, 3)) + 0.5 * group[:, None]
        frame = pd.DataFrame(x, columns=["a", "b", "c"]).assign(sensitive=group)
        frame["label"] = (x.sum(1) + rng.normal(size=600) > 0.7).astype(int)
        frame.to_parquet(tmp_path / "own.parquet")
        options += ["--data", str(tmp_path / "own.parquet")]
    try:
        runpy.run_path(str(FOLDER / f"{script}.py"))["main"](options)
    finally:
        sys.modules.pop("common", None)
    printed = capsys.readouterr().out
    for word in [*PRINTED[script], "own" if own else "synthetic"]:
        assert word in printed
    assert (tmp_path / "deep" / "figure.png").stat().st_size > 10_000


def test_missing_data_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    for script in PRINTED:
        with pytest.raises(SystemExit, match=r"\.parquet is needed"):
            runpy.run_path(str(FOLDER / f"{script}.py"))["main"](["--data", str(tmp_path)])
        sys.modules.pop("common", None)
