"""A local path, or a place in a store, from the path or URI of a user."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from rayinf.errors import InputError
from rayinf.redaction import redact
from rayinf.store.store_path import StorePath
from rayinf.store.uris import is_uri

AnyPath = Path | StorePath
__all__ = ["AnyPath", "StorePath", "draw_into", "is_uri", "open_place", "relative"]


def open_place(given: str | Path | StorePath, name: str = "path") -> AnyPath:
    """The place of a user's path or URI, absolute, so that it is the same in any process.

    Args:
        given: a path, or a URI. `file://` is local.
        name: of the argument, for errors.

    Raises:
        InputError: the home folder of an unknown user, a URI without a path, or an unknown scheme.
    """
    if isinstance(given, StorePath):
        return given
    text = redact(str(given))[:200]
    if not is_uri(given):
        try:
            return Path(given).expanduser().absolute()
        except RuntimeError as error:
            raise InputError(f"{name}={text!r}: {str(error).rstrip('.')}.", "pass a path that exists.") from error
    if str(given).startswith("file:"):
        return Path(unquote(urlsplit(str(given)).path)).absolute()
    if str(given).startswith(("http://", "https://")):
        raise InputError(f"{name}={text!r} lies on a web server.", "pass a local path, or the URI of a store.")
    try:
        found = StorePath.of(given)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{name}={text!r}: {redact(str(error))}.", "pass s3://bucket/path, say.") from error
    if not found.inner:
        raise InputError(
            f"{name}={text!r} must name a folder or file in a bucket.", "add a path after the bucket's name."
        )
    return found


def relative(place: AnyPath, folder: AnyPath) -> str:
    """The path of a place from a folder above it.

    Raises:
        ValueError: it does not lie there.
    """
    return PurePosixPath(_posix(place)).relative_to(_posix(folder)).as_posix()


def _posix(place: AnyPath) -> str:
    return place.path if isinstance(place, StorePath) else place.as_posix()


def draw_into(place: AnyPath, draw: Callable[[Path], object]) -> None:
    """Let `draw` write a file, in the format of its suffix; for a store, in a local folder first."""
    if isinstance(place, Path):
        place.parent.mkdir(parents=True, exist_ok=True)
        draw(place)
        return
    with tempfile.TemporaryDirectory(prefix="rayinf-drawn-") as folder:
        file = Path(folder) / place.name
        draw(file)
        place.upload(file)
