"""Where FI perturbs: the model's own input, or what goes into one of its layers.

A perturbation w is added to every floating number of the model's input, or to the activations h that go into a layer:
`h(x; theta) + w`. Layers below keep their gradients, since h still depends on their parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from rayinf.core.capture import forward
from rayinf.core.row_gradients import map_tensors
from rayinf.errors import InputError

# What is perturbed unless a layer is named.
INPUT = "input"

Change = Callable[[Tensor], Tensor]


def check_layer(model: nn.Module, perturb: str) -> None:
    """Refuse a name that no layer of the model has.

    Args:
        model: whose layers are meant.
        perturb: "input", or a name of `model.named_modules()`.

    Raises:
        InputError: the model has no layer of that name.
    """
    names = [name for name, _ in model.named_modules() if name]
    if perturb == INPUT or perturb in names:
        return
    near = get_close_matches(perturb, names, 3) or names[:6]
    raise InputError(
        f"perturb={perturb!r} names no layer of the model, which has {len(names):,} modules.",
        f'pass "input", or the name of a layer, such as {", ".join(map(repr, near)) or "one of named_modules()"}.',
    )


def forward_perturbed(model: nn.Module, x: Any, perturb: str, change: Change) -> Tensor:
    """Logits `[B, C]` of a forward pass in which what is perturbed goes through `change` first.

    Args:
        model: in eval mode.
        x: the model's input.
        perturb: "input" (every floating tensor of x), or the layer whose first floating argument is meant.
        change: gives each of these tensors another one of its shape.

    Raises:
        InputError: a layer that runs more than once or never, or whose input has no floating numbers.
        UserCodeError: the model raised an error, or returned something else than logits.
    """

    def floating(v: Any) -> Any:
        return change(v) if isinstance(v, Tensor) and v.is_floating_point() else v

    if perturb == INPUT:
        return forward(model, map_tensors(x, floating))
    calls = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        held = [*args, *kwargs.values()]
        first = next((k for k, v in enumerate(held) if isinstance(v, Tensor) and v.is_floating_point()), None)
        calls.append(first)
        if first is not None:
            held[first] = change(held[first])
        return tuple(held[: len(args)]), dict(zip(kwargs, held[len(args) :], strict=True))

    handle = model.get_submodule(perturb).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        logits = forward(model, x)
    finally:
        handle.remove()
    if len(calls) != 1:
        raise InputError(
            f"perturb={perturb!r}: the layer runs {len(calls)} times in a forward pass, so its input is not one place.",
            "name a layer that runs once.",
        )
    if calls[0] is None:
        raise InputError(
            f"perturb={perturb!r}: what goes into the layer has no floating numbers (integers cannot be perturbed).",
            "name a layer above it.",
        )
    return logits


def perturbed_size(model: nn.Module, x: Any, perturb: str) -> int:
    """d, the numbers that are perturbed in a row; 0 where the model's input has no floating numbers.

    Raises:
        InputError: a layer that is not there, or as `forward_perturbed` does; a first axis that is not the batch.
    """
    sizes: list[torch.Size] = []

    def keep(v: Tensor) -> Tensor:
        sizes.append(v.shape)
        return v

    with torch.no_grad():
        rows = len(forward_perturbed(model, x, perturb, keep))
    if any(shape[:1] != (rows,) for shape in sizes):
        raise InputError(
            f"perturb={perturb!r}: what goes into it has the shape {list(sizes[0])} in a batch of {rows} rows: its "
            "first axis is not the batch.",
            "name a layer whose input has one entry a row.",
        )
    return sum(shape[1:].numel() for shape in sizes)
