"""Several devices through real mpiexec; every rank's is the twin, or the PTX interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpi_runs import require_mpi
from row_wise import by_hand, dying_network, make_inputs
from sparsednn.formats import write_inputs, write_network

HERE = Path(__file__).resolve().parent
RANKS, LINKS = HERE / "check_ranks.py", HERE / "check_links.py"


@pytest.mark.parametrize(
    ("implementation", "ranks", "checks"),
    [
        ("openmpi", 1, (RANKS, LINKS)),
        ("openmpi", 2, (RANKS, LINKS)),
        ("openmpi", 3, (RANKS, LINKS)),
        ("openmpi", 4, (RANKS,)),
        ("mpich", 3, (LINKS,)),
    ],
)
def test_on_ranks(implementation: str, ranks: int, checks: tuple[Path, ...]) -> None:
    require_mpi(implementation).check(ranks, *checks)


def test_a_rank_that_fails_ends_all(tmp_path: Path) -> None:
    network = dying_network(1)
    write_network(network, tmp_path / "net", format="npz")
    write_inputs(make_inputs(network, 40, 1), tmp_path / "inputs.npz")
    by_hand(network, 3, 1).save(tmp_path / "parts.npz")
    mpi = require_mpi("openmpi")
    done = mpi.run(3, [HERE / "fault_ranks.py", tmp_path, "1"], check=False, timeout=30)
    assert done.returncode != 0
    assert "rank 1" in done.stderr
    assert "as the test wants it" in done.stderr
    assert "ended well" not in done.stdout
