"""Row gradients of layers with many positions, formed in slices that stay in the processor's cache."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rayinf.core.blocks import Block, to_matrix
from rayinf.core.capture import forward
from rayinf.errors import InputError
from rayinf.user_code import UserCodeError, torch_said

# Floats of one slice of row gradients (19 MB in float32), so that it is used while it is in the last cache.
SLICE_FLOATS = 4_800_000
# Fewer outputs than this make thin products, which run at a third of the speed.
_FEWEST_OUTPUTS = 8


def row_gradient_slices(a_brti: Tensor, g_brto: Tensor, whole: bool = False) -> Iterator[tuple[slice, Tensor]]:
    """Slices over outputs of the row gradients `sum_t g_t a_t'`: `(outputs, [b, r, o', i])`.

    Args:
        a_brti: inputs of the layer.
        g_brto: gradients in its outputs.
        whole: all outputs at once, for a caller that mixes them.
    """
    b, r, _, i = a_brti.shape
    o = g_brto.shape[3]
    step = o if whole or a_brti.is_cuda else min(o, max(_FEWEST_OUTPUTS, SLICE_FLOATS // (b * r * i)))
    left_brot = g_brto.transpose(2, 3)
    for start in range(0, o, step):
        where = slice(start, min(start + step, o))
        yield where, torch.matmul(left_brot[:, :, where], a_brti)


def loose_row_gradients(model: nn.Module, blocks: Sequence[Block], x: Any, cotangent_bc: Tensor) -> dict[str, Tensor]:
    """Row gradients `[b, 1, 1, p]` of parameters without a rule, by `vmap` over the rows.

    Args:
        model: in eval mode.
        blocks: the loose ones.
        x: the model's input.
        cotangent_bc: the gradient of each row's function in its logits.

    Raises:
        InputError: `torch.func` cannot differentiate the model (an LSTM, say).
    """
    if not blocks:
        return {}
    held = {k: v.detach() for k, v in [*model.named_parameters(), *model.named_buffers()]}
    names = [b.parameters[0] for b in blocks]

    def value(params: Mapping[str, Tensor], row: Any, cotangent_c: Tensor) -> Tensor:
        logits = functional_logits(model, {**held, **params}, map_tensors(row, lambda v: v[None]))
        return (logits[0] * cotangent_c).sum()

    rows = torch.func.vmap(torch.func.grad(value), in_dims=(None, 0, 0))
    try:
        found = rows({n: held[n] for n in names}, x, cotangent_bc)
    except (RuntimeError, UserCodeError) as error:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise InputError(
            f"torch.func cannot pass the model row by row, as parameters without a rule need ({shown}): "
            f"{torch_said(error)}.",
            'value the layers that have a rule: Task(parameters="supported"), or a list of module names.',
        ) from error
    return {b.name: to_matrix_rows(b, [found[p] for p in b.parameters]) for b in blocks}


def to_matrix_rows(block: Block, tensors: Sequence[Tensor]) -> Tensor:
    """`to_matrix` for gradients with a leading axis of rows."""
    return torch.func.vmap(lambda *t: to_matrix(block, t))(*tensors)


def functional_logits(model: nn.Module, params: Mapping[str, Tensor], x: Any) -> Tensor:
    """Logits of the model with other parameters, in a form that `vmap` and second derivatives support."""

    class _Call(nn.Module):
        """Calls `forward`, which unpacks tuples and dicts, in a functional call too."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Any) -> Tensor:
            return forward(self.inner, x)

    with sdpa_kernel(SDPBackend.MATH):  # fused attention supports neither
        return torch.func.functional_call(_Call(), {f"inner.{k}": v for k, v in params.items()}, (x,))


@contextmanager
def without_fast_path() -> Generator[None]:
    """Transformer layers as written: torch's fused layer of eval mode has no dropout and no second derivatives."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def map_tensors(x: Any, f: Callable[[Tensor], Tensor]) -> Any:
    """Apply `f` to every tensor of a model's input."""
    if isinstance(x, dict):
        return {k: map_tensors(v, f) for k, v in x.items()}
    if isinstance(x, tuple | list):
        return tuple(map_tensors(v, f) for v in x)
    return f(x)
