"""Wrong input gives one error that names the culprit and how to mend it, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data.refusals import LETTERS, TRAIN, VALID, Refused, X, Y, but, columns, ids, linear, lists, task
from torch import Tensor, nn
from torch.nn import functional

import rayinf


class Wrapped(nn.Module):
    """A linear classifier whose logits go through a function."""

    def __init__(self, after: Callable[[Tensor], Any], *between: nn.Module) -> None:
        super().__init__()
        self.encoder, self.between, self.head = nn.Linear(4, 8), nn.Sequential(*between), nn.Linear(8, 3)
        self.after = after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.head(self.between(self.encoder(x).tanh())))


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    return Refused(tmp_path)


def test_the_same_arguments_unspoilt_are_no_error(tmp_path: Path) -> None:
    """Else every test here could pass for another reason."""
    for train, valid, of in ((TRAIN, VALID, task()), (columns(), columns(*VALID), task(features=LETTERS))):
        scores = rayinf.influence(of, train, valid, out=tmp_path / f"run{len(str(train))}")
        assert len(scores) == 60


# --- Features


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite(wrong: float, refused: Refused) -> None:
    """The column, the place in it, and the row; also past the first shard, and in tensors."""
    refused("train", f"'features'[2] holds {wrong} in row 47", train=(but(X, (47, 2), wrong), Y))
    refused("valid", f"'features'[0] holds {wrong} in row 29", valid=(but(VALID[0], (29, 0), wrong), VALID[1]))
    of = task(features=LETTERS)
    refused("train", f"'c' holds {wrong} in row 47", task=of, train=columns(but(X, (47, 2), wrong)), valid=columns())
    refused("valid", f"'a' holds {wrong} in row 3", task=of, train=columns(), valid=columns(but(X, (3, 0), wrong)))
    images = but(X, (47, 2), wrong).reshape(-1, 1, 2, 2)
    of = task(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    refused("'features'[0, 1, 0]", "row 47", task=of, train=(images, Y), valid=(X.reshape(-1, 1, 2, 2), Y))
    long = np.tile(X, (20, 1))
    refused("'features'[1]", "row 1111", train=(but(long, (1111, 1), wrong), np.tile(Y, 20)))


def test_nan_of_pandas(refused: Refused) -> None:
    frame = columns().to_pandas()
    frame.loc[5, "c"] = np.nan
    refused("train: column 'c' is null in row 5", "NaN", task=task(features=LETTERS), train=frame, valid=columns())


def test_features_of_mixed_lengths(refused: Refused, tmp_path: Path) -> None:
    ragged = [row[:3] if k == 9 else row for k, row in enumerate(X.tolist())]
    message = "train: column 'features' has lists of different lengths: 4 in row 0, 3 in row 9"
    refused(message, train=lists(ragged))
    refused(message, train=pd.DataFrame({"features": ragged, "label": Y}))
    pq.write_table(lists(ragged), tmp_path / "ragged.parquet")
    refused(message, train=tmp_path / "ragged.parquet")
    refused("valid", "different lengths", "row 9", valid=lists(ragged))
    refused("train holds lists that cannot be made an array", train=(ragged, Y))
    (tmp_path / "folder").mkdir()
    for name, width in (("a", 4), ("b", 3)):
        pq.write_table(lists(X[:, :width].tolist()), tmp_path / "folder" / f"{name}.parquet")
    refused("train", "mixed shapes: [4], and [3] in row 60", train=tmp_path / "folder")


def test_tables_of_different_widths(refused: Refused) -> None:
    refused("train and valid", "(4,)", "(3,)", valid=(VALID[0][:, :3], VALID[1]))
    refused("The model raised", "features [4, 3] float32", "4x3 and 4x3", train=(X[:, :3], Y))


def test_no_rows(refused: Refused, tmp_path: Path) -> None:
    refused("train has no rows", train=(X[:0], Y[:0]))
    refused("valid has no rows", valid=columns(X[:0], Y[:0]))
    refused("train has no rows", train=columns().to_pandas().iloc[:0])
    pq.write_table(lists().slice(0, 0), tmp_path / "empty.parquet")
    refused("train has no rows", train=tmp_path / "empty.parquet")


def test_values_that_are_null(refused: Refused) -> None:
    refused(
        "train: column 'features'[2] is null in row 11",
        train=lists([[*r[:2], None, r[3]] if k == 11 else r for k, r in enumerate(X.tolist())]),
    )
    refused("train: column 'features' is null in row 11", train=lists(ids(11, None, lambda k: X[k].tolist())))
    refused("train: column 'label' is null in row 11", train=lists(y=pa.array(ids(11, None, lambda k: k % 3))))
    refused("valid: column 'g' is null in row 11", valid=lists(g=ids(11, None, str)), objective="slice:g")
    refused("train: column 'row_id' is null in row 11", train=lists(row_id=pa.array(ids(11, None))))
    refused("train: column 'key' is null in row 11", task=task(row_id="key"), train=lists(key=ids(11, None, str)))


def test_features_of_no_use(refused: Refused) -> None:
    text = [f"{k} words" for k in range(60)]
    refused("'features' holds text", "transform", train=lists(text))
    refused(
        "'features' holds bytes",
        "transform",
        train=lists().set_column(0, "features", pa.array([b"12"] * 60, pa.binary(2))),
    )
    refused(
        "'features' is of type timestamp[s]",
        train=lists().set_column(0, "features", pa.array(range(60), pa.timestamp("s"))),
    )
    of = task(features=["a", "g"])
    refused("'g' holds text", task=of, train=columns(g=text), valid=columns(g=text))
    refused("'g' holds [4] values a row", task=of, train=columns(g=list(X)), valid=columns(g=list(X)))
    frame = pd.DataFrame({"features": list(X), "label": Y, "note": ["words", 1] * 30})
    refused("train is a DataFrame", "note", train=frame)


def test_a_transform_that_gives_no_numbers(refused: Refused) -> None:
    refused("Task(transform=...) returned <U1", task=task(transform=lambda x: ["a"] * len(x)))
    refused("Task(transform=...) returned object", task=task(transform=lambda x: None))
    refused("Task(transform=...) raised ZeroDivisionError", task=task(transform=lambda x: 1 / 0))
    refused("(2, 3)", "4 rows", task=task(transform=lambda x: x[:2]))


# --- Labels and ids


def test_labels_without_a_logit(refused: Refused) -> None:
    refused("3 logits", "4 labels", "no logit for: 7 (1 rows)", train=(X, but(Y, 3, 7)))
    refused("no logit for: -1 (1 rows)", train=(X, but(Y, 3, -1)))
    refused("valid", "no logit for: 7 (1 rows)", "for 0, 1, 2", valid=(VALID[0], but(VALID[1], 3, 7)))
    words = np.array(["ant", "bee", "cat"])
    refused("valid", "'dog' (1 rows)", train=(X, words[Y]), valid=(VALID[0], but(words[VALID[1]], 3, "dog")))
    refused(
        "3 logits",
        "2 labels ('ant', 'bee')",
        "Task(classes=",
        train=(X, words[Y % 2]),
        valid=(VALID[0], words[VALID[1]]),
    )
    refused("2 labels", "3 logits", task=task(classes=[0, 1]))
    refused("'label' holds 0.5 in row 3", train=(X, but(Y.astype(float), 3, 0.5)))
    refused("'label' holds nan in row 3", train=(X, but(Y.astype(float), 3, np.nan)))
    refused("'label'", "date32", train=lists(y=pa.array(range(60), pa.date32())))


def test_a_class_without_validation_rows(refused: Refused) -> None:
    held = VALID[1] != 1
    refused("category", "no row of class 1", objective=["total", "category"], valid=(VALID[0][held], VALID[1][held]))


def test_ids_that_stand_twice(refused: Refused) -> None:
    refused("train: column 'row_id' has the id 3 in", "1 rows", train=lists(row_id=ids(50, 3)))
    refused("'key' has the id 'k3' in", task=task(row_id="key"), train=lists(key=ids(50, "k3", lambda k: f"k{k}")))
    refused("'key' of type list", task=task(row_id="key"), train=lists(key=[[k] for k in range(60)]))


def test_columns_that_are_missing(refused: Refused) -> None:
    of = task(features=LETTERS, row_id="key", group="g")
    t = columns(key=ids(0, 0), g=Y)
    both = {"task": of, "train": t, "valid": t}
    refused("train has no column 'b'; it has a, c, d, label", **{**both, "train": t.drop_columns("b")})
    refused("valid has no column 'b'", **{**both, "valid": t.drop_columns("b")})
    refused("train has no column 'label'", **{**both, "train": t.drop_columns("label")})
    refused("train has no column 'key'", **{**both, "train": t.drop_columns("key")})
    refused("valid has no column 'age'", "objective", **both, objective="slice:age")
    twice = pa.table([*t.columns, t["a"]], names=[*t.schema.names, "a"])
    refused("train has 2 columns called 'a'", **{**both, "train": twice})


def test_groups_that_are_none(refused: Refused) -> None:
    many = [np.tile(v, (40, 1)) if v.ndim == 2 else np.tile(v, 40) for v in VALID]
    refused("'g' has 1,024 or more different", "1000", valid=lists(*many, g=range(1200)), objective="slice:g")
    refused("'g' holds 0.5 in row 1", valid=lists(g=np.arange(60) / 2), objective="slice:g")


# --- The model and its loss


def test_parameters_that_are_not_finite(refused: Refused) -> None:
    of = Wrapped(lambda z: z)
    of.head.weight.data[1, 1:3] = float("nan")
    refused("'head.weight' has 2 of 24 values", task=task(of))
    of = Wrapped(lambda z: z)
    of.encoder.bias.data[0] = float("inf")
    refused("'encoder.bias' has 1 of 8 values", task=task(lambda: of))


def test_logits_that_are_not_finite(refused: Refused) -> None:
    norm = nn.BatchNorm1d(8, affine=False)
    norm.running_mean[2] = float("nan")  # type: ignore[index]
    refused("logits on the first training rows are NaN", "buffers", task=task(Wrapped(lambda z: z, norm)))


@pytest.mark.parametrize(
    ("after", "culprits"),
    [
        (lambda z: z[:, 0], ["(4,) for a batch of 4 rows", "[B, C]"]),
        (lambda z: z[:, :1], ["[B, 1]", "column of zeros"]),
        (lambda z: z[:, None].expand(-1, 5, -1), ["(4, 5, 3)", "[B, C]"]),
        (lambda z: z[:2], ["(2, 3) for a batch of 4 rows"]),
        (lambda z: (z, z), ["The model returned a tuple", "[B, C]"]),
        (lambda z: {"logits": z}, ["The model returned a dict", "[B, C]"]),
    ],
)
def test_an_output_that_is_no_logits(after: Any, culprits: list[str], refused: Refused) -> None:
    refused(*culprits, task=task(Wrapped(after)))


@pytest.mark.parametrize("curvature", ["ekfac", "exact", "identity"])
def test_a_loss_that_is_not_one_value_a_row(curvature: str, refused: Refused) -> None:
    alone = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3))
    for of, parameters in ((None, "all"), (alone, ["0"])):
        if curvature != "ekfac" or parameters == "all":
            mean = task(of, loss=functional.cross_entropy, parameters=parameters)
            refused("returned ()", "4 rows", 'reduction="none"', task=mean, curvature=curvature)


def test_a_loss_whose_fisher_has_no_cheap_factor(refused: Refused) -> None:
    of = task(nn.Linear(4, 40), loss=lambda z, y: functional.cross_entropy(z, y, reduction="none"))
    refused("40 classes", "empirical", task=of)


@pytest.mark.parametrize("layer", [nn.LayerNorm, nn.BatchNorm1d])
@pytest.mark.parametrize("curvature", ["ekfac", "kfac"])
def test_a_layer_without_a_rule(layer: Any, curvature: str, refused: Refused) -> None:
    """Named with its share: 8 of 83 parameters, twice."""
    name = layer.__name__
    of = task(Wrapped(lambda z: z, layer(8)))
    refused(
        f"between.0.weight ({name}, 9.64%)",
        f"between.0.bias ({name}, 9.64%)",
        '"supported"',
        task=of,
        curvature=curvature,
    )


def test_too_many_parameters_for_a_dense_curvature(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    of = task(nn.Sequential(nn.Linear(4, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 3)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 16 << 30}))
    for curvature in ("exact", "ggn"):
        refused(f"{curvature!r} over 163,603 parameters takes 797.7 GiB", "16.0 GiB", task=of, curvature=curvature)


def test_parameters_that_are_misspelt(refused: Refused) -> None:
    refused("'haed'", "did you mean head", task=task(Wrapped(lambda z: z), parameters=["encoder", "haed"]))
    refused("'lsat'", "no module", task=task(Wrapped(lambda z: z), parameters="lsat"))
    refused("selects no parameters", task=task(Wrapped(lambda z: z, nn.ReLU()), parameters=["between"]))


def test_an_exact_hessian_that_is_no_minimum(refused: Refused) -> None:
    """Found while at work, so that the folder is there."""
    torch.manual_seed(0)
    message = refused(
        "negative eigenvalues of 67", 'curvature="ggn"', task=task(Wrapped(lambda z: z)), curvature="exact", begun=True
    )
    assert "not at a minimum" in message


def test_a_singular_exact_hessian_is_no_error(tmp_path: Path) -> None:
    """Without a ridge, softmax is blind to what moves all logits alike, and so are its gradients: a pseudo-inverse."""
    of = linear().double()
    scores = rayinf.influence(
        task(of), (X.astype(float), Y), (VALID[0].astype(float), VALID[1]), curvature="exact", out=tmp_path / "run"
    )
    a, v = (np.c_[x.astype(float), np.ones(len(x))] for x in (X, VALID[0]))
    matrix = np.c_[of.weight.detach().numpy(), of.bias.detach().numpy()]
    p, q = (np.exp(x @ matrix.T) / np.exp(x @ matrix.T).sum(1, keepdims=True) for x in (a, v))
    hessian = sum(np.kron(np.diag(s) - np.outer(s, s), np.outer(x, x)) for s, x in zip(p, a, strict=True))
    gradients = ((p - np.eye(3)[Y])[:, :, None] * a[:, None]).reshape(60, -1)
    query = ((q - np.eye(3)[VALID[1]])[:, :, None] * v[:, None]).reshape(30, -1).sum(0)
    assert abs(scores.metadata["least_eigenvalue"]) < 1e-12
    np.testing.assert_allclose(scores.to_numpy()[:, 0], gradients @ np.linalg.pinv(hessian) @ query, rtol=1e-9)
