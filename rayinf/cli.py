"""The command line: parse, call a verb, print, exit."""

from __future__ import annotations

import json
import traceback
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import typer
from rich.markup import escape

from rayinf import api, config, keys, references, summaries
from rayinf.data.files import write_part
from rayinf.data.run_folder import RunFolder
from rayinf.data.scores import Scores
from rayinf.errors import InputError, RayinfError
from rayinf.loops.active_learning import active_learning as learn
from rayinf.loops.trim import trim as trim_rows

_LONGEST_MESSAGE = 500
# Of what runs the values belong to training rows.
_TRIMMED = ("influence", "influence_measure", "self_influence")
# What `rayinf.plan` wants to know of a config.
_PRICED = (
    "task",
    "train",
    "valid",
    "objective",
    "curvature",
    "fisher",
    "damping",
    "halves",
    "cluster",
    "out",
    "seed",
    "batch_size",
    "precision",
    "pool",
    "strategy",
    "rank",
    "subsample",
)
_CODES = "Exit codes: 0 done; 2 the input is wrong (one line says what, where and how to mend it); 1 else."


def _keys_help(verb: str) -> str:
    function = {"measure": "influence_measure"}.get(verb, verb.replace("-", "_"))
    lines = [f"[bold]Keys of CONFIG[/bold] (the arguments of rayinf.{function}). {escape(references.PATHS)}"]
    for name, default, meaning in keys.describe_keys(verb):
        note = f" Default: {default}." if default else " Required."
        lines.append(f"[bold cyan]{name}[/bold cyan]: {escape(meaning + '.' + note)}")
    return "\n\n".join([*lines, _CODES])


def _plan_help() -> str:
    which = (
        f"Keys of CONFIG: those of {', '.join(keys.VERBS)}; `rayinf COMMAND --help` says what they mean. The config is "
        "for the command that knows most of its keys: with pool, acquire; with rounds or oracle, active-learning; "
        "with rank or subsample, measure."
    )
    return "\n\n".join([which, references.PATHS, _CODES])


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


@app.command(epilog=_keys_help("influence"))
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
        given = _read(config_file, _items(overrides, address, workers), "influence")
        with _telling_if_done(given["out"]):
            scores = api.influence(**given)
        summaries.tell_influence(scores)


@app.command(epilog=_keys_help("measure"))
def measure(
    config_file: ConfigFile,
    overrides: Overrides = None,
    address: Address = None,
    workers: Workers = None,
    debug: Debug = False,
) -> None:
    """Measure every training row: how far the fit hangs on small changes of it (FI).

    The same command again finishes an interrupted run, and does nothing to a finished one.
    """
    with _exit_codes(debug):
        given = _read(config_file, _items(overrides, address, workers), "measure")
        with _telling_if_done(given["out"]):
            scores = api.influence_measure(**given)
        summaries.tell_measure(scores)


@app.command(epilog=_keys_help("acquire"))
def acquire(
    config_file: ConfigFile,
    overrides: Overrides = None,
    address: Address = None,
    workers: Workers = None,
    debug: Debug = False,
) -> None:
    """Pick the rows of a pool whose labels are most worth asking for.

    Writes picked.parquet (row_id, rank from 1, value) and scores/ (all rows).

    The same command again finishes an interrupted run. Of a finished one,
    nothing is computed again: another n or exclude picks from its values.
    """
    with _exit_codes(debug):
        given = _read(config_file, _items(overrides, address, workers), "acquire")
        out = Path(given["out"])
        with _telling_if_done(out):
            selection = api.acquire(**given)
        picked = selection.source.filter(selection.source["kept"]).select(["row_id", "value"])
        picked = picked.add_column(1, "rank", pa.array(range(1, len(picked) + 1), pa.int64()))
        write_part(out / "picked.parquet", picked)
        summaries.tell_acquire(selection, given["strategy"], out, out / "picked.parquet")


@app.command("active-learning", epilog=_keys_help("active-learning"))
def active_learning(
    config_file: ConfigFile,
    overrides: Overrides = None,
    address: Address = None,
    workers: Workers = None,
    debug: Debug = False,
) -> None:
    """Pick rows of a pool, have them labelled, train and measure, round by round; strategies and seeds side by side.

    Writes learning_curve.png into the run's folder. The same command again
    finishes an interrupted run, goes on where labels were awaited, and does
    nothing to a finished one.
    """
    with _exit_codes(debug):
        given = _read(config_file, _items(overrides, address, workers), "active-learning")
        with _telling_if_done(given["out"]):
            history = learn(**given)
        plot = history.plot(Path(given["out"]) / "learning_curve.png")
        summaries.tell_active_learning(history, plot)


