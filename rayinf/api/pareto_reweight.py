"""Pareto-LP-GA (Nahin 2025, Algorithm 1): row weights that lift some classes at little cost to the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from torch import nn

from rayinf.api.class_values import ClassValues
from rayinf.api.reweighting import Reweighting, candidates_table, classes_table
from rayinf.data.out_folder import check_out
from rayinf.data.run_folder import RunFolder
from rayinf.data.scores import Scores, to_numpy
from rayinf.data.vectors import Vectors
from rayinf.engine.entry import check, require_one_model
from rayinf.engine.job import Cluster
from rayinf.engine.parallel import worker_pool
from rayinf.errors import InputError, RunError
from rayinf.store.places import AnyPath
from rayinf.task import Fit, Task
from rayinf.training.candidates import CandidateTrainer, Evaluation, Training
from rayinf.training.checked_inputs import absolute
from rayinf.training.checkpoint import load_checkpoint, write_checkpoint
from rayinf.training.confirmation import Confirmed, choose, confirm
from rayinf.training.generations import CHECKPOINT, PLAIN, Calls, Candidate, Generations, evaluate
from rayinf.training.open_table import check_unchanged
from rayinf.training.reweight_request import VERB, SearchArguments, SearchInputs, check_inputs, check_search
from rayinf.training.search import Search
from rayinf.training.search_progress import search_progress
from rayinf.training.steps import Steps, recall, run_folder

_MODEL, _WEIGHTS, _CHOSEN = "model.safetensors", "weights.parquet", "chosen.json"
_CANDIDATES, _CLASSES = "candidates.parquet", "classes.parquet"


def pareto_reweight(
    task: Task,
    train: Any,
    valid: Any,
    scores: Scores | None,
    targets: Any,
    mode: str = "direct",
    search: Search | None = None,
    cluster: Cluster | None = None,
    out: str | AnyPath | None = None,
    seed: int = 0,
    *,
    inverse: str = "auto",
    training_time: float | None = None,
) -> Reweighting:
    """Search weights of the training rows that raise the accuracy of some classes at little cost to the others.

    A candidate is one alpha a class and the radius of a trust region: the LP of `reweight_lp` gives it weights, the
    task's model is trained with them for one epoch more, and its accuracy by class on `valid` ranks it. A genetic
    search makes generations of candidates. Where this departs from Algorithm 1 of Nahin 2025: weights stay within a
    trust region, which is a gene (`Search.radius`); line 7 is taken by branches, and ties go to the higher gain of the
    targets; the search also keeps the *front* of candidates that no other beats by (gain of the targets, change of the
    others), both against the unweighted epoch from the same checkpoint, and `Search.prefer` picks one. The unweighted
    epoch is a candidate too, and is what comes back where nothing is better.

    The accuracy that ranks candidates is of the rows that chose their weights, and the best of many noisy measures is
    too good. With `halves=True` scores the linear program's demands hold in both halves of the validation rows, and the
    best `Search.confirm` candidates are cross-fitted: trained twice more, with weights that one half chooses, and
    measured on the other. The best by these measures is chosen. `crossed_shown` says whether the mean gain of its
    targets is above 0 at 95% (t test with the halves' spread, over as many as are tried): only then is it claimed.

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
            objective="category", halves=True)`; without halves there is no cross-fit, which the notes say). With
            mode="correct" they may also be of the model after the unweighted epoch. None: they are computed here, in
            memory, for a training as long as the search's.
        targets: labels of the classes to lift, or one of them.
        mode: "direct" or "correct". The fitness (line 7 of Algorithm 1 of Nahin 2025) counts changes from the
            checkpoint with "direct"; with "correct" (course correction), from the unweighted epoch, whose harm is to be
            avoided.
        search: the population and the generations of the genetic search, and which candidate is chosen. None: the
            defaults of `Search`.
        cluster: the workers on Ray, on which candidates are trained side by side, one a worker. None: this process,
            without Ray.
        out: the run's folder or URI: `candidates/`, `generations/` and `confirmed/` as they are finished, then
            `weights.parquet` (`row_id`, `weight`), `model.safetensors` (the weighted checkpoint), `candidates.parquet`,
            `classes.parquet`. The same call again goes on where it stopped, to the same bytes; so does one with more
            `Search.iterations`, and one with fewer is refused, since another candidate may be the best of them. None:
            the result is held in memory.
        seed: an integer >= 0 that fixes the search and the order of the training rows.
        inverse: of scores that are computed here, as `influence` takes it: "auto", "unrolled" or "damped".
        training_time: of scores that are computed here: T of the unrolled inverse. None: that of the search's epochs.

    Returns:
        A `Reweighting`.

    Raises:
        InputError: before any work: a target that is not a class, scores of another model, of other training or
            validation rows, or of other classes, a class without validation rows, a mode that is unknown, a task
            without a fit, a folder of another config.
        RunError: the unweighted epoch diverged, no candidate could be trained, or a cluster that makes no progress.

    Cost: `size of a population * iterations` (less those that are equal) LPs, epochs and passes over `valid`, and
    `2 * Search.confirm + 1` more for the cross-fit. A worker
    holds the influence vectors (of scores in a folder only up to 256 MB: larger ones are read at every pass of an LP),
    the LP, a weight a row, and up to 256 MB of each table.
    """
    check(task=task, mode=mode, cluster=cluster, out=out, seed=seed)
    require_one_model(task, "pareto_reweight")
    search = Search() if search is None else search
    check_search(task, search)
    recall(out)
    how = ClassValues(inverse, training_time, cluster, halves=True)
    scores = how.unless(scores, replace(task, fit=epoch_fit(task, search)), train, valid)
    arguments = SearchArguments(task, Vectors.of(scores), mode, search, int(seed))
    given = {"train": train, "valid": valid}
    inputs = check_inputs(arguments, given, targets)
    check_out(out, inputs.job.tables)
    iterations = arguments.search.iterations
    record = {"verb": VERB, "identity": inputs.identity, "extent": {"iterations": iterations}}
    with run_folder(out, record, inputs.job.tables.values()) as (folder, finished):
        if (done := folder.extent["iterations"]) > iterations:
            raise InputError(
                f"{folder.path} holds a search of {done} generations, and Search(iterations={iterations}) has fewer.",
                f"pass iterations={done} or more, or another folder as out.",
            )
        run = _Run(inputs, folder, given, record, finished)
        gpus = cluster is not None and cluster.gpus_per_worker > 0
        trainer = _trainer(inputs, train, "cuda" if gpus else None)
        with worker_pool(trainer, cluster, workers=arguments.search.size) as calls:
            found = run.finish(*run.search(calls), calls)
    return found if out is not None else replace(found, path=None)


def epoch_fit(task: Task, search: Search) -> Any:
    """How candidates are trained: a `Fit` goes on from the checkpoint; a function is as it is."""
    fit = task.fit
    return replace(fit, fresh=False, epochs=search.epochs, lr=search.lr or fit.lr) if isinstance(fit, Fit) else fit


def _trainer(inputs: SearchInputs, train: Any, device: str | None) -> CandidateTrainer:
    """What trains and measures candidates."""
    task, search = inputs.arguments.task, inputs.arguments.search
    fit = epoch_fit(task, search)
    return CandidateTrainer(
        inputs.job,
        None if isinstance(fit, Fit) else absolute(train),
        fit,
        inputs.influence,
        inputs.targets,
        search.demand,
        search.upper,
        inputs.arguments.seed,
        search.threads,
        device,
        inputs.halves_seed,
    )


@dataclass(frozen=True)
class _Run:
    """One search, from where its folder stands.

    Attributes:
        inputs: checked.
        folder: begun.
        given: "train" and "valid", as the user gave them.
        record: of the run.
        finished: whether all was there from the first; then nothing is written.
    """

    inputs: SearchInputs
    folder: RunFolder
    given: Mapping[str, Any]
    record: Mapping[str, Any]
    finished: bool

    @property
    def steps(self) -> Steps:
        """The steps in the folder."""
        return Steps(lambda: self.folder.files)

    def search(self, calls: Calls) -> tuple[Generations, dict[str, Confirmed] | None]:
        """All generations; and the cross-fit of the best, where the halves of the validation rows are known.

        Raises:
            RunError: the unweighted epoch has no finite loss, or no candidate could be trained.
        """
        arguments, names = self.inputs.arguments, self.inputs.names
        with search_progress(names) as shown:

            def counted(trainings: Mapping[str, Training]) -> Iterator[tuple[str, Evaluation]]:
                for done, pair in enumerate(calls(trainings)):
                    shown.trained(done + 1, len(trainings))
                    yield pair

            references = {f"{CHECKPOINT}.json": Training(trains=False), f"{PLAIN}.json": Training()}
            before, plain = evaluate(self.steps, counted, references, _check_reference).values()
            goal, classes = (self.inputs.targets, arguments.mode), len(names)
            state = Generations(self.steps, arguments.search, *goal, classes, arguments.seed, before, plain)
            for g, ranked, trained in state.run(counted):
                if trained or not self.finished:
                    shown.generation(g, ranked, trained, state)
                if trained:
                    self.folder.log("generation", number=g, trained=trained, best=state.best.key)
            crosses = self.inputs.halves_seed is not None and arguments.search.confirm > 0
            confirmed = confirm(state, counted) if crosses else None
        if all(c.evaluation.problem is not None for c in state.found.values()):
            first = next(iter(state.found.values()))
            raise RunError(
                f"None of the {len(state.found)} candidates could be trained; the first: {first.evaluation.problem}",
                'pass Search(slack="scaled") or a larger radius, or lower the learning rate.',
            )
        return state, confirmed

    def finish(self, state: Generations, confirmed: dict[str, Confirmed] | None, calls: Calls) -> Reweighting:
        """The chosen candidate, with its model and weights."""
        inputs, steps, names, chosen = self.inputs, self.steps, self.inputs.names, choose(state, confirmed)
        model, weights, measured = self._chosen(chosen, calls)
        notes = list(inputs.notes)
        if measured.right != chosen.evaluation.right:
            notes.append(
                "Training is not repeatable: the chosen candidate, trained once more, classifies other rows rightly "
                "than in the search. `classes` and `task` are of the second training."
            )
        candidates = candidates_table(state, chosen, names, confirmed or {})
        classes = classes_table(state, measured, names, inputs.total)
        if not self.finished:
            steps.write(_CANDIDATES, candidates)
            steps.write(_CLASSES, classes)
            self.folder.finish({**self.record, "chosen": chosen.key, "notes": notes})
            self.folder.log("finish")
        alpha = chosen.training.alpha
        return Reweighting(
            candidates,
            classes,
            weights["weight"].to_numpy(),
            to_numpy(inputs.arguments.vectors.scores.select(["row_id"])["row_id"]),
            None if alpha is None else dict(zip(names, alpha, strict=True)),
            chosen.training.radius,
            inputs.arguments.mode,
            replace(inputs.job.task, model=_on_device_of(inputs.arguments.task, model)),
            tuple(notes),
            self.folder.path,
        )

    def _chosen(self, chosen: Candidate, calls: Calls) -> tuple[nn.Module, pa.Table, Evaluation]:
        """Model, weights and measures of the chosen candidate, which is trained once more unless they are there."""
        inputs, files, steps = self.inputs, self.folder.files, self.steps
        held, weights = steps.read(_CHOSEN), steps.read(_WEIGHTS)
        if held is not None and held["candidate"] == chosen.key and weights is not None:
            model = load_checkpoint(files, _MODEL, inputs.job.task)
            if model is not None:
                return model, weights, Evaluation.from_json(held)
        training = replace(chosen.training, returns_model=True)
        ((_, measured),) = calls({chosen.key: training})
        if measured.model is None:
            raise RunError(f"The chosen candidate has no model now: {measured.problem}", "make the fit repeatable.")
        for name, table in self.given.items():
            check_unchanged(inputs.job.tables[name], table, name)
        ids = inputs.arguments.vectors.scores.select(["row_id"])["row_id"]
        found = np.ones(inputs.job.tables["train"].num_rows) if measured.weights is None else measured.weights
        weights = pa.table({"row_id": ids, "weight": found})
        if not self.finished:
            if held is not None:
                files.remove(_CHOSEN)  # it says whose the two other files are
            write_checkpoint(files, _MODEL, measured.model, inputs.job.task.version)
            steps.write(_WEIGHTS, weights)
            steps.write(_CHOSEN, {"candidate": chosen.key, **measured.to_json(training)})
        return measured.model, weights, measured


def _check_reference(name: str, found: Mapping[str, Any]) -> None:
    """Refuse a search from a checkpoint that cannot be trained or measured.

    Raises:
        RunError: its losses are not finite.
    """
    if found["problem"] is not None:
        what = name.removesuffix(".json")
        raise RunError(f"{what}: {found['problem']}", "check the task's model, its fit and its learning rate.")


def _on_device_of(task: Task, model: nn.Module) -> nn.Module:
    """The model where the task has its own."""
    first = next(task.model.parameters(), None) if isinstance(task.model, nn.Module) else None
    return model if first is None else model.to(first.device)
