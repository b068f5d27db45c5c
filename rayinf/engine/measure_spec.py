"""Specs of the verbs that take FI, of all rows or of a share of them: `influence_measure` and `acquire`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rayinf.core.blocks import find_blocks
from rayinf.core.dropout import require_dropout
from rayinf.core.objectives import Objective, mean_loss
from rayinf.core.perturbation import INPUT
from rayinf.data.batches import is_text
from rayinf.data.tables import Table
from rayinf.engine.entry import BY_DROPOUT, BY_EMBEDDING, BY_INFLUENCE, BY_LOGITS, BY_MEASURE, JOINT
from rayinf.engine.spec import DRIVER_ONLY, NOT_IDENTITY, POOL, TRAIN, VALID, RunSpec
from rayinf.errors import InputError
from rayinf.select import aggregate
from rayinf.select.forest import LEAST_ROWS

if TYPE_CHECKING:
    from rayinf.engine.probe import Probe

_FI = "The influence measure FI"


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
    exclude: Any = field(default=(), metadata=NOT_IDENTITY)

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

    train: Any = field(metadata=TRAIN)
    valid: Any = field(metadata=VALID)
    on_error: str = field(default="stop", metadata=DRIVER_ONLY)

    def __post_init__(self) -> None:
        """Set what follows from the verb.

        Raises:
            InputError: a share of the rows, and shards that may be left out.
        """
        super().__post_init__()
        if self.subsample < 1 and self.on_error == "skip":
            raise InputError(
                f'subsample={self.subsample} with on_error="skip": a forest ranks every row by what the model gives '
                "for it.",
                'pass subsample=1.0, or on_error="stop".',
            )
        self._set(precision="fp64", mixed=True, takes_probabilities=_FI)
        self._set(objectives=(Objective("fi", combine=mean_loss),))  # the mean validation loss


@dataclass(frozen=True, kw_only=True)
class AcquireSpec(SampledSpec):
    """Of `acquire`. The n rows to pick and the rows to exclude change the scores of few strategies alone."""

    verb = "acquire"
    sign = "the higher, the sooner the row's label is worth asking for"
    unit = "the strategy's own"
    with_ids = ("pool",)

    labeled: Any = field(metadata=TRAIN)
    valid: Any = field(default=None, metadata=VALID)
    pool: Any = field(metadata=POOL)
    n: int = field(default=500, metadata=NOT_IDENTITY)
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
