"""Commands that take the folder of a finished run, and decide what its scores mean for the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import typer

import rayinf
from rayinf import summaries
from rayinf.api import run_state
from rayinf.api.trim import trim as trim_rows
from rayinf.cli.app import Debug, app
from rayinf.cli.exits import exit_codes
from rayinf.cli.words import translate
from rayinf.data.files import readable, write_json, write_result
from rayinf.data.out_folder import check_out
from rayinf.data.run_folder import RunFolder
from rayinf.data.scores import Scores
from rayinf.errors import InputError, RayinfError
from rayinf.store.places import AnyPath, open_place

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write over files of an earlier selection.")]
# Of what runs the values belong to training rows.
_TRIMMED = ("influence", "influence_measure", "self_influence")


@app.command()
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
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Remove the worst rows of a finished run: of fi, the largest; of influence, the most negative.

    Writes row_id and value of the rows that are kept (in the table's order)
    and of those that are removed (worst first). No data is changed.
    """
    with exit_codes(debug, ("by", "budget", "floor", "out")):
        check_out(out, {})
        files = _trim_files(open_place(run if out is None else out), is_run=out is None)
        scores = _training_scores(run)
        selection = trim_rows(scores, budget, by, floor)
        held = selection.source
        kept = held.filter(held["kept"]).sort_by("position")
        gone = held.filter(pc.invert(held["kept"]))
        gone = gone.take(pa.array(range(len(gone) - 1, -1, -1), pa.int64()))
        tables = [table.select(["row_id", "value"]) for table in (kept, gone)]
        _check_new(files, tables, overwrite)
        for file, table in zip(files, tables, strict=True):
            write_result(file, table)
        summaries.tell_fit(scores.metadata, warn=True)
        summaries.tell_trim(selection, scores.labels, files)


@app.command()
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
    """Say whether all classes can still gain in common, or gain only at each other's cost.

    The verdict needs scores with halves: true; without, it is left open.
    """
    with exit_codes(debug, ("out", "plane", "seed")):
        check_out(out, {})
        scores = _training_scores(run)
        report = rayinf.ceiling(scores, seed=seed)
        folder = open_place(run) / "ceiling" if out is None else open_place(out, "out")
        pair = None if plane is None else [name.strip() for name in plane.split(",")]
        pictures = [
            report.plot(folder / "influence_plane.png", pair),
            report.plot_classes(folder / "classes.png"),
        ]
        write_json(folder / "ceiling.json", report.to_dict())
        summaries.tell_fit(scores.metadata, warn=True)
        typer.echo(translate(report.to_text()))
        typer.echo(f"Figures: {', '.join(map(str, pictures))}")
        typer.echo(f"All numbers: {folder / 'ceiling.json'}")


@app.command()
def verify(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run of any command.")],
    debug: Debug = False,
) -> None:
    """Check that a run's folder is whole: its record, manifests, checksums, rows and ids.

    Prints a line for everything that is wrong, and then exits with 2.

    Raises:
        typer.Exit: with code 2 where something is wrong.
    """
    with exit_codes(debug):
        found = run_state.verify(run)
        typer.echo(found.to_text())
    if not found.ok:
        raise typer.Exit(2)


@app.command()
def status(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run of any command.")],
    debug: Debug = False,
) -> None:
    """Say where a run stands, from any machine that sees its folder. Nothing is changed."""
    with exit_codes(debug):
        typer.echo(run_state.status(run).to_text())


def _check_new(files: Sequence[AnyPath], tables: Sequence[pa.Table], overwrite: bool) -> None:
    """Refuse to write over an earlier selection of other rows.

    Raises:
        InputError: there is one.
    """
    if overwrite:
        return
    for file, table in zip(files, tables, strict=True):
        if file.exists() and not _holds(file, table):
            raise InputError(
                f"{file} is there already, with other rows.", "pass --overwrite, or another place with --out."
            )


def _holds(file: AnyPath, table: pa.Table) -> bool:
    try:
        return pq.read_table(readable(file)).equals(table)
    except RayinfError:
        raise
    except (pa.ArrowException, OSError):
        return False


def _training_scores(run: str) -> Scores:
    """The scores of a finished run over training rows.

    Raises:
        InputError: there is none, or its values belong to the rows of a pool.
    """
    scores = Scores.load(run)
    verb = (RunFolder(scores.path or open_place(run)).read() or {}).get("verb")
    if verb not in _TRIMMED:
        raise InputError(
            f"{run} holds a run of {verb}, whose values are not those of training rows.",
            "pass the folder of a run of influence or measure.",
        )
    return scores


def _trim_files(place: AnyPath, is_run: bool) -> tuple[AnyPath, AnyPath]:
    """Where kept and removed rows are written."""
    place = place / "trim" if is_run else place
    if place.suffix == ".parquet":
        return place, place.with_name(f"{place.stem}_removed.parquet")
    return place / "kept.parquet", place / "removed.parquet"
