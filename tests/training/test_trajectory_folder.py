"""The state of a trajectory on disk, where a process is killed between two changes of it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rayinf.data.checked_folder import CheckedFolder
from rayinf.training.trajectory_folder import TrajectoryFolder

ROWS = pa.table({"row_id": [7, 9], "position": [0, 2], "value": [0.5, 0.25]})
KEY = ("entropy", 0)


def test_a_question_that_has_its_labels_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = TrajectoryFolder(tmp_path, "me", KEY, 2)
    folder.put_asked(1, ROWS)
    monkeypatch.setattr(CheckedFolder, "remove", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        folder.put_labels(1, ROWS, np.array([1, 0]))
    monkeypatch.undo()
    assert list(tmp_path.rglob("asked-1.parquet"))
    again = TrajectoryFolder(tmp_path, "me", KEY, 2)
    again.put_asked(2, ROWS)
    again.clean()
    assert not list(tmp_path.rglob("asked-1.parquet")) and again.asked(1) is None
    labels = again.labeled(1)
    assert labels is not None and labels["label"].to_pylist() == [1, 0]
    assert again.asked(2) is not None, "whose labels are awaited"
