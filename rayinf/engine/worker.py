"""What a worker keeps between stages: the model, its blocks, and batches of tensors from any shard."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from rayinf.core import fisher
from rayinf.core.blocks import Block, find_blocks
from rayinf.core.capture import capture, forward
from rayinf.core.influence import ForwardPass
from rayinf.data.batches import Batch, BatchReader, fast_keys, in_second_half, row_keys, signs, uniforms
from rayinf.data.files import Arrays
from rayinf.data.shards import Shard
from rayinf.engine.factories import check_same_state
from rayinf.engine.job import Job
from rayinf.errors import InputError, RowsError
from rayinf.task import RowLoss
from rayinf.user_code import ATTACK, MASK, TRANSFORM, UserCodeError, user_code

if TYPE_CHECKING:
    from rayinf.engine.curvature_rows import DrawnRows

# Floats of activations that one batch may hold (512 MB in float32): fixes the batch size where none is given.
BATCH_FLOATS = 128_000_000
MOST_ROWS = 1024
MOST_ROWS_ON_CARD = 16_384
# Of an accelerator's memory; where that is too much for a model, batches are halved.
_CARD_SHARE = 0.4
# Random signs are drawn apart from labels, halves, subsamples and rows.
_SIGN_SEED = 16
_AUTOCAST = {None: None, "fp64": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Ready:
    """A batch on the worker's device."""

    raw: Batch
    x: Any
    y: Tensor
    mask: Tensor | None


