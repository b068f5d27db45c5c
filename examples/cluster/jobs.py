"""What the three scripts share: their options, the store of tables and results, and one command sent as a job."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from local_head import local_head
from pyarrow import fs

HERE = Path(__file__).parent
QUICK_ROWS, QUICK_WORKERS = 600, 1
# The task of a job: which weights, and the code that travels with it.
_JOB = '''"""What this job values."""

from task import load_task


def make_task():
    return load_task({weights!r})
'''


@dataclass(frozen=True)
class Store:
    """A place that this machine and all machines of the cluster reach: a folder, or a URI such as s3://BUCKET/path."""

    place: str

    def uri(self, name: str) -> str:
        """What stands in a config for something in the store."""
        return f"{self.place}/{name}"

    def write(self, name: str, table: pa.Table) -> None:
        """A table as a Parquet file."""
        files, path = fs.FileSystem.from_uri(self.uri(name))
        files.create_dir(path.rpartition("/")[0])
        pq.write_table(table, path, filesystem=files)

    def read(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A Parquet file, or all of a folder."""
        files, path = fs.FileSystem.from_uri(self.uri(name))
        return pq.read_table(path, columns=columns, filesystem=files)

    def write_weights(self, name: str, weights: Mapping[str, torch.Tensor]) -> str:
        """A model's weights as a file; its URI."""
        held = io.BytesIO()
        torch.save(dict(weights), held)
        files, path = fs.FileSystem.from_uri(self.uri(name))
        files.create_dir(path.rpartition("/")[0])
        with files.open_output_stream(path) as file:
            file.write(held.getvalue())
        return self.uri(name)

    def names(self, folder: str) -> list[str]:
        """The files of a folder; none where it is not there."""
        files, path = fs.FileSystem.from_uri(self.uri(folder))
        found = files.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return sorted(f.base_name for f in found if f.type == fs.FileType.File)

    def make_folder(self, name: str) -> None:
        """A folder, empty, unless it is there."""
        files, path = fs.FileSystem.from_uri(self.uri(name))
        files.create_dir(path)


@dataclass(frozen=True)
class Jobs:
    """Where jobs go.

    Attributes:
        address: of the cluster's dashboard.
        workers: of each job.
        env: environment variables of the commands here; they hold the token of the cluster.
    """

    address: str
    workers: int
    env: Mapping[str, str]

    def run(self, verb: str, config: Mapping[str, Any], weights: str) -> float:
        """Run a command of rayinf on the cluster, show its log, and wait for its end.

        Args:
            verb: such as "influence".
            config: its keys, without `task` and `cluster`.
            weights: of the model, a file of the store.

        Returns:
            Seconds.

        Raises:
            SystemExit: the job failed.
        """
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="job-") as held:
            folder = Path(held)
            shutil.copy(HERE / "task.py", folder)
            (folder / "job.py").write_text(_JOB.format(weights=weights))
            cluster = {"address": "auto", "workers": self.workers}
            text = yaml.safe_dump({"task": "job.py:make_task", **config, "cluster": cluster}, sort_keys=False)
            (folder / "config.yaml").write_text(text)
            print(f"--- job: rayinf {verb}\n{text}", flush=True)
            done = subprocess.run(submit_command(verb, folder / "config.yaml", self.address), env=self.env, check=False)
        if done.returncode:
            raise SystemExit(f"the job failed with exit code {done.returncode}; the same command goes on with it")
        return time.perf_counter() - begin


def submit_command(verb: str, config: Path, address: str) -> list[str]:
    """The command that runs `rayinf VERB CONFIG` as a job; the code beside the config travels with it."""
    return ["rayinf", "submit", verb, str(config), "--address", address, "--follow"]


def read_options(meaning: str | None, name: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of a script. With --quick, few rows and workers, and a local head unless --address names one.

    Args:
        meaning: the script's docstring.
        name: of the folder in which everything lies unless --store says else.
        argv: arguments; None: those of the command line.
    """
    parser = argparse.ArgumentParser(description=meaning, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--store", help="a folder that all machines share, or a URI; default: examples/cluster/out/NAME"
    )
    parser.add_argument("--address", help="of the cluster's dashboard, such as http://HEAD:8265")
    parser.add_argument("--workers", type=int, help="of each job; default: 4")
    parser.add_argument("--rows", type=int, help="training rows to draw; default: 100,000")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS} rows, {QUICK_WORKERS} worker, a local head")
    args = parser.parse_args(argv)
    if args.address is None and not args.quick:
        parser.error("pass --address http://HEAD:8265, or --quick for a head on this machine")
    args.rows = args.rows or (QUICK_ROWS if args.quick else 100_000)
    args.workers = args.workers or (QUICK_WORKERS if args.quick else 4)
    place = args.store or str(HERE / "out" / name)
    args.store = Store((place if "://" in place else str(Path(place).absolute())).rstrip("/"))
    torch.set_num_threads(1)  # products this small gain nothing from threads
    return args


@contextmanager
def open_jobs(args: argparse.Namespace) -> Generator[Jobs]:
    """The cluster at --address, or a local head for as long as the script runs."""
    with ExitStack() as stack:
        if args.address is not None:
            yield Jobs(args.address, args.workers, os.environ)
        else:
            head = stack.enter_context(local_head(cpus=args.workers))
            yield Jobs(head.dashboard, args.workers, head.env)
