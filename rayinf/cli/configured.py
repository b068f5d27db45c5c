"""Commands that take a config: each calls the verb of its name, and tells what came out."""

from __future__ import annotations

import pyarrow as pa

import rayinf
from rayinf import summaries
from rayinf.api.active_learning import active_learning as learn
from rayinf.api.pareto_reweight import pareto_reweight
from rayinf.api.removal_check import removal_check as check_removal
from rayinf.cli.app import Address, ConfigFile, Debug, Overrides, Workers, app, changes, keys_help, read
from rayinf.cli.exits import exit_codes, telling_if_done
from rayinf.data.files import write_result
from rayinf.data.scores import Scores
from rayinf.store.places import open_place


@app.command(epilog=keys_help("influence"))
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
    with exit_codes(debug):
        given = read(config_file, changes(overrides, address, workers), "influence")
        with telling_if_done(given["out"]):
            scores = rayinf.influence(**given)
        summaries.tell_influence(scores)


@app.command(epilog=keys_help("measure"))
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
    with exit_codes(debug):
        given = read(config_file, changes(overrides, address, workers), "measure")
        with telling_if_done(given["out"]):
            scores = rayinf.influence_measure(**given)
        summaries.tell_measure(scores)


@app.command(epilog=keys_help("acquire"))
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
    with exit_codes(debug):
        given = read(config_file, changes(overrides, address, workers), "acquire")
        out = open_place(given["out"])
        with telling_if_done(out):
            selection = rayinf.acquire(**given)
        picked = selection.source.filter(selection.source["kept"]).select(["row_id", "value"])
        picked = picked.add_column(1, "rank", pa.array(range(1, len(picked) + 1), pa.int64()))
        write_result(out / "picked.parquet", picked)
        summaries.tell_acquire(selection, given["strategy"], out, out / "picked.parquet")


@app.command("active-learning", epilog=keys_help("active-learning"))
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
    with exit_codes(debug):
        given = read(config_file, changes(overrides, address, workers), "active-learning")
        with telling_if_done(given["out"]):
            history = learn(**given)
        plot = history.plot(open_place(given["out"]) / "learning_curve.png")
        summaries.tell_active_learning(history, plot)


@app.command(epilog=keys_help("reweight"))
def reweight(
    config_file: ConfigFile,
    overrides: Overrides = None,
    address: Address = None,
    workers: Workers = None,
    debug: Debug = False,
) -> None:
    """Search row weights that improve some classes and spare the others, each candidate trained for an epoch.

    Writes weights.parquet (row_id, weight), the weighted checkpoint, and
    trade_off.png into the run's folder. The same command again goes on after
    the last candidate that was trained, and does nothing to a finished run.
    """
    with exit_codes(debug):
        given = read(config_file, changes(overrides, address, workers), "reweight")
        given["scores"] = Scores.load(given["scores"])
        with telling_if_done(given["out"]):
            found = pareto_reweight(**given)
        plot = found.plot(open_place(given["out"]) / "trade_off.png")
        summaries.tell_fit(given["scores"].metadata, warn=True)
        summaries.tell_reweight(found, plot)


@app.command("removal-check", epilog=keys_help("removal-check"))
def removal_check(
    config_file: ConfigFile,
    overrides: Overrides = None,
    address: Address = None,
    workers: Workers = None,
    debug: Debug = False,
) -> None:
    """Remove the rows that help or harm each class most, train again, and hold what changes against the prediction.

    Writes heat maps into the run's folder. The same command again goes on
    after the last training, and does nothing to a finished run.
    """
    with exit_codes(debug):
        given = read(config_file, changes(overrides, address, workers), "removal-check")
        given["scores"] = Scores.load(given["scores"])
        with telling_if_done(given["out"]):
            check = check_removal(**given)
        plot = check.plot(open_place(given["out"]) / "removal_check.png")
        summaries.tell_fit(given["scores"].metadata, warn=True)
        summaries.tell_removal_check(check, plot)
