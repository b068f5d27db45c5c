"""Two configs are two runs: what changes the scores is never taken for the run that a folder holds."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from engine import digest_cases as cases
from torch import Tensor, nn
from torch.nn import functional as F

import rayinf

WIDTH, CLASSES = 4, 3
RNG = np.random.default_rng(0)


def rows(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, WIDTH)).astype(np.float32), np.arange(n) % CLASSES, rng.integers(0, 2, n)


TRAIN, VALID = rows(40, 1), rows(30, 2)


def net(middle: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 5), middle or nn.Tanh(), nn.Linear(5, CLASSES))


def focal(gamma: float, weights: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        found = F.cross_entropy(z, y, weight=weights, reduction="none")
        return found * (1 - (-found).exp()) ** gamma

    return loss


def tempered(z: Tensor, y: Tensor, temperature: float = 1.0) -> Tensor:
    return F.cross_entropy(z / temperature, y, reduction="none")


class Standardise:
    def __init__(self, mean: float) -> None:
        self.mean = np.full(WIDTH, mean, np.float32)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x - self.mean


def default(temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(z: Tensor, y: Tensor, t: float = temperature) -> Tensor:
        return F.cross_entropy(z / t, y, reduction="none")

    return loss


class Smooth(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z / self.by, y, reduction="none")


ONES = torch.ones(CLASSES)
# Each pair counted as one run before: code of the same name, whose values differ.
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "class weights in a closure": ({"loss": focal(2, ONES)}, {"loss": focal(2, ONES * 3)}, "the loss function differs"),
    "an exponent in a closure": ({"loss": focal(2, ONES)}, {"loss": focal(1, ONES)}, "the loss function differs"),
    "a partial": (
        {"loss": functools.partial(tempered, temperature=1.0)},
        {"loss": functools.partial(tempered, temperature=3.0)},
        "the loss function differs",
    ),
    "a default": ({"loss": default(1.0)}, {"loss": default(3.0)}, "the loss function differs"),
    "a module as loss": ({"loss": Smooth(1.0)}, {"loss": Smooth(3.0)}, "the loss function differs"),
    "means of a transform": ({"transform": Standardise(0)}, {"transform": Standardise(1)}, "the transform differs"),
    "an attribute of a layer": (
        {"model": net(cases.Gate(scale=1.0))},
        {"model": net(cases.Gate(scale=3.0))},
        "the model (its weights, code or attributes) differs",
    ),
    "an activation": (
        {"model": net(cases.Gate(torch.tanh))},
        {"model": net(cases.Gate(torch.sin))},
        "the model (its weights, code or attributes) differs",
    ),
    "a version": ({"version": "1"}, {"version": "2"}, "version: 1 -> 2"),
}


def value(out: Path | None = None, *, verb: Any = rayinf.influence, **given: Any) -> rayinf.Scores:
    task = {k: given.pop(k) for k in ("model", "loss", "transform", "version", "fit", "group") if k in given}
    model = task.pop("model", net())
    tables = [given.pop("train", TRAIN[:2]), given.pop("valid", VALID[:2])]
    tables = tables[:1] if verb is rayinf.self_influence else tables
    return verb(rayinf.Task(model, **task), *tables, out=out, **{"curvature": "ekfac", "damping": 0.1, **given})


@pytest.mark.parametrize("what", PAIRS)
def test_another_run(what: str, tmp_path: Path) -> None:
    """It is refused on the folder, its factors are not lent, and the message names what changed and nothing else."""
    first, second, said = PAIRS[what]
    one = value(tmp_path / "run", **first).to_numpy()
    np.testing.assert_array_equal(value(tmp_path / "run", **first).to_numpy(), one)
    with pytest.raises(rayinf.InputError) as error:
        value(tmp_path / "run", **second)
    assert f"holds a run of another config: {said}. Fix:" in str(error.value)
    with pytest.raises(rayinf.InputError, match=re.escape(f"belong to another fit: {said}. Fix:")):
        value(factors=tmp_path / "run", **second)
    if what != "a version":
        assert not np.allclose(value(**second).to_numpy(), one, rtol=1e-3)  # the old scores would be wrong
    value(factors=tmp_path / "run", **first)


def test_what_does_not_change_a_run(tmp_path: Path) -> None:
    """Other objects of the same content, from another process say; the table in memory or cut otherwise in batches."""
    made = [
        lambda: {"loss": focal(2, torch.ones(CLASSES)), "transform": Standardise(0.5), "model": net()},
        lambda: {"loss": focal(2, torch.ones(CLASSES).clone()), "transform": Standardise(0.5), "model": net().train()},
    ]
    one = value(tmp_path / "run", **made[0]())
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*")}
    two = value(tmp_path / "run", **made[1](), train=tuple(a.copy() for a in TRAIN[:2]))
    np.testing.assert_array_equal(one.to_numpy(), two.to_numpy())
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*")} == before


def test_only_what_changed_is_named(tmp_path: Path) -> None:
    """Another objective reads other columns of the same validation rows: they did not change."""
    train, valid = ((x, y % 2, sex) for x, y, sex in (TRAIN, VALID))
    grouped = {"train": train, "valid": valid, "group": "sex", "model": nn.Linear(WIDTH, 2)}
    value(tmp_path / "run", **grouped, objective="demographic_parity")
    for objective, said in (
        ("total", "objective: ['demographic_parity'] -> ['total']"),
        (rayinf.demographic_parity(favourable=0), "the function of the objective 'demographic_parity' differs"),
        (["demographic_parity", "slice:sex"], "objective: "),
    ):
        with pytest.raises(rayinf.InputError) as error:
            value(tmp_path / "run", **grouped, objective=objective)
        assert f"another config: {said}" in str(error.value)
        assert ";" not in str(error.value)
        assert not re.search("[0-9a-f]{16}", str(error.value).replace(str(tmp_path), ""))


@pytest.mark.parametrize("field", ["rows", "combine", "where", "attack", "hard"])
def test_every_part_of_an_objective_counts(field: str, tmp_path: Path) -> None:
    def made(k: float) -> rayinf.Objective:
        parts: dict[str, Any] = {
            "rows": lambda z, y: k * z[:, 0],
            "combine": lambda sums, counts: k * sums.sum(),
            "where": lambda y: y != k,
            "attack": lambda predict, x, y, loss: x + k,
            "hard": lambda z, y: k * z[:, 0],
        }
        return rayinf.Objective("mine", **{field: parts[field]})

    value(tmp_path / "run", objective=made(1))
    value(tmp_path / "run", objective=made(1))
    with pytest.raises(rayinf.InputError, match=r"another config: the function of the objective 'mine' differs\. Fix"):
        value(tmp_path / "run", objective=made(2))


def test_a_lock_needs_a_version(tmp_path: Path) -> None:
    import threading

    lock = threading.Lock()

    def transform(x: np.ndarray) -> np.ndarray:
        with lock:
            return x

    with pytest.raises(rayinf.InputError, match=r"Task\(transform=\.\.\.\)'s variable 'lock'.*Task\(version="):
        value(tmp_path / "run", transform=transform)
    assert not (tmp_path / "run").exists()
    value(tmp_path / "run", transform=transform, version="1")
    with pytest.raises(rayinf.InputError, match=r"another config: version: 1 -> 2\. Fix"):
        value(tmp_path / "run", transform=transform, version="2")


@pytest.mark.parametrize("version", ["", 2, 1.0, b"1"])
def test_versions_that_are_refused(version: Any) -> None:
    with pytest.raises(rayinf.InputError, match=r"Task\(version=.*must be a text that names your code"):
        rayinf.Task(net(), version=version)


def test_frozen_parameters_are_another_run(tmp_path: Path) -> None:
    value(tmp_path / "run")
    frozen = net()
    frozen[0].requires_grad_(False)
    with pytest.raises(rayinf.InputError, match="frozen: None -> "):
        value(tmp_path / "run", model=frozen)


# --- Factors of another table


def write(path: Path, n: int, seed: int, group_size: int = 16) -> Path:
    x, y, _ = rows(n, seed)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), WIDTH)
    pq.write_table(pa.table({"features": lists, "label": y}), path, row_group_size=group_size)
    return path


def test_factors_of_the_same_table_however_it_is_cut(tmp_path: Path) -> None:
    lender = tmp_path / "lender"
    base = value(lender, train=write(tmp_path / "a.parquet", 40, 1))
    for train in (write(tmp_path / "b.parquet", 40, 1, 7), TRAIN[:2]):
        found = value(factors=lender, train=train)
        assert found.metadata["factors_from"] == {"folder": str(lender), "rows": 40, "same_table": True, "n": 40}
        np.testing.assert_allclose(found.to_numpy(), base.to_numpy(), rtol=1e-5)
        for verb, column in ((rayinf.self_influence, "self_influence"), (rayinf.influence_measure, "fi")):
            assert value(factors=lender, train=train, verb=verb).columns == [column]
    assert "factors_from" not in base.metadata


@pytest.mark.parametrize("curvature", ["ekfac", "exact"])
@pytest.mark.parametrize("train", ["more rows", "other rows", "other labels", "rewritten"])
def test_factors_of_another_table(train: str, curvature: str, tmp_path: Path) -> None:
    """Influence goes on with the mean curvature of those rows and the n of these, and says so."""
    lender, how = tmp_path / "lender", {"curvature": curvature, "damping": 1.0}
    file = write(tmp_path / "train.parquet", 40, 1)
    value(lender, train=file, **how)
    x, y, _ = rows(60, 1) if train == "more rows" else rows(40, 5)
    y = TRAIN[1][::-1].copy() if train == "other labels" else y
    x = TRAIN[0] if train == "other labels" else x
    given: Any = write(file, 40, 5) if train == "rewritten" else (x, y)
    found = value(factors=lender, train=given, **how)
    assert found.metadata["factors_from"] == {"folder": str(lender), "rows": 40, "same_table": False, "n": len(y)}
    assert found.metadata["rows"]["train"] == len(y)
    assert not np.allclose(found.to_numpy(), value(train=given, **how).to_numpy(), rtol=1e-3) or train == "other labels"
    for verb in (rayinf.self_influence, rayinf.influence_measure):
        with pytest.raises(rayinf.InputError, match="were summed over other rows: the training table has"):
            value(factors=lender, train=given, verb=verb, **how)


def test_influence_on_borrowed_factors_in_numbers(tmp_path: Path) -> None:
    """Against float64 by hand, for one linear layer: the mean Hessian of the lender's rows, times the borrower's n."""
    torch.manual_seed(0)
    model = nn.Linear(WIDTH, CLASSES).double()
    lender, (x, y, _) = rows(40, 1), rows(25, 7)
    how: dict[str, Any] = {"curvature": "exact", "damping": 0.3, "model": model}
    value(tmp_path / "lender", train=lender[:2], **how)
    found = value(factors=tmp_path / "lender", train=(x, y), **how).to_numpy()[:, 0]

    def parts(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        joined = np.concatenate([features, np.ones((len(features), 1))], 1).astype(np.float64)
        w = np.concatenate([model.weight.detach().numpy(), model.bias.detach().numpy()[:, None]], 1)
        z = joined @ w.T
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        g = np.einsum("nc,ni->nci", p - np.eye(CLASSES)[labels], joined).reshape(len(labels), -1)
        s = np.einsum("nc,cd->ncd", p, np.eye(CLASSES)) - np.einsum("nc,nd->ncd", p, p)
        h = np.einsum("ncd,ni,nj->cidj", s, joined, joined).reshape(g.shape[1], g.shape[1]) / len(labels)
        return g, h

    curvature = parts(*lender[:2])[1] + 0.3 * np.eye(CLASSES * (WIDTH + 1))
    truth = parts(x, y)[0] @ np.linalg.solve(len(y) * curvature, parts(*VALID[:2])[0].sum(0))
    np.testing.assert_allclose(found, truth, rtol=1e-8)


@pytest.mark.parametrize("text", ["null", "{", "[]", '{"identity": 3}'])
def test_factors_of_a_damaged_run(text: str, tmp_path: Path) -> None:
    value(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(text)
    with pytest.raises(rayinf.RayinfError):
        value(factors=tmp_path / "run")


def test_the_identity_holds_no_addresses(tmp_path: Path) -> None:
    value(tmp_path / "run", loss=focal(2, ONES), transform=Standardise(0))
    text = json.dumps(json.loads((tmp_path / "run" / "run.json").read_text())["identity"])
    assert "0x" not in text
    assert " at " not in text
