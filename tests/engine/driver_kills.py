"""Kill a driver after every single step of a run, run it again, and tell whether the scores are the same.

    python driver_kills.py TRAIN VALID FOLDER

Forks children from a process that has computed nothing, so that each starts like a fresh interpreter, at once.
"""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from engine import small_job as job

from rayinf.engine.runner import LocalRunner


def child(train: str, valid: str, out: Path, die_after: int | None) -> int:
    """Run in a fork; dies by SIGKILL after so many steps. The exit status as `waitpid` has it."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    steps = 0
    plain = LocalRunner.map

    def deadly(self, *args, **options):
        nonlocal steps
        for found in plain(self, *args, **options):
            # Before the sum is added, or after the shard is written: whichever comes with this step.
            steps += 1
            if steps == die_after:
                os.kill(os.getpid(), signal.SIGKILL)
            yield found

    LocalRunner.map = deadly
    try:
        job.run(train, valid, out)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)
    if die_after is None:
        (out / "steps").write_text(str(steps))
    os._exit(0)


def main() -> None:
    """All kills, one after the other."""
    train, valid, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    assert child(train, valid, folder / "calm", None) == 0
    calm, steps = job.digest(folder / "calm"), int((folder / "calm" / "steps").read_text())
    digests = []
    for k in range(1, steps + 1):
        out = folder / f"killed{k}"
        status = child(train, valid, out, k)
        assert os.WIFSIGNALED(status), (k, status)
        assert child(train, valid, out, None) == 0
        digests.append(job.digest(out))
    print(json.dumps({"kills": steps, "calm": calm, "digests": sorted(set(digests))}))


if __name__ == "__main__":
    main()
