"""Monte Carlo dropout whose masks are the same for every row: sample s is one model, whatever the batch or the shard.

A mask has shape `[1, *features]` and is drawn from (seed, dropout module, call, sample) alone. Supported are the
modules of torch and their subclasses: `Dropout`, `Dropout1d`, `Dropout2d`, `Dropout3d` (whole channels, axis 1),
`AlphaDropout` and `FeatureAlphaDropout`. Dropout that is not a module of its own (`torch.nn.functional.dropout`, the
`dropout=` of an LSTM or of attention) stays off, as in eval mode.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from rayinf.core.row_gradients import without_fast_path
from rayinf.errors import InputError

_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout)
_ALPHA = (nn.AlphaDropout, nn.FeatureAlphaDropout)
# What a dropped unit becomes under alpha dropout: the limit of SELU at minus infinity.
_SELU_FLOOR = -1.7580993408473766

_FIX = 'use a model with nn.Dropout modules (p > 0) that its forward calls, or strategy="entropy", which needs none.'


class Masks:
    """The masks of one sample at a time, for every call of every dropout module."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.begin(0)

    def begin(self, sample: int) -> None:
        """Begin a sample, before its forward pass."""
        self._sample = sample
        self._calls: dict[int, int] = {}
        self._lengths: set[int] = set()

    def check(self, batch: int) -> None:
        """Check after a forward pass that its dropout ran, along the batch.

        Raises:
            InputError: no dropout module ran, or one whose first axis is not the batch.
        """
        if not self._calls:
            raise InputError("None of the model's dropout modules ran in its forward pass.", _FIX)
        if self._lengths != {batch}:
            other = (self._lengths - {batch}).pop()
            raise InputError(
                f"A dropout module ran on {other} rows in a batch of {batch}: its first axis is not the batch.",
                'keep the batch first where the model drops out, or use strategy="entropy".',
            )

    def apply(self, index: int, module: _DropoutNd, x: Tensor) -> Tensor:
        """What the module would give in training mode, with this sample's mask."""
        call = self._calls[index] = self._calls.get(index, -1) + 1
        self._lengths.add(len(x))
        features = tuple(x.shape[1:])
        if isinstance(module, _CHANNELS):
            features = features[:1] + (1,) * (x.dim() - 2)
        # NumPy's generator is seeded by all four numbers, and gives the same mask on every device.
        generator = np.random.default_rng([self._seed, index, call, self._sample])
        kept = generator.random((1, *features), dtype=np.float32) >= module.p
        keep = torch.from_numpy(kept).to(x.device, x.dtype)
        if module.p >= 1:
            return x * keep
        if isinstance(module, _ALPHA):
            scale = ((_SELU_FLOOR**2 * module.p + 1) * (1 - module.p)) ** -0.5
            return scale * (x * keep + _SELU_FLOOR * (1 - keep) - _SELU_FLOOR * module.p)
        return x * (keep / (1 - module.p))


def require_dropout(model: nn.Module) -> None:
    """Refuse a model without dropout, before any work.

    Raises:
        InputError: no dropout module of the model has p > 0.
    """
    if not _active(model):
        raise InputError("The model has no dropout module with p > 0: all its samples would be the same.", _FIX)


@contextmanager
def consistent_dropout(model: nn.Module, seed: int) -> Generator[Masks]:
    """Eval mode, with dropout under consistent masks; hooks and modes are restored on leaving.

    Args:
        model: with dropout (`require_dropout`).
        seed: of the masks, at least 0.

    Yields:
        The masks: `begin(sample)` before each forward pass, `check(rows)` after it.
    """
    masks = Masks(seed)
    training = [m for m in model.modules() if m.training]
    handles = []
    try:
        model.eval()
        for index, dropout in enumerate(_active(model)):
            handles.append(dropout.register_forward_hook(_hook(masks, index)))
        with without_fast_path():
            yield masks
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True


def mc_log_probabilities(
    model: nn.Module, forward: Callable[[nn.Module, Any], Tensor], x: Any, samples: int, seed: int
) -> Tensor:
    """Log-probabilities `[S, B, C]`, float64, of S samples of a model under dropout. Cost: S forward passes.

    Args:
        model: with dropout (`require_dropout`).
        forward: `(model, x) -> logits [B, C]`.
        x: a batch of the model's input.
        samples: S.
        seed: of the masks, at least 0.

    Raises:
        InputError: no dropout module ran, or one whose first axis is not the batch.
    """
    parts = []
    with consistent_dropout(model, seed) as masks, torch.no_grad():
        for sample in range(samples):
            masks.begin(sample)
            logits_bc = forward(model, x)
            masks.check(len(logits_bc))
            parts.append(logits_bc.double().log_softmax(1))
    return torch.stack(parts)


def _active(model: nn.Module) -> list[_DropoutNd]:
    return [m for m in model.modules() if isinstance(m, _DropoutNd) and m.p > 0]


def _hook(masks: Masks, index: int) -> Callable[..., Tensor]:
    def hook(module: _DropoutNd, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return masks.apply(index, module, output)

    return hook
