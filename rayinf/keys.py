"""The keys of a config: a model a verb, each the arguments of a function of rayinf, with their meaning for `--help`."""

from __future__ import annotations

from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from rayinf.core.fisher import FisherKind


def _no_truth(value: object) -> object:
    """YAML reads yes, no, on and off as truth values, and Python counts with those."""
    if isinstance(value, bool):
        raise ValueError("is a truth value to YAML: write a number")
    return value


def _fisher(value: object) -> object:
    """`fisher: true` without quotes is a truth value to YAML."""
    return "true" if value is True else value


def _words(value: object) -> object:
    for item in value if isinstance(value, list) and value else [value]:
        if isinstance(item, dict) and list(item) == ["slice"]:
            raise ValueError(f"is a mapping; write slice:{item['slice']} without a space after the colon")
        if not isinstance(item, str):
            raise ValueError("should be a name or a list of names")
    return value


def _seeds(value: object) -> object:
    for item in value if isinstance(value, list) and value else [value]:
        if isinstance(item, bool) or not isinstance(item, int):
            raise ValueError("should be an integer or a list of integers")
    return value


def _aggregate(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("should be a name, or a number in [0, 1]")
    return value


def _targets(value: object) -> object:
    held = value if isinstance(value, list) else [value]
    if not held or any(isinstance(v, bool) or not isinstance(v, int | str) for v in held):
        raise ValueError("should be a class or a list of classes: put quotes around yes, no and dates")
    return held


def _radius(value: object) -> object:
    if isinstance(value, bool) or not (value is None or isinstance(value, str | int | float)):
        raise ValueError('should be "gene", a number in (0, 1], or null')
    return value


def _prefer(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError('should be "paper" or a number >= 0')
    return value


def _ids(value: object) -> object:
    held = value if isinstance(value, list) else [value]
    if value is not None and any(isinstance(v, bool) or not isinstance(v, int | str) for v in held):
        raise ValueError("should be a list of row ids, integers or text: put quotes around dates, yes and no")
    return value if value is None else held


Whole = Annotated[int, BeforeValidator(_no_truth)]
Number = Annotated[float, BeforeValidator(_no_truth)]


class _Strict(BaseModel):
    """Unknown keys are errors: a slip of the pen never falls back to a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ClusterConfig(_Strict):
    """The keys under `cluster`: the fields of `rayinf.Cluster`."""

    address: str | None = Field(
        None, description='null starts Ray on this machine; "auto" or the address of a head joins a cluster'
    )
    workers: Whole = Field(2, description="processes that each hold the model")
    cpus_per_worker: Number = Field(1, description="CPUs that Ray keeps for a worker, and its threads")
    gpus_per_worker: Number = Field(0, description="GPUs (or a share of one) a worker; over 0, its model runs there")
    patience: Number = Field(
        900.0, description="seconds without progress after which the run is given up; finished shards stay"
    )
    runtime_env: dict[str, Any] | None = Field(
        None, description="Ray's runtime_env, for code that the cluster's machines lack (pip, working_dir, ...)"
    )


class SearchConfig(_Strict):
    """The keys under `search`: the fields of `rayinf.Search`."""

    elites: Whole = Field(6, description="candidates of a population that are the best of the one before")
    mutated_elites: Whole = Field(6, description="copies of these, mutated")
    randoms: Whole = Field(6, description="new candidates")
    crossover_children: Whole = Field(6, description="children of two parents")
    population: Whole | None = Field(None, description="the sum of these four, to be checked")
    iterations: Whole = Field(20, description="populations that are trained")
    crossover_rate: Number = Field(1.0, description="how probably a child takes each gene from either parent")
    mutation_rate: Number = Field(0.25, description="how probably a gene mutates")
    strength: Number = Field(0.25, description="standard deviation of what is added to an alpha that mutates")
    upper: Number = Field(2.0, description="alphas lie in [0, upper], and without a radius so do the weights")
    radius: Annotated[str | float | None, BeforeValidator(_radius)] = Field(
        "gene",
        description='of the trust region |w - 1| <= radius: "gene" searches it, a number in (0, 1] fixes it, null is '
        "the paper's box 0 <= w <= upper",
    )
    slack: str | None = Field(
        None, description='"scaled" or "paper"; null is "scaled" with a trust region and "paper" in the box'
    )
    prefer: Annotated[str | float, BeforeValidator(_prefer)] = Field(
        2.0,
        description='which candidate is chosen: "paper" by its fitness (line 7), a number by gain of the targets plus '
        "that price times the change of the others",
    )
    epochs: Whole = Field(1, description="epochs that a candidate is trained for")
    lr: Number | None = Field(None, description="learning rate of these epochs; null is that of Task(fit=...)")
    threads: Whole = Field(1, description="threads of a candidate's training; they are a part of the run's identity")


# What verbs share: a key means the same wherever it stands.
_Task = Annotated[
    str,
    Field(
        description="path/to/file.py:name or package.module:name of a rayinf.Task, or of a function without arguments "
        "that returns one"
    ),
]
_Train = Annotated[str, Field(description="the rows to value: a path, folder, glob or URI of Parquet")]
_Labeled = Annotated[
    str, Field(description="the labelled rows that the model was trained on: a path, folder, glob or URI of Parquet")
]
_Pool = Annotated[
    str, Field(description="the rows to pick from, in the same forms; they need no labels, and labels are not read")
]
_SomeValid = Annotated[
    str | None, Field(description='validation rows, in the same forms, which strategies "iv" and "tree" need')
]
_Curvature = Annotated[
    str, Field(description='"ekfac" or "kfac"; "exact" (the Hessian) or "ggn" for few parameters; "identity"')
]
_Fisher = Annotated[
    FisherKind,
    BeforeValidator(_fisher),
    Field(description='"true" (the expectation over the model\'s labels) or "empirical", for kfac and ekfac'),
]
_Damping = Annotated[
    Number | None,
    Field(
        description="a number added to the eigenvalues of the mean curvature; null: 0.1 x each layer's mean "
        "eigenvalue for kfac and ekfac, 0 otherwise"
    ),
]
_Factors = Annotated[
    str | None,
    Field(description="the folder of a finished run of the same model and curvature, whose factors to use again"),
]
_Rank = Annotated[
    Whole | None,
    Field(description="null is exact; k takes a truncated SVD of rank k of every row's mixed derivative (KFSVD)"),
]
_Subsample = Annotated[
    Number,
    Field(description="under 1, that share of the rows is valued and a random forest ranks the rest, in fi_rank"),
]
_Cluster = Annotated[
    ClusterConfig | None,
    Field(description="null works in this process, without Ray; else a mapping of the keys below"),
]
_Out = Annotated[
    str | None,
    Field(
        description="the folder of the run, which every command but plan needs; the same command again finishes an "
        "interrupted run there"
    ),
]
_BatchSize = Annotated[Whole | None, Field(description="rows a pass; null fits activations in 512 MB")]
_Aggregate = Annotated[
    str | float,
    BeforeValidator(_aggregate),
    Field(
        description='of a row\'s FI over the labelled rows, for strategy "fi": "trimmed_mean" (the middle 80 %), '
        '"mean", "median", or a quantile as a number in [0, 1]'
    ),
]
_Samples = Annotated[Whole, Field(description='dropout masks, for "bald" and "batchbald"')]
_STRATEGIES = '"fi", "iv", "isal", "tree", "bald", "batchbald", "entropy", "margin", "least_confidence" or "random"'


class Influence(_Strict):
    """The arguments of `rayinf.influence`."""

    task: _Task
    train: _Train
    valid: str = Field(description="the rows that the objectives are summed over, in the same forms")
    objective: Annotated[str | list[str], BeforeValidator(_words)] = Field(
        "total",
        description='"total", "category" (a column a class), "slice:<column>" (a column a value), the '
        "path/to/file.py:name of a rayinf.Objective or of a function (logits [B, C], labels [B]) -> [B], or a list of "
        "these, all in one pass",
    )
    curvature: _Curvature = "ekfac"
    fisher: _Fisher = "true"
    damping: _Damping = None
    factors: _Factors = None
    halves: bool = Field(False, description="true gives every column for each half of the validation rows too")
    cluster: _Cluster = None
    out: _Out = None
    seed: Whole = Field(0, description="an integer that fixes drawn labels (above 32 classes) and the halves")
    batch_size: _BatchSize = None
    precision: str | None = Field(
        None, description='"bf16" or "fp16" runs the model in mixed precision; sums stay in float32 or better'
    )


class Measure(_Strict):
    """The arguments of `rayinf.influence_measure`."""

    task: _Task
    train: _Train
    valid: str = Field(description="the rows whose mean loss is watched, in the same forms")
    curvature: _Curvature = "ekfac"
    fisher: _Fisher = "true"
    damping: _Damping = None
    factors: _Factors = None
    rank: _Rank = None
    subsample: _Subsample = 1.0
    cluster: _Cluster = None
    out: _Out = None
    seed: Whole = Field(0, description="an integer that fixes the subsample, the forest and the start of the SVD")
    batch_size: _BatchSize = None


class Acquire(_Strict):
    """The arguments of `rayinf.acquire`."""

    task: _Task
    labeled: _Labeled
    pool: _Pool
    n: Whole = Field(500, description="rows to pick")
    strategy: str = Field("fi", description=f"what makes a row worth asking for: {_STRATEGIES}")
    valid: _SomeValid = None
    curvature: _Curvature = "ekfac"
    aggregate: _Aggregate = "trimmed_mean"
    rank: _Rank = None
    subsample: _Subsample = 1.0
    cluster: _Cluster = None
    out: _Out = None
    seed: Whole = Field(0, description="an integer that fixes all that is drawn")
    fisher: _Fisher = "true"
    damping: _Damping = None
    factors: _Factors = None
    samples: _Samples = 20
    exclude: Annotated[list[int | str] | None, BeforeValidator(_ids)] = Field(
        None, description="a list of ids of rows of the pool that are not to be picked"
    )
    batch_size: _BatchSize = None


class ActiveLearning(_Strict):
    """The arguments of `rayinf.active_learning`."""

    task: _Task
    labeled: _Labeled
    pool: _Pool
    oracle: str = Field(
        description="where labels come from: a Parquet table that has those of the pool's rows, an empty folder in "
        "which you drop those of the picked rows (the command stops until it is given again), or the "
        "path/to/file.py:name of a function (ids) -> labels"
    )
    test: str = Field(description="the rows that accuracy is measured on after every round, in the same forms")
    rounds: Whole = Field(12, description="how often rows are picked, labelled and trained on")
    n: Whole = Field(500, description="rows to pick a round")
    strategy: Annotated[str | list[str], BeforeValidator(_words)] = Field(
        "fi", description=f"what makes a row worth asking for: {_STRATEGIES}; or a list of these, side by side"
    )
    valid: _SomeValid = None
    cluster: _Cluster = None
    out: _Out = None
    seed: Annotated[int | list[int], BeforeValidator(_seeds)] = Field(
        0, description="an integer that fixes all that is drawn, or a list of these, side by side"
    )
    curvature: _Curvature = "ekfac"
    aggregate: _Aggregate = "trimmed_mean"
    rank: _Rank = None
    subsample: _Subsample = 1.0
    fisher: _Fisher = "true"
    damping: _Damping = None
    samples: _Samples = 20


_ClassScores = Annotated[
    str,
    Field(description="the folder of a finished run of influence over the same train and valid, by category"),
]


class Reweight(_Strict):
    """The arguments of `rayinf.pareto_reweight`."""

    task: _Task
    train: _Train
    valid: str = Field(description="the rows that classes' accuracy is measured on, in the same forms")
    scores: _ClassScores
    targets: Annotated[list[int | str], BeforeValidator(_targets)] = Field(
        description="the classes to improve, by their labels: one or a list"
    )
    mode: str = Field(
        "direct",
        description='"direct" compares with the checkpoint, "correct" with the unweighted epoch after it',
    )
    search: Annotated[
        SearchConfig | None,
        Field(description="the genetic search, a mapping of the keys below; null takes all their defaults"),
    ] = None
    cluster: _Cluster = None
    out: _Out = None
    seed: Whole = Field(0, description="an integer that fixes the search and the order of the training rows")


class RemovalCheck(_Strict):
    """The arguments of `rayinf.removal_check`."""

    task: _Task
    train: _Train
    valid: str = Field(description="the rows that the scores were computed with, in the same forms")
    test: str = Field(description="the rows that changes are measured on, in the same forms")
    scores: _ClassScores
    share: Number = Field(
        0.1, description="share of the rows that help (and of those that harm) a class which is removed, in (0, 1)"
    )
    seeds: Whole = Field(3, description="trainings that every measure is the mean of")
    cluster: _Cluster = None
    out: _Out = None
    seed: Whole = Field(0, description="an integer, the first of the seeds")


# By the name of the command.
VERBS: dict[str, type[_Strict]] = {
    "influence": Influence,
    "measure": Measure,
    "acquire": Acquire,
    "active-learning": ActiveLearning,
    "reweight": Reweight,
    "removal-check": RemovalCheck,
}


# Keys that hold keys of their own.
MAPPINGS: dict[str, type[_Strict]] = {"cluster": ClusterConfig, "search": SearchConfig}


def describe_keys(verb: str) -> list[tuple[str, str, str]]:
    """Every key of a verb's config with its default (empty where it is required) and its meaning, for `--help`."""
    found = []
    inner = [(f"{key}.", model) for key, model in MAPPINGS.items() if key in VERBS[verb].model_fields]
    for prefix, model in (("", VERBS[verb]), *inner):
        for name, field in model.model_fields.items():
            default = "" if field.is_required() else yaml.safe_dump(field.default).splitlines()[0]
            found.append((prefix + name, default, field.description or ""))
    return found


def homes_of(key: str) -> list[str]:
    """The verbs whose configs have a key."""
    return [verb for verb, model in VERBS.items() if key in model.model_fields]
