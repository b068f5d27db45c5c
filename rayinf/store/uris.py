"""URIs of stores in their parts: the store, the path in it, and what may be shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from rayinf.redaction import NAMED, redact

# Stores whose puts are atomic: a file appears complete or not at all.
OBJECT_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")
# Schemes whose path begins at the root of a file system.
_ROOTED = ("hdfs", "viewfs")
# Schemes that pyarrow supports itself; others go through fsspec.
KNOWN_SCHEMES = (*OBJECT_SCHEMES, *_ROOTED)
_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://(?P<rest>.*)", re.DOTALL)
# A URI that went through pathlib, which collapses its slashes.
_COLLAPSED = re.compile(r"(s3|gs|gcs|abfs|abfss|hdfs|viewfs|file|memory):/(?!/)")
# Options follow a question mark; other question marks are wildcards of a glob.
_OPTIONS = re.compile(r"\?(?=[A-Za-z_][\w.-]*=)")


def is_uri(given: object) -> bool:
    """Whether a path is a URI, also one that went through `pathlib.Path`."""
    return isinstance(given, str | Path) and ("://" in str(given) or _COLLAPSED.match(str(given)) is not None)


@dataclass(frozen=True)
class Parts:
    """A URI of a store.

    Attributes:
        scheme: in lower case.
        user: what stands before the @, with it; a secret, perhaps.
        host: the bucket, account or server.
        path: within it, unescaped, without slashes at its ends; wildcards are kept.
        options: after the question mark; secrets, perhaps.
    """

    scheme: str
    user: str
    host: str
    path: str
    options: str

    @classmethod
    def of(cls, given: Any) -> Parts:
        """The parts of a URI.

        Raises:
            ValueError: it is not a URI.
        """
        found = _URI.fullmatch(_COLLAPSED.sub(r"\1://", str(given)))
        if found is None:
            raise ValueError(f"{redact(str(given))} is not a URI")
        plain, options = [*_OPTIONS.split(found["rest"], 1), ""][:2]
        user, host = "", plain
        # A secret key may hold an unescaped slash; a key of a bucket may hold an @.
        secret = re.match(r"([^/@:]*:[^@]*@|[^/@:]*@)(?=[^/@]*(?:/|$))", plain)
        if secret is not None:
            user, host = secret[1], plain[secret.end() :]
        host, _, path = host.partition("/")
        return cls(found["scheme"].lower(), user.replace("/", "%2F"), host, unquote(path).strip("/"), options)

    @property
    def name(self) -> str:
        """The store, without path, options and secrets."""
        named = self.user.rstrip("@").partition(":")[0] if self.scheme in NAMED else ""
        return f"{self.scheme}://{named}{'@' if named else ''}{self.host}"

    @property
    def root(self) -> str | None:
        """The path of the store's own root as pyarrow has it; None where only the file system can tell."""
        if self.scheme in ("s3", "gs", "gcs"):
            return self.host
        if self.scheme in ("abfs", "abfss"):
            return self.user.rstrip("@").partition(":")[0]
        return "" if self.scheme in _ROOTED else None

    @property
    def store_uri(self) -> str:
        """A URI of the store as a whole, from which a file system is made."""
        options = self.options
        if self.scheme == "s3" and "allow_delayed_open" not in options:
            options = "&".join([*([options] if options else []), "allow_delayed_open=true"])  # small files: one request
        query = f"?{options}" if options else ""
        if self.root is None:
            return f"{self.scheme}://{self.user}{self.host}{'/' + self.path if self.path else ''}{query}"
        return f"{self.scheme}://{self.user}{self.host}{'/' if self.scheme != 's3' else ''}{query}"
