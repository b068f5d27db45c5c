"""The model on a few rows, before any work: its outputs, its loss, and whether the own gradients are true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from rayinf.core.blocks import Block, require_rules, to_matrix
from rayinf.core.capture import capture, forward
from rayinf.core.fisher import columns, logit_gradient, loss_gradient
from rayinf.core.gaps import Gap
from rayinf.core.influence import ForwardPass, block_rows
from rayinf.core.mixed_derivatives import RecordedRows
from rayinf.core.objectives import Objective
from rayinf.core.outputs import Outputs, check_curvature, find_outputs
from rayinf.core.perturbation import check_layer, perturbed_size
from rayinf.data.batches import Batch, BatchReader
from rayinf.engine.entry import KRONECKER
from rayinf.engine.factories import built, frozen
from rayinf.engine.job import Job
from rayinf.engine.model_digest import ModelDigest
from rayinf.engine.per_row import transform_fix
from rayinf.engine.row_function import check_model, check_rows, check_transform
from rayinf.engine.worker import Worker
from rayinf.errors import InputError
from rayinf.user_code import ATTACK, UserCodeError, on_rows, torch_said, user_code

_ROWS = 4
_TOLERANCE = 1e-3
# Of models in half precision, whose gradients are rounded on their way through every layer.
_HALF = {torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Probe:
    """What a few rows show of the model.

    Attributes:
        logits: C.
        blocks: what is valued.
        parameters: in all blocks.
        eps: of the precision.
        dtype: of sums, products and scores.
        fingerprint: digest of the model.
        architecture: digest of the model without its weights.
        frozen: see `factories.frozen`.
        state: digests of parameters and buffers by name.
        perturbed: numbers of a row that FI perturbs.
        model: as it was built.
        outputs: what it returns.
        work: multiply-adds of a forward pass through the valued layers, a row.
    """

    logits: int
    blocks: tuple[Block, ...]
    parameters: int
    eps: float
    dtype: str
    fingerprint: str
    architecture: str
    frozen: str | None
    state: Mapping[str, str]
    perturbed: int
    model: nn.Module
    outputs: Outputs
    work: int


def probe(job: Job, objectives: Sequence[Objective] = ()) -> Probe:
    """Try the model on the first rows of the training table.

    Raises:
        InputError: parameters that are not finite, a layer without a rule, an output that is not [B, C], a loss
            that is not one value a row, features without a transform, or own gradients that differ from
            autograd's.
    """
    held = built(job.task)
    worker = Worker(job)
    with on_rows(lambda: worker.rows_at_work):
        return _probe(worker, job, objectives, held)


def _probe(worker: Worker, job: Job, objectives: Sequence[Objective], held: ModelDigest) -> Probe:
    model, blocks = worker.model, worker.blocks
    _check_parameters(model)
    if job.spec.curvature in KRONECKER:
        require_rules(model, blocks, f"curvature={job.spec.curvature!r}")
    elif job.spec.mixed:
        require_rules(model, blocks, "the influence measure FI")
    batch = next(BatchReader(job.tables["train"], job.columns["train"]).read(job.tables["train"].shards[0], _ROWS))
    _check_features(batch, job)
    x, logits = _try_model(worker, batch)
    if logits.ndim != 2 or len(logits) != len(batch):
        raise InputError(
            f"The model's output is {tuple(logits.shape)} for a batch of {len(batch)} rows: logits must be [B, C].",
            "wrap the model so that it returns one row of logits for each input row.",
        )
    if logits.shape[1] < 2:
        raise InputError(
            "The model's output is [B, 1]: one logit names no two classes.",
            "give a two-class model two logits: append a column of zeros before the one logit.",
        )
    if not bool(torch.isfinite(logits).all()) and (batch.x.dtype.kind != "f" or np.isfinite(batch.x).all()):
        raise InputError(
            "The model's logits on the first training rows are NaN or infinite, and those rows are not.",
            "check the model's buffers (running means, say), Task(transform=...) and the scale of the features.",
        )
    more = next(BatchReader(job.tables["train"], job.columns["train"]).read(job.tables["train"].shards[0], 2 * _ROWS)).x
    check_transform(worker, more, len(batch))
    check_model(worker, more, len(batch))
    labels = torch.arange(len(batch), device=logits.device) % logits.shape[1]
    logit_gradient(job.task.row_loss, logits, labels)
    outputs = find_outputs(model, x, job.task.loss)
    outputs.prepare(model)
    job = replace(job, outputs=outputs)
    worker.job = job
    logits = worker.predict(x).detach()
    _check_loss(worker, logits, labels)
    _check_probabilities(job, objectives)
    if not job.task.is_cross_entropy:
        check_rows(worker.row_loss, logits, labels)
    for objective in objectives:
        if objective.rows is not None:
            logit_gradient(outputs.rows(objective.rows), logits, labels, f"Objective {objective.name!r}")
            check_rows(outputs.rows(objective.rows), logits, labels, f"Objective {objective.name!r}")
        if objective.attack is not None:
            _check_attack(objective, worker, x, labels)
    _check_attached(worker, x)
    work = _check_gradients(worker, x, labels)
    perturbed = _check_mixed(worker, x, labels) if job.spec.mixed else 0
    return Probe(
        logits.shape[1],
        blocks,
        sum(b.numel for b in blocks),
        torch.finfo(worker.dtype).eps,
        str(worker.dtype).removeprefix("torch."),
        held.whole,
        held.architecture,
        frozen(model),
        held.state,
        perturbed,
        model,
        outputs,
        work,
    )


def _check_parameters(model: nn.Module) -> None:
    for name, value in model.named_parameters():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise InputError(
                f"The model's parameter {name!r} has {count} of {value.numel()} values that are NaN or infinite.",
                "load a checkpoint from before training diverged.",
            )


def _try_model(worker: Worker, batch: Batch) -> tuple[Any, torch.Tensor]:
    """The model's input and its logits on a few rows."""
    worker.begin("train", batch)
    try:
        x = worker.input(batch.x)
    except UserCodeError as error:
        raise UserCodeError(
            error.parts[0], transform_fix(worker.job.task.transform, batch.x), error.parts[2]
        ) from error.__cause__
    worker.mask(x, len(batch))
    with torch.no_grad():
        logits = forward(worker.model, x)
    return x, logits


