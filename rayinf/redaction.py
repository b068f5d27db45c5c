"""Removes secrets of URIs from any text, so that messages, logs, records and metadata hold no password or key."""

from __future__ import annotations

import re

# What stands before the @ of a URI; a secret key may hold an unescaped slash.
_USER = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<user>[^\s'\"/@?]*(?::[^\s'\"@?]*)?)@")
# Options of a URI (or of a signed link) that are secrets, or identify one.
_OPTION = re.compile(
    r"(?P<name>[?&;](?:[\w.-]*(?:secret|passw|token|credential|signature|account_key|access_?key|api_?key|sas)[\w.-]*"
    r"|sig|key|pwd|auth)=)[^&;\s'\"]+",
    re.IGNORECASE,
)
# Schemes whose URIs name a container or a user before the @: that part stays.
NAMED = ("abfs", "abfss", "wasb", "wasbs", "hdfs", "viewfs", "sftp", "ssh")
HIDDEN = "..."


def redact(text: str) -> str:
    """A text without the secrets of the URIs in it."""
    if "://" not in text and "=" not in text:
        return text
    return _OPTION.sub(rf"\g<name>{HIDDEN}", _USER.sub(_without_user, text))


def _without_user(found: re.Match[str]) -> str:
    scheme, user = found["scheme"], found["user"]
    name, colon, _ = user.partition(":")
    if scheme.lower() in NAMED:
        return f"{scheme}://{name}{':' + HIDDEN if colon else ''}@"
    return f"{scheme}://{HIDDEN}@"
