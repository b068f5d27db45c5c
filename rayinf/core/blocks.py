"""The parameters that are valued, as matrices: one block a layer, `[r, o, i]` with the bias as last column."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rayinf.errors import InputError

Kind = Literal["linear", "conv", "embedding", "loose"]


@dataclass(frozen=True)
class Block:
    """One matrix (or one a group) of parameters.

    Attributes:
        name: of the module; for a loose block (parameters without a rule), of the parameter.
        kind: the rule; "loose" has none, and only `exact`, `ggn` and `identity` take it.
        shape: `(r, o, i)`, the groups, outputs and inputs; `i` counts the bias.
        parameters: names of the weight and, if there is one, the bias.
    """

    name: str
    kind: Kind
    shape: tuple[int, int, int]
    parameters: tuple[str, ...]

    @property
    def has_bias(self) -> bool:
        """Whether the last column is a bias."""
        return len(self.parameters) == 2

    @property
    def numel(self) -> int:
        """Parameters in the block."""
        return math.prod(self.shape)


def shown(name: str) -> str:
    """A block's name in a message; that of a model which is one layer is empty."""
    return f"layer {name!r}" if name else "the model's one layer"


def to_matrix(block: Block, tensors: Sequence[Tensor]) -> Tensor:
    """Weight and bias (or gradients of them) as one matrix `[r, o, i]`: the only place where a bias is joined."""
    r, o, i = block.shape
    weight = tensors[0].T if block.kind == "embedding" else tensors[0]
    matrix = weight.reshape(r, o, i - block.has_bias)
    return torch.cat([matrix, tensors[1].reshape(r, o, 1)], dim=2) if block.has_bias else matrix


def from_matrix(block: Block, matrix: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_matrix`: parameters by name, in the shapes of `like`."""
    weight = matrix[..., :-1] if block.has_bias else matrix
    name = block.parameters[0]
    shaped = weight[0].T if block.kind == "embedding" else weight.reshape(like[name].shape)
    out = {name: shaped}
    if block.has_bias:
        out[block.parameters[1]] = matrix[..., -1].reshape(like[block.parameters[1]].shape)
    return out


def find_blocks(model: nn.Module, parameters: str | Sequence[str]) -> tuple[Block, ...]:
    """The blocks that `parameters` ("all", "supported", "last" or module names) selects, in the model's order.

    Raises:
        InputError: a name that is no module, a selection without parameters, no linear layer for "last".
    """
    ruled = {b.name: b for b in _ruled(model)}
    covered = {p for b in ruled.values() for p in b.parameters}
    loose = [
        Block(name, "loose", (1, 1, value.numel()), (name,))
        for name, value in model.named_parameters()
        if name not in covered
    ]
    order = {name: k for k, (name, _) in enumerate(model.named_parameters())}
    everything = sorted([*ruled.values(), *loose], key=lambda b: order[b.parameters[0]])
    if parameters == "all":
        chosen = everything
    elif parameters == "supported":
        chosen = [b for b in everything if b.kind != "loose"]
    elif parameters == "last":
        linear = [b for b in everything if b.kind == "linear"]
        if not linear:
            raise InputError('parameters="last" found no torch.nn.Linear.', "name the modules to value.")
        chosen = linear[-1:]
    else:
        names = [parameters] if isinstance(parameters, str) else list(parameters)
        _check_names(model, names)
        chosen = [b for b in everything if any(_inside(p, name) for name in names for p in b.parameters)]
    if not chosen:
        raise InputError(f"parameters={parameters!r} selects no parameters.", "name modules that own parameters.")
    return tuple(chosen)


def require_rules(model: nn.Module, blocks: Iterable[Block], who: str) -> None:
    """Refuse loose blocks, naming them with their share of the parameters.

    Raises:
        InputError: some parameters have no K-FAC rule.
    """
    blocks = list(blocks)
    loose = [b for b in blocks if b.kind == "loose"]
    if not loose:
        return
    total = sum(b.numel for b in blocks)
    modules = dict(model.named_modules())
    shown = ", ".join(
        f"{b.name} ({type(modules[b.name.rpartition('.')[0]]).__name__}, {b.numel / total:.2%})" for b in loose[:8]
    )
    more = f" and {len(loose) - 8} more" if len(loose) > 8 else ""
    raise InputError(
        f"{who} has no rule for {len(loose)} of the valued parameters "
        f"({sum(b.numel for b in loose) / total:.2%} of {total:,}): {shown}{more}.",
        'value the rest with Task(parameters="supported") or a list of module names, or use '
        'curvature="identity" (or "exact", "ggn" for few parameters), which take every parameter.',
    )


def _ruled(model: nn.Module) -> list[Block]:
    """Blocks of all modules that have a rule and share no parameter with another module."""
    names = {id(value): name for name, value in model.named_parameters()}
    uses = Counter(
        id(value) for module in model.modules() for value in module.parameters(recurse=False) if value is not None
    )
    blocks = []
    for module_name, module in model.named_modules():
        own = [value for value in (getattr(module, "weight", None), getattr(module, "bias", None)) if value is not None]
        shape, kind = _rule(module)
        # A parametrised weight (spectral norm) is no parameter, and a tied one has a gradient from two places.
        if kind and all(id(v) in names and uses[id(v)] == 1 for v in own):
            blocks.append(Block(module_name, kind, shape, tuple(names[id(v)] for v in own)))
    return blocks


def _rule(module: nn.Module) -> tuple[tuple[int, int, int], Kind | None]:
    """Shape and rule of a module; `None` where there is no rule."""
    # The output layer of nn.MultiheadAttention never runs: its parent reads the weight.
    if isinstance(module, nn.Linear) and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return (1, module.out_features, module.in_features + (module.bias is not None)), "linear"
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        r = module.groups
        i = module.in_channels // r * math.prod(module.kernel_size) + (module.bias is not None)
        return (r, module.out_channels // r, i), "conv"
    if isinstance(module, nn.Embedding) and module.max_norm is None and not module.scale_grad_by_freq:
        return (1, module.embedding_dim, module.num_embeddings), "embedding"
    return (0, 0, 0), None


def _check_names(model: nn.Module, names: Sequence[str]) -> None:
    known = [name for name, _ in model.named_modules() if name] + [name for name, _ in model.named_parameters()]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3) or known[:5]
            raise InputError(
                f"parameters={list(names)!r}: the model has no module {name!r}.", f"did you mean {', '.join(close)}?"
            )


def _inside(parameter: str, module: str) -> bool:
    return parameter == module or parameter.startswith(module + ".")
