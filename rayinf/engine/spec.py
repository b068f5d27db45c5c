"""One description of a run: a verb's arguments, validated once, sent to workers, and hashed as the run's identity.

A verb makes its spec from its own arguments, under the same names: `InfluenceSpec(**locals())`. So a new argument is a
field here. It is checked by the rule of its name (`engine.entry`), or in `__post_init__` where one verb alone has it.
It is a part of the identity, stands in the metadata of the scores, and reaches every stage as `worker.job.spec.<name>`.

Plain frozen dataclasses, not pydantic models: a spec holds modules, tables and functions, which pydantic could only
pass through, and its messages are our own rules' either way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

from rayinf.core.blocks import find_blocks
from rayinf.core.dropout import require_dropout
from rayinf.core.fisher import FisherKind
from rayinf.core.objective_parser import parse
from rayinf.core.objectives import Objective, mean_loss
from rayinf.core.perturbation import INPUT
from rayinf.data.batches import is_text
from rayinf.data.tables import Table
from rayinf.engine.entry import BY_DROPOUT, BY_EMBEDDING, BY_INFLUENCE, BY_LOGITS, BY_MEASURE, JOINT, KRONECKER, check
from rayinf.engine.job import Cluster
from rayinf.errors import InputError
from rayinf.select import aggregate
from rayinf.select.forest import LEAST_ROWS
from rayinf.store.places import AnyPath
from rayinf.task import Fit, Task

if TYPE_CHECKING:
    from rayinf.data.scan import TableScan
    from rayinf.engine.job import Job
    from rayinf.engine.probe import Probe

# Fields that stay in the driver: workers find tables, task and objectives in their `Job`, and an identity holds digests
# of their contents. Where a run works and writes changes no score.
_DRIVER = {"sent": False, "identity": False}
# Fields that choose among scores, or follow from others.
_NOT_IDENTITY = {"identity": False}
# How keys of an identity begin for the training that the inverse rests on.
_TRAINED = "fit."
_FI = "The influence measure FI"
# Fields that hold tables, and the names that stages read them under.
_TRAIN, _VALID, _POOL = ({**_DRIVER, "table": name} for name in ("train", "valid", "pool"))


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What every verb that opens a run has in common.

    Attributes:
        verb: its name.
        sign: what the sign of its values means, and `unit` what they are measured in.
        signed: whether the values have a sign.
        with_ids: tables whose rows are named by their ids in what comes out.
        has_scores: whether every row of the scored table gets values.
        held_out_rows: whether the validation rows, where the inverse is left open, also say how far the training rows
            are learned.
        usual_damping: of K-FAC and EKFAC, where no damping is given and nothing is known of the training.
        objectives: what is summed over the validation rows.
        objective_rows: the table that they are summed over, under the name of its argument.
        halves: whether every column is also given for each half of the validation rows.
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
    usual_damping: ClassVar[str] = "sample:3"
    held_out_rows: ClassVar[bool] = False

    task: Task = field(metadata=_DRIVER)
    curvature: str = "ekfac"
    fisher: FisherKind = "true"
    inverse: str = "auto"
    training_time: float | None = None
    damping: float | str | None = None
    factors: str | AnyPath | None = field(default=None, metadata=_DRIVER)
    cluster: Cluster | None = field(default=None, metadata=_DRIVER)
    out: str | AnyPath | None = field(default=None, metadata=_DRIVER)
    seed: int = 0
    batch_size: int | None = None
    precision: str | None = None
    objectives: tuple[Objective, ...] = field(default=(), init=False, metadata=_DRIVER)
    objective_rows: str = field(default="valid", init=False, metadata=_NOT_IDENTITY)
    halves: bool = field(default=False, init=False)
    mixed: bool = field(default=False, init=False, metadata=_NOT_IDENTITY)
    takes_probabilities: str | None = field(default=None, init=False, metadata=_NOT_IDENTITY)
    recipe: Fit | None = field(default=None, init=False, metadata=_NOT_IDENTITY)

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

    def __getstate__(self) -> dict[str, Any]:
        """What is sent to workers."""
        kept_here = {f.name for f in fields(self) if not f.metadata.get("sent", True)}
        return {name: value for name, value in vars(self).items() if name not in kept_here}

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

    train: Any = field(metadata=_TRAIN)
    valid: Any = field(metadata=_VALID)
    objective: Any = field(default="total", metadata=_DRIVER)
    halves: bool = False

    def __post_init__(self) -> None:
        """Parse the objectives."""
        super().__post_init__()
        self._set(objectives=parse(self.objective, self.task.group))


@dataclass(frozen=True, kw_only=True)
class SelfInfluenceSpec(RunSpec):
    """Of `self_influence`."""

    verb = "self_influence"
    signed = False

    train: Any = field(metadata=_TRAIN)


@dataclass(frozen=True, kw_only=True)
class PairsSpec(RunSpec):
    """Of `pairs`."""

    verb = "pairs"
    with_ids = ("train", "valid")
    held_out_rows = True

    train: Any = field(metadata=_TRAIN)
    valid: Any = field(metadata=_VALID)
    top: int = 100


@dataclass(frozen=True, kw_only=True)
class SampledSpec(RunSpec):
    """Of verbs that take FI: of a share of the rows, with a rank, a scale and a place that is perturbed.

    Attributes:
        scale: of the step that a perturbation w is: "mean" moves the fit by `-(n Hbar)^-1 M w`, "sum" n times as far.
        perturb: "input", or the layer whose input is perturbed.
        exclude: ids of rows not to draw.
    """

    signed = False
    usual_damping = "layer_mean:0.1"

    inverse: str = field(default="damped", init=False)
    training_time: float | None = field(default=None, init=False)
    rank: int | None = None
    subsample: float = 1.0
    scale: str = "mean"
    perturb: str = INPUT
    exclude: Any = field(default=(), metadata=_NOT_IDENTITY)

    @cached_property
    def undrawn(self) -> tuple[Any, ...]:
        """Ids of rows that the share is not drawn from."""
        return tuple(sorted(set(self.exclude), key=str)) if self.subsample < 1 else ()

    def first_share(self, rows: int) -> float:
        """The share of a table's rows that is drawn by chance: half of the subsample, or as much as a forest needs."""
        least = LEAST_ROWS / max(rows - len(self.undrawn), 1)
        return 1.0 if self.subsample == 1 else min(self.subsample, max(self.subsample / 2, least))

    @cached_property
    def draw(self) -> int:
        """What moves the seed of the share: every round of active learning draws anew, from the rows that are left."""
        return int(self._digest()[:15], 16) | 1 << 40 if self.undrawn else 0

    def check(self, tables: Mapping[str, Table], probed: Probe) -> None:
        """Refuse a rank or a share that the scored table or the model cannot give.

        Raises:
            InputError: one of these, or features of text, which no forest learns from.
        """
        table = tables.get("pool", tables["train"])
        rows = max(table.num_rows - len(self.undrawn), 1)
        most = min(probed.parameters, probed.perturbed)
        if self.rank is not None and self.rank > most:
            raise InputError(
                f"rank={self.rank!r}: the mixed derivative of a row is {probed.parameters:,} x {probed.perturbed:,}.",
                f"pass a whole number from 1 to {most:,}, or None for the exact measure.",
            )
        share = self.subsample
        if share < 1 and rows * share < LEAST_ROWS:
            raise InputError(
                f"subsample={share} of {rows:,} rows leaves {rows * share:.0f}: too few for a forest to learn from.",
                f"score at least {LEAST_ROWS} rows: pass subsample={min(1.0, LEAST_ROWS / rows):.3g} or more.",
            )
        kinds = [table.schema.field(name).type for name in self.task.feature_columns]
        if share < 1 and any(map(is_text, kinds)):
            raise InputError(
                f"subsample={share}: the features are text, and a forest cannot learn ranks from text.",
                "pass subsample=1.0, or embeddings as the features.",
            )

    def identity(self) -> dict[str, Any]:
        """With the rows that no share is drawn from."""
        return {**super().identity(), "exclude": self._digest()[:16] if self.undrawn else None}

    def _digest(self, *more: Any) -> str:
        """Of the rows that are excluded."""
        return hashlib.sha256(repr((*more, sorted(map(str, self.exclude)))).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class MeasureSpec(SampledSpec):
    """Of `influence_measure`: in float64 but for fitting K-FAC, since the metric's inverse magnifies rounding."""

    verb = "influence_measure"
    sign = "none: the higher, the more the fit hangs on the row"
    unit = "squared change of the mean validation loss, a unit of the row's own metric"

    train: Any = field(metadata=_TRAIN)
    valid: Any = field(metadata=_VALID)

    def __post_init__(self) -> None:
        """Set what follows from the verb."""
        super().__post_init__()
        self._set(precision="fp64", mixed=True, takes_probabilities=_FI)
        self._set(objectives=(Objective("fi", combine=mean_loss),))  # the mean validation loss


@dataclass(frozen=True, kw_only=True)
class AcquireSpec(SampledSpec):
    """Of `acquire`. The n rows to pick and the rows to exclude change the scores of few strategies alone."""

    verb = "acquire"
    sign = "the higher, the sooner the row's label is worth asking for"
    unit = "the strategy's own"
    with_ids = ("pool",)

    labeled: Any = field(metadata=_TRAIN)
    valid: Any = field(default=None, metadata=_VALID)
    pool: Any = field(metadata=_POOL)
    n: int = field(default=500, metadata=_NOT_IDENTITY)
    strategy: str = "fi"
    aggregate: str | float = "trimmed_mean"
    samples: int = 20

    def __post_init__(self) -> None:
        """Set what follows from the strategy: curvature, precision and validation rows matter to some alone.

        Raises:
            InputError: a wrong argument, or a strategy without the validation rows that it needs.
        """
        super().__post_init__()
        if self.needs_valid and self.valid is None:
            raise InputError(f"strategy={self.strategy!r} needs validation rows.", "pass valid=..., or use isal.")
        self._set(exclude=() if self.exclude is None else self.exclude, precision=None)
        if self.strategy in BY_MEASURE:
            self._set(precision="fp64", mixed=True, takes_probabilities=_FI)
        elif self.strategy in BY_INFLUENCE:
            self._set(objectives=(Objective("total"),))
        else:
            self._set(curvature="identity")
        if self.strategy in (*BY_DROPOUT, *BY_LOGITS):
            self._set(takes_probabilities=f"strategy={self.strategy!r}")
        if self.strategy == "isal":
            self._set(valid=self.labeled, objective_rows="train")
        elif not self.needs_valid:
            self._set(valid=None)

    @property
    def needs_valid(self) -> bool:
        """Whether the strategy looks at validation rows."""
        return self.strategy in ("iv", "tree")

    @property
    def is_joint(self) -> bool:
        """Whether rows are picked together, so that how many there are matters to which."""
        return self.strategy in JOINT

    def check(self, tables: Mapping[str, Table], probed: Probe) -> None:
        """Refuse what the tables or the model cannot give.

        Raises:
            InputError: more rows wanted than there are, an unknown aggregate, dropout without dropout layers, a rank
                or subsample for another strategy than "fi", or as for `influence_measure`.
        """
        rows = tables["pool"].num_rows
        if self.n > rows - len(set(self.exclude)):
            left = f", {len(set(self.exclude)):,} of them excluded" if len(self.exclude) else ""
            raise InputError(f"n={self.n:,} rows are wanted, and the pool has {rows:,}{left}.", "pass a smaller n.")
        self._check_options_of_fi()
        if self.strategy == "fi":
            aggregate.parse(str(self.aggregate), tables["train"].num_rows)
        if self.strategy in BY_DROPOUT:
            require_dropout(probed.model)
        if self.strategy in BY_EMBEDDING:
            find_blocks(probed.model, "last")
        super().check(tables, probed)

    def _check_options_of_fi(self) -> None:
        """Refuse options of FI for other strategies.

        Raises:
            InputError: one of them is given.
        """
        names = ("rank", "scale", "perturb") if self.strategy not in BY_MEASURE else ()
        names = (*names, "subsample") if self.strategy != "fi" else names
        defaults = {f.name: f.default for f in fields(self)}
        given = [f"{name}={getattr(self, name)!r}" for name in names if getattr(self, name) != defaults[name]]
        if given:
            wanted = '"fi"' if "subsample" in given[-1] else '"fi" or "fi_batch"'
            raise InputError(
                f"{' and '.join(given)} {'are' if len(given) > 1 else 'is'} for FI, not for {self.strategy!r}.",
                f"leave {'them' if len(given) > 1 else 'it'} out, or use strategy={wanted}.",
            )

    def identity(self) -> dict[str, Any]:
        """With n where rows are picked together."""
        held = super().identity()
        if self.is_joint:
            held["exclude"] = self._digest(self.n)[:16]
        return {**held, "samples": self.samples if self.strategy in BY_DROPOUT else 0}
