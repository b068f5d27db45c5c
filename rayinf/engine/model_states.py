"""Several sets of parameters of a task's model: checkpoints of one training, or models trained apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import Tensor, nn

from rayinf.arguments import refuse, shown
from rayinf.data.files import fetched
from rayinf.engine.model_digest import model_digest
from rayinf.errors import InputError, RayinfError
from rayinf.redaction import redact
from rayinf.store.places import open_place
from rayinf.store.store_path import StorePath
from rayinf.task import Task, uncompiled
from rayinf.user_code import one_line

_EXPECTED = "a list of state dicts, of modules, or of paths of .safetensors or torch.save files"
_SHOWN = 3


@dataclass(frozen=True)
class ModelStates:
    """Parameters and buffers that fit a task's model. One is loaded at a time.

    Attributes:
        given: state dicts, modules or paths, in order; none: the task's own model.
        digests: of the model with each of them.
    """

    given: tuple[Any, ...] = ()
    digests: tuple[str, ...] = ()

    @classmethod
    def of(cls, task: Task, given: Any) -> ModelStates:
        """Load each once, and see that it fits the model.

        Args:
            task: of the model.
            given: the argument `checkpoints`, or None.

        Raises:
            InputError: something else than a list of these, a file that cannot be read, or parameters of another model.

        Cost: a load and a SHA-256 of every one.
        """
        if given is None:
            return cls()
        if not isinstance(given, list | tuple) or not given:
            refuse("checkpoints", given, _EXPECTED, f"pass {_EXPECTED}.")
        digests = tuple(
            model_digest(filled(task.build(), item, f"checkpoints[{k}]"), task.version).whole
            for k, item in enumerate(given)
        )
        return cls(tuple(given), digests)

    def __len__(self) -> int:
        """How many were given."""
        return len(self.given)

    def task(self, task: Task, k: int) -> Task:
        """The task around the k-th model.

        Raises:
            InputError: a file that has gone or changed since.
        """
        if not self.given:
            return task
        name = f"checkpoints[{k}]"
        model = filled(task.build(), self.given[k], name)
        if model_digest(model, task.version).whole != self.digests[k]:
            raise InputError(f"{name} changed while the run was going.", "leave checkpoints as they are during a run.")
        return replace(task, model=model)


def filled(model: nn.Module, given: Any, name: str) -> nn.Module:
    """The model with these parameters and buffers, which are copied into it.

    Args:
        model: of the architecture.
        given: a state dict, a module, or the path or URI of a file.
        name: of what is given, for errors.

    Raises:
        InputError: they cannot be read, are not finite, or belong to another model.
    """
    if isinstance(given, str | Path | StorePath):
        _fill_from_file(model, given, name)
    elif isinstance(given, nn.Module):
        _fill(model, uncompiled(given).state_dict(), name)
    elif isinstance(given, Mapping):
        _fill(model, given, name)
    else:
        refuse(name, given, "a state dict, a module or a path", f"pass {_EXPECTED}.")
    for key, value in model.named_parameters():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(f"{name}: parameter {key!r} is NaN or infinite.", "leave this one out.")
    return model


def _fill_from_file(model: nn.Module, given: Any, name: str) -> None:
    place = open_place(given, name)
    shown_place = redact(str(given))
    if not place.is_file():
        raise InputError(f"{name}: there is no file {shown_place}.", "check the path.")
    try:
        with fetched(place) as file:
            if place.suffix == ".safetensors":
                load_model(model, str(file))
                return
            held = torch.load(file, map_location="cpu", weights_only=True)
    except RayinfError:
        raise
    except (RuntimeError, OSError, ValueError, EOFError, SafetensorError) as error:
        raise InputError(
            f"{name}: {shown_place} cannot be read into the model: {one_line(error)}.",
            "pass a file of torch.save(model.state_dict(), ...), or a .safetensors file of the model.",
        ) from error
    except Exception as error:  # pickle's own
        raise InputError(
            f"{name}: {shown_place} holds more than tensors: {one_line(error)}.",
            "save the state dict alone: torch.save(model.state_dict(), ...).",
        ) from error
    if not isinstance(held, Mapping):
        raise InputError(f"{name}: {shown_place} holds a {type(held).__name__}.", "save model.state_dict().")
    _fill(model, held, name)


def _fill(model: nn.Module, held: Mapping[str, Any], name: str) -> None:
    """Copy tensors into the model, all of them by name and shape.

    Raises:
        InputError: a tensor is missing, unknown, or of another shape.
    """
    own = model.state_dict()
    missing, unknown = [k for k in own if k not in held], [k for k in held if k not in own]
    if missing or unknown:
        which = [
            f"{len(v)} {what} ({', '.join(v[:_SHOWN])})"
            for v, what in ((missing, "missing"), (unknown, "unknown"))
            if v
        ]
        raise InputError(
            f"{name} belongs to another model: {' and '.join(which)} of {len(own)} tensors.",
            "pass the state dict of the task's own architecture, model.state_dict().",
        )
    for key, value in own.items():
        if isinstance(value, Tensor) and getattr(held[key], "shape", None) != value.shape:
            got = list(held[key].shape) if isinstance(held[key], Tensor) else shown(held[key])
            raise InputError(
                f"{name} belongs to another model: {key!r} is {got}, and the model's is {list(value.shape)}.",
                "pass the state dict of the task's own architecture.",
            )
    model.load_state_dict(dict(held))
