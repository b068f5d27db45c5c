"""Several models of one task: checkpoints of a training, or an ensemble. Each as a task around its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from rayinf.engine.model_digest import ModelDigest, model_digest
from rayinf.engine.model_states import filled
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
        return filled(self.build(), self.weights, self.name)


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
