"""Retries: bounded, reported, shared by all requests to a store; and errors that are not retried."""

import time

import pytest

from rayinf.errors import InputError, RunError
from rayinf.store import retries
from rayinf.store.failures import StoreAwayError, StoreDeniedError, StoreMissingError, may_pass
from rayinf.store.retries import Retries

BUSY = OSError("AWS Error SLOW_DOWN during PutObject operation: SlowDown")


@pytest.fixture
def messages(monkeypatch):
    lines = []
    monkeypatch.setattr(retries, "listeners", [lines.append])
    monkeypatch.setattr(retries, "_SHORTEST_SECONDS", 0.01)
    monkeypatch.setattr(retries, "_LONGEST_SECONDS", 0.05)
    return lines


class Request:
    """Fails some times, then answers."""

    def __init__(self, times, error=BUSY):
        self.left, self.error, self.made = times, error, 0

    def __call__(self):
        self.made += 1
        if self.left:
            self.left -= 1
            raise self.error
        return "answer"


def test_a_request_that_fails_for_a_while(messages):
    held, request = Retries("s3://b"), Request(4)
    assert held.call(request, "s3://b/x") == "answer"
    assert request.made == 5
    assert messages == []  # so short a wait is not reported


def test_a_long_wait_is_reported_once_and_its_end_too(messages, monkeypatch):
    monkeypatch.setattr(retries, "_QUIET_SECONDS", 0.05)
    held = Retries("s3://b")
    assert held.call(Request(8), "s3://b/x") == "answer"
    assert [line.split("(")[0].strip() for line in messages][:1] == ["s3://b does not answer"]
    assert "answers again after" in messages[1] and len(messages) == 2


def test_it_gives_up_and_later_requests_do_not_wait(messages, monkeypatch):
    monkeypatch.setattr(retries, "RETRY_SECONDS", 0.3)
    held = Retries("s3://b")
    assert held.call(Request(0), "s3://b/x") == "answer"
    with pytest.raises(
        StoreAwayError, match=r"s3://b/x cannot be reached: tried for .*Fix: check the network"
    ) as caught:
        held.call(Request(10**9), "s3://b/x")
    assert isinstance(caught.value, RunError) and isinstance(caught.value, OSError)
    begin, again = time.monotonic(), Request(10**9)
    with pytest.raises(StoreAwayError):
        held.call(again, "s3://b/y")
    assert again.made == 1 and time.monotonic() - begin < 0.2
    assert held.call(Request(0), "s3://b/x") == "answer"
    assert held.call(Request(3), "s3://b/x") == "answer"  # it has answered: it is waited for again


def test_a_store_that_never_answered_is_given_up_sooner(messages, monkeypatch):
    monkeypatch.setattr(retries, "FIRST_SECONDS", 0.1)
    with pytest.raises(StoreAwayError):
        Retries("s3://typo").call(Request(10**9), "s3://typo/x")


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("AWS Error SLOW_DOWN during PutObject operation", True),
        ("AWS Error UNKNOWN (HTTP status 429) during HeadObject operation", True),
        ("AWS Error SERVICE_UNAVAILABLE during GetObject operation", True),
        ("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 7, Could not connect", True),
        ("AWS Error INTERNAL_FAILURE during GetObject operation", True),
        ("AWS Error NO_SUCH_UPLOAD during CompleteMultipartUpload operation", True),
        ("Server returned non-2xx status code: 503 Service Unavailable", True),
        ("google::cloud::Status(UNAVAILABLE: EasyPerform)", True),
        ("AWS Error ACCESS_DENIED during HeadObject operation: No response body.", False),
        ("AWS Error UNKNOWN (HTTP status 301) during ListObjectsV2 operation", False),
        ("AWS Error NO_SUCH_BUCKET during PutObject operation", False),
        ("AWS Error INVALID_ACCESS_KEY_ID during PutObject operation", False),
        ("AWS Error REQUEST_TIME_TOO_SKEWED during PutObject operation (403)", False),
        ("Invalid argument: part 5030 of 4290", False),
    ],
)
def test_what_may_pass(text, passes):
    assert may_pass(OSError(text)) is passes
    assert may_pass(ConnectionResetError("x")) and may_pass(TimeoutError("x"))


def test_lasting_errors_are_raised_at_once(messages):
    held = Retries("s3://b")
    for error, kind, expected in (
        (OSError("AWS Error ACCESS_DENIED during X: 403"), StoreDeniedError, "access is denied.*check the credentials"),
        (PermissionError(13, "no"), StoreDeniedError, "access is denied"),
        (OSError("AWS Error NO_SUCH_BUCKET during X"), StoreMissingError, "does not exist.*create it"),
    ):
        request = Request(10**9, error)
        with pytest.raises(kind, match=expected) as caught:
            held.call(request, "s3://k:SECRET@b/x")
        assert request.made == 1 and isinstance(caught.value, InputError) and "SECRET" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        held.call(Request(1, FileNotFoundError(2, "x")), "s3://b/x")
    with pytest.raises(ZeroDivisionError):
        held.call(lambda: 1 / 0, "s3://b/x")
