"""The command line: options and help. What a command does is in `rayinf.commands`.

The commands are listed at the end. Nothing that takes long to import is imported before a command runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperCommand

from rayinf.config_keys import VERBS, describe_keys
from rayinf.messages import exit_codes, translate
from rayinf.references import PATHS

_CODES = "Exit codes: 0 done; 2 the input is wrong (one line says what, where and how to mend it); 1 else."

app = typer.Typer(
    name="rayinf",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The YAML file of the run.")]
RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run of any command.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the config; may stand several times. Keys may be dotted (cluster.workers=4), "
        "values are YAML.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(help='Run on the Ray cluster at this address ("auto" finds one): overrides cluster.address.'),
]


def _worker_count(text: str) -> str:
    """A number of workers, as it stands in a config; refuses all else."""
    if text == "auto" or (text.isdigit() and int(text) >= 1):
        return text
    raise typer.BadParameter(f"{text!r} is neither an integer >= 1 nor auto.")


Workers = Annotated[
    str | None,
    typer.Option(
        parser=_worker_count,
        metavar="INTEGER|auto",
        help="Run on Ray with so many workers, or as many as there is room for: overrides cluster.workers.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def main() -> None:
    """The entry point `rayinf`."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rayinf {metadata.version('rayinf')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """What every training row of a classifier is worth: influence values, from Parquet to Parquet."""


def _changes(overrides: list[str] | None, address: str | None, workers: str | None) -> list[str]:
    """The changes of a config: `--set`, then the options of the cluster."""
    items = list(overrides or [])
    if address is not None:
        items.append(f"cluster.address={json.dumps(address)}")
    if workers is not None:
        items.append(f"cluster.workers={workers}")
    return items


def run_verb(
    context: typer.Context,
    config_file: ConfigFile,
    overrides: Overrides = None,
    address: Address = None,
    workers: Workers = None,
    debug: Debug = False,
) -> None:
    """Call the verb that has the command's name, with the arguments of a config."""
    verb = str(context.command.name)
    with exit_codes(debug):
        from rayinf.config import read_config

        given = read_config(config_file, _changes(overrides, address, workers), verb)
        from rayinf import commands  # imports torch: mistakes in the config are found before

        commands.run_verb(verb, given)


def run_verb_here(
    context: typer.Context, config_file: ConfigFile, overrides: Overrides = None, debug: Debug = False
) -> None:
    """The same of a verb that has no cluster."""
    run_verb(context, config_file, overrides, debug=debug)


def trim(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The folder of a finished run of influence or measure.")],
    budget: Annotated[int, typer.Option(help="So many rows are removed, at most.")] = 100,
    by: Annotated[
        str | None, typer.Option(help="The column to go by; needed where there are several.", show_default=False)
    ] = None,
    floor: Annotated[int, typer.Option(help="So many rows of every class stay, at least.")] = 0,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="The folder for kept.parquet and removed.parquet, or a name.parquet for the kept rows, with "
            "name_removed.parquet beside it. By default, RUN/trim.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over files of an earlier selection.")] = False,
    debug: Debug = False,
) -> None:
    """Write the rows to keep and to remove."""
    with exit_codes(debug, ("by", "budget", "floor", "out")):
        from rayinf import commands

        commands.trim_run(run, budget, by, floor, out, overwrite)


def ceiling(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The folder of a finished run of influence, by category.")],
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Where ceiling.json, influence_plane.png and classes.png are written. By default, RUN/ceiling.",
            show_default=False,
        ),
    ] = None,
    plane: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS,CLASS",
            help="The two classes of influence_plane.png; by default those that can gain least in common.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    debug: Debug = False,
) -> None:
    """Write the ceiling of a run."""
    with exit_codes(debug, ("out", "plane", "seed")):
        from rayinf import commands

        commands.show_ceiling(run, out, plane, seed)


