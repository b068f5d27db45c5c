"""The command that prices a config without running it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

import rayinf
from rayinf import config, references
from rayinf.cli.app import CODES, Address, ConfigFile, Debug, Overrides, Workers, app, changes
from rayinf.cli.exits import exit_codes
from rayinf.cli.words import translate
from rayinf.errors import InputError

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


# The others train the task's model: how long that takes, a first candidate tells.
_PLANNED = ("influence", "measure", "acquire", "active-learning")


def _plan_help() -> str:
    which = (
        f"Keys of CONFIG: those of {', '.join(_PLANNED)}; `rayinf COMMAND --help` says what they mean. The config is "
        "for the command that knows most of its keys: with pool, acquire; with rounds or oracle, active-learning; "
        "with rank or subsample, measure."
    )
    return "\n\n".join([which, references.PATHS, CODES])


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
    with exit_codes(debug):
        items = changes(overrides, address, workers)
        verb = config.find_verb(config_file, items) if verb is None else verb
        if verb not in _PLANNED:
            raise InputError(f"{verb} has no plan.", f"pass --for, one of {', '.join(_PLANNED)}.")
        for heading, arguments in _priced(config.read_config(config_file, items, verb), verb):
            typer.echo(heading)
            typer.echo(translate(rayinf.plan(**arguments).to_text()))


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
