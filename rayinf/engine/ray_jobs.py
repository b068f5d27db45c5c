"""Jobs on a Ray cluster through its job server: one run a job, found again by what it runs, and its log followed."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayinf.engine import ray_token
from rayinf.errors import InputError, RayinfError, RunError

# Seconds to connect, and to wait for an answer (of an upload, after it has arrived).
_TIMEOUTS = (5.0, 20.0)
_ANSWER_SECONDS = 30.0
_STOP_SECONDS = 20.0
# So often a log is asked for again after its connection was lost, and after so many seconds.
_TRIES, _TRY_SECONDS = 3, 2.0
_RUN = "rayinf_run"
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_OVERRIDES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_LONGEST = 300
# Of Ray, which log every upload and every connection.
_TALKERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_ERROR, _FIX = "Error: ", " Fix: "
_START = "start the head with its dashboard (ray start --head), correct the address, or open a tunnel to it."
_LOG = "look at the job's log for the cause, then submit again: the run goes on."


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        state: "SUCCEEDED", "FAILED" or "STOPPED".
        exit_code: of its command; None where it never ran, or was stopped.
        kind: of the failure, in Ray's words.
        said: the last words of its log or of Ray, on one line.
    """

    state: str
    exit_code: int | None
    kind: str
    said: str


class JobServer:
    """The job server of a cluster's head.

    Args:
        address: of its dashboard, such as http://head:8265.

    Raises:
        InputError: nothing answers there within seconds, it is not a Ray, or it refuses this process's token.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        ray_token.read_again()
        if why := ray_token.wanting():
            raise InputError(f"{self.address} cannot be joined: {why}.", ray_token.GIVE)
        with self._one_line(), _without(_OVERRIDES):
            self._client = _client_class()(self.address)

    def find(self, digest: str) -> tuple[str | None, int]:
        """The job of a run that is under way, if there is one, and how many jobs the run has had.

        Args:
            digest: of the run.
        """
        with self._one_line():
            jobs = self._client.list_jobs()
        own = [j for j in jobs if (j.metadata or {}).get(_RUN) == digest]
        alive = [j.submission_id for j in own if _word(j.status) not in _ENDED]
        return (alive[-1] if alive else None), len(own)

    def submit(
        self, name: str, command: str, digest: str, files: Mapping[str, bytes], runtime_env: Mapping[str, Any]
    ) -> bool:
        """Start a job; False where one of that name was started meanwhile.

        Args:
            name: the job's id.
            command: what it runs, in a folder with the files.
            digest: of the run.
            files: content by relative path.
            runtime_env: Ray's.
        """
        with tempfile.TemporaryDirectory(prefix="rayinf-job-") as held, self._one_line():
            for path, content in files.items():
                place = Path(held) / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
            with _taken() as taken:
                self._client.submit_job(
                    entrypoint=command,
                    submission_id=name,
                    runtime_env={**runtime_env, "working_dir": held},
                    metadata={_RUN: digest},
                )
        return not taken

    def follow(self, name: str, write: Callable[[str], None]) -> Ended:
        """Hand over a job's log as it grows, until the job ends. A last line that says an error is held back.

        Args:
            name: the job's id.
            write: is called with one or more lines.

        Raises:
            RunError: the connection is lost; the job may go on.
        """
        held = _HeldBack(write)
        _run(self._tail(name, held))
        with self._one_line():
            end = time.monotonic() + _ANSWER_SECONDS
            while _word((info := self._client.get_job_info(name)).status) not in _ENDED and time.monotonic() < end:
                time.sleep(0.5)
        held.end()
        state = _word(info.status)
        if state == "SUCCEEDED":
            held.release()
        ran = info.driver_exit_code is not None
        said = held.error or (held.last if ran else _first_line(info.message or held.last))
        return Ended(state, info.driver_exit_code, _word(info.error_type), said)

    def stop(self, name: str) -> bool:
        """End a job; whether it has ended."""
        with self._one_line():
            self._client.stop_job(name)
            end = time.monotonic() + _STOP_SECONDS
            while time.monotonic() < end:
                if _word(self._client.get_job_info(name).status) in _ENDED:
                    return True
                time.sleep(0.5)
        return False

    async def _tail(self, name: str, held: _HeldBack) -> None:
        """The log, asked for again where the connection is lost."""
        lost = 0
        while True:
            skip, seen = held.characters, 0
            try:
                async for text in self._lines(name):
                    new = text[max(skip - seen, 0) :]
                    seen += len(text)
                    if new:
                        held.add(new)
                        lost = 0
                return
            except (OSError, RuntimeError) as error:
                lost += 1
                if lost > _TRIES:
                    raise RunError(
                        f"The connection to {self.address} was lost: {_first_line(str(error) or type(error).__name__)}."
                        f" The job {name} may go on.",
                        "submit again to watch it, or to go on with the run.",
                    ) from None
                await asyncio.sleep(_TRY_SECONDS)

    async def _lines(self, name: str) -> AsyncIterator[str]:
        """The log from its beginning; while it says nothing, the head is asked whether it is still there."""
        lines = self._client.tail_job_logs(name)
        while True:
            following = asyncio.ensure_future(anext(lines))
            while not (await asyncio.wait([following], timeout=_ANSWER_SECONDS))[0]:
                try:
                    await asyncio.to_thread(self._client.get_job_info, name)
                except BaseException:
                    following.cancel()
                    raise
            try:
                yield following.result()
            except StopAsyncIteration:
                return

    @contextmanager
    def _one_line(self) -> Generator[None]:
        """Every failure of the job server as one line.

        Raises:
            InputError: what failed, without a token in it.
            RayinfError: raised inside; passes as it is.
        """
        try:
            yield
        except RayinfError:
            raise
        except Exception as error:
            raise self._worded(error) from None

    def _worded(self, error: Exception) -> InputError:
        kind, said = type(error).__name__, _first_line(str(error))
        if kind == "AuthenticationError":
            return InputError(f"{self.address} cannot be joined: {ray_token.refused()}.", ray_token.GIVE)
        if kind == "HTTPError":
            return InputError(f"{self.address} answers with an error: {said}.", _START)
        if isinstance(error, OSError | ValueError) or "404" in said:  # requests' own errors are of these kinds too
            return InputError(f"No Ray answers at {self.address} ({_why(error)}).", _START)
        return InputError(
            f"The job server at {self.address} refuses: {said}.", "look at the head's dashboard and logs."
        )


class _HeldBack:
    """Text on its way to a reader, but for the line in which a run says its error."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._rest = write, ""
        self.characters = 0
        self.last = self.error = ""

    def add(self, text: str) -> None:
        """More of the log."""
        self.characters += len(text)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.startswith(_ERROR) and _FIX in line:
                self.release()
                self.error = line
            else:
                self._write(line + "\n")
                self.last = line.strip() or self.last

    def end(self) -> None:
        """The log is whole: its last line may lack an end."""
        if self._rest:
            self.add("\n")

    def release(self) -> None:
        """Hand over what was held back."""
        if self.error:
            self._write(self.error + "\n")
            self.last, self.error = self.error, ""


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, also in a notebook, where a loop is running in this thread already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)
    thread = threading.Thread(target=loop.run_until_complete, args=(asyncio.wait([task]),), daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.2)
    except KeyboardInterrupt:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(_TRY_SECONDS)
        raise
    task.result()


