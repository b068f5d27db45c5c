"""Pareto-LP-GA (Nahin 2025, Algorithm 1): row weights that lift some classes at little cost to the others."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from rayinf.api.reweighting import Reweighting, candidates_table, classes_table
from rayinf.data.files import fetched, fill_safetensors
from rayinf.data.out_folder import check_out
from rayinf.data.run_folder import RunFolder
from rayinf.data.scores import Scores, to_numpy
from rayinf.engine.entry import check
from rayinf.engine.job import Cluster
from rayinf.engine.parallel import standing
from rayinf.errors import RayinfError, RunError
from rayinf.store.places import AnyPath, open_place
from rayinf.task import Fit, Task
from rayinf.training.candidates import Outcome, Trial, Trials
from rayinf.training.generations import CHECKPOINT, PLAIN, Candidate, Generations, Wanted, read_outcome, write_outcome
from rayinf.training.open_table import check_unchanged
from rayinf.training.reweight_request import VERB, Opened, check_arguments, open_request
from rayinf.training.run_identity import absolute
from rayinf.training.search import Search
from rayinf.training.search_progress import search_progress

_MODEL, _WEIGHTS, _CHOSEN = "model.safetensors", "weights.parquet", "chosen.json"
_CANDIDATES, _CLASSES = "candidates.parquet", "classes.parquet"


def pareto_reweight(
    task: Task,
    train: Any,
    valid: Any,
    scores: Scores,
    targets: Any,
    mode: str = "direct",
    search: Search | None = None,
    cluster: Cluster | None = None,
    out: str | AnyPath | None = None,
    seed: int = 0,
) -> Reweighting:
    """Search weights of the training rows that raise the accuracy of some classes at little cost to the others.

    A candidate is one alpha a class and the radius of a trust region: the LP of `reweight_lp` gives it weights, the
    task's model is trained with them for one epoch more, and its accuracy by class on `valid` ranks it. A genetic
    search makes generations of candidates. Where this departs from Algorithm 1 of Nahin 2025: weights stay within a
    trust region, which is a gene (`Search.radius`); line 7 is taken by branches, and ties go to the higher gain of the
    targets; the search also keeps the *front* of candidates that no other beats by (gain of the targets, change of the
    others), both against the unweighted epoch from the same checkpoint, and `Search.prefer` picks one. The unweighted
    epoch is a candidate too, and is what comes back where nothing is better.

    All candidates see the rows in the same order (`seed`). Equal candidates are trained once.

    Args:
        task: the checkpoint, and how to train it: `Task(fit=...)`. A `Fit` goes on from the checkpoint (`fresh=False`)
            for `Search.epochs`, with its schedule over these, a fresh optimiser and `Search.lr`; the loss of a batch is
            `sum_i w_i l_i / rows`. A function gets the weights `[n]`, or None for the unweighted epoch, and must train
            a copy of `task.model` for one epoch and return it.
        train: the rows that the scores belong to: a Parquet path, folder, glob or URI, a `pyarrow.Table`, a
            `pandas.DataFrame`, or arrays `(X, y)`.
        valid: rows of every class, in the same forms, to measure on: those of the scores. Keep other rows back to judge
            the result by.
        scores: influence vectors of the training rows, a column for every class (`influence(task, train, valid,
            objective="category")`). With mode="correct" they may also be of the model after the unweighted epoch.
        targets: labels of the classes to lift, or one of them.
        mode: "direct" or "correct". The fitness (line 7 of Algorithm 1 of Nahin 2025) counts changes from the
            checkpoint with "direct"; with "correct" (course correction), from the unweighted epoch, whose harm is to be
            avoided.
        search: the population and the generations of the genetic search, and which candidate is chosen. None: the
            defaults of `Search`.
        cluster: the workers on Ray, on which candidates are trained side by side, one a worker. None: this process,
            without Ray.
        out: the run's folder or URI: `candidates/` and `generations/` as they are finished, then `weights.parquet`
            (`row_id`, `weight`), `model.safetensors` (the weighted checkpoint), `candidates.parquet`,
            `classes.parquet`. The same call again goes on where it stopped, to the same bytes; so does one with more
            `Search.iterations`, and one with fewer is refused, since another candidate may be the best of them. None:
            the result is held in memory.
        seed: an integer >= 0 that fixes the search and the order of the training rows.

    Returns:
        A `Reweighting`.

    Raises:
        InputError: before any work: a target that is not a class, scores of another model, of other training or
            validation rows, or of other classes, a class without validation rows, a mode that is unknown, a task
            without a fit, a folder of another config.
        RunError: the unweighted epoch diverged, no candidate could be trained, or a cluster that makes no progress.

    Cost: `size of a population * iterations` (less those that are equal) LPs, epochs and passes over `valid`. A worker
    holds the influence vectors, the LP and up to 256 MB of each table.
    """
    check(task=task, scores=scores, mode=mode, cluster=cluster, out=out, seed=seed)
    asked = check_arguments(task, scores, mode, Search() if search is None else search, seed)
    opened = open_request(asked, {"train": train, "valid": valid}, targets)
    check_out(out, opened.job.tables)
    place: Any = tempfile.TemporaryDirectory(prefix="rayinf-") if out is None else nullcontext(open_place(out, "out"))
    with place as path, RunFolder(open_place(path)) as folder:
        finished = folder.begin({"verb": VERB, "identity": opened.identity})
        run = _Run(opened, folder, cluster, {"train": train, "valid": valid}, finished)
        with ExitStack() as stack:
            found = run.search(stack)
        return found if out is not None else replace(found, path=None)


class _Run:
    """One search, from where its folder stands."""

    def __init__(
        self, opened: Opened, folder: RunFolder, cluster: Cluster | None, given: Mapping[str, Any], finished: bool
    ) -> None:
        self._opened, self._folder, self._cluster, self._given = opened, folder, cluster, given
        self._finished = finished
        self._calls: Any = None

    def search(self, stack: ExitStack) -> Reweighting:
        """All generations, then the chosen candidate."""
        opened, search = self._opened, self._opened.asked.search
        wanted = Wanted(opened.targets, opened.asked.mode, search.prefer)
        if not self._finished:
            self._folder.log("start", verb=VERB)
        calls = partial(self._try, stack)
        with search_progress(opened.names) as shown:

            def counted(trials: Mapping[str, Trial]) -> Iterator[tuple[str, Outcome]]:
                for done, pair in enumerate(calls(trials)):
                    shown.trained(done + 1, len(trials))
                    yield pair

            before, plain = self._references(calls)
            files, classes = self._folder.files, len(opened.names)
            state = Generations(files, search, wanted, classes, opened.asked.seed, before, plain)
            for g, ranked, trained in state.run(counted):
                if trained or not self._finished:
                    shown.generation(g, ranked, trained, state)
                if trained:
                    self._folder.log("generation", number=g, trained=trained, best=state.best.key)
        if all(c.outcome.problem is not None for c in state.found.values()):
            first = next(iter(state.found.values()))
            raise RunError(
                f"None of the {len(state.found)} candidates could be trained; the first: {first.outcome.problem}",
                'pass Search(slack="scaled") or a larger radius, or lower the learning rate.',
            )
        return self._finish(state, state.best, calls)

    def _try(self, stack: ExitStack, trials: Mapping[str, Trial]) -> Iterator[tuple[str, Outcome]]:
        """Outcomes as they come. Workers are started for the first trial that is not on disk, and stay."""
        if not trials:
            return iter(())
        if self._calls is None:
            opened, search = self._opened, self._opened.asked.search
            gpus = self._cluster is not None and self._cluster.gpus_per_worker > 0
            work = Trials(
                opened.job,
                None if isinstance(opened.asked.task.fit, Fit) else absolute(self._given["train"]),
                _fit(opened.asked.task, search),
                opened.p_nk,
                opened.targets,
                search.demand,
                search.upper,
                opened.asked.seed,
                search.threads,
                "cuda" if gpus else None,
            )
            self._calls = stack.enter_context(standing(work, self._cluster, workers=search.size))
        return iter(self._calls(trials))

    def _references(self, calls: Any) -> tuple[Outcome, Outcome]:
        """The checkpoint and the unweighted epoch.

        Raises:
            RunError: the unweighted epoch has no finite loss.
        """
        trials = {CHECKPOINT: Trial(trains=False), PLAIN: Trial()}
        held = {key: read_outcome(self._folder.files, f"{key}.json") for key in trials}
        for key, outcome in calls({key: trial for key, trial in trials.items() if held[key] is None}):
            if outcome.problem is not None:
                raise RunError(f"{key}: {outcome.problem}", "check the task's model, its fit and its learning rate.")
            write_outcome(self._folder.files, f"{key}.json", outcome, trials[key])
            held[key] = outcome
        before, plain = held[CHECKPOINT], held[PLAIN]
        assert before is not None
        assert plain is not None
        return before, plain

    def _finish(self, state: Generations, chosen: Candidate, calls: Any) -> Reweighting:
        """Train the chosen candidate once more, to keep its model and weights, unless they are there."""
        opened, files, notes = self._opened, self._folder.files, list(self._opened.notes)
        held, model = files.table(_WEIGHTS), None
        measured = read_outcome(files, _CHOSEN)
        if held is not None and measured is not None and files.is_sound(_MODEL):
            model = _load(opened.job.task, files.path / _MODEL)
        if model is None or held is None or measured is None:
            trial = replace(chosen.trial, keeps=True)
            ((_, measured),) = calls({chosen.key: trial})
            if measured.model is None:
                raise RunError(f"The chosen candidate has no model now: {measured.problem}", "make the fit repeatable.")
            model = measured.model
            for name, table in self._given.items():
                check_unchanged(opened.job.tables[name], table, name)
            files.put(_MODEL, partial(_save, model))
            weights = np.ones(len(opened.p_nk)) if measured.weights is None else measured.weights
            ids = opened.asked.vectors.scores.select(["row_id"])["row_id"]
            held = pa.table({"row_id": ids, "weight": weights})
            files.put_table(_WEIGHTS, held)
            write_outcome(files, _CHOSEN, measured, trial)
        if measured.right != chosen.outcome.right:
            notes.append(
                "Training is not repeatable: the chosen candidate, trained once more, classifies other rows rightly "
                "than in the search. `classes` and `task` are of the second training."
            )
        totals = opened.p_nk.sum(0)
        candidates = candidates_table(state, chosen, opened.names)
        classes = classes_table(state, measured, opened.names, totals)
        if not self._finished:  # else all was there, and is left as it stands
            files.put_table(_CANDIDATES, candidates)
            files.put_table(_CLASSES, classes)
            self._folder.finish({"verb": VERB, "identity": opened.identity, "chosen": chosen.key, "notes": notes})
            self._folder.log("finish")
        alpha = chosen.trial.alpha
        return Reweighting(
            candidates,
            classes,
            held["weight"].to_numpy(),
            to_numpy(opened.asked.vectors.scores.select(["row_id"])["row_id"]),
            None if alpha is None else dict(zip(opened.names, alpha, strict=True)),
            chosen.trial.radius,
            opened.asked.mode,
            replace(opened.job.task, model=_like(opened.asked.task, model)),
            tuple(notes),
            files.path,
        )


def _fit(task: Task, search: Search) -> Any:
    """How a candidate is trained."""
    if not isinstance(task.fit, Fit):
        return task.fit
    return replace(task.fit, fresh=False, epochs=search.epochs, lr=search.lr or task.fit.lr)


def _like(task: Task, model: nn.Module) -> nn.Module:
    """The model where the task has its own."""
    first = next(task.model.parameters(), None) if isinstance(task.model, nn.Module) else None
    return model if first is None else model.to(first.device)


def _save(model: nn.Module, file: Path) -> None:
    """The model's tensors as safetensors, shared ones once."""
    fill_safetensors(file, lambda inner: save_model(model, str(inner)))


def _load(task: Task, file: AnyPath) -> nn.Module | None:
    """The weighted checkpoint, or None where the file does not fit the task's model."""
    model = task.build()
    try:
        with fetched(file) as held:
            load_model(model, str(held))
    except RayinfError:
        raise
    except (RuntimeError, OSError, ValueError, SafetensorError):
        return None
    return model
