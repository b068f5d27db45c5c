"""Calls of actors: their results, their errors, and an end to calls whose process dies or stands still."""

from __future__ import annotations

import importlib
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from rayinf.engine.deadline import Deadline
from rayinf.engine.leaves import ends
from rayinf.errors import RayinfError, RunError
from rayinf.user_code import from_worker

_POLL_SECONDS = 1.0
# How often one call may take its process with it. A whole training is begun again more often: it may take days.
MOST_DEATHS, MOST_DEATHS_OF_TRAININGS = 3, 5
# Deaths for want of memory that come on top: batches are halved after each of them.
_MOST_EXCUSED = 3
# Without end: a finite count is used up in seconds when a node is lost. The driver's clock ends a hopeless run.
FAULTS: dict[str, Any] = {"max_restarts": -1, "max_task_retries": -1}
# A second thread of an actor, which answers while the first one works.
REPORTS = "reports"
_DETAIL_CHARACTERS = 240
_BEGUN = "rayinf-begun"
_NOBODY = "all workers have left with their nodes, and no node has room for one"


class RepeatedDeathError(Exception):
    """The process of an actor died under one call again and again. Raised in the next one; `get` words it."""

    def __init__(self, what: str, deaths: int) -> None:
        super().__init__(what, deaths)
        self.what, self.deaths = what, deaths


class DeathError(RunError):
    """A call ended one process after the other."""


def check_deaths(what: str, most: int, excused: Callable[[], int] | None = None, before: int = 0) -> None:
    """Called in an actor when a call begins: refuses one that has ended too many processes.

    Args:
        what: what the call does.
        most: how many deaths are too many.
        excused: deaths after which the call is not what it was; a few of them do not count.
        before: restarts of the actor before the call was sent, which others have caused.

    Raises:
        RepeatedDeathError: they were reached.
    """
    deaths = 0
    with suppress(AttributeError):  # another version of Ray: the deadline ends such calls
        process: Any = ray._private.worker.global_worker
        deaths = int(process.core_worker.get_current_task_attempt_number())
    if deaths:  # tries also count in which the call waited behind another one, which ended the process
        deaths = min(deaths, _begun_before(deaths))
    if deaths >= most:  # tries also count that found no process, while that of a lost node was started elsewhere
        deaths = min(deaths, _own_restarts(deaths + before) - before)
    if deaths >= most + (min(excused(), _MOST_EXCUSED) if deaths >= most and excused else 0):
        raise RepeatedDeathError(what, deaths)


def _begun_before(otherwise: int) -> int:
    """How often a call that is tried again has begun, if the first try did; `otherwise` where Ray does not say.

    It is noted in the cluster's head, since processes end, and only of calls that are tried again.
    """
    with suppress(Exception):
        key = str(ray.get_runtime_context().get_task_id())
        begun = int(_internal_kv_get(key, namespace=_BEGUN) or 1)
        _internal_kv_put(key, str(begun + 1), namespace=_BEGUN)
        return begun
    return otherwise


def _own_restarts(otherwise: int) -> int:
    """How often this process's actor was started again; `otherwise` where this version of Ray does not say."""
    with suppress(Exception):
        own = ray.get_runtime_context().get_actor_id()
        return int(ray._private.state.state.actor_table(own)["NumRestarts"])
    return otherwise


def exit_type(process: Any) -> str:
    """How Ray says that a process has ended, from its entry in the table of processes."""
    names = importlib.import_module("ray.core.generated.common_pb2").WorkerExitType
    return str(names.Name(process.exit_type))


class Life:
    """One process of an actor: a name of its own, and how far it is."""

    def __init__(self, count: Callable[[], float]) -> None:
        self._name, self._count = uuid.uuid4().hex, count

    def report(self) -> tuple[str, float]:
        """The process's name and its count."""
        return self._name, self._count()


def processor_seconds(thread: int | None) -> float:
    """Processor time of a thread, in tenths of a second; that of the process where the thread or its clock is unknown.

    Args:
        thread: its identifier.
    """
    if thread is None or not hasattr(time, "pthread_getcpuclockid"):
        return round(time.process_time(), 1)
    return round(time.clock_gettime(time.pthread_getcpuclockid(thread)), 1)


