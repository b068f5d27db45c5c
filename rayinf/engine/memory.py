"""What a run must hold in memory at once, counted from its shapes before any work, against what there is.

The constants are copies that the code makes, and were measured: 12 bytes a parameter and column in float32 with EKFAC
(sums 8, solved 4) and 8 more for the largest layer's query vectors, 16 with "identity"; with halves, two sums and three
vectors a column. Sums of more than 256 MiB are in the model's precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rayinf.engine.curvature import column_names
from rayinf.engine.entry import DENSE, KRONECKER
from rayinf.engine.job import Cluster, Job, chunks
from rayinf.engine.machine import free_memory
from rayinf.engine.measure_spec import AcquireSpec
from rayinf.engine.probe import Probe
from rayinf.engine.spec import PairsSpec
from rayinf.engine.stages import query_dtype
from rayinf.errors import InputError

# Of what is free, so much may be planned for: the rest is for batches and for what other programs take meanwhile.
_SHARE = 0.9


@dataclass(frozen=True)
class Need:
    """Bytes that one step holds at once, what they are for, and how to need fewer."""

    what: str
    size: int
    fix: str


def check_fits(job: Job, probed: Probe, cluster: Cluster | None, merged: int) -> None:
    """Refuse a run that does not fit into this machine's memory. A cluster elsewhere is not checked.

    Args:
        job: settled.
        probed: the model's shapes.
        cluster: where it runs.
        merged: partial sums of a stage, at most.

    Raises:
        InputError: what takes most, how many bytes, and how many there are.
    """
    if cluster is not None and cluster.address is not None:
        return
    found = needs(job, probed, 1 if cluster is None else cluster.workers, merged)
    worst = max(found, key=lambda need: need.size, default=None)
    free = free_memory()
    if worst is not None and worst.size > _SHARE * free:
        raise InputError(f"{worst.what} take {gib(worst.size)} of memory; {gib(free)} are free.", worst.fix)


def needs(job: Job, probed: Probe, workers: int, merged: int) -> list[Need]:
    """What the steps of a run hold at once, of all processes together."""
    p, item = probed.parameters, torch.finfo(getattr(torch, probed.dtype)).bits // 8
    found = []
    if job.targets and "valid" in job.tables:
        found.append(query_bytes(job, probed, workers, merged))
    if job.spec.curvature in KRONECKER:
        found.append(_factors(probed, workers))
    if isinstance(job.spec, PairsSpec):
        size = p * (24 + 2 * item) * max(1, tile_rows(p))
        found.append(Need(f"The gradients of validation rows over {p:,} parameters", size, _FEWER))
    directions = min(probed.logits - 1, probed.perturbed)
    if job.spec.mixed and isinstance(job.spec, AcquireSpec):
        what = f"The {directions:,} directions of one labelled row over {p:,} parameters, in float64,"
        found.append(Need(what, 3 * 8 * directions * p * workers, _FEWER))
    elif job.spec.mixed:
        what = f"The derivatives of one row, {directions:,} x {probed.perturbed:,} numbers in float64,"
        fix = "perturb fewer features: take embeddings as the features."
        found.append(Need(what, 3 * 8 * directions * probed.perturbed * workers, fix))
    return found


_FEWER = 'value fewer parameters with Task(parameters="last") or a list of module names.'


def query_bytes(job: Job, probed: Probe, workers: int, merged: int) -> Need:
    """Group sums of gradients, and the queries that are made of them."""
    item = torch.finfo(getattr(torch, probed.dtype)).bits // 8
    halves, p = job.spec.halves, probed.parameters
    sums = _group_sums(job)
    columns = len(column_names(job.targets, halves))
    each = torch.finfo(query_dtype(sums, p, getattr(torch, probed.dtype))).bits // 8
    parts = len(chunks(job.tables["valid"].shards, query_chunks(job, probed, merged)))
    largest = max(b.numel for b in probed.blocks)
    copied = columns * (2 if job.spec.curvature == "identity" else 1)
    if halves or len(job.targets) > 1:  # joined from parts
        copied += sums
    solve = (each * sums + item * columns) * p + each * copied * largest
    fold = each * sums * p * (math.ceil(math.log2(parts)) + 2 + (2 * workers if workers > 1 else 0))
    score = item * columns * p * (1 + workers)
    what = f"{columns:,} column{'s' if columns > 1 else ''} over {probed.parameters:,} parameters"
    fix = f"ask for fewer columns at a time (objective), or {_FEWER}"
    if halves:
        fix = f"leave halves out, {fix}"
    return Need(what, max(solve, fold, score), fix)


def query_chunks(job: Job, probed: Probe, merged: int) -> int:
    """Chunks that group sums of gradients are added up in, at most: one where they are large."""
    exact = query_dtype(_group_sums(job), probed.parameters, torch.float32) is torch.float64
    return merged if exact else 1


def _group_sums(job: Job) -> int:
    return sum(t.width for t in job.targets) * (2 if job.spec.halves else 1)


def _factors(probed: Probe, workers: int) -> Need:
    """Sums A and G, their copies as tensors, eigenvectors and LAPACK's room for the largest; and each worker's sums."""
    sides = [(r, o, 1 if b.kind == "embedding" else i) for b in probed.blocks for r, o, i in [b.shape]]
    grams = sum(8 * r * (o * o + i * i) for r, o, i in sides)
    largest = max((max(o, i) for _, o, i in sides), default=0)
    what = f"Factors of layers with up to {largest:,} inputs or outputs, and their eigenvectors,"
    copies = 3 + (2 * workers if workers > 1 else 0)
    return Need(what, copies * grams + 24 * largest**2, f'{_FEWER[:-1]}, or use curvature="identity".')


def tile_rows(parameters: int, tile_bytes: int = 512 << 20) -> int:
    """Validation rows whose gradients `pairs` holds at once."""
    return int(min(max(tile_bytes // (16 * parameters), 1), 1024))


def check_memory(curvature: str, parameters: int, free: int) -> None:
    """Refuse a dense curvature that does not fit.

    Args:
        curvature: of the run.
        parameters: that are valued.
        free: bytes.

    Raises:
        InputError: the memory it would take, and what there is.
    """
    need = 4 * 8 * parameters**2
    if curvature in DENSE and need > 0.8 * free:
        raise InputError(
            f"curvature={curvature!r} over {parameters:,} parameters takes {gib(need)} "
            f"(four float64 matrices of {parameters:,} squared); {gib(free)} are free.",
            'use curvature="ekfac", or fewer parameters with Task(parameters="last").',
        )


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:,.1f} GiB" if size >= 1 << 30 else f"{size / 2**20:,.1f} MiB"


def fewest(columns: int, parameters: int, most: int = 1 << 30) -> int:
    """How many columns a trial of a stage can take within `most` bytes."""
    per: Sequence[int] = (columns, max(1, most // (36 * max(parameters, 1))))
    return min(per)
