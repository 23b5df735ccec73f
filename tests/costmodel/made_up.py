"""Measurements that nobody made, of a machine that follows the formulas exactly."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sparsednn.comm.launcher import Launcher
from sparsednn.costmodel.calibration.stream import Stream
from sparsednn.costmodel.collectives import VERBS, Wire, choose

LATENCY, PER_BYTE, OVERHEAD = 3e-7, 5e-11, 1e-7
WIRE = Wire(4e-6, 9e-11, 3e-11)
PER_ROW, PER_PACKED_BYTE = 2e-9, 2e-11
PEAK = 2.4e11


def answer_of(ranks: int, request: dict[str, Any]) -> dict[str, Any]:
    """What ranks would answer: see `rank_program.answer`."""
    sizes = np.array(request["exchange_bytes"], float)
    one = LATENCY + 2 * OVERHEAD + PER_BYTE * sizes
    rows, columns = np.array(request["pack"], float).T
    tables = []
    for verb in VERBS:
        nbytes = [1.0] if verb == "barrier" else [float(b) for b in request["collective_bytes"]]
        seconds = [choose(verb, ranks, size, WIRE).seconds for size in nbytes]
        tables.append({"verb": verb, "ranks": ranks, "bytes": nbytes, "seconds": seconds})
    tables.append(tables[0] | {"verb": "start_broadcast"})
    groups = [table | {"ranks": 2} for table in tables] if request["groups"] and ranks == 4 else []
    return {
        "exchange": {str(m): (m * one).tolist() for m in range(1, ranks)},
        "immediate": one.tolist(),
        "ping_pong": one.tolist(),
        "overhead": OVERHEAD,
        "overlap": [0.0] * len(request["overlap_bytes"]),
        "pack": (1e-7 + PER_ROW * rows + PER_PACKED_BYTE * 4 * rows * columns).tolist(),
        "layer": 4e-7,
        "linked": {},
        "collectives": tables,
        "pairs": groups,
        "library": "Made-Up MPI 1.0",
    }


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `calibrate` find such a machine, without measuring or starting anything."""
    here = "sparsednn.costmodel.calibration"
    table = {
        "bytes": [2**19, 2**27], "copy": [2e11, 3e10], "triad": [2e11, 3e10],
        "triad_all": [4e11, 4e10],
    }  # fmt: skip
    gemm = {"m": [96, 768], "n": [96, 768], "k": [96, 768], "seconds": [1.5e-5, 7.6e-3]}
    reduced = {"bytes": [2**20], "seconds": [2.6e-5]}
    small = {"small": {"run": 6e-5}, "last_cache_bytes": 3e7, "busy": 1.1}
    slopes = [[[2e-9, 2e-9, 3e-9], [3e-9] * 3, [4e-9] * 3, [5e-9, 6e-9, 7e-9]]]
    forward = {"panels": [1, 2, 3], "slope_seconds": slopes}
    left = {"model": "sparse forward", "median": 0.01, "worst": 0.1, "points": 9}
    found: dict[str, Any] = {
        "machine.measure_peak": (PEAK, 2 * PEAK),
        "machine.measure_launch": 5e-7,
        "stream.measure_stream": Stream(2e11, 3e10, 4e10, table),
        "stream.measure_reduction": (4e10, reduced),
        "gemm.measure_gemm": gemm,
        "sparse.measure_blocks": ({"forward": forward}, [left]),
        "engines.measure_small": (small, []),
        "dense.measure_dense": {"backends": {}, "residuals": []},
        "pace.Pace": SimpleNamespace(seconds=3e-4, slowness=lambda: 1.0),
        "ranks.find_launcher": Launcher(Path("mpirun"), "openmpi", "1.0"),
    }
    for name, value in found.items():
        monkeypatch.setattr(f"{here}.{name}", lambda *_, value=value, **__: value)
    monkeypatch.setattr(
        f"{here}.ranks.measure_ranks", lambda ranks, request, **_: answer_of(ranks, request)
    )