class Worker:
    """Built once in every process that works; stages come and go, the model stays.

    Args:
        job: what it works on.
        device: where the model is moved to; None leaves it where it is.
        halvings: how often batches are halved from the start.
        drawn: what the worker of another job of the run, in the same process, has drawn.
    """

    def __init__(self, job: Job, device: str | None = None, halvings: int = 0, drawn: DrawnRows | None = None) -> None:
        self.job = job
        self._device = device
        self._readers: dict[str, BatchReader] = {}
        # Only ever grows: another thread reads it as a sign of progress.
        self.rows_read = 0
        self._batch: tuple[str, Batch] | None = None
        self._table = ""
        self.drawn = drawn
        # How often batches were halved, since memory ran out; by stage, where that made batches smaller.
        self.halvings = halvings
        self.halved: dict[str, int] = {}
        self._largest, self._is_halved = 1, False

    @cached_property
    def model(self) -> nn.Module:
        """The model on the worker's device, in eval mode; its outputs are logits (`core.outputs`).

        Raises:
            InputError: a factory raised, or built another model here than in the driver.
        """
        try:
            model = self.job.task.build()
        except RowsError as error:  # the factory raised: no rows have a part in it
            raise InputError(error.what, error.fix) from error
        if self.job.state is not None and not isinstance(self.job.task.model, nn.Module):
            check_same_state(self.job.state, model)
        if self.job.precision == "fp64":
            # A factory may return one and the same module each time, which must stay as it is.
            model = (model if isinstance(self.job.task.model, nn.Module) else copy.deepcopy(model)).double()
        self.job.outputs.prepare(model)
        return model.to(self._device) if self._device else model

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """What is valued."""
        return find_blocks(self.model, self.job.task.parameters)

    @property
    def loss(self) -> str | RowLoss:
        """The task's loss as a function of the model's logits."""
        return self.job.outputs.loss(self.job.task.loss)

    def row_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each row, `[B]`."""
        loss = self.loss
        if callable(loss):
            return loss(logits, labels)
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    def exact_row_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The same, in float64 where the loss takes that: a sure row would lose its derivatives in float32."""
        exact = self.loss == "cross_entropy" or self.job.outputs.doubles
        return self.row_loss(logits.double() if exact else logits, labels)

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The model's modules by name."""
        return dict(self.model.named_modules())

    @cached_property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @cached_property
    def dtype(self) -> torch.dtype:
        """The precision of sums, products and scores: the model's own, at least float32."""
        own = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        return torch.float32 if own in (torch.bfloat16, torch.float16) else own

    @cached_property
    def _tokens(self) -> bool:
        return any(isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in self.model.modules())

    def rows_a_batch(self, columns: int) -> int:
        """Rows that fit in memory with this many Fisher columns: fixed by the model, the data and the kind of device.

        Fewer once memory has run out.
        """
        if columns not in self._sizes:
            self._sizes[columns] = self.job.spec.batch_size or self._measure(columns)
        return self.fewer(self._sizes[columns])

    def fewer(self, rows: int) -> int:
        """Rows of a batch that would have so many, had memory never run out."""
        found = max(1, rows >> self.halvings)
        self._largest, self._is_halved = max(self._largest, rows), self._is_halved or found < rows
        return found

    def note_halvings(self, stage: str) -> None:
        """Keep in `halved` that an item of a stage was done in smaller batches, if it was."""
        if self._is_halved:
            self.halved[stage] = self.halvings
        self._is_halved = False

    def halve_batches(self) -> bool:
        """Halve the rows of a batch, after the device has run out of memory; False where a batch is one row already."""
        if self._largest >> self.halvings <= 1:
            return False
        self.halvings += 1
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return True

    @cached_property
    def _sizes(self) -> dict[int, int]:
        return {}

    def _measure(self, columns: int) -> int:
        inputs, outputs = self.activations
        loose = sum(b.numel for b in self.blocks if b.kind == "loose")
        # Saved activations of the other layers (norms, non-linearities) are taken as twice the outputs.
        floats = inputs + (columns + 3) * outputs + loose + len(self.job.classes.labels) * 8
        room, most = BATCH_FLOATS, MOST_ROWS
        if self.device.type == "cuda":
            # By what the card has, not by what is free at the moment: batches move the last bits of sums.
            room = int(torch.cuda.get_device_properties(self.device).total_memory * _CARD_SHARE) // 4
            most = MOST_ROWS_ON_CARD
        return int(min(max(room // floats, 1), most))

    @cached_property
    def activations(self) -> tuple[int, int]:
        """Numbers a row in the inputs and in the outputs of all valued layers."""
        return self._sides[0], self._sides[1]

    @property
    def largest_shared(self) -> int:
        """Parameters of the largest block whose weights several positions share."""
        return self._sides[2]

    @property
    def shared(self) -> frozenset[str]:
        """Blocks whose weights several positions share."""
        return self._sides[4]

    @cached_property
    def _sides(self) -> tuple[int, int, int, frozenset[str], frozenset[str]]:
        ready = next(self.read("train", self.job.tables["train"].shards[0], 1))
        with self.forward_pass(ready.x) as forward_pass:
            ruled = [b for b in forward_pass.blocks if b.name in forward_pass.captured.shapes]
            outputs = sum(s.numel() for b in ruled for s in forward_pass.captured.shapes[b.name])
            inputs = sum(x.numel() for b in ruled for x in forward_pass.captured.inputs[b.name])
            shapes = forward_pass.captured.shapes  # in the order in which the layers run
            many = [b for b in ruled if _positions(b, shapes[b.name]) > 1]
        order = list(shapes)
        until = max((order.index(b.name) for b in many), default=-1)
        largest, shared = max((b.numel for b in many), default=0), frozenset(b.name for b in many)
        return inputs, outputs, largest, frozenset(order[: until + 1]), shared

    def read(self, table: str, shard: Shard, size: int) -> Iterator[Ready]:
        """The rows of a shard as batches of tensors.

        Raises:
            InputError: as reading and the user's transform do.
        """
        for raw in self.read_raw(table, shard, size):
            yield self.ready(table, raw)

    def read_raw(self, table: str, shard: Shard, size: int) -> Iterator[Batch]:
        """The rows of a shard as they are read."""
        self._table = table
        if table not in self._readers:
            self._readers[table] = BatchReader(self.job.tables[table], self.job.columns[table])
        for raw in self._readers[table].read(shard, size):
            self.rows_read += len(raw)
            yield raw

    def ready(self, table: str, raw: Batch) -> Ready:
        """A batch as tensors on the device. Rows of a pool have no label, and get 0."""
        self.begin(table, raw)
        x = self.input(raw.x)
        labels = raw.labels if self.job.columns[table].label is None else self.job.classes.encode(raw.labels)
        y = torch.from_numpy(labels).to(self.device)
        return Ready(raw, x, y, self.mask(x, len(raw)))

    def begin(self, table: str, raw: Batch) -> None:
        """Remember which rows are at work, for errors."""
        self._batch, self._table = (table, raw), table

    @property
    def table_at_work(self) -> str:
        """The name of the table that was read last, for errors."""
        return self.job.tables[self._table].name if self._table else "the table"

    @property
    def rows_at_work(self) -> str:
        """The batch that was made ready last, for errors."""
        if self._batch is None:
            return ""
        table, raw = self._batch
        which = f"row {raw.start}" if len(raw) == 1 else f"rows {raw.start} to {raw.start + len(raw) - 1}"
        if raw.is_part:
            which = f"{len(raw)} of the rows from {raw.start} on"
        double = " in float64" if self.job.precision == "fp64" else ""
        held = f"features {list(raw.x.shape)} {raw.x.dtype}{double}"
        return f"{which} of {self.job.tables[table].name} ({held})"

    def mask(self, x: Any, rows: int) -> Tensor | None:
        """The user's mask as a boolean `[B, T]`: integers 0 and 1, as tokenizers give them, count as booleans.

        Raises:
            UserCodeError: it has another shape, or other values.
        """
        if self.job.task.mask is None:
            return None
        with user_code(*MASK):
            mask = self.job.task.mask(x)
        if isinstance(mask, np.ndarray):
            mask = torch.from_numpy(mask)
        shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        if not isinstance(mask, Tensor) or mask.ndim != 2 or len(mask) != rows:
            raise UserCodeError(f"Task(mask=...) returned {shape} for {rows} rows, not a mask [B, T]", MASK[1])
        if mask.dtype != torch.bool:
            if not bool(((mask == 0) | (mask == 1)).all()):
                raise UserCodeError(
                    f"Task(mask=...) returned {mask.dtype} with other values than 0 and 1",
                    "return True (or 1) on tokens and False (or 0) on padding, not numbers to be added to scores.",
                )
            mask = mask.bool()
        return mask.to(self.device)

    @contextmanager
    def forward_pass(self, x: Any) -> Generator[ForwardPass]:
        """A forward pass whose row gradients can be computed."""
        half = _AUTOCAST[self.job.precision] is torch.float16
        with capture(self.model, self.blocks, half=half) as captured:
            yield ForwardPass(self.model, self.modules, self.blocks, captured, self.predict(x), x)

    def predict(self, x: Any) -> Tensor:
        """Logits `[B, C]` of an input, in the run's precision.

        Raises:
            UserCodeError: the model raised, or gave other logits than one row for each row of the batch.
        """
        logits = forward(self.model, x, _AUTOCAST[self.job.precision])
        known, rows = len(self.job.classes.labels), len(self._batch[1]) if self._batch else None
        if known and rows is not None and logits.shape != (rows, known):
            raise UserCodeError(
                f"The model returned logits {list(logits.shape)}, not [{rows}, {known}] as for other batches",
                "let Task(transform=...) and forward keep the first axis as rows, in batches of one row too "
                "(squeeze() drops it).",
            )
        return logits

    def attacked(self, attack: Callable[..., Any] | None, ready: Ready) -> Any:
        """The input of a batch after an attack on this worker's model; as it is without one.

        Raises:
            UserCodeError: the attack raised.
        """
        if attack is None:
            return ready.x
        with user_code("The objective's attack", ATTACK):
            return attack(self.predict, ready.x, ready.y, self.row_loss)

    def fisher_columns(self, ready: Ready, logits: Tensor) -> tuple[Tensor, float]:
        """Columns `[S, B, C]` of the Fisher in the logits, drawn by row where there are many classes; and their scale.

        What is summed over the columns' outer products counts `scale ** 2` times.
        """
        spec, draws = self.job.spec, None
        if self.draws_labels:
            keys = row_keys(ready.raw.x, ready.raw.labels)
            draws = torch.from_numpy(uniforms(keys, spec.seed, fisher.DRAWS))
        found = fisher.columns(logits, ready.y, self.loss, spec.fisher, draws)
        return fisher.scale_together(found, logits.dtype)

    def layer_columns(self, ready: Ready, logits: Tensor) -> tuple[fisher.Columns, float]:
        """The same for every layer: of those in `signed`, few columns that are combined with random signs."""
        exact, scale = self.fisher_columns(ready, logits)
        if not self.signed:
            return fisher.Columns(exact), scale
        many = self.draws_labels
        count = logits.shape[1] if many else len(exact)
        drawn = signs(fast_keys(ready.raw.x, ready.raw.labels), self.job.spec.seed + _SIGN_SEED, count)
        signs_bs = torch.from_numpy(drawn).to(self.device)
        if many:
            combined = (fisher.signed_softmax(logits, signs_bs) / scale).to(logits.dtype)
        else:
            combined = fisher.signed_columns(exact, signs_bs)
        return fisher.Columns(exact, combined, self.signed), scale

    @cached_property
    def signed(self) -> frozenset[str]:
        """Layers whose Fisher columns are combined with random signs: those with many positions, and what runs before.

        There the exact columns cost as many backward passes and Gram matrices over all positions. Layers that run after
        them, with one position, stay exact: a backward pass that ends at them costs little. Of few rows all layers stay
        exact: the error of random signs falls with the root of the rows, and so does what they save.
        """
        width = self.fisher_width - (self.loss == "cross_entropy" and not self.draws_labels)
        if not self.job.random_signs or self.job.spec.fisher != "true" or width <= fisher.SIGN_DRAWS:
            return frozenset()
        return self._sides[3]

    @property
    def draws_labels(self) -> bool:
        """Whether labels are drawn, because there are too many classes for the whole expectation."""
        many = len(self.job.classes.labels) > fisher.MOST_CLASSES
        return many and self.job.spec.fisher == "true" and self.loss == "cross_entropy"

    @property
    def fisher_width(self) -> int:
        """S, the number of Fisher columns."""
        if self.job.spec.fisher == "empirical":
            return 1
        return fisher.DRAWS if self.draws_labels else len(self.job.classes.labels)

    def halves(self, ready: Ready) -> Tensor | None:
        """0 or 1 for each row: which half of the validation rows it is in, from its contents and the seed."""
        if not self.job.spec.halves:
            return None
        side = in_second_half(ready.raw.x, ready.raw.labels, self.job.spec.seed)
        return torch.from_numpy(side.astype(np.int64)).to(self.device)

    def tensors(self, arrays: Arrays, dtype: torch.dtype) -> dict[str, Tensor]:
        """Arrays of a payload on the device, copied: shared memory is read-only and aligned as it likes."""
        return {k: torch.tensor(v).to(self.device, dtype) for k, v in arrays.items()}

    def input(self, x: Any) -> Any:
        """The model's input, on the device, from the features of a batch."""
        transform = self.job.task.transform
        if transform is None:
            floating = x.dtype.kind == "f" or not self._tokens
            return torch.tensor(x).to(self.device, self.dtype if floating else torch.int64)
        with user_code(*TRANSFORM):
            found = transform(x if x.flags.writeable else x.copy())  # torch warns of read-only arrays
        return self._convert(found)

    def _convert(self, x: Any) -> Any:
        if isinstance(x, dict):
            return {k: self._convert(v) for k, v in x.items()}
        if isinstance(x, tuple | list):
            return tuple(self._convert(v) for v in x)
        if not isinstance(x, Tensor):
            with user_code(*TRANSFORM):  # lists of different lengths are no array
                array = np.asarray(x)
            if array.dtype.kind not in "fiub":
                raise UserCodeError(
                    f"Task(transform=...) returned {array.dtype}", "return arrays or tensors of numbers."
                )
            x = torch.tensor(array)
        tensor: Tensor = x
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)


def _positions(block: Block, shapes: Sequence[torch.Size]) -> int:
    return sum(s.numel() for s in shapes) // (block.shape[0] * block.shape[1])