class Watch:
    """Waits for calls, and ends a wait in which nothing moves.

    Actors are asked for their progress only where nothing has finished for a while, at most one question each.

    Args:
        seconds: without progress, after which a wait ends.
        always: actors that work for the others (the store): their progress counts too.
        tick: called about once a second while nothing finishes.
    """

    def __init__(
        self, seconds: float, always: Mapping[str, Any] | None = None, tick: Callable[[], None] | None = None
    ) -> None:
        self.deadline = Deadline(seconds)
        self._always, self._tick = dict(always or {}), tick
        self._asked: dict[Any, Any] = {}
        self._next = 0.0

    def wait(self, refs: Sequence[Any], busy: Callable[[], Mapping[str, Any]]) -> list[Any]:
        """The references that have finished, at least one.

        Args:
            refs: of the calls.
            busy: the actors at work, by what each of them does.

        Raises:
            RunError: nothing moved.
        """
        while True:
            if done := self.poll(refs, busy):
                return done

    def poll(self, refs: Sequence[Any], busy: Callable[[], Mapping[str, Any]]) -> list[Any]:
        """As `wait`, for about a second: perhaps none has finished."""
        if refs:
            done, _ = ray.wait(list(refs), timeout=_POLL_SECONDS, fetch_local=False)
            if done:
                self.deadline.renew()
                return done
        else:
            time.sleep(_POLL_SECONDS)
        if self._tick is not None:
            self._tick()
        self._check(busy())
        return []

    def _check(self, busy: Mapping[str, Any]) -> None:
        self._collect()
        if self.deadline.passed:
            raise RunError(*self._standing(busy))
        if self.deadline.quiet > self.deadline.seconds / 5 and time.monotonic() > self._next:
            self._next = time.monotonic() + self.deadline.seconds / 5
            waiting = set(self._asked.values())
            for actor in [*busy.values(), *self._always.values()]:
                if actor._actor_id not in waiting:
                    self._asked[actor.progress.remote()] = actor._actor_id

    def _collect(self) -> None:
        if not self._asked:
            return
        there, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
        for ref in there:
            who = self._asked.pop(ref)
            with suppress(ray.exceptions.RayError):
                self.deadline.note(who, *ray.get(ref))

    def _standing(self, busy: Mapping[str, Any]) -> tuple[str, str]:
        shown, silent, pending = [], False, set(self._asked.values())
        for what, actor in busy.items():
            restarts = max(restarts_of(actor), self.deadline.lives(actor._actor_id) - 1)
            silent = silent or actor._actor_id in pending
            state = "does not answer" if actor._actor_id in pending else "stands still"
            shown.append(f"{what} {state}" + (f" (its process restarted {restarts} times)" if restarts else ""))
        more = f", and {len(shown) - 3} more" if len(shown) > 3 else ""
        detail = last_exit() if silent else ""
        return (
            f"Nothing moved in {self.deadline.seconds:.0f} s: {'; '.join(shown[:3]) or _NOBODY}{more}.{detail}",
            "look at the cluster's nodes and logs (is memory short? does the task's own code wait for something?), "
            "then run the same command again: it goes on. For one batch that takes longer pass Cluster(patience=...).",
        )


def label(stage: type[Any], table: str, item: Any) -> str:
    """What a worker does with an item, for an error."""
    found = ends(item)
    if found is None:
        return stage.__name__
    start, file = found[0].start, f" ({found[0].file})" if found[0].file else ""
    return f"{stage.__name__} on rows {start} to {start + item.rows} of {table}{file}"


def get(ref: Any) -> Any:
    """A result, or the error that the worker met, as it was raised there."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        cause: Any = error
        while isinstance(cause, ray.exceptions.RayTaskError) and cause.cause is not None and cause.cause is not cause:
            cause = cause.cause
        if isinstance(cause, RepeatedDeathError):
            raise DeathError(
                f"{cause.what} ended its process {cause.deaths} times, and is not tried again.{last_exit()}",
                "find what kills it: memory that the model, a batch or a decomposition needs and the machine lacks "
                "(pass a smaller batch_size, fewer or larger workers), or a crash in the task's own code; "
                "then run the same command again: it goes on.",
            ) from None
        if isinstance(cause, RayinfError):
            raise cause from None
        raise from_worker(cause) from error
    except ray.exceptions.RayActorError as error:
        raise RunError(
            f"A worker could not be kept alive: {str(error).splitlines()[0]}",
            "look at the worker's log for the cause, then run the same command again: it goes on.",
        ) from error


def is_away(actor: Any) -> bool:
    """Whether an actor has no process, as far as Ray knows and says so."""
    return _state_of(actor) not in ("ALIVE", None)


def has_ended(actor: Any) -> bool:
    """Whether an actor has no process and will have none, as far as Ray knows and says so."""
    return _state_of(actor) == "DEAD"


def _state_of(actor: Any) -> str | None:
    with suppress(Exception):
        return str(ray._private.state.state.actor_table(actor._actor_id.hex())["State"])
    return None


def restarts_of(actor: Any) -> int:
    """How often Ray has started an actor's process again; 0 where this version of Ray does not say."""
    with suppress(Exception):
        return int(ray._private.state.state.actor_table(actor._actor_id.hex())["NumRestarts"])
    return 0


def last_exit() -> str:
    """What Ray notes of the last process that ended against its will, as a sentence; empty where it says nothing."""
    with suppress(Exception):
        gcs: Any = importlib.import_module("ray.core.generated.gcs_pb2")
        accessor = ray._private.state.state._connect_and_get_accessor()
        held = [gcs.WorkerTableData.FromString(raw) for raw in accessor.get_worker_table()]
        wanted = [w for w in held if not w.is_alive and exit_type(w) in _UNWILLING]
        last = max(wanted, key=lambda w: w.end_time_ms)
        kind = _UNWILLING[exit_type(last)]
        text = " ".join(last.exit_detail.split())
        return f" Ray's last note of such an end: {kind}: {text[:_DETAIL_CHARACTERS].rstrip('. ')}."
    return ""


OUT_OF_MEMORY, UNKNOWN_END = "NODE_OUT_OF_MEMORY", "SYSTEM_ERROR"
_UNWILLING = {UNKNOWN_END: "killed or crashed", OUT_OF_MEMORY: "killed because the machine was out of memory"}
