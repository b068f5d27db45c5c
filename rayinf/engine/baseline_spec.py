"""The description of a run of `baseline`: which rival of influence values the rows, and with what options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from rayinf.arguments import number, one_of, refuse, shown, whole
from rayinf.core.blocks import find_blocks
from rayinf.core.fisher import FisherKind
from rayinf.core.objective_parser import parse
from rayinf.data.tables import Table
from rayinf.engine.model_states import ModelStates
from rayinf.engine.probe import Probe
from rayinf.engine.spec import DRIVER_ONLY, NOT_IDENTITY, TRAIN, VALID, RunSpec
from rayinf.errors import InputError
from rayinf.store.places import AnyPath

# Methods that look at a row and the model alone: several of them come from one pass.
OF_THE_ROW = ("loss", "margin", "grad_norm", "random")
# Methods that train the task's model anew.
RETRAINED = ("data_shapley", "loo")
METHODS = (*OF_THE_ROW, "grad_dot", "grad_cos", "tracin", "trak", "knn_shapley", *RETRAINED)
SPACES, UTILITIES = ("features", "embedding"), ("loss", "accuracy")
# Options of single methods; each is refused with any other.
OPTIONS = {
    "checkpoints": ("tracin", "trak"),
    "rates": ("tracin",),
    "dim": ("trak",),
    "neighbors": ("knn_shapley",),
    "space": ("knn_shapley",),
    "utility": RETRAINED,
    "retrainings": RETRAINED,
    "only": ("loo",),
    "seeds": ("loo",),
    "tolerance": ("data_shapley",),
    "truncation": ("data_shapley",),
}
_OWN = "the method's own: compare ranks, not sizes"
_UNITS = {
    "loss": "minus the row's own loss",
    "margin": "logit of the row's label less the largest other logit",
    "grad_norm": "minus the Euclidean norm of the gradient of the row's loss in the valued parameters",
    "random": "none: uniform draws in [-1, 0)",
    "grad_dot": "product of the gradients of the objective (a sum over validation rows) and of the row's loss",
    "grad_cos": "cosine of the gradients of the objective and of the row's loss",
    "tracin": "product of these gradients, summed over checkpoints times their learning rates",
    "knn_shapley": "expected validation rows that the nearest neighbours classify right",
    "loo": "measured change of the sum of validation losses (of the share classified right) by retraining",
    "data_shapley": "mean change of the sum of validation losses (of the share classified right) by the row's arrival",
}
_SIGN = "positive: the row helps, by this method; the lowest values are the suspects"


@dataclass(frozen=True, kw_only=True)
class BaselineSpec(RunSpec):
    """Of `baseline`. Options that the method does not have are no part of the identity."""

    verb = "baseline"
    sign = _SIGN

    # No method looks at a curvature.
    curvature: str = field(default="identity", init=False)
    fisher: FisherKind = field(default="true", init=False)
    inverse: str = field(default="auto", init=False)
    training_time: float | None = field(default=None, init=False)
    damping: float | str | None = field(default=None, init=False)
    factors: str | AnyPath | None = field(default=None, init=False, metadata=DRIVER_ONLY)
    curvature_rows: int | None = field(default=None, init=False, metadata=NOT_IDENTITY)

    train: Any = field(metadata=TRAIN)
    valid: Any = field(default=None, metadata=VALID)
    method: Any = "loss"
    objective: Any = field(default="total", metadata=DRIVER_ONLY)
    checkpoints: Any = field(default=None, metadata=DRIVER_ONLY)
    rates: Any = None
    dim: int = 512
    neighbors: int = 5
    space: str = "features"
    utility: str = "loss"
    only: Any = field(default=None, metadata=DRIVER_ONLY)
    seeds: int = field(default=1, metadata=DRIVER_ONLY)
    retrainings: int = field(default=10_000, metadata=DRIVER_ONLY)
    tolerance: float = 0.05
    truncation: float = 0.01
    # Loaded from `checkpoints`.
    states: ModelStates = field(default_factory=ModelStates, init=False, metadata=DRIVER_ONLY)
    checkpoint_digests: list[str] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Check the options of the method, and drop what it does not look at.

        Raises:
            InputError: an unknown method, a wrong option, an option of another method, or no validation rows.
        """
        super().__post_init__()
        self._set(method=_methods(self.method))
        self._check_options()
        self._refuse_options_of_others()
        if self.needs_valid and self.valid is None:
            raise InputError(f"method={self.name!r} needs validation rows.", "pass valid=...")
        if self.needs_valid:
            self._set(objectives=parse(self.objective, self.task.group))
            self._check_votes()
        else:
            self._set(valid=None)
        states = ModelStates.of(self.task, self.checkpoints)
        self._set(states=states, checkpoint_digests=list(states.digests) or None, unit=_UNITS.get(self.name, _OWN))
        if self.rates is not None or self.name == "tracin":
            self._set(rates=_rates(self.rates, self.states))

    @property
    def name(self) -> str:
        """The method; of several, the first one."""
        return str(self.method[0])

    @property
    def needs_valid(self) -> bool:
        """Whether the method looks at validation rows."""
        return self.name not in OF_THE_ROW

    def _check_options(self) -> None:
        held = {name: whole(name, getattr(self, name), 1) for name in ("dim", "neighbors", "retrainings")}
        one_of("space", self.space, SPACES)
        one_of("utility", self.utility, UTILITIES)
        self._set(
            **held,
            tolerance=number("tolerance", self.tolerance, "> 0"),
            truncation=number("truncation", self.truncation),
        )

    def _refuse_options_of_others(self) -> None:
        """Refuse an option that the method does not have: the user means another method.

        Raises:
            InputError: the first of them.
        """
        defaults = {f.name: f.default for f in fields(self) if f.default is not MISSING}
        for name, methods in OPTIONS.items():
            value, plain = getattr(self, name), isinstance(getattr(self, name), int | float | str)
            if self.name not in methods and not (value is None or (plain and value == defaults[name])):
                raise InputError(
                    f"{name}={shown(value)} is an option of {' and '.join(map(repr, methods))}, not of {self.name!r}.",
                    f"leave {name} out, or pass method={methods[0]!r}.",
                )

    def _check_votes(self) -> None:
        for objective in self.objectives if self.name == "knn_shapley" else ():
            if objective.rows is not None or objective.combine is not None or objective.attack is not None:
                raise InputError(
                    f"method='knn_shapley' is of neighbours' votes, and objective={objective.name!r} is of the model.",
                    'pass "total", "category", "slice:<column>", or a list of these.',
                )

    def check(self, tables: Mapping[str, Table], probed: Probe) -> None:
        """Refuse what the method cannot do with these tables and this model.

        Raises:
            InputError: with the numbers.
        """
        if self.space == "embedding":
            find_blocks(probed.model, "last")
        if self.name == "trak" and probed.outputs.loss(self.task.loss) != "cross_entropy":
            raise InputError(
                'method="trak" is defined by the log-odds of a row\'s label, for loss="cross_entropy".',
                'use Task(loss="cross_entropy"), or method="grad_dot".',
            )
        rows = tables["train"].num_rows
        most = min(rows - 1, probed.parameters)
        if self.name == "trak" and self.dim > most:
            raise InputError(
                f"dim={self.dim:,}: {rows:,} training rows and {probed.parameters:,} parameters determine no matrix of "
                f"{self.dim:,} x {self.dim:,}.",
                f"pass a dim well under {most:,}, such as {max(1, min(512, most // 4))}.",
            )

    def identity(self) -> dict[str, Any]:
        """With the options that the method has."""
        held = super().identity()
        for name, methods in OPTIONS.items():
            if name in held and self.name not in methods:
                held[name] = None
        return held


