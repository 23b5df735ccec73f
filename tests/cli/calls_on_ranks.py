"""Many calls of the program in one start of ranks, which costs seconds. Run it under mpiexec.

``calls_on_ranks.py CALLS RESULTS``: CALLS is a JSON list of argument lists. Every rank makes all
calls, one after another, in the present folder. RESULTS-0.json of rank 0, and so on: a list of
``[exit code, stdout, stderr, whether files have changed]``. An argument ``--uneven-nodes`` makes
believe that rank r's node has cores for r + 2 threads.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from cli.cli_program import snapshot

from sparsednn.cli.main import main
from sparsednn.comm.mpi import world

UNEVEN = "--uneven-nodes"


def call(arguments: list[str]) -> list[Any]:
    """Make one call: exit code, stdout, stderr, whether files have changed meanwhile."""
    comm = world()
    before = snapshot(Path.cwd())
    comm.barrier()
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["sparsednn", *(one for one in arguments if one != UNEVEN)]
    code: Any = None
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        if UNEVEN in arguments:
            threads = mock.patch(
                "sparsednn.comm.threads.threads_per_rank", return_value=comm.rank + 2
            )
            stack.enter_context(threads)
        try:
            main()
        except SystemExit as end:
            code = end.code
    comm.barrier()
    changed = snapshot(Path.cwd()) != before
    comm.barrier()
    return [code, out.getvalue(), err.getvalue(), changed]


if __name__ == "__main__":
    calls = json.loads(Path(sys.argv[1]).read_text())
    target = Path(f"{sys.argv[2]}-{world().rank}.json")
    target.write_text(json.dumps([call(arguments) for arguments in calls]))
