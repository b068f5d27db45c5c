"""The causes of a store's errors: temporary, access denied, or a place that does not exist."""

from __future__ import annotations

import re

from rayinf.errors import InputError, RunError
from rayinf.redaction import redact

_LONGEST = 160
# Temporary errors: too many requests, faults of the server, a broken connection.
_PASSING = re.compile(
    r"SLOW_?DOWN|SlowDown|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|InternalError|THROTTL|Throttl|REQUEST_TIMEOUT|"
    r"NETWORK_CONNECTION|UNAVAILABLE|RESOURCE_EXHAUSTED|TooManyRequests|ServerBusy|OperationTimedOut|NO_SUCH_UPLOAD|"
    r"NoSuchUpload|curlCode|[Tt]im(?:ed|e)[ -]?out|[Cc]onnection (?:reset|refused|closed|aborted)|[Bb]roken pipe|"
    r"error sending request|error decoding response|[Ii]ncomplete|[Cc]ould not connect|RemoteDisconnected|"
    r"(?:HTTP status|status code:?|returned non-2xx status code:?|HTTP response code:?|HttpStatusCode[^0-9]{0,3})\s*"
    r"(?:429|500|502|503|504)\b"
)
_DENIED = re.compile(
    r"ACCESS_DENIED|AccessDenied|Forbidden|(?:status(?: code)?:?|HTTP status)\s*40[13]\b|PERMISSION_DENIED|"
    r"INVALID_ACCESS_KEY|InvalidAccessKey|SIGNATURE|SignatureDoesNotMatch|Unauthenticated|UNAUTHENTICATED|"
    r"AuthenticationFailed|AuthorizationFailure|EXPIRED_TOKEN|ExpiredToken|INVALID_CLIENT_TOKEN|\b403\b"
)
_NO_BUCKET = re.compile(r"NO_SUCH_BUCKET|NoSuchBucket|ContainerNotFound|The specified bucket does not exist")


class StoreAwayError(RunError, OSError):
    """A store has not answered for so long that the run ends; finished work is kept."""


class StoreDeniedError(InputError, OSError):
    """A store denies access to these credentials."""


class StoreMissingError(InputError, OSError):
    """The bucket or container does not exist."""


def may_pass(error: BaseException) -> bool:
    """Whether a later try of the same request may succeed."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return False
    return _PASSING.search(str(error)) is not None and not is_denied(error)


def is_denied(error: BaseException) -> bool:
    """Whether a store refused the credentials."""
    return isinstance(error, PermissionError) or _DENIED.search(str(error)) is not None


def has_no_bucket(error: BaseException) -> bool:
    """Whether the bucket or container does not exist."""
    return _NO_BUCKET.search(str(error)) is not None


def away(place: str, seconds: float, error: BaseException) -> tuple[str, str]:
    """Message and fix for a store that does not answer."""
    return (
        f"{redact(place)} cannot be reached: tried for {seconds:.0f} s ({short(error)}).",
        "check the network, the endpoint and the state of the store, then run the same command again: what is "
        "finished is kept.",
    )


def lasting(place: str, error: BaseException) -> StoreDeniedError | StoreMissingError | None:
    """The error for denied access or a bucket that does not exist; None for other causes."""
    if has_no_bucket(error):
        return StoreMissingError(
            f"The bucket or container of {redact(place)} does not exist ({short(error)}).",
            "create it, or correct its name.",
        )
    if is_denied(error):
        return StoreDeniedError(
            f"{redact(place)}: access is denied ({short(error)}).",
            "check the credentials (environment, profile or role), and that they may list, read and write there.",
        )
    return None


def short(error: BaseException) -> str:
    """An error on one line, without secrets."""
    text = redact(" ".join(str(error).split())).rstrip(".") or type(error).__name__
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
