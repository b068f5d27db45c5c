"""The command line: parse, call a verb, print, exit."""

from __future__ import annotations

import json
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rayinf import api, config, references
from rayinf.data.scores import Scores
from rayinf.errors import InputError, RayinfError
from rayinf.select.top_rows import TopRows

_TOP = 5
_SHOWN_COLUMNS = 8
_LONGEST_MESSAGE = 500


def _keys_help() -> str:
    lines = [f"[bold]Keys of CONFIG[/bold] (the arguments of rayinf.influence). {escape(references.PATHS)}"]
    for name, default, meaning in config.describe_keys():
        note = f" Default: {default}." if default else " Required."
        lines.append(f"[bold cyan]{name}[/bold cyan]: {escape(meaning + '.' + note)}")
    lines.append("Exit codes: 0 done; 2 the input is wrong (one line says what, where and how to mend it); 1 else.")
    return "\n\n".join(lines)


app = typer.Typer(
    name="rayinf",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The YAML file of the run.")]
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
Workers = Annotated[int | None, typer.Option(min=1, help="Run on Ray with so many workers: overrides cluster.workers.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


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


@app.command(epilog=_keys_help())
def influence(
    config_file: ConfigFile,
    overrides: Overrides = None,
    address: Address = None,
    workers: Workers = None,
    debug: Debug = False,
) -> None:
    """Value every training row: how much each objective would rise if the row were removed.

    The same command again finishes an interrupted run, and does nothing to a finished one.
    """
    with _exit_codes(debug):
        arguments = _arguments(config_file, overrides, address, workers)
        _require_out(arguments, config_file)
        _summarise(api.influence(**arguments))


@app.command(epilog=_keys_help())
def plan(
    config_file: ConfigFile,
    overrides: Overrides = None,
    address: Address = None,
    workers: Workers = None,
    debug: Debug = False,
) -> None:
    """Say what the run of a config would cost, in bytes and seconds a stage, without running it."""
    with _exit_codes(debug):
        arguments = _arguments(config_file, overrides, address, workers)
        del arguments["factors"]
        typer.echo(api.plan(**arguments).to_text())


def main() -> None:
    """The entry point `rayinf`."""
    app()


def _arguments(
    config_file: Path, overrides: list[str] | None, address: str | None, workers: int | None
) -> dict[str, Any]:
    """The verb's arguments: the config, then `--set`, then the options of the cluster."""
    items = list(overrides or [])
    if address is not None:
        items.append(f"cluster.address={json.dumps(address)}")
    if workers is not None:
        items.append(f"cluster.workers={workers}")
    return config.read_config(config_file, items)


def _require_out(arguments: dict[str, Any], config_file: Path) -> None:
    """Refuse a run whose scores would be lost when the command ends.

    Raises:
        InputError: there is no `out`.
    """
    if arguments["out"] is None:
        raise InputError(
            f"{config_file} has no out: the scores would be lost.",
            "add `out: FOLDER` to the config, or pass --set out=FOLDER.",
        )


@contextmanager
def _exit_codes(debug: bool) -> Generator[None, None, None]:
    """One line on stderr for every error, and the exit code that goes with it.

    Raises:
        typer.Exit: with code 2 where the user's input is wrong, 1 for anything else.
    """
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("Stopped: run the same command again to go on.", err=True)
        raise typer.Exit(1) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        typer.echo(f"Error: {_one_line(error)}", err=True)
        raise typer.Exit(2 if isinstance(error, InputError) else 1) from None


def _one_line(error: Exception) -> str:
    if isinstance(error, RayinfError):
        return " ".join(str(error).split())
    cause = getattr(error, "cause", None)  # what a worker on Ray raised; the error itself holds its whole traceback
    inner = cause if isinstance(cause, Exception) else error
    said = " ".join(str(inner).split()).rstrip(".")
    short = said if len(said) <= _LONGEST_MESSAGE else said[: _LONGEST_MESSAGE - 3] + "..."
    what = f"{type(inner).__name__}: {short}, which rayinf did not expect."
    return f"{what} Fix: run again with --debug to see where; if your own code has no part in it, report it."


def _summarise(scores: Scores) -> None:
    """Print how many rows were valued, which matter most, and where the scores lie."""
    names = scores.columns
    shown = ", ".join(names[:_SHOWN_COLUMNS]) + (", ..." if len(names) > _SHOWN_COLUMNS else "")
    typer.echo(f"{len(scores):,} rows, {len(names)} column{'s' if len(names) > 1 else ''}: {shown}")
    best = _most(scores, names[0])
    if best is not None:
        table = Table(title=Text(f"{names[0]}: positive helps, negative harms"), title_justify="left")
        for heading in ("most harmful row_id", "value", "most helpful row_id", "value"):
            table.add_column(heading, justify="right" if heading == "value" else "left", overflow="fold")
        for low, low_id, high, high_id in zip(
            best.harms[0][0], best.harms[2][0], best.helps[0][0], best.helps[2][0], strict=True
        ):
            table.add_row(Text(str(low_id)), f"{low:+.4g}", Text(str(high_id)), f"{high:+.4g}")
        Console().print(table)
    if scores.path is not None:
        typer.echo(f"Scores: {scores.path / 'scores'}")


def _most(scores: Scores, column: str) -> TopRows | None:
    """The rows of largest and smallest value, batch by batch: memory does not grow with the rows."""
    best, start = None, 0
    source = scores.source.select(["row_id", column]) if isinstance(scores.source, pa.Table) else scores.source
    batches = source.to_batches() if isinstance(source, pa.Table) else source.to_batches(columns=["row_id", column])
    for batch in batches:
        values, ids = (batch.column(n).to_numpy(zero_copy_only=False) for n in (column, "row_id"))
        found = TopRows.of(values[None], ids, start, _TOP)
        best, start = found if best is None else best.merge(found), start + batch.num_rows
    return best
