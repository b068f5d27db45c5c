"""Ray, and the actors that runs hand to each other, for as long as a context lasts."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import ray

from rayinf.engine import ray_token
from rayinf.engine.ray_calls import is_away

# Calls of an actor are done in turn: one that does not rest within so long has another call under way.
_REST_SECONDS = 2.0


class Kind(NamedTuple):
    """What an actor is: one can be used in place of another of its kind."""

    name: str
    cpus: float
    gpus: float
    given: tuple[Any, ...]  # what it was started with

    @property
    def holds(self) -> bool:
        """Whether it takes CPUs or GPUs from others."""
        return bool(self.cpus or self.gpus)


class _Session:
    """How many `connected` contexts are open in this process, whether one of their calls started Ray, idle actors."""

    depth = 0
    owns = False
    idle: dict[Kind, list[Any]] = {}  # noqa: RUF012


@contextmanager
def connected() -> Generator[None]:
    """Ray stays from the first call that needs it until the context ends; one that was there before stays for good.

    So do actors: a run that ends leaves its workers to the next one, which need not start processes that import torch.
    """
    _Session.depth += 1
    try:
        yield
    finally:
        _Session.depth -= 1
        if not _Session.depth:
            make_room(None)
            if _Session.owns:
                _Session.owns = False
                ray_token.stop()


def owns_ray() -> bool:
    """Whether an open `connected` context started the Ray of this process."""
    return _Session.owns


def note_start() -> bool:
    """Called where Ray has been started: whether the caller must end it, since no context is open that does."""
    started = not _Session.depth
    _Session.owns = _Session.owns or not started
    return started


def make_room(kind: Kind | None) -> int:
    """End the idle actors of other kinds that hold CPUs or GPUs, where new ones may need these.

    Args:
        kind: of the actors that are wanted; None ends all.

    Returns:
        How many of this kind are idle.
    """
    for other in [k for k in _Session.idle if kind is None or (k != kind and k.holds and kind.holds)]:
        kill(_Session.idle.pop(other))
    if kind is None:
        return 0
    held = [a for a in _Session.idle.get(kind, []) if not is_away(a)]
    kill([a for a in _Session.idle.get(kind, []) if a not in held])
    if held:
        _Session.idle[kind] = held
    else:
        _Session.idle.pop(kind, None)
    return len(held)


def free_for_others() -> None:
    """End idle workers on a Ray that this process has not started: others, or the user's code, may need their place."""
    if not _Session.owns:
        make_room(None)


def take(kind: Kind, count: int, start: Callable[[], Any]) -> tuple[list[Any], list[Any]]:
    """Actors of a kind: idle ones, and as many new ones as lack.

    Args:
        kind: of the actors.
        count: how many.
        start: starts one.

    Returns:
        All of them, and those among them that are new, which may not be up yet.
    """
    make_room(kind)
    idle = _Session.idle.get(kind, [])
    held = [idle.pop() for _ in range(min(count, len(idle)))]
    new = [start() for _ in range(count - len(held))]
    return [*held, *new], new


def give_back(kind: Kind, actors: Sequence[Any]) -> None:
    """Leave actors to the next taker. One that is still at work is ended, and all are where no context is open."""
    if not _Session.depth or not ray.is_initialized():
        kill(actors)
        return
    rests = {actor.rest.remote(): actor for actor in actors}
    done, _ = ray.wait(list(rests), num_returns=len(rests), timeout=_REST_SECONDS) if rests else ([], [])
    usable = [rests[ref] for ref in done if _is_usable(ref)]
    kill([actor for actor in actors if actor not in usable])
    _Session.idle.setdefault(kind, []).extend(usable)


def _is_usable(ref: Any) -> bool:
    with suppress(ray.exceptions.RayError):
        return bool(ray.get(ref))
    return False


def kill(actors: Sequence[Any]) -> None:
    """End actors."""
    for actor in actors:
        with suppress(Exception):  # Ray itself may be gone
            ray.kill(actor)