def _check_loss(worker: Worker, logits: torch.Tensor, labels: torch.Tensor) -> None:
    """A Fisher that can be formed, and that is not 0 where the loss has a slope."""
    loss, spec = worker.loss, worker.job.spec
    if loss != "cross_entropy" and spec.curvature in (*KRONECKER, "ggn"):
        factor = columns(logits, labels, loss, spec.fisher, None)
        check_curvature(factor, loss_gradient(loss, logits, labels)[1])


def _check_probabilities(job: Job, objectives: Sequence[Objective]) -> None:
    """Outputs that a softmax turns into probabilities, for whatever takes these.

    Raises:
        InputError: the model returns probabilities.
    """
    if job.spec.takes_probabilities:
        job.outputs.require_logits(job.spec.takes_probabilities)
    for objective in objectives:
        if isinstance(objective, Gap):
            job.outputs.require_logits(f"Objective {objective.name!r}")


def _check_attack(objective: Objective, worker: Worker, x: Any, labels: torch.Tensor) -> None:
    """The attack runs, and what it gives can be fed to the model."""
    assert objective.attack is not None
    with user_code(f"The attack of objective {objective.name!r}", ATTACK):
        attacked = objective.attack(worker.predict, x, labels, worker.row_loss)
    try:
        logits = worker.predict(attacked)
    except UserCodeError as error:
        what = f"Objective {objective.name!r}: after its attack, {error.parts[0][0].lower()}{error.parts[0][1:]}"
        raise UserCodeError(what, ATTACK) from error.__cause__
    if logits.shape[:1] != labels.shape or not bool(torch.isfinite(logits).all()):
        raise InputError(
            f"Objective {objective.name!r}: after the attack the model gives {list(logits.shape)} logits for "
            f"{len(labels)} rows, or some that are not finite.",
            "let the attack return one finite input a row.",
        )


def _check_features(batch: Batch, job: Job) -> None:
    if job.task.transform is None and (
        batch.x.dtype == object or (batch.x.dtype.kind == "u" and batch.x.itemsize == 1)
    ):
        held = "text or bytes" if batch.x.dtype == object else "bytes"
        if batch.x.dtype == object or _is_binary(job):
            raise InputError(
                f"Column {job.task.features!r} holds {held}, and the Task has no transform.",
                "pass Task(transform=f): f turns the features of a batch (NumPy) into the model's input.",
            )


def _is_binary(job: Job) -> bool:
    kind = str(job.tables["train"].schema.field(job.task.feature_columns[0]).type)
    return "binary" in kind


