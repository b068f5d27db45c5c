"""The command that runs another one as a job on a Ray cluster."""

from __future__ import annotations

from typing import Annotated

import typer

from rayinf.arguments import one_of
from rayinf.cli.app import CODES, ConfigFile, Debug, Overrides, Workers, app, changes
from rayinf.cli.exits import exit_codes
from rayinf.keys import VERBS
from rayinf.submission import head_address, submit_config


def _help() -> str:
    sent = (
        "Sent are the config, the task's file, and the Python modules that it imports from beside it: what is sent is "
        "printed, with its size. Tables, checkpoints and runs are not: write URIs, or absolute paths that the whole "
        "cluster sees."
    )
    code = (
        "A config runs the code that its task, objective and oracle name, here and on the cluster: submit only configs "
        "that you trust. Secrets are never sent: a password in a URI, and env_vars in a runtime_env, are refused; set "
        "them where the cluster's machines are started."
    )
    token = "On a cluster with token authentication set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token."
    again = (
        "The same config again joins its running job, does nothing to a finished run, and goes on with one that was "
        "stopped. `rayinf status OUT` says where a run stands. Ctrl-C asks whether to stop the job, or only to stop "
        "watching it."
    )
    codes = f"{CODES} With --follow they are those of the run; 1 also where the job is not watched to its end."
    return "\n\n".join([sent, code, token, again, codes])


@app.command(epilog=_help())
def submit(
    verb: Annotated[str, typer.Argument(metavar="VERB", help=f"The command to run there: {', '.join(VERBS)}.")],
    config_file: ConfigFile,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="http://HEAD:8265",
            help="The dashboard of the cluster's head. By default, RAY_API_SERVER_ADDRESS.",
            show_default=False,
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Print the job's log until it ends; or only the job's id.")
    ] = True,
    overrides: Overrides = None,
    workers: Workers = None,
    debug: Debug = False,
) -> None:
    """Run a command as a job on a Ray cluster, and follow its log.

    Raises:
        typer.Exit: with code 1 where the job is not watched to its end.
    """
    with exit_codes(debug, ("address",)):
        one_of("VERB", verb, list(VERBS))
        job = submit_config(verb, config_file, head_address(address), follow, None, changes(overrides, None, workers))
    if not follow:
        typer.echo(job.job_id)
    elif job.state != "finished":
        raise typer.Exit(1)
