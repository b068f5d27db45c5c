"""What the commands do: call a verb, write what belongs beside its result, and print a summary."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import typer

import rayinf
from rayinf import summaries
from rayinf.config import find_verb, read_config
from rayinf.config_keys import VERBS
from rayinf.data.files import fill_safetensors, readable, write_json, write_result, write_whole
from rayinf.data.out_folder import check_out
from rayinf.data.run_folder import RunFolder
from rayinf.data.scores import Scores
from rayinf.errors import InputError, RayinfError
from rayinf.messages import translate
from rayinf.signatures import arguments_of
from rayinf.store.places import AnyPath, open_place

# Verbs whose values are those of training rows.
_OF_TRAINING_ROWS = ("influence", "influence_measure", "self_influence", "baseline")
# Verbs with a plan. The others train the task's model, and how long that takes shows after the first training.
PLANNED = (
    "influence",
    "self-influence",
    "pairs",
    "measure",
    "acquire",
    "active-learning",
    "reweight",
    "removal-check",
)


def run_verb(verb: str, given: Mapping[str, Any]) -> None:
    """Call a verb, write what belongs into its folder, and print a summary.

    Args:
        verb: a name in `VERBS`.
        given: the arguments, from a config.

    Raises:
        InputError: there is no `out`, it cannot be made, or as the verb.
    """
    if given["out"] is None and verb != "evaluate":
        raise InputError(
            "The config has no out: the results would be lost.",
            "add `out: FOLDER` to the config, or pass --set out=FOLDER.",
        )
    check_out(given["out"], {})
    out = None if given["out"] is None else open_place(given["out"], "out")
    function = VERBS[verb]
    taken = {argument.name for argument in arguments_of(function)}
    with _note_if_finished(out):
        result = getattr(rayinf, function)(**{key: value for key, value in given.items() if key in taken})
    _AFTER[verb](result, given, out)


@contextmanager
def _note_if_finished(out: AnyPath | None) -> Generator[None, None, None]:
    """Say so where a run was finished and is left as it is: one that computes anything writes its record anew."""
    finished = out is not None and (RunFolder(out).read() or {}).get("status") == "finished"
    if out is None or not finished:
        yield
        return
    before = (out / "run.json").stat().st_mtime_ns
    yield
    if (out / "run.json").stat().st_mtime_ns == before:
        typer.echo("already finished: nothing was computed")


def _after_acquire(selection: Any, given: Mapping[str, Any], out: Any) -> None:
    picked = selection.source.filter(selection.source["kept"]).select(["row_id", "value"])
    picked = picked.add_column(1, "rank", pa.array(range(1, len(picked) + 1), pa.int64()))
    write_result(out / "picked.parquet", picked)
    summaries.print_acquire(selection, given["strategy"], out, out / "picked.parquet")


def _after_active_learning(history: Any, given: Mapping[str, Any], out: Any) -> None:
    summaries.print_active_learning(history, history.plot(out / "learning_curve.png"))


def _after_reweight(found: Any, given: Mapping[str, Any], out: Any) -> None:
    plot = found.plot(out / "trade_off.png")
    summaries.print_fit(given["scores"].metadata, warn=True)
    typer.echo(found.to_text())
    typer.echo(f"Weights, checkpoint and all candidates: {found.path}")
    typer.echo(f"Trade-off: {plot}")


def _after_removal_check(check: Any, given: Mapping[str, Any], out: Any) -> None:
    plot = check.plot(out / "removal_check.png")
    summaries.print_fit(given["scores"].metadata, warn=True)
    typer.echo(check.to_text())
    typer.echo(f"Heat maps: {plot}")


def _after_lds(found: Any, given: Mapping[str, Any], out: Any) -> None:
    write_result(out / "lds.parquet", found.table)
    plot = found.plot(out / "lds.png")
    summaries.print_fit(given["scores"].metadata, warn=True)
    typer.echo(found.to_text())
    typer.echo(f"Every column: {out / 'lds.parquet'}")
    typer.echo(f"Figure: {plot}")


def _after_trim_rounds(rounds: Any, given: Mapping[str, Any], out: Any) -> None:
    files = (out / "kept.parquet", out / "removed.parquet")
    write_result(files[0], pa.table({"row_id": rounds.kept}))
    write_result(files[1], pa.table({"row_id": rounds.removed, "round": rounds.removed_in}))
    typer.echo(rounds.to_text())
    typer.echo(f"Kept rows: {files[0]}")
    typer.echo(f"Removed rows: {files[1]}")
    _write_model(rounds.task, out)


def _after_label_issues(issues: Any, given: Mapping[str, Any], out: Any) -> None:
    write_result(out / "issues.parquet", issues.table)
    summaries.print_fit(given["scores"].metadata, warn=True)
    typer.echo(issues.to_text())
    typer.echo(f"Every row: {out / 'issues.parquet'}")


def _after_predict_removal(found: Any, given: Mapping[str, Any], out: Any) -> None:
    summaries.print_fit(found.metadata)
    typer.echo(found.to_text())
    typer.echo(f"Every set and objective: {out / 'prediction.parquet'}")


def _after_retrain(task: Any, given: Mapping[str, Any], out: Any) -> None:
    _write_model(task, out)


def _after_evaluate(measures: Mapping[str, Any], given: Mapping[str, Any], out: Any) -> None:
    summaries.print_evaluate(measures)
    if out is not None:
        write_json(out / "evaluation.json", measures)
        typer.echo(f"All measures: {out / 'evaluation.json'}")


def _write_model(task: Any, out: AnyPath) -> None:
    """Write the parameters of a task's model, and say how to load them."""
    from safetensors.torch import save_model

    model, file = task.build(), out / "model.safetensors"
    write_whole(file, lambda place: fill_safetensors(place, lambda inner: save_model(model, str(inner))))
    typer.echo(f"Model: {file} (safetensors.torch.load_model reads it into the task's model)")


