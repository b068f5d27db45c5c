"""A forward pass that records, for every valued layer, its input and the edge through which gradients reach it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from rayinf.core.blocks import Block
from rayinf.errors import InputError
from rayinf.user_code import MODEL, UserCodeError, user_code

# fp16 gradients under 6e-8 are 0: cotangents are multiplied by this, and gradients divided by it in float32.
HALF_SCALE = 1024.0


class Capture:
    """The inputs of every valued layer, one entry a call, and the gradients of its outputs on demand."""

    def __init__(self, half: bool = False, attached: bool = False) -> None:
        self.inputs: dict[str, list[Tensor]] = {}
        self.edges: dict[str, list[GradientEdge]] = {}
        self.shapes: dict[str, list[torch.Size]] = {}
        self._half, self._scale = half, HALF_SCALE if half else 1.0
        self._attached = attached
        self._closed = False

    def record(self, name: str, x: Tensor, output: Tensor) -> None:
        """Record one call of a layer. The edge is read at once: an in-place ReLU that follows replaces it."""
        if self._closed:  # activation checkpointing runs layers again in the backward pass
            return
        if output.grad_fn is None:
            raise InputError(
                f"Layer {name!r} ran without gradients (torch.no_grad inside forward?).",
                "leave it out of Task(parameters=[...]), or remove the no_grad.",
            )
        self.inputs.setdefault(name, []).append(x if self._attached else x.detach())
        self.edges.setdefault(name, []).append(get_gradient_edge(_whole(output)))
        self.shapes.setdefault(name, []).append(output.shape)

    def gradients(
        self,
        logits: Tensor,
        cotangent_bc: Tensor,
        last: bool = False,
        attached: bool = False,
        only: Collection[str] | None = None,
    ) -> dict[str, list[Tensor]]:
        """Gradients of `(logits * cotangent).sum()` in the output of every call of every layer.

        Weight gradients are not computed: the cost is two thirds of a training step's backward pass.

        Args:
            logits: what the captured forward pass returned, `[B, C]`, or what was made of it, `[B, ...]`.
            cotangent_bc: the row's gradient in its logits, `[B, C]`.
            last: release the graph; no further cotangent follows.
            attached: the gradients can be differentiated again.
            only: names of layers; the pass ends where these are reached. None: all.

        Raises:
            InputError: a layer whose first axis is not the batch.
        """
        self._closed = True
        self._check_rows(len(logits))
        names = [name for name in self.shapes if only is None or name in only]
        flat = [edge for name in names for edge in self.edges[name]]
        if not flat:
            return {}
        cotangent = cotangent_bc.to(logits.dtype) * self._scale
        # The bits are those of `grad_outputs=cotangent`, for which torch imports SymPy, 0.7 s in every process; but a
        # sum loses the cotangent's tangents of forward mode, which attached captures need.
        weighted = (logits, cotangent) if self._attached else ((logits * cotangent).sum(), None)
        found: Sequence[Tensor | None] = torch.autograd.grad(
            weighted[0], flat, weighted[1], retain_graph=not last, create_graph=attached, allow_unused=True
        )
        values = iter(found)
        out: dict[str, list[Tensor]] = {}
        for name in names:
            for shape, x in zip(self.shapes[name], self.inputs[name], strict=True):
                g = next(values)
                if g is None:
                    g = torch.zeros(shape, dtype=logits.dtype, device=x.device)
                g = _widen(g.reshape(shape))
                out.setdefault(name, []).append(g / self._scale if self._half else g)
        return out

    def _check_rows(self, batch: int) -> None:
        for name, shapes in self.shapes.items():
            for shape, x in zip(shapes, self.inputs[name], strict=True):
                if shape[:1] != (batch,) or x.shape[:1] != (batch,):
                    raise InputError(
                        f"Layer {name!r} takes {list(x.shape)} and gives {list(shape)} in a batch of {batch} rows: "
                        "its first axis is not the batch.",
                        "keep the batch first in forward, or leave the layer out of Task(parameters=[...]).",
                    )


@contextmanager
def capture(
    model: nn.Module, blocks: Sequence[Block], half: bool = False, attached: bool = False
) -> Generator[Capture]:
    """Hook the layers of `blocks`; hooks and `requires_grad` are restored on leaving.

    Args:
        model: in eval mode.
        blocks: those with a rule; loose blocks are passed over.
        half: the forward pass runs in fp16, so gradients are scaled on their way.
        attached: keep the layers' inputs on the graph, so that gradients can pass through them.
    """
    captured = Capture(half, attached)
    modules = dict(model.named_modules())
    ruled = [b for b in blocks if b.kind != "loose"]
    # Gradients are needed of the valued weights' layers alone: others are not recorded by autograd.
    wanted = {name for b in ruled for name in b.parameters}
    before = {name: value.requires_grad for name, value in model.named_parameters()}
    handles = []
    try:
        for name, value in model.named_parameters():
            value.requires_grad_(name in wanted)
        for block in ruled:
            module = modules[block.name]
            recorder = _recorder(captured, block.name, module.weight)
            handles.append(module.register_forward_hook(recorder, with_kwargs=True))
        with torch.enable_grad():  # whatever the caller's own mode is
            yield captured
    finally:
        for handle in handles:
            handle.remove()
        for name, value in model.named_parameters():
            value.requires_grad_(before[name])


def _recorder(captured: Capture, name: str, weight: Tensor) -> Callable[..., None]:
    """A hook that records calls with the layer's own weight; functional calls with another weight are ignored."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if module.weight is weight:
            captured.record(name, args[0] if args else kwargs["input"], output)

    return hook


