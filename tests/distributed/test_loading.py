"""`load_shard`, `load_whole`: the check program on 1 to 4 ranks; and how a program ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed.samples import network, partition

from mpi_runs import MpiRuns
from sparsednn.formats import write_network
from sparsednn.formats._container import read_header
from sparsednn.sources import load_network, official_size

HERE = Path(__file__).parent


def test_checks(mpi_and_ranks: tuple[MpiRuns, int]) -> None:
    mpi, ranks = mpi_and_ranks
    mpi.check(ranks, HERE / "check_loading.py")


def test_the_name_of_an_official_network_means_the_usual_depth() -> None:
    assert official_size("graph-challenge:1024", None) == (1024, 120)
    assert len(load_network("graph-challenge:1024")) == 120


@pytest.mark.parametrize("fault", ["none", "column", "truncated", "partition", "npz"])
def test_a_program_that_loads(mpi: MpiRuns, tmp_path: Path, fault: str) -> None:
    """One line of error, an exit code that is not 0, and no rank that waits for ever."""
    net = network(0, (20, 40, 8))
    model = tmp_path / "n.safetensors"
    write_network(net, model)
    partition(network(1, (20, 40, 8)) if fault == "partition" else net, 3, "cyclic").save(
        tmp_path / "p.npz"
    )
    if fault == "column":
        row = next(r for r in range(2, 40, 3) if net[0].indptr[r] < net[0].indptr[r + 1])
        damage(model, "layers.0.indices", 4 * int(net[0].indptr[row]), np.int32(-7))
    if fault == "truncated":
        os.truncate(model, model.stat().st_size - 1)
    if fault == "npz":
        model = tmp_path / "n.npz"
        model.write_bytes(b"PK\x03\x04 no archive")
    program = [HERE / "load_program.py", model, tmp_path / "p.npz"]
    done = mpi.run(3, program, check=False, timeout=60)
    lines = [line for line in done.stderr.splitlines() if line.startswith("sparsednn: error")]
    if fault == "none":
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == ["loaded 3 parts"]
        return
    assert done.returncode == 3
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    expected = {
        "column": f"rank 2: {model}: layer 1: row {{row}}: column -7 is out of range for 20",
        "truncated": f"rank 0: {model}: truncated: ",
        "partition": "made for network 'sample-1'",
        "npz": str(model),
    }[fault]
    assert expected.replace("{row}", str(row) if fault == "column" else "") in lines[0]


def damage(path: Path, tensor: str, offset: int, value: Any) -> None:
    with open(path, "r+b") as file:
        file.seek(read_header(path).tensors[tensor].begin + offset)
        file.write(value.tobytes())
