"""Values for every class, for verbs that take scores or compute them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rayinf.api.influence import influence
from rayinf.data.scores import Scores
from rayinf.engine.entry import check
from rayinf.engine.job import Cluster
from rayinf.errors import InputError
from rayinf.task import Fit, Task


@dataclass(frozen=True)
class ClassValues:
    """How values are computed where no scores are given: the arguments of `influence` by these names."""

    inverse: str
    training_time: float | None
    cluster: Cluster | None
    halves: bool = False

    def unless(self, scores: Scores | None, task: Task, train: Any, valid: Any) -> Scores:
        """The scores that are given, or those of this task, computed now.

        A fit that goes on from the weights says how long the training takes that the values are for.

        Raises:
            InputError: what is given is not scores; an inverse beside scores, which have theirs; or as `influence`.
        """
        if scores is not None:
            check(scores=scores)
            if self.inverse != "auto" or self.training_time is not None:
                raise InputError(
                    f"inverse={self.inverse!r} and training_time={self.training_time!r} are of scores that are "
                    "computed here, and scores are given.",
                    "pass them to rayinf.influence, which computes scores, or scores=None.",
                )
            return scores
        goes_on = isinstance(task.fit, Fit) and not task.fit.fresh
        inverse = "unrolled" if self.inverse == "auto" and goes_on and self.training_time is None else self.inverse
        return influence(
            task,
            train,
            valid,
            objective="category",
            halves=self.halves,
            cluster=self.cluster,
            inverse=inverse,
            training_time=self.training_time,
        )