def _whole(output: Tensor) -> Tensor:
    """The tensor that an output is a view of (over tokens, a linear layer returns a view).

    An in-place ReLU that follows gives a view another edge, and gradients would not pass through the one recorded.
    """
    base = output._base
    same = base is not None and base.numel() == output.numel() and base.is_contiguous() and output.is_contiguous()
    return base if base is not None and same and base.grad_fn is not None else output


def _widen(x: Tensor) -> Tensor:
    """bf16 and fp16 as float32: sums and products are never taken in half precision."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def forward(model: nn.Module, x: Any, autocast: torch.dtype | None = None) -> Tensor:
    """Logits `[B, C]` of a batch; a tuple or dict of inputs is passed as arguments.

    Args:
        model: in eval mode.
        x: the model's input.
        autocast: bfloat16 or float16 for mixed precision, or None.

    Raises:
        UserCodeError: the model raised an error, or returned something else.
    """
    device = next(model.parameters()).device.type
    with (
        user_code(*MODEL),
        torch.autocast(device, dtype=autocast or torch.bfloat16, enabled=autocast is not None),
    ):
        if isinstance(x, dict):
            logits = model(**x)
        elif isinstance(x, tuple | list):
            logits = model(*x)
        else:
            logits = model(x)
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        _refuse_output(logits)
    return _widen(logits)


def _refuse_output(output: Any) -> NoReturn:
    """Refuse an output that is not logits, with how to wrap the model.

    Raises:
        UserCodeError: always.
    """
    if isinstance(output, Tensor):
        fix = "return the scores before softmax or argmax, as floating-point numbers."
        raise UserCodeError(f"The model returned {list(output.shape)} numbers of {output.dtype}, not logits", fix)
    held, place = "", None
    if isinstance(output, Mapping):
        held, place = f" with {', '.join(map(repr, list(output)[:6]))}", "['logits']"
    elif isinstance(output, tuple | list):
        held, place = f" of {len(output)}", "[0]"
    elif hasattr(output, "logits"):
        place = ".logits"
    fix = "let forward return one tensor of logits [B, C]."
    if place:
        fix = f"wrap it in a module whose forward returns self.model(...){place}, a tensor of logits [B, C]."
    raise UserCodeError(f"The model returned a {type(output).__name__}{held}, not a tensor of logits [B, C]", fix)
