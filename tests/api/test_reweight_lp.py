"""`reweight_lp`: scores in, weights by row id out; streamed and in memory the same; what users do wrong."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pareto.reweight_cases import demanded, influences, oracle
from run_folders import write_run

import rayinf
from rayinf.api import reweight_lp as verb
from rayinf.pareto.lp import InfeasibleError

LABELS = ("cat", "dog", "emu", "fox")
COLUMNS = [f"category_{label}" for label in LABELS]


@pytest.fixture(scope="module")
def p():
    return influences(0, 20_000, 4)


@pytest.fixture(scope="module")
def scores(p):
    return rayinf.Scores.from_numpy(p, COLUMNS, row_ids=[f"row {i}" for i in range(len(p))])


@pytest.fixture(scope="module")
def run(p, tmp_path_factory):
    """The same scores as a finished run on disk, of three shards; the middle one has a single large row group."""
    parts = []
    for start, stop in [(0, 3000), (3000, 17_000), (17_000, 20_000)]:
        columns = {"row_id": np.arange(start, stop) + 7, **{c: p[start:stop, j] for j, c in enumerate(COLUMNS)}}
        columns["total"] = p[start:stop].sum(1)
        parts.append(pa.table(columns))
    metadata = {"classes": {str(k): label for k, label in enumerate(LABELS)}}
    return write_run(tmp_path_factory.mktemp("run"), parts, metadata)


def test_the_result_says_what_the_program_says(scores, p):
    found = rayinf.reweight_lp(scores, ["category_cat", "category_fox"], alpha=1.01)
    assert found.objective == pytest.approx(oracle(p, [0, 3], np.full(4, 1.01)), rel=1e-7)
    w = found.weights
    assert w.shape == (len(p),) and len(found) == len(p)
    np.testing.assert_allclose(found.predicted_change, w @ p - p.sum(0), rtol=1e-9)
    np.testing.assert_allclose(found.total, p.sum(0))
    np.testing.assert_allclose(found.classes["demand"], demanded(p, 1.01))
    np.testing.assert_allclose(found.classes["absolute"], np.abs(p).sum(0))
    assert found.classes["class"].to_pylist() == list(LABELS)
    assert found.classes["target"].to_pylist() == [True, False, False, True]
    assert found.prices.shape == (4,)
    assert found.binding == tuple(
        f"category_{c}" for c, b in zip(LABELS, found.classes["binding"], strict=True) if b.as_py()
    )
    frame = found.to_pandas()
    assert list(frame.columns) == ["row_id", "weight"]
    assert frame.row_id[5] == "row 5" and frame.weight[5] == w[5]


def test_alpha_as_a_sequence_and_by_label(scores):
    one = rayinf.reweight_lp(scores, "category_cat", alpha=[0.9, 1.1, 1.0, 0.95])
    by = {"category_fox": 0.95, "category_cat": 0.9, "category_emu": 1.0, "category_dog": 1.1}
    assert rayinf.reweight_lp(scores, "category_cat", alpha=by).weights.tobytes() == one.weights.tobytes()


def test_streamed_from_parquet_into_parquet_are_the_same_bytes(run, scores, tmp_path, monkeypatch):
    kept = rayinf.reweight_lp(scores, "category_dog", alpha=0.9, radius=0.3, slack="scaled")
    monkeypatch.setattr(verb, "_GROUP", 5000)
    held = rayinf.Scores.load(run)
    for stream in (True, False):
        file = tmp_path / f"{stream}.parquet"
        found = rayinf.reweight_lp(held, "dog", alpha=0.9, radius=0.3, slack="scaled", stream=stream, out=file)
        assert found.weights.tobytes() == kept.weights.tobytes()
        assert len(found.solution.weights) == 0
        table = pq.read_table(file)
        assert table["row_id"].to_pylist() == list(range(7, len(kept) + 7))
        assert pq.read_metadata(file).num_row_groups > 1
    assert (tmp_path / "True.parquet").read_bytes() == (tmp_path / "False.parquet").read_bytes()
    written = kept.write(tmp_path / "kept.parquet")
    assert pq.read_table(written)["weight"].to_numpy().tobytes() == kept.weights.tobytes()
    assert pq.read_table(written)["row_id"][1].as_py() == "row 1"


def test_many_rows_are_streamed_unless_asked_otherwise(scores, monkeypatch):
    monkeypatch.setattr(verb, "_IN_MEMORY", 1000)

    def refuse(*_given):
        raise AssertionError("read into memory")

    kept = rayinf.reweight_lp(scores, "category_cat", stream=False)
    monkeypatch.setattr("rayinf.data.vectors.Vectors.to_numpy", refuse)
    assert rayinf.reweight_lp(scores, "category_cat").weights.tobytes() == kept.weights.tobytes()
    with pytest.raises(AssertionError, match="memory"):
        rayinf.reweight_lp(scores, "category_cat", stream=False)


def test_words(p):
    text = rayinf.reweight_lp(rayinf.Scores.from_numpy(p, COLUMNS), COLUMNS, radius=0.2).to_text()
    assert "Weights from 0.8 to 1.2" in text and "All classes are targets" in text and "cat *" in text
    low = p - p.mean(0) - 0.001 * np.abs(p).mean(0)
    low[:, 3] = 0
    found = rayinf.reweight_lp(rayinf.Scores.from_numpy(low, COLUMNS), "category_cat", alpha=0.9)
    notes = " ".join(found.notes)
    assert "cat, dog, emu is negative: an alpha under 1 demands a gain" in notes
    assert "S_k of cat, dog, emu is within 1% of zero" in notes
    assert "No row has any influence on fox." in notes
    # It is a gain indeed.
    assert (found.predicted_change[:3] >= 0.1 * np.abs(found.total[:3]) * (1 - 1e-9)).all()
    assert not any("negative" in n for n in rayinf.reweight_lp(_scores(low), "category_cat", slack="scaled").notes)


def _scores(p):
    return rayinf.Scores.from_numpy(p, COLUMNS)


def test_demands_that_cannot_be_met_leave_no_file(scores, tmp_path):
    with pytest.raises(InfeasibleError, match=r"class emu \(alpha 1000: .*Fix: lower the alpha of emu"):
        rayinf.reweight_lp(scores, "category_cat", alpha=[0.9, 0.9, 1000, 0.9], out=tmp_path / "w.parquet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"targets": "bird"}, "'bird' is not a class"),
        ({"targets": []}, "names no class"),
        ({"targets": ["category_cat", "category_cat"]}, "one twice"),
        ({"alpha": np.nan}, "not finite"),
        ({"alpha": [0.9, 0.9]}, "for 4 classes"),
        ({"alpha": {"category_cat": 0.9}}, "dog, category_emu, category_fox missing"),
        ({"alpha": dict.fromkeys([*COLUMNS, "bird"], 1)}, "'bird' is not a class"),
        ({"upper": 0}, "upper must be a finite number > 0"),
        ({"radius": 1.01}, "radius must be a number in"),
        ({"slack": "none"}, "slack='none' is unknown"),
        ({"stream": "yes"}, "stream must be True or False"),
        ({"scores": np.ones((3, 2))}, "scores must be rayinf.Scores"),
    ],
)
def test_wrong_input_is_found_before_any_row_is_read(given, told, scores, monkeypatch):
    monkeypatch.setattr("rayinf.data.vectors.Vectors.batches", None)
    with pytest.raises(rayinf.InputError, match=told):
        rayinf.reweight_lp(**{"scores": scores, "targets": "category_cat", **given})


def test_a_folder_is_no_file(scores, tmp_path):
    with pytest.raises(rayinf.InputError, match="is a folder"):
        rayinf.reweight_lp(scores, "category_cat", out=tmp_path)


def test_a_score_that_is_not_finite_or_a_damaged_shard(run, p, tmp_path):
    bad = _scores(p[:10]).source
    column = bad["category_dog"].to_numpy().copy()
    column[3] = np.inf
    held = rayinf.Scores(bad.set_column(2, "category_dog", pa.array(column)))
    with pytest.raises(rayinf.InputError, match="row 3 in 'category_dog' is inf"):
        rayinf.reweight_lp(held, "category_cat")
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    file = copy / "scores" / "part-00001.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)
    for stream in (True, False):
        with pytest.raises(rayinf.InputError, match="damaged or gone"):
            rayinf.reweight_lp(rayinf.Scores.load(copy), "cat", stream=stream, out=tmp_path / "w.parquet")
    pq.write_table(pa.table({"row_id": [1], "total": [1.0]}), file)
    with pytest.raises(rayinf.InputError, match="damaged or gone"):
        rayinf.reweight_lp(rayinf.Scores.load(copy), "cat")
    assert not (tmp_path / "w.parquet").exists()