_AFTER: dict[str, Callable[[Any, Mapping[str, Any], Any], None]] = {
    "influence": lambda scores, given, out: summaries.print_influence(scores),
    "measure": lambda scores, given, out: summaries.print_measure(scores),
    "self-influence": lambda scores, given, out: summaries.print_self_influence(scores),
    "pairs": lambda pairs, given, out: summaries.print_pairs(pairs),
    "baseline": lambda scores, given, out: summaries.print_influence(scores),
    "trim-rounds": _after_trim_rounds,
    "label-issues": _after_label_issues,
    "predict-removal": _after_predict_removal,
    "acquire": _after_acquire,
    "active-learning": _after_active_learning,
    "retrain": _after_retrain,
    "evaluate": _after_evaluate,
    "reweight": _after_reweight,
    "removal-check": _after_removal_check,
    "lds": _after_lds,
}


def trim_run(run: str, budget: int, by: str | None, floor: int, out: str | None, overwrite: bool) -> None:
    """Trim the scores of a finished run, write kept and removed rows, and print a summary.

    Args:
        run: the folder of the run.
        budget: as in `rayinf.trim`.
        by: as in `rayinf.trim`.
        floor: as in `rayinf.trim`.
        out: a folder, or the Parquet file of the kept rows; None: the folder `trim` of the run.
        overwrite: whether files of an earlier selection are replaced.

    Raises:
        InputError: the run has no scores of training rows, there are files of another selection, or as `rayinf.trim`.
    """
    check_out(out, {})
    files = _trim_files(open_place(run) / "trim" if out is None else open_place(out))
    scores = _training_scores(run)
    selection = rayinf.trim(scores, budget, by, floor)
    rows = selection.source
    kept = rows.filter(rows["kept"]).sort_by("position")
    removed = rows.filter(pc.invert(rows["kept"]))
    removed = removed.take(pa.array(range(len(removed) - 1, -1, -1), pa.int64()))
    tables = [table.select(["row_id", "value"]) for table in (kept, removed)]
    for file, table in zip(files, tables, strict=True):
        if not overwrite and file.exists() and not _holds(file, table):
            raise InputError(
                f"{file} is there already, with other rows.", "pass --overwrite, or another place with --out."
            )
    for file, table in zip(files, tables, strict=True):
        write_result(file, table)
    summaries.print_fit(scores.metadata, warn=True)
    summaries.print_trim(selection, scores.labels, files)


