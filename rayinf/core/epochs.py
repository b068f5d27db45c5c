"""Training by minibatches: momentum SGD, Adam or AdamW, a schedule over all steps, a weight a row, a ridge."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rayinf.core.capture import forward
from rayinf.errors import InputError, RunError
from rayinf.task import Fit, RowLoss

# (x, y [B], weights [B] or None) of every batch of an epoch, whose order is drawn from the generator.
EpochBatches = Callable[[torch.Generator], Iterable[tuple[Any, Tensor, Tensor | None]]]


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run.

    Attributes:
        fit: optimiser, learning rate, schedule, epochs.
        row_loss: `(logits [B, C], labels [B]) -> loss of each row [B]`.
        steps: batches of all epochs, which the schedule runs over.
        seed: of the initial parameters, the order of rows, and dropout.
        l2: the ridge.
        ridged: names of the parameters that have it.
    """

    fit: Fit
    row_loss: RowLoss
    steps: int
    seed: int
    l2: float = 0.0
    ridged: frozenset[str] = frozenset()


def train_epochs(model: nn.Module, epoch_batches: EpochBatches, recipe: Recipe) -> None:
    """Train a model in place on `mean_batch w_i l_i + l2/2 ||theta||^2` a step; it is left in eval mode.

    The same seed gives the same weights on one machine, and torch's global generators are left as they were.

    Args:
        model: on its device. Frozen parameters stay as they are.
        epoch_batches: called once an epoch.
        recipe: the settings.

    Raises:
        InputError: no parameter is trainable, or parameters that cannot be initialised anew.
        RunError: the loss is not finite.

    Cost: a forward and a backward pass a row and epoch.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise InputError("The model has no trainable parameter.", "set requires_grad on those to be trained.")
    ridged = [p for n, p in model.named_parameters() if n in recipe.ridged and p.requires_grad] if recipe.l2 else []
    generator = torch.Generator().manual_seed(recipe.seed)
    with _own_randomness(trainable[0].device, recipe.seed):
        if recipe.fit.fresh:
            reinitialise(model)
        optimizer, step = _optimizer(trainable, recipe.fit), 0
        model.train()
        for epoch in range(recipe.fit.epochs):
            total = torch.zeros((), device=trainable[0].device)
            for x, y, weights in epoch_batches(generator):
                for group in optimizer.param_groups:
                    group["lr"] = rate(recipe.fit, step, recipe.steps)
                optimizer.zero_grad()
                losses = recipe.row_loss(forward(model, x), y)
                loss = (losses if weights is None else losses * weights.to(losses.dtype)).mean()
                for p in ridged:
                    loss = loss + recipe.l2 / 2 * p.square().sum()
                loss.backward()
                optimizer.step()
                total += loss.detach()
                step += 1
            if not math.isfinite(float(total)):
                raise RunError(
                    f"Training diverged: the loss is {float(total)} in epoch {epoch + 1} of {recipe.fit.epochs}.",
                    f"pass a learning rate below {recipe.fit.lr} in Task(fit=rayinf.Fit(lr=...)).",
                )
    model.zero_grad()
    model.eval()


def reinitialise(model: nn.Module) -> None:
    """Call `reset_parameters()` of every module that has it, from torch's random numbers; frozen modules are skipped.

    Raises:
        InputError: trainable parameters of a module that cannot reset them: training would start from trained ones.
    """

    def reset(module: nn.Module) -> None:
        own = list(module.parameters(recurse=False))
        if own and not any(p.requires_grad for p in own):
            return
        again = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if again is not None:  # nn.MultiheadAttention has it under the second name
            again()
        elif own:
            names = [n for n, m in model.named_modules() if m is module]
            raise InputError(
                f"Module {names[0]!r} ({type(module).__name__}) has parameters of its own and no reset_parameters(), "
                "so they cannot be initialised anew.",
                "give it a reset_parameters(), go on from the task's weights with Fit(fresh=False), or pass a "
                "function as Task(fit=...).",
            )

    model.apply(reset)


def rate(fit: Fit, step: int, steps: int) -> float:
    """The learning rate of a step, from 0."""
    if fit.schedule == "cosine":
        return fit.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
    return fit.lr * (1 - step / steps) if fit.schedule == "linear" else fit.lr


def _optimizer(parameters: list[nn.Parameter], fit: Fit) -> torch.optim.Optimizer:
    if fit.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=fit.lr, momentum=fit.momentum, weight_decay=fit.weight_decay)
    kind = torch.optim.Adam if fit.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=fit.lr, weight_decay=fit.weight_decay)


@contextmanager
def _own_randomness(device: torch.device, seed: int) -> Generator[None]:
    """Seeded random numbers inside; torch's generators are restored after."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