@app.command()
def trim(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run of influence or measure.")],
    budget: Annotated[int, typer.Option(help="So many rows are removed, at most.")] = 100,
    by: Annotated[
        str | None, typer.Option(help="The column to go by; needed where there are several.", show_default=False)
    ] = None,
    floor: Annotated[int, typer.Option(help="So many rows of every class stay, at least.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The folder for kept.parquet and removed.parquet, or a name.parquet for the kept rows, with "
            "name_removed.parquet beside it. By default, RUN/trim.",
            show_default=False,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Remove the worst rows of a finished run: of fi, the largest; of influence, the most negative.

    Writes row_id and value of the rows that are kept (in the table's order)
    and of those that are removed (worst first). No data is changed.
    """
    with _exit_codes(debug):
        files = _trim_files(run if out is None else out, is_run=out is None)
        scores = _training_scores(run)
        selection = trim_rows(scores, budget, by, floor)
        held = selection.source
        kept = held.filter(held["kept"]).sort_by("position")
        gone = held.filter(pc.invert(held["kept"]))
        gone = gone.take(pa.array(range(len(gone) - 1, -1, -1), pa.int64()))
        for file, table in zip(files, (kept, gone), strict=True):
            write_part(file, table.select(["row_id", "value"]))
        summaries.tell_trim(selection, scores.labels, files)


@app.command(epilog=_plan_help())
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
    """Say what the run of a config would cost, in bytes and seconds a stage, without running it."""
    with _exit_codes(debug):
        items = _items(overrides, address, workers)
        verb = config.find_verb(config_file, items) if verb is None else verb
        if verb not in keys.VERBS:
            raise InputError(f"--for {verb} is no command that has a plan.", f"use one of {', '.join(keys.VERBS)}.")
        for heading, arguments in _priced(config.read_config(config_file, items, verb), verb):
            typer.echo(heading)
            typer.echo(api.plan(**arguments).to_text())


def main() -> None:
    """The entry point `rayinf`."""
    app()


def _items(overrides: list[str] | None, address: str | None, workers: int | None) -> list[str]:
    """What changes a config: `--set`, then the options of the cluster."""
    items = list(overrides or [])
    if address is not None:
        items.append(f"cluster.address={json.dumps(address)}")
    if workers is not None:
        items.append(f"cluster.workers={workers}")
    return items


def _read(config_file: Path, items: list[str], verb: str) -> dict[str, Any]:
    """The verb's arguments, with a folder in which to keep what comes out.

    Raises:
        InputError: a config that is wrong, or without `out`.
    """
    given = config.read_config(config_file, items, verb)
    if given["out"] is None:
        raise InputError(
            f"{config_file} has no out: the results would be lost.",
            "add `out: FOLDER` to the config, or pass --set out=FOLDER.",
        )
    return given


@contextmanager
def _telling_if_done(out: str | Path) -> Generator[None, None, None]:
    """Say so where a run was finished and had nothing left to do: one that does anything writes its record anew."""
    file = Path(out) / "run.json"
    finished = (RunFolder(Path(out)).read() or {}).get("status") == "finished"
    before = file.stat().st_mtime_ns if finished else None
    yield
    if before is not None and file.stat().st_mtime_ns == before:
        typer.echo("already finished: nothing was computed")


def _priced(given: dict[str, Any], verb: str) -> list[tuple[str, dict[str, Any]]]:
    """What `rayinf.plan` is asked for a config, with a heading; one for every strategy of active learning."""
    asked = {k: given[k] for k in _PRICED if k in given}
    if verb == "influence":
        return [("Plan of influence", asked)]
    if verb == "measure":
        return [("Plan of measure", {**asked, "verb": "influence_measure"})]
    asked |= {"train": given["labeled"], "verb": "acquire"}
    if verb == "acquire":
        return [(f"Plan of acquire by {given['strategy']}", asked)]
    seeds, strategies = (v if isinstance(v, list) else [v] for v in (given["seed"], given["strategy"]))
    runs = f"{given['rounds']:,} rounds" + (f" and {len(seeds)} seeds" if len(seeds) > 1 else "")
    return [
        (
            f"Plan of one choice of rows by {strategy}, the first of {runs}; training comes on top",
            {**asked, "strategy": strategy, "seed": seeds[0]},
        )
        for strategy in strategies
    ]


def _training_scores(run: Path) -> Scores:
    """The scores of a finished run over training rows.

    Raises:
        InputError: there is none, or its values belong to the rows of a pool.
    """
    scores = Scores.load(run)
    verb = (RunFolder(scores.path or run).read() or {}).get("verb")
    if verb not in _TRIMMED:
        raise InputError(
            f"{run} holds a run of {verb}, whose values are not those of training rows.",
            "pass the folder of a run of influence or measure.",
        )
    return scores


def _trim_files(place: Path, is_run: bool) -> tuple[Path, Path]:
    """Where kept and removed rows are written."""
    place = place.expanduser() / "trim" if is_run else place.expanduser()
    if place.suffix == ".parquet":
        return place, place.with_name(f"{place.stem}_removed.parquet")
    return place / "kept.parquet", place / "removed.parquet"


@contextmanager
def _exit_codes(debug: bool) -> Generator[None, None, None]:
    """One line on stderr for every error or warning, and the exit code that goes with it.

    Raises:
        typer.Exit: with code 2 where the user's input is wrong, 1 for anything else.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _tell_warning
            yield
    except KeyboardInterrupt:
        typer.echo("Stopped: run the same command again to go on.", err=True)
        raise typer.Exit(1) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        typer.echo(f"Error: {_one_line(error)}", err=True)
        raise typer.Exit(2 if isinstance(error, InputError) else 1) from None


def _tell_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    typer.echo(f"Warning: {' '.join(str(message).split())}", err=True)


def _one_line(error: Exception) -> str:
    if isinstance(error, RayinfError):
        return " ".join(str(error).split())
    cause = getattr(error, "cause", None)  # what a worker on Ray raised; the error itself holds its whole traceback
    inner = cause if isinstance(cause, Exception) else error
    said = " ".join(str(inner).split()).rstrip(".")
    short = said if len(said) <= _LONGEST_MESSAGE else said[: _LONGEST_MESSAGE - 3] + "..."
    what = f"{type(inner).__name__}: {short}, which rayinf did not expect."
    return f"{what} Fix: run again with --debug to see where; if your own code has no part in it, report it."