def _methods(given: Any) -> list[str]:
    """The method, or several that look at the row alone.

    Raises:
        InputError: an unknown one, one twice, or several that need passes of their own.
    """
    held = list(given) if isinstance(given, list | tuple) else [given]
    for name in held:
        one_of("method", name, METHODS)
    if not held or len(set(held)) < len(held):
        refuse("method", given, "the name of a method", f"pass one of {', '.join(METHODS)}.")
    if len(held) > 1 and (own := [name for name in held if name not in OF_THE_ROW]):
        raise InputError(
            f"method={shown(given)}: {own[0]!r} takes passes of its own, and only {', '.join(OF_THE_ROW)} share one.",
            f"call baseline once with method={own[0]!r}, and once with the others.",
        )
    return held


def _rates(given: Any, states: ModelStates) -> list[float]:
    """A learning rate a checkpoint.

    Raises:
        InputError: not as many as there are checkpoints, or one that is not over 0.
    """
    count = max(1, len(states))
    if given is None:
        return [1.0] * count
    several = hasattr(given, "__iter__") and not isinstance(given, str | bytes | dict)
    held = [number("rates", v, "> 0") for v in (given if several else [given])]
    if len(held) != count:
        raise InputError(
            f"rates holds {len(held)} learning rates for {count} checkpoint{'s' if count > 1 else ''}.",
            "pass a learning rate for every checkpoint, in their order.",
        )
    return held
