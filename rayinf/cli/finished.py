"""Commands that take the folder of a finished run, and decide what its scores mean for the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
import typer

from rayinf import summaries
from rayinf.cli.app import Debug, app
from rayinf.cli.exits import exit_codes
from rayinf.data.files import write_part
from rayinf.data.run_folder import RunFolder
from rayinf.data.scores import Scores
from rayinf.errors import InputError
from rayinf.loops.trim import trim as trim_rows

# Of what runs the values belong to training rows.
_TRIMMED = ("influence", "influence_measure", "self_influence")


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
    with exit_codes(debug):
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
