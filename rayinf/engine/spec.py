"""One description of a run: a verb's arguments, validated once, sent to workers, and hashed as the run's identity.

A verb makes its spec from its own arguments, under the same names: `InfluenceSpec(**locals())`. So a new argument is a
field here. It is checked by the rule of its name (`engine.entry`), or in `__post_init__` where one verb alone has it.
It is a part of the identity, stands in the metadata of the scores, and reaches every stage as `worker.job.spec.<name>`.

Plain frozen dataclasses, not pydantic models: a spec holds modules, tables and functions, which pydantic could only
pass through, and its messages are our own rules' either way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

from rayinf.core.fisher import FisherKind
from rayinf.core.objective_parser import parse
from rayinf.core.objectives import Objective
from rayinf.data.tables import Table
from rayinf.engine.entry import KRONECKER, check
from rayinf.engine.job import Cluster
from rayinf.errors import InputError
from rayinf.store.places import AnyPath
from rayinf.task import Fit, Task

if TYPE_CHECKING:
    from rayinf.data.scan import TableScan
    from rayinf.engine.job import Job
    from rayinf.engine.probe import Probe

# Fields that stay in the driver: workers find tables, task and objectives in their `Job`, and an identity holds digests
# of their contents. Where a run works and writes changes no score.
DRIVER_ONLY = {"sent": False, "identity": False}
# Fields that choose among scores, or follow from others.
NOT_IDENTITY = {"identity": False}
# How keys of an identity begin for the training that the inverse rests on.
_TRAINED = "fit."
# Fields that hold tables, and the names that stages read them under.
TRAIN, VALID, POOL = ({**DRIVER_ONLY, "table": name} for name in ("train", "valid", "pool"))


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What every verb that opens a run has in common.

    Attributes:
        verb: its name.
        sign: what the sign of its values means, and `unit` what they are measured in.
        signed: whether the values have a sign.
        with_ids: tables whose rows are named by their ids in what comes out.
        has_scores: whether every row of the scored table gets values.
        tiles_columns: whether columns that take much memory are summed, solved and scored some at a time.
        held_out_rows: whether the validation rows, where the inverse is left open, also say how far the training rows
            are learned.
        usual_damping: of K-FAC and EKFAC, where no damping is given and nothing is known of the training.
        objectives: what is summed over the validation rows.
        objective_rows: the table that they are summed over, under the name of its argument.
        halves: whether every column is also given for each half of the validation rows.
        on_error: whether a run goes on without shards that fail by their own fault: "stop" or "skip".
        mixed: whether derivatives in parameters and inputs are taken: the model is differentiated twice, in float64.
        recipe: the training that the inverse's time follows from, if one is used.
        takes_probabilities: what takes the model's outputs as logits of probabilities, for errors; None: nothing does.
    """

    verb: ClassVar[str]
    sign: ClassVar[str] = "positive: the row helps; removing it is predicted to raise the objective by that much"
    unit: ClassVar[str] = (
        "change of the sum of validation losses, in the loss's own unit; of a gap between groups, of the gap"
    )
    signed: ClassVar[bool] = True
    with_ids: ClassVar[tuple[str, ...]] = ("train",)
    has_scores: ClassVar[bool] = True
    tiles_columns: ClassVar[bool] = False
    usual_damping: ClassVar[str] = "sample:3"
    held_out_rows: ClassVar[bool] = False

    task: Task = field(metadata=DRIVER_ONLY)
    curvature: str = "ekfac"
    fisher: FisherKind = "true"
    inverse: str = "auto"
    training_time: float | None = None
    damping: float | str | None = None
    factors: str | AnyPath | None = field(default=None, metadata=DRIVER_ONLY)
    cluster: Cluster | None = field(default=None, metadata=DRIVER_ONLY)
    out: str | AnyPath | None = field(default=None, metadata=DRIVER_ONLY)
    seed: int = 0
    curvature_rows: int | None = field(default=100_000, metadata=NOT_IDENTITY)  # a part of it where rows are drawn
    batch_size: int | None = None
    precision: str | None = None
    objectives: tuple[Objective, ...] = field(default=(), init=False, metadata=DRIVER_ONLY)
    objective_rows: str = field(default="valid", init=False, metadata=NOT_IDENTITY)
    halves: bool = field(default=False, init=False)
    on_error: str = field(default="stop", init=False, metadata=DRIVER_ONLY)
    mixed: bool = field(default=False, init=False, metadata=NOT_IDENTITY)
    takes_probabilities: str | None = field(default=None, init=False, metadata=NOT_IDENTITY)
    recipe: Fit | None = field(default=None, init=False, metadata=NOT_IDENTITY)

    def __post_init__(self) -> None:
        """The one validation: every field by the rule of its name.

        Raises:
            InputError: the first that has the wrong type or is out of range.
        """
        self._set(**check(**{f.name: getattr(self, f.name) for f in fields(self)}))
        self._check_inverse()
        self._set(recipe=self._recipe())

    def _check_inverse(self) -> None:
        """Refuse arguments of the inverse that contradict each other."""
        time, damping = self.training_time, self.damping
        both = f"training_time={time!r} and damping={damping!r}" if damping is not None else f"training_time={time!r}"
        if time is not None and (damping is not None or self.inverse == "damped"):
            raise InputError(
                f'{both} with inverse="{self.inverse}" contradict each other: the unrolled inverse has no damping.',
                "pass training_time or damping, and leave the other out.",
            )
        if self.inverse != "unrolled":
            return
        if damping is not None:
            raise InputError(
                f'inverse="unrolled" has no damping, and damping={damping!r} is given.',
                'leave damping out, or pass inverse="damped".',
            )
        if self.curvature == "identity":
            raise InputError(
                'curvature="identity" has no eigenvalues, which inverse="unrolled" is a function of.',
                'leave inverse out, or pass another curvature, such as "ekfac".',
            )
        if time is None and not isinstance(self.task.fit, Fit):
            raise InputError(
                'inverse="unrolled" needs to know how long the model was trained, and Task(fit=...) does not say it.',
                "pass training_time=T, the sum of the learning rates of all steps (over 1 - momentum), or "
                "Task(fit=rayinf.Fit(...)) as the model was trained.",
            )

    def _recipe(self) -> Fit | None:
        """The training that the inverse's time follows from; None where it is given, or is not used."""
        fit, explicit = self.task.fit, self.inverse == "unrolled"
        if self.curvature == "identity" or self.training_time is not None or not isinstance(fit, Fit):
            return None
        known = self.inverse == "auto" and self.damping is None and fit.fresh
        return fit if explicit or known else None

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def is_here(self) -> bool:
        """Whether the run's processes are all on this machine."""
        return self.cluster is None or self.cluster.address is None

    def __getstate__(self) -> dict[str, Any]:
        """What is sent to workers."""
        kept_here = {f.name for f in fields(self) if not f.metadata.get("sent", True)}
        return {name: value for name, value in vars(self).items() if name not in kept_here}

    @property
    def may_skip(self) -> bool:
        """Whether the verb has the argument `on_error`."""
        return any(f.name == "on_error" and f.init for f in fields(self))

    @property
    def tables(self) -> dict[str, Any]:
        """The tables as they were given, under the names that stages read them by."""
        held = {f.metadata["table"]: (f, getattr(self, f.name)) for f in fields(self) if "table" in f.metadata}
        return {name: given for name, (f, given) in held.items() if given is not None or f.default is MISSING}

    def check(self, tables: Mapping[str, Table], probed: Probe) -> None:
        """Refuse, before any work, what the verb cannot do with these tables and this model.

        Args:
            tables: opened.
            probed: the model on a few rows.

        Raises:
            InputError: with the numbers.
        """

    def settle(self, job: Job, scans: Mapping[str, TableScan]) -> Self:
        """The same with what follows from the whole tables, once they are scanned; nothing is written yet.

        Args:
            job: with classes and groups.
            scans: of the tables.

        Raises:
            InputError: arguments that the tables do not fit.
        """
        return self

    def identity(self) -> dict[str, Any]:
        """The verb and every argument that changes scores.

        Digests of the tables, the model and functions stand beside it (`engine.identity`).
        """
        held = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata.get("identity", True)}
        uses_fisher = self.curvature in KRONECKER or self.curvature == "ggn"
        fisher = self.fisher if uses_fisher else None
        return {"verb": self.verb, **held, "fisher": fisher, **self.trained}

    @property
    def trained(self) -> dict[str, Any]:
        """The training that the inverse rests on."""
        recipe = self.recipe
        return {} if recipe is None else {f"{_TRAINED}{k}": v for k, v in asdict(recipe).items()}

    def own_arguments(self) -> dict[str, Any]:
        """What the identity holds beyond that of every verb, where it is given."""
        shared = {"verb", *self.trained, *(f.name for f in fields(RunSpec))}
        return {k: v for k, v in self.identity().items() if k not in shared and v is not None}


