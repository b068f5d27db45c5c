"""What every row of a pool is worth asking for its label: one stage a strategy, and the choice of a batch."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rayinf.arguments import shown
from rayinf.core import uncertainty
from rayinf.core.capture import forward
from rayinf.core.dropout import mc_log_probabilities, require_dropout
from rayinf.core.fisher import FisherKind, loss_gradient, scale_rows
from rayinf.core.objectives import Objective
from rayinf.data import overlap
from rayinf.data.batches import uniforms
from rayinf.data.files import Arrays
from rayinf.data.run_folder import SCORES
from rayinf.data.scores import Scores, to_numpy
from rayinf.data.selection import Selection
from rayinf.data.shards import Shard
from rayinf.data.tables import Table, as_table
from rayinf.engine import curvature as curv
from rayinf.engine import measure_stages, pipeline, rank_forest, stages
from rayinf.engine.job import Chunk, Settings
from rayinf.engine.measure_stages import PairFactors, PairValues
from rayinf.engine.probe import Probe
from rayinf.engine.run import Run
from rayinf.engine.tree_strategy import value_by_tree
from rayinf.engine.worker import Ready
from rayinf.errors import InputError
from rayinf.select.aggregate import parse
from rayinf.select.batchbald import pick_batch
from rayinf.task import Task

BY_LOGITS = {
    "entropy": uncertainty.entropy,
    "margin": uncertainty.margin,
    "least_confidence": uncertainty.least_confidence,
}
BY_DROPOUT = ("bald", "batchbald")
BY_INFLUENCE = ("iv", "isal", "tree")
STRATEGIES = ("fi", *BY_INFLUENCE, *BY_DROPOUT, *BY_LOGITS, "random")

# Candidates of BatchBALD a row that is picked, and in all.
_CANDIDATES, _MOST_CANDIDATES = 20, 4000
# R of the labelled rows that a worker holds, and values of pairs that the driver holds.
TILE_BYTES = 512 << 20


class Uncertain(stages.Scoring):
    """Shard of a pool -> how unsure the model is of its rows, or a uniform draw for "random"."""

    def prepare(self, arrays: Arrays) -> None:
        """Nothing is needed but the model."""

    def rows(self, shard: Shard, table: str | None = None) -> Iterator[tuple[Ready, Tensor]]:
        """Batches of a shard with their values `[B, 1]`, float64."""
        w = self.worker
        for ready in w.read("pool", shard, w.rows_a_batch(1)):
            yield ready, self._values(ready)[:, None]

    def _values(self, ready: Ready) -> Tensor:
        settings = self.worker.job.settings
        if settings.strategy == "random":
            keys = np.arange(ready.raw.start, ready.raw.start + len(ready.raw), dtype=np.uint64)
            return torch.from_numpy(uniforms(keys, settings.seed, 1)[:, 0])
        if settings.strategy in BY_DROPOUT:
            return uncertainty.bald(self.samples(ready))
        with torch.no_grad():
            return BY_LOGITS[str(settings.strategy)](forward(self.worker.model, ready.x))

    def samples(self, ready: Ready) -> Tensor:
        """Log-probabilities `[S, B, K]` under dropout."""
        settings = self.worker.job.settings
        return mc_log_probabilities(self.worker.model, forward, ready.x, settings.samples, settings.seed)


class DropoutSamples(Uncertain):
    """Chosen rows of a shard of a pool -> their log-probabilities under dropout, `{"P": [S, B, K]}`."""

    def __init__(self, worker: Any, arrays: Arrays) -> None:
        super().__init__(worker, arrays, [])
        self.chosen = arrays["positions"]

    def __call__(self, item: Shard) -> Arrays:
        """The chosen rows of a shard, in order."""
        parts = []
        w = self.worker
        for raw in w.read_raw("pool", item, w.rows_a_batch(1)):
            rows = np.flatnonzero(np.isin(np.arange(raw.start, raw.start + len(raw)), self.chosen))
            if len(rows):
                parts.append(self.samples(w.ready("pool", raw.take(rows))).cpu().numpy())
        k = len(w.job.classes.labels)
        return {"P": np.concatenate(parts, axis=1) if parts else np.zeros((w.job.settings.samples, 0, k))}


class PoolScore(stages.Score):
    """Shard of a pool -> influence of its rows on the reference rows, each with its likeliest label."""

    def rows(self, shard: Shard, table: str | None = None) -> Iterator[tuple[Ready, Tensor]]:
        """Batches of a shard with their values `[B, 1]`."""
        w = self.worker
        for ready in w.read("pool", shard, w.rows_a_batch(1)):
            with w.forward_pass(ready.x) as forward_pass:
                labels = forward_pass.logits.detach().argmax(1)
                _, gradient = loss_gradient(w.loss, forward_pass.logits, labels)
                yield ready, self.values(forward_pass, *scale_rows(gradient, w.dtype))


@dataclass(frozen=True)
class AcquisitionSpec:
    """What is to be picked from a pool.

    Attributes:
        strategy: one of `STRATEGIES`.
        n: rows to pick.
        exclude: ids of rows that are not to be picked.
    """

    strategy: str
    n: int
    exclude: Sequence[Any] | np.ndarray[Any, Any] = ()

    @property
    def is_joint(self) -> bool:
        """Whether rows are picked together, so that how many there are matters to which."""
        return self.strategy == "batchbald"

    @property
    def digest(self) -> str | None:
        """What a run must share with another beside its settings, to pick the same rows."""
        if not self.is_joint:
            return None
        return self._digest(self.n)[:16]

    def _digest(self, *more: Any) -> str:
        """Of the rows that are excluded."""
        return hashlib.sha256(repr((*more, sorted(map(str, self.exclude)))).encode()).hexdigest()

    @property
    def needs_valid(self) -> bool:
        """Whether the strategy looks at validation rows."""
        return self.strategy in ("iv", "tree")

    @property
    def needs_dropout(self) -> bool:
        """Whether the model is sampled under dropout."""
        return self.strategy in BY_DROPOUT

    def settings(
        self, curvature: str, fisher: FisherKind, seed: int, batch_size: int | None, rank: int | None, subsample: float
    ) -> Settings:
        """Those of a run of the strategy; curvature matters to some alone."""
        if self.strategy == "fi":
            found = measure_stages.settings(curvature, fisher, seed, batch_size, rank, subsample)
        else:
            kind = curvature if self.strategy in BY_INFLUENCE else "identity"
            found = Settings(kind, fisher, seed=seed, batch_size=batch_size, rank=rank, subsample=subsample)
        found = dataclasses.replace(found, strategy=self.strategy, aggregate="trimmed_mean", wish=self.digest)
        if not len(self.exclude) or not isinstance(subsample, Real) or subsample >= 1:
            return found
        digest = self._digest()
        left = tuple(sorted(set(self.exclude), key=str))
        return dataclasses.replace(found, wish=digest[:16], exclude=left, draw=int(digest[:15], 16) | 1 << 40)

    def tables(self, labeled: Any, pool: Any, valid: Any) -> dict[str, Any]:
        """The tables that the strategy reads.

        Raises:
            InputError: no such strategy, or none to validate on.
        """
        if not isinstance(self.strategy, str) or self.strategy not in STRATEGIES:
            raise InputError(f"strategy={shown(self.strategy)} is unknown.", f"use one of {', '.join(STRATEGIES)}.")
        if self.needs_valid and valid is None:
            raise InputError(f"strategy={self.strategy!r} needs validation rows.", "pass valid=..., or use isal.")
        reference = {"valid": valid} if self.needs_valid else {"valid": labeled} if self.strategy == "isal" else {}
        return {"train": labeled, **reference, "pool": pool}

    def check(self, tables: Mapping[str, Table], probed: Probe, features: Sequence[str], settings: Settings) -> None:
        """Refuse what the tables or the model cannot give, before any work.

        Raises:
            InputError: more rows wanted than there are, no such aggregate, dropout without dropout layers, a rank or
                subsample for another strategy than "fi", or as `measure_stages.check` does.
        """
        rows = tables["pool"].num_rows
        if self.n > rows - len(set(self.exclude)):
            left = f", {len(set(self.exclude)):,} of them excluded" if len(self.exclude) else ""
            raise InputError(f"n={self.n:,} rows are wanted, and the pool has {rows:,}{left}.", "pass a smaller n.")
        if self.strategy != "fi" and (settings.rank is not None or settings.subsample != 1):
            raise InputError(
                f"rank={settings.rank} and subsample={settings.subsample} are for FI, not for {self.strategy!r}.",
                'leave them out, or use strategy="fi".',
            )
        if self.strategy == "fi":
            parse(str(settings.aggregate), tables["train"].num_rows)
        if self.needs_dropout:
            require_dropout(probed.model)
        measure_stages.check(tables["pool"], features, probed, settings)

    def objectives(self) -> tuple[Objective, ...]:
        """What influence strategies are for: the sum of the reference rows' losses."""
        return (Objective("total"),) if self.strategy in BY_INFLUENCE else ()

    def select(self, scores: Scores) -> Selection:
        """The picks among scored rows of a pool: the largest values first, ties to the earlier row.

        Raises:
            InputError: fewer rows are left than are wanted.
        """
        table = scores.table
        column = "fi_rank" if "fi_rank" in scores.columns else scores.columns[0]
        values = table[column].to_numpy()
        order = np.argsort(-values, kind="stable")
        free = self.free(table["row_id"])
        picked = np.asarray(scores.metadata["picked"]) if self.is_joint else order[free[order]][: self.n]
        if len(picked) < self.n:
            raise InputError(
                f"n={self.n:,} rows are wanted, and the pool has {int(free.sum()):,} that may be picked.",
                "pass a smaller n, or a larger pool.",
            )
        kept = np.zeros(len(values), bool)
        kept[picked] = True
        order = np.concatenate([picked, order[~kept[order]]])
        return Selection.of(table["row_id"], values, order, kept, scores.metadata)

    def free(self, ids: pa.ChunkedArray) -> np.ndarray[Any, Any]:
        """Whether each row may be picked."""
        if not len(self.exclude):
            return np.ones(len(ids), bool)
        return ~np.isin(to_numpy(ids), np.asarray(self.exclude))


