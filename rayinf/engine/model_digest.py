"""The digest of a model: its parameters and buffers by bytes, and all that its classes, attributes and hooks do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from rayinf.engine.digest import Digester, deep


@dataclass(frozen=True)
class ModelDigest:
    """What a model is.

    Attributes:
        whole: of all of it.
        architecture: of the same with dtypes and shapes in place of the values of parameters and buffers.
        state: of each parameter and buffer by name.
    """

    whole: str
    architecture: str
    state: Mapping[str, str]


def model_digest(model: nn.Module, version: str | None = None) -> ModelDigest:
    """The digest of a model, wherever it is, in training or eval mode.

    Args:
        model: as it was built.
        version: of `Task(version=...)`, for attributes that cannot be digested.

    Raises:
        InputError: such an attribute, and no version.

    Cost: SHA-256 over all parameters and buffers.
    """
    name = "Task(model=...)"
    with deep():
        held = Digester(name, version)
        state = {k: held.tensor(v).hex() for k, v in tensors(model)}
        ties = _ties(model)
        architecture = Digester(name, version, contents=False).of([model, ties])
        return ModelDigest(held.of([architecture, state]).hex(), architecture.hex(), state)


def state_digest(model: nn.Module) -> dict[str, str]:
    """The digest of each parameter and buffer by name."""
    held = Digester("Task(model=...)")
    return {k: held.tensor(v).hex() for k, v in tensors(model)}


def first_difference(old: Mapping[str, str], new: Mapping[str, str]) -> str | None:
    """The first parameter or buffer that only one model has, or that differs; None where all agree."""
    return next((k for k in [*old, *new] if old.get(k) != new.get(k)), None)


def tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by name, shared ones once each name, in the order of the model."""
    inner = getattr(model, "_orig_mod", None)  # what torch.compile wraps
    model = inner if isinstance(inner, nn.Module) else model
    found = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return [(name, value) for name, value in found if not nn.parameter.is_lazy(value)]


def _ties(model: nn.Module) -> dict[str, str]:
    """Of every tensor that stands under several names, the first one."""
    first: dict[int, str] = {}
    return {name: first[id(v)] for name, v in tensors(model) if first.setdefault(id(v), name) != name}
