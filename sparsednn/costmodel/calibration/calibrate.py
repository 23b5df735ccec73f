"""`calibrate`: measure this machine stage by stage, and put a platform together.

Cores first (peak, memory, products), then messages and collectives on ranks, then what the engines
take. Each table in `Platform.measured` belongs to the model that reads it; what no model reads is
kept beside it (``ping_pong``, ``stream``, …), for whoever wonders about a figure. Must not know:
how anything is timed, and the command line.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from sparsednn.costmodel.calibration.timing import FULL, QUICK, Effort, no_pace, set_pace
from sparsednn.machine import Machine, machine

if TYPE_CHECKING:
    from sparsednn.comm.launcher import Launcher
    from sparsednn.costmodel.platform import Link, Platform, Processor

__all__ = ["FALLBACK", "calibrate", "sparse_efficiency"]

#: Whose links are taken where none can be measured, and the figures of kernels that are not there.
FALLBACK: Final = "two-core-server"

Progress = Callable[[str], None]

#: Spent on operations of dense networks, all backends and numbers of threads together.
_DENSE_SECONDS: Final = 70.0
_QUICK_DENSE_SECONDS: Final = 16.0


def calibrate(
    out: str | os.PathLike[str] | None = None,
    *,
    quick: bool = False,
    ranks: Sequence[int] = (2, 4),
    with_ranks: bool = True,
    name: str | None = None,
    progress: Progress | None = None,
) -> Platform:
    """Measure this machine; takes some two minutes, in which nothing else should run.

    Parameters
    ----------
    out
        File to write (TOML), whole or not at all; None: none.
    quick
        Fewer sizes and rounds: half a minute, and figures that are less sure.
    ranks
        How many ranks are started, one number after another; each at least 2. Messages between two
        ranks are those of the first number.
    with_ranks
        False: nothing is measured on ranks, links are those of the documented `FALLBACK`.
    name
        Of the platform; default: the file's name without its suffix, else "here".
    progress
        Is told what is measured now.

    Raises
    ------
    UsageError
        If this process is itself a rank, or a number of ranks is less than 2.
    MissingDependencyError
        If there is no MPI, before anything is measured.
    FormatError
        If the file cannot be written; where that can be known, before anything is measured.
    LaunchError
        If ranks fail.
    """
    from sparsednn.atomic import check_target
    from sparsednn.costmodel.platform import save_platform
    from sparsednn.errors import UsageError

    if with_ranks and (not ranks or min(ranks) < 2):
        raise UsageError("calibrate: numbers of ranks from 2 on are needed")
    if out is not None:
        check_target(out)
    launcher = None
    if with_ranks:
        from sparsednn.costmodel.calibration.ranks import find_ranks

        launcher = find_ranks()
    if name is None:
        name = os.path.splitext(os.path.basename(os.fspath(out)))[0] if out is not None else "here"
    from sparsednn.costmodel.calibration.pace import Pace

    told = progress or (lambda what: None)
    told("the machine's usual pace")
    pace = Pace()
    stages = _Stages(QUICK if quick else FULL, quick, told, pace.seconds)
    set_pace(pace.slowness)
    try:
        platform = stages.run(name or "here", tuple(ranks) if with_ranks else (1,), launcher)
    finally:
        set_pace(no_pace)
    if out is not None:
        save_platform(platform, out)
    return platform


@dataclass(slots=True)
class _Stages:
    """The stages, one after another, and what they have found so far."""

    effort: Effort
    quick: bool
    told: Progress
    pace_seconds: float
    measured: dict[str, Any] = field(default_factory=dict)
    residuals: list[dict[str, Any]] = field(default_factory=list)
    found: dict[int, dict[str, Any]] = field(default_factory=dict)

    def run(self, name: str, ranks: tuple[int, ...], launcher: Launcher | None) -> Platform:
        from sparsednn.costmodel.platform import Node, Platform, load_platform

        cpu = machine()
        self.measured["machine"] = _machine_table(cpu)
        self.measured["pace"] = {"seconds": self.pace_seconds}
        processor, node_bandwidth = self._processor(cpu)
        if launcher is None:
            link, links = load_platform(FALLBACK).within, f"links as documented of {FALLBACK}"
        else:
            link, links = self._links(ranks, launcher, processor)
        platform = Platform(
            name=name,
            source=f"measured by sparsednn calibrate on {cpu.processor}, {cpu.cores} cores, "
            f"{links}, {time.strftime('%Y-%m-%d')}",
            processor=processor,
            node=Node(
                processors=cpu.cores,
                ranks=max(cpu.cores, *ranks),
                memory_bytes=float(cpu.memory or 4 << 30),
                memory_bandwidth=node_bandwidth,
            ),
            nodes=1,
            within=link,
            measured=self.measured,
        )
        platform = self._dense(self._linked(self._sparse(platform)))
        self.measured["residuals"] = self.residuals
        return replace(platform, measured=self.measured)

    def _processor(self, cpu: Machine) -> tuple[Processor, float]:
        """One core, and the bytes per second of all together; the engines come later."""
        from sparsednn.costmodel.calibration import gemm, stream
        from sparsednn.costmodel.calibration import machine as core
        from sparsednn.costmodel.platform import Processor, load_platform

        self.told("peak of the cores")
        peak, every = core.measure_peak(cpu.cores, self.effort)
        self.measured["machine"]["flops_all"] = every
        self.told("memory and caches")
        found = stream.measure_stream(cpu, self.effort, quick=self.quick)
        self.measured["stream"] = found.table
        reduction, self.measured["reduction"] = stream.measure_reduction(self.effort)
        self.told("products of dense matrices")
        table = gemm.measure_gemm(self.effort, quick=self.quick)
        self.measured["gemm"] = table
        launch = core.measure_launch(self.effort)
        efficiency = gemm.efficiency_of(table, peak)
        left = gemm.gemm_residuals(table, peak, efficiency, found.cache, launch)
        self.residuals.append(left.as_table("gemm"))
        processor = Processor(
            kind="cpu",
            flops=peak,
            memory_bandwidth=found.memory,
            cache_bytes=float(cpu.l2),
            cache_bandwidth=found.cache,
            gemm_efficiency=efficiency,
            sparse_efficiency=load_platform(FALLBACK).processor.sparse_efficiency,
            launch_seconds=launch,
            reduction_bandwidth=reduction,
        )
        return processor, max(found.node, found.memory)

    def _links(
        self, ranks: tuple[int, ...], launcher: Launcher, processor: Processor
    ) -> tuple[Link, str]:
        """Messages and collectives: the link, and whose MPI it was."""
        from sparsednn.costmodel.calibration import links
        from sparsednn.costmodel.calibration.collectives import fit_wire
        from sparsednn.costmodel.calibration.ranks import measure_ranks

        request = links.rank_request(self.effort, quick=self.quick, pace_seconds=self.pace_seconds)
        found = self.found
        for count in ranks:
            self.told(f"messages and collectives on {count} ranks")
            found[count] = measure_ranks(count, request, launcher=launcher)
        first, sizes = found[ranks[0]], request["exchange_bytes"]
        link, exchange = links.link_of(sizes, first)
        pack = links.pack_fit(request["pack"], first["pack"])
        _, per_row, per_byte = pack.coefficients.tolist()
        self.measured |= links.exchange_tables(sizes, found, per_byte, per_row)
        self.measured |= links.collective_tables(found)
        wire = fit_wire(
            first["collectives"],
            (1e-6, 1 / link.bandwidth, 1 / processor.reduction_bandwidth),
        )
        names = ("latency", "per_byte", "reduction")
        self.measured["wire"] = dict(zip(names, wire.coefficients.tolist(), strict=True))
        self.residuals += [
            exchange.residuals.as_table("exchange"),
            pack.residuals.as_table("pack"),
            wire.residuals.as_table(f"collectives' formulas, {ranks[0]} ranks"),
        ]
        return link, first["library"]

    def _sparse(self, platform: Platform) -> Platform:
        """What the engines of sparse networks take, on one process."""
        from sparsednn.costmodel.calibration.engines import measure_small
        from sparsednn.costmodel.calibration.sparse import measure_blocks

        table: dict[str, Any]
        table, errors = measure_blocks(effort=self.effort, progress=self.told)
        self.residuals += errors
        self.measured["sparse"] = table
        processor = replace(
            platform.processor,
            sparse_efficiency=sparse_efficiency(table["forward"], platform.processor.flops),
        )
        platform = replace(platform, processor=processor, measured=self.measured)
        more, errors = measure_small(platform, effort=self.effort, progress=self.told)
        self.residuals += errors
        self.measured["sparse"] = table | more
        if "exchange" in self.measured:
            exchange = self.measured["exchange"]
            self.measured["sparse"]["small"] |= {
                "linked_layer": exchange["layer_seconds"],
                "pack_byte": exchange["pack_seconds_per_byte"],
                "pack_row": exchange["pack_seconds_per_row"],
            }
        return platform

    def _linked(self, platform: Platform) -> Platform:
        """What runs on ranks take more than their parts."""
        from sparsednn.costmodel.calibration.linked import fit_linked
        from sparsednn.costmodel.calibration.links import linked_step

        platform = replace(platform, measured=dict(self.measured))
        tables: list[dict[str, Any]] = []
        for count, found in self.found.items():
            if found.get("linked"):
                some, errors = fit_linked(
                    platform, count, found["linked"], step=linked_step(quick=self.quick)
                )
                tables += some
                self.residuals += errors
        if tables:
            self.measured["linked"] = tables
        return replace(platform, measured=self.measured)

    def _dense(self, platform: Platform) -> Platform:
        """What operations of dense networks take; last, as PyTorch changes a process for good."""
        from sparsednn.costmodel.calibration.dense import measure_dense

        cores = machine().cores
        table = measure_dense(
            threads=tuple(sorted({1, min(2, cores)})),
            seconds=_QUICK_DENSE_SECONDS if self.quick else _DENSE_SECONDS,
            progress=self.told,
        )
        self.residuals += table.pop("residuals")
        self.measured["dense"] = table
        return replace(platform, measured=self.measured)


def sparse_efficiency(table: Mapping[str, Any], peak: float) -> float:
    """Return the part of the peak that full blocks on full panels reach, tile in the cache.

    Of the highest blocks on the widest panels the slope says what one column of a pattern takes: a
    multiply-add for each row and each lane.

    Parameters
    ----------
    table
        ``measured["sparse"]["forward"]``, see `sparse.kernels.BlockCosts`.
    peak
        flop/s of a core.
    """
    from sparsednn.costmodel.sparse.kernels import HEIGHTS
    from sparsednn.kernels.microkernel import LANES

    flops = 2.0 * HEIGHTS[-1] * LANES * table["panels"][-1]
    slopes = [level[-1][-1] for level in table["slope_seconds"]]
    # A slope of nothing is a fit to noise.
    rates = [flops / slope for slope in slopes if slope > 0]
    return min(1.0, max(rates, default=peak) / peak)


def _machine_table(cpu: Machine) -> dict[str, Any]:
    return {
        "processor": cpu.processor,
        "cores": cpu.cores,
        "l1d_bytes": cpu.l1d,
        "l2_bytes": cpu.l2,
        "l3_bytes": cpu.l3,
        "l3_shared_by": cpu.l3_shared_by,
    }