def verify(run: RunFolder, debug: Debug = False) -> None:
    """Print what is wrong with a run's folder.

    Raises:
        typer.Exit: with code 2 where something is wrong.
    """
    with exit_codes(debug):
        from rayinf.api.run_state import verify as check_folder

        found = check_folder(run)
        typer.echo(found.to_text())
    if not found.ok:
        raise typer.Exit(2)


def status(run: RunFolder, debug: Debug = False) -> None:
    """Print where a run stands."""
    with exit_codes(debug):
        from rayinf.api.run_state import status as read_status

        typer.echo(read_status(run).to_text())


def plan(
    config_file: ConfigFile,
    overrides: Overrides = None,
    address: Address = None,
    workers: Workers = None,
    verb: Annotated[
        str | None,
        typer.Option("--for", metavar="COMMAND", help="The command that the config is for.", show_default=False),
    ] = None,
    debug: Debug = False,
) -> None:
    """Print what a run would cost."""
    with exit_codes(debug):
        from rayinf import commands

        commands.show_plan(config_file, _changes(overrides, address, workers), verb)


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
    """Run a command as a job.

    Raises:
        typer.Exit: with code 1 where the job is not watched to its end.
    """
    with exit_codes(debug, ("address",)):
        from rayinf.arguments import one_of
        from rayinf.submission import head_address, submit_config

        one_of("VERB", verb, list(VERBS))
        job = submit_config(verb, config_file, head_address(address), follow, None, _changes(overrides, None, workers))
    if not follow:
        typer.echo(job.job_id)
    elif job.state != "finished":
        raise typer.Exit(1)


class VerbCommand(TyperCommand):
    """A command with a config, whose help describes every key."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Read the keys from the verb's signature and docstring; other commands do not need them."""
        verb = str(self.name)
        function = VERBS[verb]
        lines = [f"[bold]Keys of CONFIG[/bold] (the arguments of rayinf.{function}). {escape(PATHS)}"]
        for name, default, meaning in describe_keys(verb):
            note = f" Default: {default}." if default else " Required."
            lines.append(f"[bold cyan]{name}[/bold cyan]: {escape(translate(meaning) + note)}")
        self.epilog = "\n\n".join([*lines, _CODES])
        super().format_help(ctx, formatter)