@dataclass(frozen=True, kw_only=True)
class InfluenceSpec(RunSpec):
    """Of `influence`; also what verbs that train with its scores open to check their tables."""

    verb = "influence"
    held_out_rows = True
    tiles_columns = True

    train: Any = field(metadata=TRAIN)
    valid: Any = field(metadata=VALID)
    objective: Any = field(default="total", metadata=DRIVER_ONLY)
    halves: bool = False
    on_error: str = field(default="stop", metadata=DRIVER_ONLY)

    def __post_init__(self) -> None:
        """Parse the objectives."""
        super().__post_init__()
        self._set(objectives=parse(self.objective, self.task.group))


@dataclass(frozen=True, kw_only=True)
class SelfInfluenceSpec(RunSpec):
    """Of `self_influence`."""

    verb = "self_influence"
    signed = False

    train: Any = field(metadata=TRAIN)
    on_error: str = field(default="stop", metadata=DRIVER_ONLY)


@dataclass(frozen=True, kw_only=True)
class PairsSpec(RunSpec):
    """Of `pairs`."""

    verb = "pairs"
    with_ids = ("train", "valid")
    held_out_rows = True

    train: Any = field(metadata=TRAIN)
    valid: Any = field(metadata=VALID)
    top: int = 100
    on_error: str = field(default="stop", metadata=DRIVER_ONLY)