def _trim_files(place: AnyPath) -> tuple[AnyPath, AnyPath]:
    """Where kept and removed rows are written."""
    if place.suffix == ".parquet":
        return place, place.with_name(f"{place.stem}_removed.parquet")
    return place / "kept.parquet", place / "removed.parquet"


def _holds(file: AnyPath, table: pa.Table) -> bool:
    try:
        return pq.read_table(readable(file)).equals(table)
    except RayinfError:
        raise
    except (pa.ArrowException, OSError):
        return False


def show_ceiling(run: str, out: str | None, plane: str | None, seed: int) -> None:
    """Compute the ceiling of a finished run, write its numbers and figures, and print a summary.

    Args:
        run: the folder of the run.
        out: the folder to write to; None: the folder `ceiling` of the run.
        plane: two classes, with a comma between them, for the picture of the influence plane.
        seed: as in `rayinf.ceiling`.

    Raises:
        InputError: the run has no scores of training rows, or as `rayinf.ceiling`.
    """
    check_out(out, {})
    scores = _training_scores(run)
    report = rayinf.ceiling(scores, seed=seed)
    folder = open_place(run) / "ceiling" if out is None else open_place(out, "out")
    classes = None if plane is None else [name.strip() for name in plane.split(",")]
    figures = [
        report.plot(folder / "influence_plane.png", classes),
        report.plot_classes(folder / "classes.png"),
    ]
    write_json(folder / "ceiling.json", report.to_dict())
    summaries.print_fit(scores.metadata, warn=True)
    typer.echo(translate(report.to_text()))
    typer.echo(f"Figures: {', '.join(map(str, figures))}")
    typer.echo(f"All numbers: {folder / 'ceiling.json'}")


def _training_scores(run: str) -> Scores:
    """The scores of a finished run over training rows.

    Raises:
        InputError: there are none, or the values belong to the rows of a pool.
    """
    scores = Scores.load(run)
    verb = (RunFolder(scores.path or open_place(run)).read() or {}).get("verb")
    if verb not in _OF_TRAINING_ROWS:
        raise InputError(
            f"{run} holds a run of {verb}, whose values are not those of training rows.",
            "pass the folder of a run of influence or measure.",
        )
    return scores


def show_plan(config_file: Path, changes: Sequence[str], verb: str | None) -> None:
    """Print what the run of a config would cost.

    Args:
        config_file: the YAML file.
        changes: `key=value`, applied in order.
        verb: the command that the config is for; None: the one that has most of its keys.

    Raises:
        InputError: a config that is wrong, or of a verb without a plan.
    """
    verb = find_verb(config_file, changes) if verb is None else verb
    if verb not in PLANNED:
        raise InputError(f"{verb} has no plan.", f"pass --for, one of {', '.join(PLANNED)}.")
    for heading, arguments in _plans(read_config(config_file, changes, verb), verb):
        typer.echo(heading)
        typer.echo(translate(rayinf.plan(**arguments).to_text()))


def _plans(given: Mapping[str, Any], verb: str) -> list[tuple[str, dict[str, Any]]]:
    """Headings, and arguments of `rayinf.plan`: one of each strategy for active learning, else one."""
    taken = {argument.name for argument in arguments_of("plan")}
    arguments = {k: v for k, v in given.items() if k in taken} | {"verb": VERBS[verb]}
    if verb not in ("acquire", "active-learning"):
        return [(f"Plan of {verb}", arguments)]
    arguments |= {"train": given["labeled"], "verb": "acquire"}
    if verb == "acquire":
        return [(f"Plan of acquire by {given['strategy']}", arguments)]
    seeds, strategies = (v if isinstance(v, list) else [v] for v in (given["seed"], given["strategy"]))
    runs = f"{given['rounds']:,} rounds" + (f" and {len(seeds)} seeds" if len(seeds) > 1 else "")
    return [
        (
            f"Plan of one choice of rows by {strategy}, the first of {runs}; training comes on top",
            {**arguments, "strategy": strategy, "seed": seeds[0]},
        )
        for strategy in strategies
    ]
