"""Errors show no password, whatever they quote."""

from __future__ import annotations

import pickle

import pytest

import rayinf
from rayinf.redaction import redact
from rayinf.store import retries


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:pl4nted@bucket/a is not there", "s3://...@bucket/a is not there"),
        ("'http://me:pl4nted@host:80/x' and gs://bucket/y", "'http://...@host:80/x' and gs://bucket/y"),
        ("abfss://box@store/t?sig=pl4nted&x=1", "abfss://box@store/t?sig=...&x=1"),
        ("s3://b/t?region=a;secret_key=pl4nted", "s3://b/t?region=a;secret_key=..."),
        ("host:80, 10:30@noon, a@b://c", "host:80, 10:30@noon, a@b://c"),
        ("s3://bucket/a:b@c", "s3://bucket/a:b@c"),
    ],
)
def test_passwords_of_uris_are_not_shown(text: str, shown: str) -> None:
    assert redact(text) == shown
    error = rayinf.InputError(f"{text}.", f"correct {text}.")
    for told in (str(error), repr(error), error.what, error.fix, str(pickle.loads(pickle.dumps(error)))):
        assert "pl4nted" not in told


def test_of_a_table_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_SECONDS", 1.0)
    task = rayinf.logistic_regression(([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1]), l2=1.0)
    with pytest.raises(rayinf.RayinfError) as found:
        rayinf.influence(task, "s3://key:pl4nted@no-such-bucket/a?endpoint_override=127.0.0.1:9", "/nowhere")
    assert "pl4nted" not in str(found.value)
