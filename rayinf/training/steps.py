"""Steps of work that are done once: the result of each is a file, and what is on disk is read instead of done again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import PurePath
from typing import Any, TypeVar

from torch import nn

from rayinf.data.checked_folder import CheckedFolder
from rayinf.data.known_scans import known
from rayinf.data.run_folder import RunFolder
from rayinf.data.tables import Table
from rayinf.engine import progress
from rayinf.store.places import AnyPath, open_place
from rayinf.task import Task
from rayinf.training.checkpoint import load_checkpoint, write_checkpoint

Item = TypeVar("Item")


class Steps:
    """Results by the names of their files, each with a checksum: a file that is lost or damaged is made again.

    The suffix of a name says what is kept: `.json` a value, `.parquet` a table. Models are kept by `model`.

    Args:
        files: gives the folder at each use, so that it can be checked that this process may still write there. None:
            nothing is kept, and every step is done.
    """

    def __init__(self, files: Callable[[], CheckedFolder] | None) -> None:
        self._files = files

    def read(self, name: str) -> Any:
        """The result of a step; None where it is not done."""
        if self._files is None:
            return None
        files = self._files()
        return files.json(name) if PurePath(name).suffix == ".json" else files.table(name)

    def write(self, name: str, value: Any) -> None:
        """Keep the result of a step, unless the same is there."""
        if self._files is None:
            return
        files = self._files()
        if PurePath(name).suffix == ".json":
            if files.json(name) != value:
                files.put_json(name, value)
        else:
            files.put_table(name, value)

    def step(self, name: str, make: Callable[[], Any]) -> Any:
        """The result of a step, done now unless it is on disk. None, which is not kept: it cannot be done yet."""
        found = self.read(name)
        if found is None:
            found = make()
            if found is not None:
                self.write(name, found)
        return found

    def model(self, name: str, task: Task, train: Callable[[], Task]) -> Task:
        """The task around a trained model, which is trained now unless it is on disk.

        Args:
            name: of its file, `.safetensors`.
            task: whose model has the architecture, with its classes. A model of another architecture, which a user's
                fit may return, is trained whenever it is wanted, and its file stays.
            train: gives the task around the trained model.
        """
        if self._files is None:
            return train()
        model = load_checkpoint(self._files(), name, task)
        if model is not None:
            return replace(task, model=model)
        trained = train()
        assert isinstance(trained.model, nn.Module)
        if not self._files().is_sound(name):
            write_checkpoint(self._files(), name, trained.model, task.version)
        return trained

    def map(
        self,
        calls: Callable[[Mapping[str, Item]], Iterator[tuple[str, Any]]],
        items: Mapping[str, Item],
        on_new: Callable[[str, Any], None],
        title: str = "",
        unit: str = "",
    ) -> dict[str, Any]:
        """The results of several steps, in the order of their items. Those that are not on disk are done side by side.

        Args:
            calls: does items by name, as `parallel.side_by_side` and `parallel.worker_pool` do.
            items: what is to be done, by the names of the files.
            on_new: called with the name and the result of each that is done now, before it is kept.
            title: of the progress bar; empty: there is none.
            unit: what the bar counts.
        """
        found = {name: self.read(name) for name in items}
        missing = {name: item for name, item in items.items() if found[name] is None}
        shown = progress.bar(title, len(items), len(items) - len(missing), unit) if title and missing else nullcontext()
        with shown as advance:
            for name, result in calls(missing):
                on_new(name, result)
                self.write(name, result)
                found[name] = result
                if advance is not None:
                    advance(1)
        return found


def recall(out: str | AnyPath | None) -> None:
    """Take over the scans of tables that an earlier call has left in a run's folder, before tables are opened.

    Args:
        out: the folder, if there is one.
    """
    if out is not None:
        known.load(open_place(out, "out"))


@contextmanager
def run_folder(
    out: str | AnyPath | None, record: Mapping[str, Any], tables: Iterable[Table] = ()
) -> Generator[tuple[RunFolder, bool]]:
    """The folder of a run for as long as the context lasts, and whether all that is asked for was there already.

    Args:
        out: where; None: a temporary folder, which goes at the end.
        record: of the run; see `RunFolder.begin`.
        tables: opened, whose scans are kept in the folder for the next call (`recall`).

    Raises:
        RayinfError: the folder belongs to another config or process, or cannot be written.
    """
    place: Any = tempfile.TemporaryDirectory(prefix="rayinf-") if out is None else nullcontext(open_place(out, "out"))
    with place as path, RunFolder(open_place(path)) as folder:
        finished = folder.begin(record)
        if not finished:
            folder.log("start", verb=record["verb"])
            if out is not None:
                known.save(folder.path, tables)
        yield folder, finished