def _check_attached(worker: Worker, x: object) -> None:
    """Whether gradients pass from the logits to the parameters."""
    model = worker.model
    before = [(p, p.requires_grad) for p in model.parameters() if p.is_floating_point()]
    try:
        for p, _ in before:
            p.requires_grad_(True)
        with torch.enable_grad():
            attached = forward(model, x).requires_grad
    finally:
        for p, wanted in before:
            p.requires_grad_(wanted)
    if not attached:
        raise InputError(
            "The model's logits have no gradient in its parameters.",
            "leave out detach(), .data, NumPy, torch.no_grad() and torch.inference_mode() in forward.",
        )


def _check_gradients(worker: Worker, x: object, labels: torch.Tensor) -> int:
    """The own row gradients against autograd's: catches tied weights, layers used unusually, rows that mix.

    Returns:
        Multiply-adds of a forward pass through the valued layers, a row.

    Raises:
        InputError: own gradients that differ from autograd's.
    """
    model, blocks = worker.model, worker.blocks
    ruled = tuple(b for b in blocks if b.kind != "loose")
    if not ruled:
        return sum(b.numel for b in blocks)
    with capture(model, ruled) as captured:
        logits = forward(model, x)
        _, cotangent = logit_gradient(worker.row_loss, logits, labels)
        names = [n for b in ruled for n in b.parameters]
        params = dict(model.named_parameters())
        total = (logits * cotangent).sum()
        truth = torch.autograd.grad(total, [params[n] for n in names], retain_graph=True, allow_unused=True)
        forward_pass = ForwardPass(model, worker.modules, ruled, captured, logits, x)
        own = [rows.sum(0).flatten() for _, rows in block_rows(forward_pass, cotangent, last=False)]
        alone = torch.zeros_like(cotangent)
        alone[0] = cotangent[0]
        work = sum(s.numel() * b.shape[2] for b in ruled for s in captured.shapes.get(b.name, ())) // len(labels)
        # A layer at a time: of a large model, a few rows of gradients over all parameters would not fit.
        norms = [(rows[0].norm(), rows[1:].norm()) for _, rows in block_rows(forward_pass, alone)]
        first, others = torch.tensor(norms).norm(dim=0).tolist()
    tolerance = max([_TOLERANCE, *(_HALF.get(p.dtype, 0.0) for p in params.values())])
    if others > tolerance * first + 1e-6:
        raise InputError(
            "The loss of one row depends on other rows of its batch, or a layer has another axis first: "
            "such a model has no gradients of rows.",
            "keep the batch as the first axis in forward, and let no layer mix rows (BatchNorm in eval mode is fine).",
        )
    found = {n: torch.zeros_like(params[n]) if g is None else g for n, g in zip(names, truth, strict=True)}
    for block, flat in zip(ruled, own, strict=True):
        true = to_matrix(block, [found[n] for n in block.parameters]).flatten()
        error = float((flat.to(true.dtype) - true).norm())
        if error > tolerance * float(true.norm()) + 1e-6:
            raise InputError(
                f"Layer {block.name!r} is used in a way that its rule does not see (its weights are read outside its "
                f"own forward?): own and true gradient differ by {error / max(float(true.norm()), 1e-12):.1%}.",
                "leave it out of Task(parameters=[...]).",
            )
    return work


def _check_mixed(worker: Worker, x: object, labels: torch.Tensor) -> int:
    """Whether the model can be differentiated in its parameters and in what is perturbed; the size d of that."""
    perturb = worker.job.spec.perturb
    check_layer(worker.model, perturb)
    d = perturbed_size(worker.model, x, perturb)
    rows = RecordedRows(worker.model, worker.blocks, x, labels, worker.loss, perturb)
    ones = {b.name: torch.ones(1, *b.shape, dtype=worker.dtype, device=worker.device) for b in worker.blocks}
    try:
        found = (
            rows.slopes(ones).sum()
            + rows.columns(torch.ones_like(rows.logits[:, :1]).expand(-1, d)[..., None], None).sum()
        )
    except (RuntimeError, NotImplementedError, UserCodeError) as error:
        raise InputError(
            f"The model cannot be differentiated twice, as the influence measure FI needs: {torch_said(error)}.",
            "take its embeddings as the features and value the layers after them (an LSTM has no second derivatives).",
        ) from error
    if not bool(torch.isfinite(found)):
        raise InputError(
            "The mixed derivatives of the loss on the first training rows are NaN or infinite.",
            "check the scale of the features, and layers without a second derivative (a square root at 0, say).",
        )
    return d
