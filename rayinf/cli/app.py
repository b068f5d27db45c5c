"""The application that commands are added to, and the options that they share."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from rayinf import config, keys, references
from rayinf.data.out_folder import check_out
from rayinf.errors import InputError

CODES = "Exit codes: 0 done; 2 the input is wrong (one line says what, where and how to mend it); 1 else."


def keys_help(verb: str) -> str:
    """What `--help` says of the keys of a verb's config."""
    function = {"measure": "influence_measure"}.get(verb, verb.replace("-", "_"))
    lines = [f"[bold]Keys of CONFIG[/bold] (the arguments of rayinf.{function}). {escape(references.PATHS)}"]
    for name, default, meaning in keys.describe_keys(verb):
        note = f" Default: {default}." if default else " Required."
        lines.append(f"[bold cyan]{name}[/bold cyan]: {escape(meaning + '.' + note)}")
    return "\n\n".join([*lines, CODES])


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


def changes(overrides: list[str] | None, address: str | None, workers: int | None) -> list[str]:
    """What changes a config: `--set`, then the options of the cluster."""
    items = list(overrides or [])
    if address is not None:
        items.append(f"cluster.address={json.dumps(address)}")
    if workers is not None:
        items.append(f"cluster.workers={workers}")
    return items


def read(config_file: Path, items: list[str], verb: str) -> dict[str, Any]:
    """The verb's arguments, with a folder in which to keep what comes out.

    Raises:
        InputError: a config that is wrong, without `out`, or with one that cannot be made.
    """
    given = config.read_config(config_file, items, verb)
    if given["out"] is None:
        raise InputError(
            f"{config_file} has no out: the results would be lost.",
            "add `out: FOLDER` to the config, or pass --set out=FOLDER.",
        )
    check_out(given["out"], {})
    return given
