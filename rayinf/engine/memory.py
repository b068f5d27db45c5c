"""What a run must hold in memory at once, counted from its shapes before any work, against what there is.

The constants are copies that the code makes, and were measured: 12 bytes a parameter and column in float32 with EKFAC
(sums 8, solved 4) and 8 more for the largest layer's query vectors, 16 with "identity"; with halves, two sums and three
vectors a column. Where columns are in tiles (`column_tiles`), those of a tile. Sums of more than 256 MiB are in the
model's precision. What (E)KFAC holds beside is counted by step (`kronecker_bytes`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rayinf.core.objectives import in_tile
from rayinf.engine.column_tiles import column_tiles
from rayinf.engine.curvature import column_names
from rayinf.engine.entry import DENSE, KRONECKER
from rayinf.engine.job import Job, chunks
from rayinf.engine.machine import free_memory
from rayinf.engine.measure_spec import AcquireSpec
from rayinf.engine.probe import Probe
from rayinf.engine.spec import PairsSpec
from rayinf.engine.stages import group_sums, query_dtype
from rayinf.errors import InputError

# Of what is free, so much may be planned for: the rest is for batches and for what other programs take meanwhile.
_SHARE = 0.9


@dataclass(frozen=True)
class Need:
    """Bytes that one step holds at once, what they are for, and how to need fewer."""

    what: str
    size: int
    fix: str


def check_fits(job: Job, probed: Probe, workers: int, merged: int) -> None:
    """Refuse a run that does not fit into this machine's memory.

    Args:
        job: settled.
        probed: the model's shapes.
        workers: processes on this machine that share the work.
        merged: partial sums of a stage, at most.

    Raises:
        InputError: what takes most, how many bytes, and how many there are.
    """
    found = needs(job, probed, workers, merged)
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
        found += _factors(job, probed, workers, merged)
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
    """Group sums of gradients, and the queries that are made of them: of one tile where columns are taken in tiles."""
    tiles = column_tiles(job, probed)
    if len(tiles) > 1:
        whole = len(column_names(job.targets, job.spec.halves))
        parts = [replace(job, targets=in_tile(job.targets, tile)) for tile in tiles]
        need = max((_query_bytes(part, probed, workers, merged) for part in parts), key=lambda need: need.size)
        return replace(need, what=f"{need.what} (a tile of {whole:,} columns)")
    return _query_bytes(job, probed, workers, merged)


def _query_bytes(job: Job, probed: Probe, workers: int, merged: int) -> Need:
    """The same of columns that are taken together."""
    item = torch.finfo(getattr(torch, probed.dtype)).bits // 8
    halves, p = job.spec.halves, probed.parameters
    sums = group_sums(job)
    columns = len(column_names(job.targets, halves))
    each = torch.finfo(query_dtype(sums, p, getattr(torch, probed.dtype))).bits // 8
    parts = len(chunks(job.tables["valid"].shards, 1 if are_summed_at_once(job, probed) else merged))
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


def are_summed_at_once(job: Job, probed: Probe) -> bool:
    """Whether group sums of gradients are too large for partial sums: they are then added up in one chunk."""
    return query_dtype(group_sums(job), probed.parameters, torch.float32) is not torch.float64


def _factors(job: Job, probed: Probe, workers: int, merged: int) -> list[Need]:
    """What the steps of (E)KFAC hold, each with its queries."""
    largest = max((max(sides[1:]) for sides in _sides(probed)), default=0)
    words = {
        "basis": f"Factors of layers with up to {largest:,} inputs or outputs, and their eigenvectors,",
        "lambda": f"Bases and squared gradients of {probed.parameters:,} parameters",
        "solved": f"Factors of {probed.parameters:,} parameters, their copies and the queries",
        "inverse": f"Factors of {probed.parameters:,} parameters, their copies and their inverse",
    }
    held = kronecker_bytes(job, probed, workers, merged)
    return [Need(words[k], held[k], f'{_FEWER[:-1]}, or use curvature="identity".') for k in words if k in held]


def kronecker_bytes(job: Job, probed: Probe, workers: int, merged: int) -> dict[str, int]:
    """Bytes of all processes in the steps of K-FAC and EKFAC, beside batches of rows and the model.

    The sums A and G of a chunk (8 bytes a number) are held by the worker that makes them, and by the store for every
    level of its tree. A decomposition takes LAPACK's room beside them and their copies. EKFAC's sums are as many as
    parameters; meanwhile the store keeps the eigenvectors, and workers have them in the model's precision.
    A solve copies a layer's factors, and takes its inverse and its rotated queries one by one. What it takes beside is
    held twice where the store sends it to workers. An inverse that is kept copies all factors, and scales them.

    Args:
        job: with its targets.
        probed: the model's shapes.
        workers: processes.
        merged: partial sums of a stage, at most.
    """
    p, item = probed.parameters, torch.finfo(getattr(torch, probed.dtype)).bits // 8
    sides = _sides(probed)
    grams, block = sum(8 * r * (o * o + i * i) for r, o, i in sides), max((b.numel for b in probed.blocks), default=0)
    largest = max((max(o, i) for _, o, i in sides), default=0)
    sums = _sums_held(len(chunks(job.tables["train"].shards, merged)), workers)
    found = {"covariance": sums * grams, "basis": 3 * grams + 24 * largest**2, "factors": grams}
    if job.spec.curvature == "ekfac":
        found["lambda"] = grams + workers * (item * grams // 8 + (8 + item) * block) + sums * 8 * p
        found["factors"] = grams + 8 * p
    held = grams + 8 * p
    if job.targets and "valid" in job.tables:
        sent = (2 if workers > 1 else 1) * held
        layer = max(8 * r * (o * o + i * i) + 56 * b.numel for (r, o, i), b in zip(sides, probed.blocks, strict=True))
        found["solved"] = sent + workers * layer + query_bytes(job, probed, 1, merged).size
    elif job.spec.curvature in KRONECKER:
        found["inverse"] = held + grams + 24 * p
    return found


def _sides(probed: Probe) -> list[tuple[int, int, int]]:
    """Groups, outputs and inputs of every block, as its factors have them: an embedding's A is diagonal."""
    return [(r, o, 1 if b.kind == "embedding" else i) for b in probed.blocks for r, o, i in [b.shape]]


def _sums_held(parts: int, workers: int) -> int:
    """How many sums of a stage are held at once: a level of the store's tree each, and those under way."""
    return math.ceil(math.log2(parts)) + 2 + (2 * workers if workers > 1 else 0) if parts > 1 else 1


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