@contextmanager
def _taken() -> Generator[list[str]]:
    """Around a submission: the list is not empty afterwards where the job's name was taken.

    Raises:
        RuntimeError: another failure.
    """
    found: list[str] = []
    try:
        yield found
    except RuntimeError as error:
        if "already exists" not in str(error):
            raise
        found.append(str(error))


def _client_class() -> Any:
    """Ray's client, whose requests end. Where an answer is missing, Ray's own waits without end."""
    base: Any = importlib.import_module("ray.job_submission").JobSubmissionClient
    for name in _TALKERS:
        logging.getLogger(name).setLevel(logging.WARNING)

    class Client(base):  # type: ignore[misc]
        def _do_request(self, method: str, endpoint: str, **more: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": _TIMEOUTS, **more})

    return Client


@contextmanager
def _without(names: tuple[str, ...]) -> Generator[None]:
    """The environment without some variables, which Ray would take instead of the address that was given."""
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def _why(error: Exception) -> str:
    """The system's word for a failed connection, which requests buries under its own."""
    inner: BaseException | None = error
    said, texts = "", []
    while inner is not None:
        texts.append(str(inner))
        if isinstance(inner, OSError) and inner.errno is not None and inner.strerror:
            said = str(inner.strerror)
        inner = inner.__cause__ or inner.__context__
    text = " ".join(texts)
    if "CERTIFICATE" in text:
        return "its certificate is not trusted"
    if "SSL" in text:
        return "it does not use https"
    if "timed out" in text:
        return f"no answer in {_TIMEOUTS[0]:.0f} to {_TIMEOUTS[1]:.0f} s"
    return _first_line(said) or "something else listens there"


def _word(value: Any) -> str:
    """The word of one of Ray's enumerations."""
    return str(getattr(value, "value", value) or "")


def _first_line(text: str) -> str:
    """A text on one line, short, without a full stop, and without what Ray says around it."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    line = " ".join(plain.split()).rstrip(".")
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."


def outcome(name: str, ended: Ended) -> RayinfError | None:
    """The error that a job ended with, as its run said it; None where it succeeded.

    Args:
        name: the job's id.
        ended: how it ended.
    """
    if ended.state == "SUCCEEDED":
        return None
    if ended.state == "STOPPED":
        return RunError(f"The job {name} was stopped.", "submit again: the run goes on.")
    if ended.exit_code == 127 or "No module named rayinf" in ended.said or "No module named 'rayinf" in ended.said:
        return InputError(
            "The cluster's head has no rayinf that the job could run.",
            'install rayinf on all machines of the cluster, or pass runtime_env={"pip": ["rayinf"]}.',
        )
    if ended.kind == "RUNTIME_ENV_SETUP_FAILURE":
        return InputError(
            f"The cluster cannot set up the job's runtime_env: {ended.said}.",
            "correct runtime_env, or install the packages on all machines of the cluster.",
        )
    what, fix, mend = ended.said.removeprefix(_ERROR).partition(_FIX)
    if not (ended.said.startswith(_ERROR) and fix):
        code = "" if ended.exit_code is None else f" with exit code {ended.exit_code}"
        return RunError(f"The job {name} ended{code}: {_first_line(ended.said) or 'it said nothing'}.", _LOG)
    if "No module named" in what:
        mend = (
            'install it on all machines of the cluster, or pass runtime_env={"pip": [...]}; a module of your own is '
            "sent where it lies beside the task's file."
        )
    return (InputError if ended.exit_code == 2 else RunError)(what, mend)
