"""Conditional puts, which a lease needs: an object is put only where there is none, or only over a known version.

`pyarrow.fs` lacks them, so they go through obstore, where the store and its credentials allow.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from rayinf.store.store_path import StorePath
from rayinf.store.uris import Parts

T = TypeVar("T")
_CONTAINER_SCHEMES = ("abfs", "abfss")
# obstore tries once: `Retries` tries again.
_RETRY: Any = {"max_retries": 0}
_S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")


class UnsupportedError(Exception):
    """The store, or the way to it, lacks conditional puts."""


class ConflictError(Exception):
    """Another process was faster."""


@dataclass(frozen=True)
class ConditionalObject:
    """An object that several processes may try to put.

    Attributes:
        place: of the object.
    """

    place: StorePath

    def create(self, content: bytes) -> str:
        """Put it where there is none; returns its tag.

        Raises:
            ConflictError: there is one.
            UnsupportedError: the store lacks conditional puts.
        """
        return self._put(content, "create")

    def replace(self, content: bytes, tag: str) -> str:
        """Put it over the version with a tag; returns the new tag.

        Raises:
            ConflictError: the object has another tag, or is gone.
            UnsupportedError: the store lacks conditional puts.
        """
        return self._put(content, {"e_tag": tag})

    def read(self) -> tuple[bytes, str] | None:
        """Its content and its tag; None where it does not exist.

        Raises:
            UnsupportedError: the store cannot be reached in this way.
        """
        import obstore
        from obstore.exceptions import NotFoundError

        def request() -> tuple[bytes, str] | None:
            try:
                found = obstore.get(self._store(), self._key)
                return bytes(found.bytes()), str(found.meta["e_tag"])
            except (NotFoundError, FileNotFoundError):
                return None

        return self._call(request)

    def _put(self, content: bytes, mode: Any) -> str:
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotFoundError, PreconditionError

        def request() -> str:
            try:
                return str(obstore.put(self._store(), self._key, content, mode=mode, use_multipart=False)["e_tag"])
            except (AlreadyExistsError, PreconditionError, NotFoundError, FileExistsError) as error:
                raise ConflictError(str(self.place)) from error

        return self._call(request)

    def _call(self, request: Callable[[], T]) -> T:
        from obstore.exceptions import NotSupportedError

        def translated() -> T:
            try:
                return request()
            except (NotSupportedError, NotImplementedError) as error:
                raise UnsupportedError(str(error)) from error

        return self.place.connection.retries.call(translated, str(self.place))

    @property
    def _key(self) -> str:
        return self.place.inner

    def _store(self) -> Any:
        try:
            return _connect(self.place.connection.uri)
        except ImportError as error:
            raise UnsupportedError(str(error)) from error


@lru_cache(maxsize=16)
def _connect(uri: str) -> Any:
    """A store of obstore.

    Raises:
        UnsupportedError: another scheme, or credentials that obstore cannot find.
    """
    import obstore.store as stores

    parts = Parts.of(uri)
    options = dict(parse_qsl(parts.options))
    if parts.scheme == "s3":
        return stores.S3Store(parts.host, **_s3_options(parts, options))
    if parts.scheme in ("gs", "gcs"):
        return stores.GCSStore(parts.host, retry_config=_RETRY)
    if parts.scheme in _CONTAINER_SCHEMES:
        account = parts.host.partition(".")[0]
        return stores.AzureStore(parts.root, account_name=account, retry_config=_RETRY)
    raise UnsupportedError(parts.scheme)


def _s3_options(parts: Parts, options: dict[str, str]) -> dict[str, Any]:
    """Options of obstore for what pyarrow reads from the URI and the environment."""
    found: dict[str, Any] = {"retry_config": _RETRY, "virtual_hosted_style_request": False}
    endpoint = options.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL_S3")
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and "://" not in endpoint:
        endpoint = f"{options.get('scheme', 'https')}://{endpoint}"
    if endpoint:
        found["endpoint"] = endpoint
        found["client_options"] = {"allow_http": urlsplit(endpoint).scheme == "http"}
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    found["region"] = region or _region(parts.host, bool(endpoint))
    name, colon, secret = parts.user.rstrip("@").partition(":")
    keys = (unquote(name), unquote(secret)) if colon else (options.get("access_key"), options.get("secret_key"))
    if keys[0] and keys[1]:
        return {**found, "access_key_id": keys[0], "secret_access_key": keys[1]}
    profiles = os.environ.get("AWS_PROFILE") or Path("~/.aws/credentials").expanduser().exists()
    if profiles and not any(k in os.environ for k in _S3_KEYS):
        return {**found, "credential_provider": _from_profile()}
    return found


def _region(bucket: str, has_endpoint: bool) -> str:
    if has_endpoint:
        return "us-east-1"
    from pyarrow.fs import resolve_s3_region

    return str(resolve_s3_region(bucket))


def _from_profile() -> Any:
    """Credentials of a profile, which obstore does not read itself.

    Raises:
        UnsupportedError: boto3, which does, is not installed.
    """
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider

        return Boto3CredentialProvider()
    except (ImportError, ValueError) as error:
        raise UnsupportedError(str(error)) from error
