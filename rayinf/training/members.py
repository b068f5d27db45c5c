"""Several models of one task: checkpoints of a training, or an ensemble. Each as a task around its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from rayinf.data.files import fetched
from rayinf.engine.model_digest import ModelDigest, model_digest
from rayinf.errors import InputError
from rayinf.store.places import open_place
from rayinf.task import Task


@dataclass(frozen=True)
class Member:
    """Builds the model with the weights of one member; picklable, so that workers load a file where they are.

    Attributes:
        build: a new model.
        weights: a state dict, a module, or the path of a file.
        name: of the member, for errors.
    """

    build: Callable[[], nn.Module]
    weights: Any
    name: str

    def __call__(self) -> nn.Module:
        """The model.

        Raises:
            InputError: a file without a state dict, or weights of another architecture.
        """
        model = self.build()
        try:
            model.load_state_dict(_state(self.weights, self.name))
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()]
            raise InputError(
                f"{self.name} does not fit Task(model=...): {' '.join(lines[:3])}",
                "pass the weights of models with the same layers.",
            ) from error
        return model


def members_of(task: Task) -> list[Task]:
    """A task around each member; of an ensemble in an order that does not depend on the one given.

    Raises:
        InputError: weights that cannot be loaded; or a member twice.
    """
    digests = [d.whole for d in member_digests(task)]
    tasks = [one for _, one in _tasks(task)]
    if task.ensemble is None:
        return tasks
    return [tasks[k] for k in sorted(range(len(tasks)), key=lambda k: digests[k])]


def member_digests(task: Task) -> list[ModelDigest]:
    """The digest of each member's model, in the order given.

    Raises:
        InputError: weights that cannot be loaded.
    """
    return [model_digest(one.build(), task.version) for _, one in _tasks(task)]


def _tasks(task: Task) -> list[tuple[str, Task]]:
    kind = "ensemble" if task.ensemble is not None else "checkpoints"
    alone = replace(task, checkpoints=None, ensemble=None)
    found = []
    for k, weights in enumerate(task.members):
        name = f"Task.{kind}[{k}]"
        make = Member(alone.build, weights, name)
        # A module is given as a module; a factory's members are factories too.
        model: Any = make() if isinstance(task.model, nn.Module) else make
        found.append((name, replace(alone, model=model)))
    return found


def _state(weights: Any, name: str) -> Mapping[str, Any]:
    """A state dict from any of its forms.

    Raises:
        InputError: there is no file, or it holds something else.
    """
    if isinstance(weights, nn.Module):
        return weights.state_dict()
    if isinstance(weights, Mapping):
        return weights
    place = open_place(weights, name)
    if not place.is_file():
        raise InputError(f"{name}={str(weights)!r} is not a file.", "pass a state dict, or the path of one.")
    try:
        with fetched(place) as file:
            return _read(file)
    except (RuntimeError, OSError, ValueError, SafetensorError, EOFError, UnpicklingError) as error:
        raise InputError(
            f"{name}={str(weights)!r} cannot be read as a state dict of tensors ({type(error).__name__}).",
            "save model.state_dict() with torch.save, or with safetensors.torch.save_model.",
        ) from error


def _read(file: Path) -> Mapping[str, Any]:
    """Tensors by name from a file.

    Raises:
        ValueError: it holds something else.
    """
    if file.suffix == ".safetensors":
        return load_file(str(file))
    held = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(held, Mapping):
        raise ValueError(f"it holds a {type(held).__name__}")
    return held
