"""The parameters that are valued, as matrices: one block a layer, `[r, o, i]` with the bias as last column."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
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
        name: of the module; for a loose block (parameters without a K-FAC rule), of the parameter.
        kind: the rule; "loose" is without one, and only `exact`, `ggn` and `identity` take it.
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
    """The blocks that `parameters` selects, in the model's order.

    Args:
        model: whose parameters are valued.
        parameters: "all", those that are trainable (`requires_grad`); "supported", those of them that K-FAC has a rule
            for; "last", the last linear layer; or names of modules or parameters. What is named is valued, frozen or
            not, and so is the last layer: a model that was frozen after training can be valued by names.

    Raises:
        InputError: a name that the model does not have, a selection without parameters, frozen parameters alone, no
            linear layer for "last".
    """
    if isinstance(parameters, str) and parameters in ("all", "supported"):
        blocks = _blocks(model, {n for n, v in model.named_parameters() if v.requires_grad})
        chosen = [b for b in blocks if parameters == "all" or b.kind != "loose"]
        if not blocks and any(True for _ in model.parameters()):
            raise InputError(
                f"parameters={parameters!r} values what is trainable, and all {sum(1 for _ in model.parameters())} "
                "parameters of the model are frozen (requires_grad=False).",
                "set requires_grad=True on those that were trained (for p in model.parameters(): "
                'p.requires_grad_(True)), or name the layers: Task(parameters="last"), or a list of module names.',
            )
    else:
        names = [parameters] if isinstance(parameters, str) else list(parameters)
        if parameters == "last":
            names = [_last(model)]
        else:
            _check_names(model, names)
        # By identity: a tied weight is listed under the first of its names.
        every = list(model.named_parameters(remove_duplicate=False))
        wanted = {id(v) for n, v in every if any(_inside(n, name) for name in names)}
        own = dict(model.named_parameters())
        chosen = [b for b in _blocks(model, set(own)) if any(id(own[p]) in wanted for p in b.parameters)]
    if not chosen:
        raise InputError(
            f"parameters={parameters!r} selects no parameters.", f"name modules that own parameters: {_owners(model)}."
        )
    return tuple(chosen)


def _blocks(model: nn.Module, wanted: Collection[str]) -> list[Block]:
    """All blocks of some parameters, in the model's order."""
    ruled = _ruled(model, wanted)
    covered = {p for b in ruled for p in b.parameters}
    loose = [
        Block(name, "loose", (1, 1, value.numel()), (name,))
        for name, value in model.named_parameters()
        if name in wanted and name not in covered
    ]
    order = {name: k for k, (name, _) in enumerate(model.named_parameters())}
    return sorted([*ruled, *loose], key=lambda b: order[b.parameters[0]])


def _last(model: nn.Module) -> str:
    """The name of the last linear layer.

    Raises:
        InputError: the model has no linear layer.
    """
    linear = [name for name, module in model.named_modules() if _rule(module)[1] == "linear"]
    if not linear:
        raise InputError('parameters="last" found no torch.nn.Linear.', f"name the modules to value: {_owners(model)}.")
    return linear[-1]


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
    listed = ", ".join(
        f"{b.name} ({type(modules[b.name.rpartition('.')[0]]).__name__}{_shared(model, b)}, {b.numel / total:.2%})"
        for b in loose[:8]
    )
    more = f" and {len(loose) - 8} more" if len(loose) > 8 else ""
    raise InputError(
        f"{who} has no rule for {len(loose)} of the valued parameters "
        f"({sum(b.numel for b in loose) / total:.2%} of {total:,}): {listed}{more}.",
        'value the rest with Task(parameters="supported") or a list of module names, or use '
        'curvature="identity" (or "exact", "ggn" for few parameters), which take every parameter.',
    )


def _shared(model: nn.Module, block: Block) -> str:
    """The other names of a tied weight."""
    own = dict(model.named_parameters())[block.parameters[0]]
    names = [n for n, v in model.named_parameters(remove_duplicate=False) if v is own and n != block.parameters[0]]
    return f", tied to {' and '.join(names)}" if names else ""


def _ruled(model: nn.Module, wanted: Collection[str]) -> list[Block]:
    """Blocks of all modules that have a rule and share no parameter with another module.

    A bias that is not valued is left out of its block; a bias that is valued without its weight is loose.
    """
    names = {id(value): name for name, value in model.named_parameters()}
    uses = Counter(
        id(value) for module in model.modules() for value in module.parameters(recurse=False) if value is not None
    )
    blocks = []
    for module_name, module in model.named_modules():
        own = [value for value in (getattr(module, "weight", None), getattr(module, "bias", None)) if value is not None]
        shape, kind = _rule(module)
        # A parametrised weight (spectral norm) is not a parameter, and a tied weight gets its gradient from two places.
        if not kind or not all(id(v) in names and uses[id(v)] == 1 for v in own):
            continue
        held = tuple(n for v in own if (n := names[id(v)]) in wanted)
        if held and held[0] == names[id(own[0])]:
            r, o, i = shape
            blocks.append(Block(module_name, kind, (r, o, i - (len(own) - len(held))), held))
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
    known = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    known += [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=3)
            raise InputError(
                f"parameters={list(names)!r}: the model has no module {name!r}.",
                f"did you mean {', '.join(close)}?" if close else f"name some of {_owners(model)}.",
            )


def _owners(model: nn.Module) -> str:
    """Modules that own parameters, in words; of many, the first and the last."""
    owners = [n for n, m in model.named_modules() if n and any(True for _ in m.parameters(recurse=False))]
    if not owners:
        return "its parameters (" + ", ".join(n for n, _ in list(model.named_parameters())[:8]) + ")"
    listed = owners if len(owners) <= 12 else [*owners[:5], "...", *owners[-5:]]
    last = [n for n, m in model.named_modules() if n and _rule(m)[1] == "linear"][-1:]
    return ", ".join(listed) + (f' ("last" is {last[0]})' if last else "")


def _inside(parameter: str, module: str) -> bool:
    return parameter == module or parameter.startswith(module + ".")
