"""The verb `submit`: another verb's config as a job on a Ray cluster, joined where it runs already."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rayinf.arguments import flag, one_of, path, plain, refuse, text
from rayinf.config import read_values
from rayinf.config_keys import VERBS, keys_of
from rayinf.errors import InputError, RunError
from rayinf.sent_config import CONFIG, Sent, prepare

if TYPE_CHECKING:
    from rayinf.engine.ray_jobs import JobServer

# Commands by the functions that they call.
_COMMANDS = {function: verb for verb, function in VERBS.items()}
_ADDRESS = re.compile(r"https?://[^/\s@]+(:\d+)?/?")
_GO_ON = "Submit the same config again to watch it."
_SHOWN_FILES = 12


@dataclass(frozen=True)
class SubmittedJob:
    """A job on a cluster.

    Attributes:
        job_id: its name in Ray (`ray job logs JOB_ID`).
        address: of the head's dashboard.
        out: where the run lies; `rayinf.status(out)` says where it stands.
        joined: whether the job was there already.
        state: "finished", "running" (it is not watched any more) or "stopped".
    """

    job_id: str
    address: str
    out: str
    joined: bool
    state: str


def submit(
    verb: str,
    config: str | Path | Mapping[str, Any],
    address: str | None = None,
    *,
    follow: bool = True,
    runtime_env: Mapping[str, Any] | None = None,
) -> SubmittedJob:
    """Run a verb as a job on a Ray cluster, through the job server of its head.

    The config, the task's file and the user's own modules that it imports from beside it are sent (what is sent is
    printed, with its size); tables, checkpoints and runs are not: their paths must mean the same on the cluster. A
    config runs the code that its `task` names, there as here. A job of the same config and code that is under way is
    joined; a run that is finished does nothing; one that was stopped goes on. Ctrl-C asks whether to stop the job or
    only to stop watching it, where there is a terminal; else the job goes on.

    Args:
        verb: a command that takes a config, or its function: "influence", "measure" (or "influence_measure"),
            "self-influence", "pairs", "baseline", "trim-rounds", "acquire", "active-learning", "retrain", "evaluate",
            "reweight" (or "pareto_reweight"), "removal-check".
        config: the path of a YAML file, or a mapping of the verb's arguments, with `task="path/to/file.py:name"` and
            paths or URIs as tables. `cluster` says how many workers; its `address` is not used.
        address: of the head's dashboard, such as "http://head:8265"; None takes RAY_API_SERVER_ADDRESS.
        follow: print the log until the job ends; False returns once it is submitted.
        runtime_env: Ray's own, for what the cluster's machines lack, such as {"pip": ["transformers"]}. It is seen on
            the cluster's dashboard, so environment variables and passwords in it are refused.

    Returns:
        A SubmittedJob.

    Raises:
        InputError: a wrong argument, a relative path, a secret, no Ray at the address, a wrong token, a package that
            the cluster lacks, or what the run itself found wrong with its input.
        RunError: the run failed, or the connection was lost.

    Cost: a few seconds for the connection and the start of the job; no memory beside the code that is sent (at most
    20 MiB).
    """
    one_of("verb", verb, list(dict.fromkeys([*VERBS, *_COMMANDS])))
    if not isinstance(config, Mapping):
        path("config", config)
    flag("follow", follow)
    if runtime_env is not None and not isinstance(runtime_env, Mapping):
        refuse("runtime_env", runtime_env, "a mapping, Ray's runtime_env, or None", 'pass {"pip": [...]}.')
    return submit_config(_COMMANDS.get(verb, verb), config, head_address(address), bool(follow), runtime_env)


def submit_config(
    verb: str,
    config: str | Path | Mapping[str, Any],
    address: str,
    follow: bool,
    runtime_env: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> SubmittedJob:
    """As `submit`, with arguments that are checked, and `key=value` that change the config.

    Raises:
        RayinfError: as `submit`.
    """
    if isinstance(config, Mapping):
        given, folder = {str(k): _plain(v) for k, v in config.items()}, Path.cwd()
        values = read_values(given, overrides, verb)
    else:
        values, folder = read_values(config, overrides, verb), Path(config).expanduser().absolute().parent
    sent = prepare(verb, values, folder, runtime_env)
    from rayinf.engine.ray_jobs import JobServer

    server = JobServer(address)
    job, joined = _start(server, sent)
    out = sent.places["out"]
    if not follow:
        return SubmittedJob(job, server.address, out, joined, "running")
    return SubmittedJob(job, server.address, out, joined, _watch(server, job))


def _start(server: JobServer, sent: Sent) -> tuple[str, bool]:
    """The id of the run's job, and whether it was there already.

    Two callers at once give the same id, and the second one joins.
    """
    while True:
        alive, count = server.find(sent.digest)
        if alive is not None:
            _print_line(f"The job {alive} runs this config already: joined.")
            return alive, True
        name = f"rayinf-{sent.verb}-{sent.digest[:12]}-{count + 1}"
        on_cluster = " --address auto" if "cluster" in keys_of(sent.verb) else ""
        command = f"python -m rayinf {sent.verb} {CONFIG}{on_cluster}"
        _print_sent(server.address, name, sent)
        if server.submit(name, command, sent.digest, sent.files, sent.runtime_env):
            return name, False


def _print_sent(address: str, name: str, sent: Sent) -> None:
    names = list(sent.files)
    more = f", and {len(names) - _SHOWN_FILES} more" if len(names) > _SHOWN_FILES else ""
    _print_line(f"Job {name} at {address}.")
    _print_line(f"Sent, {sent.size / 1000:,.1f} kB in {len(names)} files: {', '.join(names[:_SHOWN_FILES])}{more}.")
    read = ", ".join(f"{key} {place}" for key, place in sent.places.items() if key != "out")
    _print_line(f"Not sent, and read there: {read}. Written there: {sent.places['out']}.")


def _watch(server: JobServer, job: str) -> str:
    """Follow a job to its end; what became of it.

    Raises:
        RayinfError: the job's own error.
    """
    from rayinf.engine.ray_jobs import outcome

    try:
        ended = server.follow(job, _print_log)
    except KeyboardInterrupt:
        return _interrupted(server, job)
    error = outcome(job, ended)
    if error is not None:
        raise error
    return "finished"


def _interrupted(server: JobServer, job: str) -> str:
    if not _wants_stop(job):
        _print_line(f"The job {job} goes on. {_GO_ON}")
        return "running"
    if not server.stop(job):
        raise RunError(f"The job {job} has not ended yet after the request to stop.", "look at it on the dashboard.")
    _print_line(f"The job {job} is stopped. Submit the same config again to go on.")
    return "stopped"


def _wants_stop(job: str) -> bool:
    """Whether the user wants the job to end; where there is no terminal to ask at, no."""
    if not sys.stdin.isatty():
        return False
    try:
        answer = input(f"\nStop the job {job} (s), or only stop watching it (w)? [w] ")
    except (EOFError, KeyboardInterrupt):
        return False
    return answer.strip().lower() in ("s", "stop")


def head_address(address: str | None) -> str:
    """The address of a head's dashboard.

    Raises:
        InputError: no address is given, or one of another form.
    """
    fix = "pass the address of the head's dashboard, such as http://head:8265."
    found = os.environ.get("RAY_API_SERVER_ADDRESS") if address is None else address
    if not found:
        if address is None:
            raise InputError("address=None, and RAY_API_SERVER_ADDRESS is not set: the head is not known.", fix)
        text("address", address, "the address of a head's dashboard, such as http://head:8265")
    if not isinstance(found, str):
        refuse("address", found, "the address of a head's dashboard", fix)
    if "@" in found:
        raise InputError(
            "address holds a user or a password.",
            "leave it out; a token goes into RAY_AUTH_TOKEN, not into the address.",
        )
    if not _ADDRESS.fullmatch(found):
        refuse("address", found, "the address of a head's dashboard", fix)
    return found


def _plain(value: Any) -> Any:
    """A value of Python as YAML writes it."""
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(v) for f in dataclasses.fields(value) if (v := getattr(value, f.name)) != f.default}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(v) for v in value]
    return plain(value)


def _print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_log(lines: str) -> None:
    print(lines, end="", flush=True)
