"""The text for two configs that differ: what the user changed, in words, without digests."""

from __future__ import annotations

from typing import Any

import pytest

from rayinf.data.differences import differences

A, B, C = "a" * 64, "b" * 64, "c" * 64


def table(rows: int = 9, **columns: str) -> dict[str, Any]:
    return {"rows": rows, "features": "float32 [2] 11", "label": "22", "shards": A, **columns}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"loss": A}, {"loss": B}, ["the loss function differs"]),
        ({"loss": "cross_entropy"}, {"loss": B}, ["loss: cross_entropy -> a function"]),
        ({"transform": A}, {"transform": None}, ["transform: a function -> None"]),
        ({"transform": A}, {"transform": B}, ["the transform differs"]),
        ({"model": A, "seed": 0}, {"model": B, "seed": 0}, ["the model (its weights, code or attributes) differs"]),
        ({"fit": {"lr": 0.1}}, {"fit": A}, ["fit: {'lr': 0.1} -> a function"]),
        ({"train": table()}, {"train": table(12)}, ["the training table has 9 -> 12 rows"]),
        (
            {"train": table(), "valid": table()},
            {"train": table(), "valid": table(label="33")},
            ["the validation table has other values, or its rows in another order (label)"],
        ),
        ({"train": table()}, {"train": table(shards=B)}, ["the training table is cut into other files or row groups"]),
        ({"train": table()}, {"train": None}, ["the training table is missing"]),
        ({"train": A}, {"train": table()}, ["the training table was described by another version of rayinf"]),
        # What follows from another entry is not named: other columns of the same tables.
        ({"label": "y", "train": table()}, {"label": "z", "train": table(label="33")}, ["label: y -> z"]),
        (
            {"row_id": None, "train": table()},
            {"row_id": "id", "train": table(row_id="44")},
            ["row_id: None -> id"],
        ),
        (
            {"objective": ["total"], "objective functions": {"total": A}, "valid": table()},
            {
                "objective": ["gap"],
                "objective functions": {"gap": B},
                "valid": table(**{"column:sex": "55"}),
            },
            ["objective: ['total'] -> ['gap']"],
        ),
        (
            {"objective": ["gap"], "objective functions": {"gap": A}},
            {"objective": ["gap"], "objective functions": {"gap": B}},
            ["the function of the objective 'gap' differs"],
        ),
        # But where nothing else differs, the text is not empty.
        ({"valid": table()}, {"valid": table(row_id="44")}, ["valid differs"]),
        ({"objective functions": {"a": A}}, {"objective functions": {"b": A}}, ["objective functions differs"]),
    ],
)
def test_words(old: dict[str, Any], new: dict[str, Any], expected: list[str]) -> None:
    assert differences(old, new) == expected
    assert differences(old, old) == []