# The commands by group, as `rayinf --help` lists them.
_GROUPS = {
    "Value rows": {
        "influence": "How much the loss on validation rows would rise or fall without each training row.",
        "self-influence": "How much each training row changes the loss on itself: odd and mislabelled rows stand out.",
        "pairs": "For each validation row, the training rows that help it and that harm it most.",
        "baseline": "The same by simple and published rivals: loss, margin, gradients, TracIn, TRAK, Shapley values.",
        "measure": "How strongly the fitted model reacts to small changes of each training row (FI).",
    },
    "Act on values": {
        "trim": "Drop the worst rows of a finished run.",
        "trim-rounds": "Drop the rows that harm every class or one objective, fit again, and repeat while it helps.",
        "label-issues": "Rows that are likely mislabelled, with the label that the model would give them.",
        "predict-removal": "What is predicted to happen to every objective when some training rows go.",
        "acquire": "Pick the rows of an unlabelled pool whose labels would help most.",
        "ceiling": "Whether all classes can still gain together, or only at each other's cost.",
        "reweight": "Search row weights that improve chosen classes and spare the others.",
    },
    "Train and measure": {
        "active-learning": "Pick rows, have them labelled, train and measure, round by round.",
        "removal-check": "Remove the rows that help or harm each class most, train again, compare with the prediction.",
        "lds": "Train on random subsets, and compare with what the values predict: the linear datamodelling score.",
        "retrain": "Train the task's model anew, on all rows of a table or on some.",
        "evaluate": "Loss and accuracy of the task's model on a table, by class too.",
    },
    "Runs and jobs": {
        "plan": "Seconds and bytes that a run would take, without running it.",
        "submit": "Run a command as a job on a Ray cluster, and follow its log.",
        "status": "Where a run stands, from any machine that sees its folder.",
        "verify": "Check that a run's folder is whole: its record, manifests, checksums, rows and ids.",
    },
}
_FUNCTIONS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(VERBS, run_verb),
    **dict.fromkeys(("retrain", "evaluate"), run_verb_here),
    **{f.__name__: f for f in (trim, ceiling, plan, submit, status, verify)},
}
_AGAIN = "The same command again finishes an interrupted run, and does nothing to a finished one."
# What the help of a command says beside its line in the list.
_MORE = {
    **dict.fromkeys(("influence", "self-influence", "pairs", "baseline", "measure"), _AGAIN),
    "trim": "Of fi, the largest values go; of influence, the most negative. Writes row_id and value of the rows that "
    "are kept (in the table's order) and of those that are removed (worst first). No data is changed.",
    "trim-rounds": "Writes kept.parquet, removed.parquet and the last model, model.safetensors, into the run's folder.",
    "label-issues": "Writes issues.parquet, most likely first, into the folder out. No data is changed.",
    "predict-removal": f"Writes prediction.parquet into the run's folder: first and second order. {_AGAIN}",
    "acquire": f"Writes picked.parquet (row_id, rank from 1, value) and scores/ (all rows). {_AGAIN} Another n or "
    "exclude picks from the values of a finished run.",
    "ceiling": "The verdict needs scores with halves: true; without them, it is left open.",
    "reweight": "Each candidate is trained for an epoch. Writes weights.parquet (row_id, weight), the weighted "
    f"checkpoint, and trade_off.png into the run's folder. {_AGAIN}",
    "active-learning": "Strategies and seeds run side by side. Writes learning_curve.png into the run's folder. "
    f"{_AGAIN} Where labels were awaited, it goes on with them.",
    "removal-check": f"Writes heat maps into the run's folder. {_AGAIN}",
    "lds": f"Writes lds.parquet, a line a column, and lds.png into the run's folder. {_AGAIN} With other scores, "
    "more subsets or more seeds, it trains only what is missing.",
    "retrain": "Writes model.safetensors into the folder out.",
    "evaluate": "With a folder out, writes evaluation.json there.",
    "plan": "Keys of CONFIG: those of influence, self-influence, pairs, measure, acquire, active-learning, reweight, "
    "removal-check; `rayinf COMMAND --help` describes them. The config is for the command that has most of its keys: "
    f"with pool, acquire; with rounds or oracle, active-learning; with rank or subsample, measure. {PATHS}",
    "submit": "Sent are the config, the task's file, and the Python modules that it imports from beside it: what is "
    "sent is printed, with its size. Tables, checkpoints and runs are not: write URIs, or absolute paths that the "
    "whole cluster sees.\n\n"
    "A config runs the code that its task, objective and oracle name, here and on the cluster: submit only configs "
    "that you trust. Secrets are never sent: a password in a URI, and env_vars in a runtime_env, are refused; set them "
    "where the cluster's machines are started.\n\n"
    "On a cluster with token authentication set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token.\n\n"
    "The same config again joins its running job, does nothing to a finished run, and goes on with one that was "
    "stopped. `rayinf status OUT` shows where a run stands. Ctrl-C asks whether to stop the job, or only to stop "
    "watching it.\n\n"
    "With --follow, the exit code is that of the run; 1 also where the job is not watched to its end.",
    "status": "Nothing is changed.",
    "verify": "Prints a line for everything that is wrong, and then exits with 2.",
}

for _group, _lines in _GROUPS.items():
    for _name, _line in _lines.items():
        app.command(
            _name,
            cls=VerbCommand if _name in VERBS else TyperCommand,
            help=f"{_line}\n\n{_MORE[_name]}",
            short_help=_line,
            epilog=_CODES,
            rich_help_panel=_group,
        )(_FUNCTIONS[_name])