def labelled_already(task: Task, labeled: Any, pool: Any) -> np.ndarray[Any, Any]:
    """Ids of the pool's rows that are labelled already, of tables of any form; it is warned of them.

    Raises:
        InputError: tables that cannot be read, or ids of different kinds.
    """
    others = [task.label, *([task.group] if task.group else [])]
    first, rest = (as_table(t, task.feature_columns, others, n) for t, n in ((labeled, "train"), (pool, "pool")))
    found = overlap.labelled_already(first, rest, task.row_id)
    overlap.warn_left_out(found, rest.num_rows)
    return found


def pick_jointly(run: Run, spec: AcquisitionSpec, shards: list[pa.Table]) -> list[int]:
    """BatchBALD among the rows that BALD values most: their positions in the pool, best first."""
    place = run.place(SCORES)
    tables = shards if place is None else [place.read(s.index) for s in run.job.tables["pool"].shards]
    table = pa.concat_tables(tables)
    free = np.flatnonzero(spec.free(table["row_id"]))
    values = table[spec.strategy].to_numpy()[free]
    most = max(spec.n, min(_CANDIDATES * spec.n, _MOST_CANDIDATES))
    positions = np.sort(free[np.argsort(-values, kind="stable")[:most]])
    items = {s.index: s for s in run.job.tables["pool"].shards}
    found = dict(run.runner.map(DropoutSamples, {"positions": positions}, items))
    log_p_snk = np.concatenate([found[k]["P"] for k in sorted(found)], axis=1)
    picked, _ = pick_batch(log_p_snk, spec.n, run.job.settings.seed)
    return [int(p) for p in positions[picked]]


