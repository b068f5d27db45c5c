"""URIs in their parts, places from whatever a user gives, and no secret in any text."""

import pickle
from pathlib import Path

import pytest

from rayinf.errors import InputError, RunError
from rayinf.redaction import redact
from rayinf.store.places import StorePath, is_uri, open_place, relative
from rayinf.store.uris import Parts


@pytest.mark.parametrize(
    ("uri", "path", "text"),
    [
        ("s3://b/x/y", "b/x/y", "s3://b/x/y"),
        ("s3://b/x/y/", "b/x/y", "s3://b/x/y"),
        ("s3://KEY:SECRET@b/x?region=r", "b/x", "s3://b/x"),
        ("s3://KEY:SEC/RET@b/x y/part-?.parquet?region=r", "b/x y/part-?.parquet", "s3://b/x y/part-?.parquet"),
        ("s3://b/a@c/x", "b/a@c/x", "s3://b/a@c/x"),
        ("s3://b/day=1/p%20q", "b/day=1/p q", "s3://b/day=1/p q"),
        ("gs://b/x", "b/x", "gs://b/x"),
        ("abfss://c@acct.dfs.core.windows.net/p/q", "c/p/q", "abfss://c@acct.dfs.core.windows.net/p/q"),
        ("abfss://c:PASS@acct.dfs.core.windows.net/p", "c/p", "abfss://c@acct.dfs.core.windows.net/p"),
        ("hdfs://name:8020/user/x", "/user/x", "hdfs://name:8020/user/x"),
        ("memory://run/x", "/run/x", "memory://run/x"),
    ],
)
def test_a_place_of_a_uri(uri, path, text):
    place = open_place(uri)
    assert isinstance(place, StorePath)
    assert (place.path, str(place)) == (path, text)
    assert pickle.loads(pickle.dumps(place)) == place
    inner = place / "scores" / "part-00000.parquet"
    assert (inner.name, inner.stem, inner.suffix) == ("part-00000.parquet", "part-00000", ".parquet")
    assert inner.parent.parent == place
    assert inner.with_name("z").parent == inner.parent
    assert relative(inner, place) == "scores/part-00000.parquet"
    assert str(inner) == f"{text}/scores/part-00000.parquet"
    assert not any(secret in repr(inner) for secret in ("SEC", "PASS", "KEY"))


def test_local_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_place("run") == tmp_path / "run"
    assert open_place(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
    assert open_place(Path("run")) == tmp_path / "run"
    assert not is_uri("run") and is_uri("s3://b/x")


def test_a_uri_that_went_through_pathlib():
    assert str(open_place(Path("s3://b/x"))) == "s3://b/x"
    assert is_uri(Path("s3://b/x"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("https://host/run", "web server"),
        ("s3://bucket", "must name a folder or file"),
        ("s3://", "must name a folder or file"),
        ("nosuchscheme://b/x", "cannot be opened"),
        ("hdfs://localhost:1/x", None),
    ],
)
def test_uris_that_cannot_be_opened(given, expected):
    if expected is None:
        assert open_place(given).path == "/x"  # found out at the first request
        return
    with pytest.raises(InputError, match=rf"{expected}.*Fix: "):
        open_place(given)


SECRETS = [
    "s3://KEY:s3cret@bucket/x",
    "s3://KEY:s3c/re+t@bucket/x?region=a",
    "s3://bucket/x?access_key=s3cret&secret_key=s3cret&region=eu",
    "s3://bucket/x?session_token=s3cret",
    "https://h/x?X-Amz-Credential=s3cret&X-Amz-Signature=s3cret&X-Amz-Date=1",
    "abfss://container:s3cret@a.dfs.core.windows.net/x",
    "abfs://:s3cret@a.dfs.core.windows.net/c/x",
    "https://a.blob.core.windows.net/c/x?sv=1&sig=s3cret",
    "sftp://me:s3cret@host/x",
    "s3://bucket/x?endpoint_override=http://u:s3cret@host:1&scheme=http",
]


@pytest.mark.parametrize("uri", SECRETS)
@pytest.mark.parametrize("text", ["{}", "cannot read '{}' (x)", '{{"a": "{}"}}', "{0} and {0}, twice"])
def test_secrets_are_not_shown(uri, text):
    shown = redact(text.format(uri))
    assert "s3c" not in shown and "re+t" not in shown
    assert redact(shown) == shown
    for error in (InputError(text.format(uri), f"try {uri}"), RunError(text.format(uri), "x")):
        assert "s3c" not in f"{error} {error.what} {error.fix} {error!r}"


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a/b?region=eu&scheme=http",
        "abfss://container@account.dfs.core.windows.net/x",
        "hdfs://user@name:8020/x",
        "a=1, key=2, user@host",
        "day=1/part-0.parquet?x",
        "write to me@example.org: s3://bucket/x",
    ],
)
def test_other_text_stays(text):
    assert redact(text) == text


def test_the_way_to_a_store_does_not_hold_the_path():
    a, b = (Parts.of(f"s3://k:s@b/{p}?region=r") for p in ("x", "y/z"))
    assert a.store_uri == b.store_uri
