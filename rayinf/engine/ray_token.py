"""Ray's token authentication: a token of its own for a Ray that we start, the user's own for one that is joined.

Ray reads `RAY_AUTH_MODE` when it is imported, and a token when it first needs one; it is made to read both again
here, so that it does not matter whether a program imports `ray` before or after it sets them. No token is shown,
logged or written.
"""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

import ray

MODE, TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
# Ray's switch between the machine's address and the loopback device, for a Ray of one machine.
_SEVERAL_MACHINES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# How a user gives a token, for errors.
GIVE = "set RAY_AUTH_MODE=token, and give the cluster's token in RAY_AUTH_TOKEN or in ~/.ray/auth_token."


class _Own:
    """Whether the Ray of this process has a token that was made here."""

    token = False


@contextmanager
def guarded() -> Generator[None]:
    """Around the start of a Ray on this machine: its sockets listen on the loopback device, and ask for a token.

    The token is random, and only this process and those of its Ray know it. Where the environment says something of
    authentication (any `RAY_AUTH_...`), that stands. The environment is left as it was.
    """
    values = {_SEVERAL_MACHINES: "0"}
    if not any(name.startswith("RAY_AUTH_") for name in os.environ):
        values |= {MODE: "token", TOKEN: secrets.token_hex(32)}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    constants: Any = importlib.import_module("ray._private.ray_constants")
    several = getattr(constants, "ENABLE_RAY_CLUSTER", True)
    try:
        constants.ENABLE_RAY_CLUSTER = False
        read_again()
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = several
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _Own.token = TOKEN in values and ray.is_initialized()
        read_again()


def stop() -> None:
    """End Ray in this process, and forget a token that was made here."""
    ray.shutdown()
    if _Own.token:
        _Own.token = False
        read_again()


def read_again() -> None:
    """Let Ray read its mode and token anew from the environment; a version of Ray without tokens has nothing to read.

    Nothing is done while Ray runs in this process.
    """
    if ray.is_initialized():
        return
    with suppress(ImportError, AttributeError):
        raylet: Any = importlib.import_module("ray._raylet")
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()


def take_found() -> None:
    """Turn authentication on where the environment does not say whether, and a token is there: as Ray does itself.

    Only for a Ray of this machine: a token is never sent to an address because it happens to lie in the home folder.
    """
    with suppress(ImportError, AttributeError, TypeError):
        setup: Any = importlib.import_module("ray._private.authentication.authentication_token_setup")
        setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def wanting() -> str:
    """Why this process cannot authenticate itself, though it must; empty where it can or need not."""
    with suppress(ImportError, AttributeError):
        raylet: Any = importlib.import_module("ray._raylet")
        on = raylet.get_authentication_mode() == raylet.AuthenticationMode.TOKEN
        if on and not raylet.AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
            return "RAY_AUTH_MODE=token is set, and there is no token in RAY_AUTH_TOKEN or in ~/.ray/auth_token"
    return ""


def refused() -> str:
    """What it means that a Ray refuses this process, in words."""
    with suppress(ImportError, AttributeError):
        raylet: Any = importlib.import_module("ray._raylet")
        if raylet.get_authentication_mode() == raylet.AuthenticationMode.TOKEN:
            return "the token of this process is not the cluster's"
    return "it asks for a token, and RAY_AUTH_MODE is not set to token here"