def value_pool(run: Run) -> list[pa.Table]:
    """A value for every row of the pool, the larger the better to ask for; with a folder, written there.

    Returns:
        The shards' tables, or nothing where they were written.
    """
    strategy = str(run.job.settings.strategy)
    if strategy == "fi":
        pipeline.fit_factors(run)
        return value_pairs(run)
    if strategy == "tree":
        pipeline.fit_factors(run)
        return value_by_tree(run)
    if strategy in BY_INFLUENCE:
        pipeline.fit_factors(run)
        return pipeline.score(run, PoolScore, pipeline.solve_queries(run), [strategy])
    return pipeline.score(run, Uncertain, {}, [strategy])


def value_pairs(run: Run) -> list[pa.Table]:
    """FI of every pool row against every labelled one, aggregated: tiled over both sides, pairs never kept.

    All of R fits in a tile, as a rule: then the pool is passed over once. Else a tile of R is made at a time, and the
    pool is taken in pieces whose pairs with all labelled rows fit in memory.
    """
    inverse = pipeline.inverse_arrays(run)
    tiles = _tiles(run)
    # A dense inverse is applied on the side with fewer vectors.
    vectors = run.scans["train"].rows * min(len(run.job.classes.labels) - 1, run.probe.perturbed)
    solve = run.job.settings.curvature not in curv.DENSE or vectors <= run.scans["pool"].rows
    if len(tiles) == 1:
        arrays = _factors(run, tiles[0], inverse, solve)
        return pipeline.score(run, PairValues, arrays, ["fi"], rank_forest.measured_into(run), whole=True, solve=solve)
    found: list[pa.Table] = []
    for piece in _pieces(run):
        if not all(run.has_part(SCORES, s) or run.has_part(rank_forest.measured_into(run), s) for s in piece):
            found += _piece_values(run, piece, tiles, inverse, solve)
    return found


