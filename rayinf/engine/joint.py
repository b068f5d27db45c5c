"""Rows of a pool that are picked together: the candidates, what is known of each, and the choice among them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from rayinf.data.files import Arrays
from rayinf.data.run_folder import SCORES
from rayinf.data.scores import to_numpy
from rayinf.engine import embeddings, pipeline, spanning, stages
from rayinf.engine.acquisition_stages import DropoutSamples
from rayinf.engine.curvature import join_payloads
from rayinf.engine.measure_spec import AcquireSpec
from rayinf.engine.run import Run
from rayinf.select.badge import pick_badge
from rayinf.select.batchbald import pick_batch
from rayinf.select.k_center import pick_centers
from rayinf.select.log_determinant import pick_spanning
from rayinf.select.typiclust import pick_typical

Array = np.ndarray[Any, Any]

# Bytes of the candidates' vectors that the driver holds. BatchBALD takes candidates by their number.
CANDIDATE_BYTES = 1 << 30
_BALD_CANDIDATES, _MOST_BALD_CANDIDATES = 20, 4000


def value_rows(run: Run) -> list[pa.Table]:
    """The value of every row of the pool by itself, for strategies that then pick rows together.

    Returns:
        The shards' tables, or nothing where they were written to the folder.
    """
    strategy = run.job.spec.strategy
    if strategy == "fi_batch":
        return pipeline.score(run, spanning.Vectors, spanning.vector_arrays(run), [strategy])
    arrays = {} if strategy == "badge" else embeddings.labeled_embeddings(run)
    return pipeline.score(run, embeddings.EmbeddingValues, arrays, [strategy])


def pick(run: Run, spec: AcquireSpec, shards: list[pa.Table]) -> list[int]:
    """The positions in the pool of the rows that are picked, best first.

    Candidates are the rows of highest value, as many as their vectors take 1 GiB (of "typiclust", which wants typical
    rows, a random choice): 500,000 rows of 512 numbers.

    Args:
        run: whose rows have values.
        spec: of the run, with the rows that are excluded.
        shards: the values, or nothing where they are in the folder.
    """
    place = run.place(SCORES)
    tables = shards if place is None else [place.read(s.index) for s in run.job.tables["pool"].shards]
    table = pa.concat_tables(tables)
    free = np.flatnonzero(free_rows(spec, table["row_id"]))
    values = table[spec.strategy].to_numpy()[free]
    most = max(spec.n, _most_candidates(run, spec))
    if spec.strategy == "typiclust" and most < len(free):
        chosen = np.random.default_rng(spec.seed).choice(len(free), most, replace=False)
    else:
        chosen = np.argsort(-values, kind="stable")[:most]
    positions = np.sort(free[chosen])
    return [int(p) for p in positions[_choose(run, spec, positions)]]


def free_rows(spec: AcquireSpec, ids: pa.ChunkedArray) -> Array:
    """Whether each row may be picked."""
    if not len(spec.exclude):
        return np.ones(len(ids), bool)
    return ~np.isin(to_numpy(ids), np.asarray(spec.exclude))


def _most_candidates(run: Run, spec: AcquireSpec) -> int:
    if spec.strategy == "batchbald":
        return min(_BALD_CANDIDATES * spec.n, _MOST_BALD_CANDIDATES)
    width = spanning.WIDTH if spec.strategy == "fi_batch" else sum(embeddings.embedding_width(run))
    return CANDIDATE_BYTES // (4 * width)


def _choose(run: Run, spec: AcquireSpec, positions: Array) -> Array:
    """The places among the candidates of those that are picked."""
    n, seed = spec.n, spec.seed
    if spec.strategy == "batchbald":
        found = _gather(run, DropoutSamples, {"positions": positions})
        return pick_batch(np.concatenate([part["P"] for part in found], axis=1), n, seed)[0]
    if spec.strategy == "fi_batch":
        spanning.vector_arrays(run)
        run.runner.store("drop", "chosen")
        held = run.runner.publish("derive", "chosen", join_payloads, ["spanning"], {"positions": positions})
        found = _gather(run, spanning.ChosenVectors, held)
        vectors_nm = np.concatenate([part["phi"] for part in found])
        return pick_spanning(vectors_nm, n, spanning.ridge_of(vectors_nm))[0]
    found = _gather(run, embeddings.ChosenEmbeddings, {"positions": positions})
    a_ni = np.concatenate([part["a"] for part in found])
    if spec.strategy == "badge":
        return pick_badge(np.concatenate([part["g"] for part in found]), a_ni, n, seed)
    labeled_li = embeddings.labeled_embeddings(run)["a"]
    if spec.strategy == "coreset":
        return pick_centers(a_ni, labeled_li, n)[0]
    return pick_typical(a_ni, labeled_li, n, seed)


def _gather(run: Run, stage: type[stages.Stage], arrays: Any) -> list[Arrays]:
    """What a stage gives for the candidates, shard by shard."""
    items = {s.index: s for s in run.job.tables["pool"].shards}
    return run.gather("candidates", stage, arrays, items)
