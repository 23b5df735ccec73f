"""One contender of `training.py` in a process of its own, so that its peak memory is its own.

``python benchmarks/_rivals.py FOLDER CASE`` (JSON of `Case`) prepares a contender and then answers
each line of its input, a number of seconds, with a line of JSON: how many steps it did in that
time, how long they took, losses, memory. With a number behind the case it does one turn and ends,
for ranks. ``--prepare FOLDER MODEL NAME`` writes the files that contenders read.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

# These import no library yet.
from _contenders import Case, Contender, Ours, Torch, prepare

_WARM_UP = 3  # steps that are not counted, in the first turn
_LEAST = 3  # counted steps of a turn, however long they take
_COMPARED = 4  # losses of the first steps, which are those of all contenders


def status_mib(name: str) -> int:
    """A line of this process's status in MiB: VmRSS now, VmHWM at most.

    Not getrusage: its peak begins with that of the process that started this one.
    """
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


def forget_peak() -> None:
    """Let VmHWM begin again."""
    Path("/proc/self/clear_refs").write_text("5")


class Turns:
    """Prepares a contender and lets it take turns."""

    def __init__(self, folder: Path, case: Case) -> None:
        started = status_mib("VmRSS")
        import numpy  # noqa: F401
        import scipy.sparse  # noqa: F401

        if case.how == "ours":
            import sparsednn.training.compiled  # noqa: F401
        else:
            import torch  # noqa: F401
        imported = status_mib("VmRSS")
        make: type[Contender] = Ours if case.how == "ours" else Torch
        self.contender = make(folder, case)
        self._memory = {
            "started_mib": started,
            "imported_mib": imported,
            "preparing_peak_mib": status_mib("VmHWM"),
        }
        forget_peak()
        self._done = 0

    def turn(self, seconds: float) -> dict[str, Any]:
        """Do steps for so long; a first turn compiles and warms up before."""
        losses = [self._next() for _ in range(1 if self._done else _WARM_UP)]
        steps, spent, block = 0, 0.0, 1
        clock = time.perf_counter()
        while block:
            losses += [self._next() for _ in range(block)]
            steps += block
            spent = time.perf_counter() - clock
            # Rank 0 says how many steps are next, for a tenth of the time, so that asking it
            # costs nothing.
            left = max(0.0, min(0.1 * seconds, seconds - spent))
            block = max(int(left * steps / spent), 1 if left or steps < _LEAST else 0)
            block = self.contender.agreed(block)
        memory = self._memory | {"training_peak_mib": status_mib("VmHWM")}
        last = losses[-(len(losses) // 4 + 1) :]
        return {
            "steps": steps,
            "seconds": spent,
            "first_losses": losses[:_COMPARED],
            "last_loss": sum(last) / len(last),
            "memory": dict(zip(memory, self.contender.largest(list(memory.values())), strict=True)),
            **self.contender.told(),
        }

    def _next(self) -> float:
        self._done += 1
        return self.contender.step(self._done - 1)


def main() -> None:
    if sys.argv[1] == "--prepare":
        prepare(Path(sys.argv[2]), *sys.argv[3:])
        return
    folder, case = Path(sys.argv[1]), Case(**json.loads(sys.argv[2]))
    try:
        turns = Turns(folder, case)
        if len(sys.argv) > 3:
            told = turns.turn(float(sys.argv[3]))
            if turns.contender.rank == 0:
                print(json.dumps(told), flush=True)
            return
        for line in sys.stdin:
            print(json.dumps(turns.turn(float(line))), flush=True)
    except (RuntimeError, NotImplementedError) as error:  # what PyTorch raises if it cannot
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:400]}), flush=True)


if __name__ == "__main__":
    main()
