"""Whether a factory builds the same model each time: twice in the driver, and in every worker."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import nn

from rayinf.engine.model_digest import ModelDigest, first_difference, model_digest, state_digest
from rayinf.errors import InputError
from rayinf.task import Task

_FIX = (
    "let the factory load the same checkpoint each time and everywhere (an absolute path that every machine sees), or "
    "seed its initialisation (torch.manual_seed), or pass the module itself as Task(model=...)."
)


def built(task: Task) -> ModelDigest:
    """The digest of the model as the task gives it. A factory is called twice.

    Raises:
        InputError: a factory that gives two models, or one and the same module; or a model that cannot be digested.

    Cost: SHA-256 over the parameters; of a factory, two models at once.
    """
    model = task.build()
    held = model_digest(model, task.version)
    if isinstance(task.model, nn.Module):
        return held
    again = task.build()
    other = model_digest(again, task.version)
    name = first_difference(held.state, other.state)
    if name is not None:
        raise InputError(
            "Task(model=...) is a factory that builds another model each time it is called: "
            f"{name!r} differs between two calls.",
            _FIX,
        )
    if other.whole != held.whole:
        raise InputError(
            "Task(model=...) is a factory that builds another model each time it is called: the parameters agree, but "
            "attributes or code of its modules differ between two calls.",
            "let it build the same model each time.",
        )
    return held


def check_same_state(driver: Mapping[str, str], model: nn.Module) -> None:
    """Refuse a model that a factory built in this process, where it is not the driver's.

    Args:
        driver: the digest of each parameter and buffer of the driver's model.
        model: as it was built here.

    Raises:
        InputError: the first parameter or buffer that differs.
    """
    here = state_digest(model)
    name = first_difference(driver, here)
    if name is not None:
        what = "is missing" if name not in here else "is not in the driver's" if name not in driver else "differs"
        raise InputError(
            f"Task(model=...) is a factory that built another model in a worker than in the driver: {name!r} {what}.",
            _FIX,
        )


def frozen(model: nn.Module) -> str | None:
    """A digest of which parameters require no gradient; None where all do."""
    names = [name for name, value in model.named_parameters() if not value.requires_grad]
    return hashlib.sha256("\n".join(names).encode()).hexdigest() if names else None