def _piece_values(run: Run, piece: list[Shard], tiles: list[Chunk], inverse: Any, solve: bool) -> list[pa.Table]:
    """The aggregated values of some shards of the pool, over all tiles of labelled rows."""
    shards = {s.index: s for s in piece}
    held: dict[int, list[Any]] = {k: [] for k in shards}
    ids: dict[int, pa.Array] = {}
    with run.timed(f"pairs-{piece[0].index}", sum(s.rows for s in piece) * len(tiles)) as advance:
        for tile in tiles:
            names = [f"fi_{k}" for k in range(tile.rows)]
            arrays = _factors(run, tile, inverse, solve)
            for key, table in run.runner.map(PairValues, arrays, shards, names=names, whole=False, solve=solve):
                ids[key] = table["row_id"]
                held[key].append(np.stack([table[n].to_numpy() for n in names], axis=1).astype(np.float32))
                advance(shards[key].rows)
    out = []
    for key in sorted(shards):
        values = np.concatenate(held[key], axis=1)
        known = ~np.isnan(values[:, 0])
        aggregate = parse(str(run.job.settings.aggregate), values.shape[1])
        fi = np.full(len(values), np.nan)
        fi[known] = aggregate.apply(values[known], torch.get_num_threads())
        table = pa.table({"row_id": ids[key], "fi": pa.array(fi, mask=~known)})
        place = run.place(rank_forest.measured_into(run))
        if place is None or run.folder is None:
            out.append(table)
        else:
            run.folder.files.add(place.write(key, table))
    return out


def _factors(run: Run, tile: Chunk, inverse: Any, solve: bool) -> Any:
    """R of a tile of labelled rows beside the inverse, as a payload; its parts are made on all workers."""
    parts = {k: Chunk((s,)) for k, s in enumerate(tile.shards)}
    found: dict[int, Arrays] = {}
    with run.timed("pair factors", tile.rows) as advance:
        for key, part in run.runner.map(PairFactors, inverse, parts, solve=solve):
            found[key] = part
            advance(parts[key].rows)
    rows = [found[k]["R"] for k in sorted(found)]
    whole = {"R": np.concatenate(rows) if len(rows) > 1 else rows[0]}
    name = f"pair-factors-{tile.shards[0].start}"
    run.runner.store("drop", name)
    return run.runner.publish("derive", name, curv.join_payloads, ["inverse"], whole)


def _tiles(run: Run) -> list[Chunk]:
    """Labelled rows in tiles whose R fits in `TILE_BYTES`."""
    size = 8 * min(len(run.job.classes.labels) - 1, run.probe.perturbed) * run.probe.parameters
    step = max(1, TILE_BYTES // size)
    tiles: list[list[Shard]] = [[]]
    for shard in run.job.tables["train"].shards:
        for at in range(0, shard.rows, step):
            part = dataclasses.replace(
                shard, start=shard.start + at, offset=shard.offset + at, rows=min(step, shard.rows - at)
            )
            if sum(s.rows for s in tiles[-1]) + part.rows > step:
                tiles.append([])
            tiles[-1].append(part)
    return [Chunk(tuple(t)) for t in tiles if t]


def _pieces(run: Run) -> list[list[Shard]]:
    """Consecutive shards of the pool whose pairs with all labelled rows fit in `TILE_BYTES`, a shard at least."""
    labeled = run.scans["train"].rows
    pieces: list[list[Shard]] = [[]]
    for shard in run.job.tables["pool"].shards:
        rows = sum(s.rows for s in pieces[-1]) + shard.rows
        if pieces[-1] and 4 * labeled * rows > TILE_BYTES:
            pieces.append([])
        pieces[-1].append(shard)
    return pieces
