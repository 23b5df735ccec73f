"""From a network to a `Partition`: the methods, and their comparison.

============  =====================================================================================
method        what it does
============  =====================================================================================
joint         all layers together (`sparsednn.partitioners.joint`): annealing and recombination,
              with the chains of the partitioners that are installed as candidates
multiphase    layer after layer with one partitioner (`sparsednn.partitioners.multiphase`)
============  =====================================================================================

The partitioners ``block``, ``cyclic`` and ``random`` are rules of ownership: they look at no
layer's pattern, and give inputs to parts by the same rule.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import InputError, MissingDependencyError, UsageError
from sparsednn.machine import available_cores
from sparsednn.network import SparseNetwork
from sparsednn.partitioners.hypergraph import FREE, Hypergraph
from sparsednn.partitioners.metrics import PartitionStats, evaluate
from sparsednn.partitioners.partition import Partition, PartitionMeta
from sparsednn.partitioners.solvers import get_solver
from sparsednn.partitioners.solvers.base import Solver

__all__ = ["EFFORTS", "METHODS", "Compared", "Options", "compare", "make_partition"]

METHODS: Final[dict[str, str]] = {
    "joint": "all layers together; the default",
    "multiphase": "layer after layer, with one partitioner",
}
"""Name and one line for ``--help``."""

EFFORTS: Final[dict[str, tuple[float, float]]] = {
    "quick": (0.1, 0.0),
    "default": (1.0, 3e7),
    "thorough": (10.0, 1e10),
}
"""How long ``joint`` searches: its proposals and sweeps as a multiple of the default's, and for how
much work (pins of units × log2 of the parts, all layers; a million takes a few seconds) it lets
native partitioners make chains for it. ``thorough`` has them go backward as well."""

LARGEST_PARTS: Final = 8192
"""Who sends to whom is a full matrix: of 512 MiB for so many parts."""

RULES: Final = ("block", "cyclic", "random")
"""Partitioners that are rules of ownership."""

NATIVE: Final = ("kahypar", "mtkahypar")
"""Partitioners that joint takes chains from, and that a comparison shows, if installed."""

Report = Callable[[str, float], None]
"""Called with the name of a stage and the share of it that is done (0 to 1)."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the methods have in common.

    Attributes
    ----------
    parts
        K.
    imbalance
        The heaviest part of a layer may have ``(1 + imbalance)`` times the mean of its nonzeros.
    seed
        The same seed gives the same partition, unless a partitioner's preset is not deterministic.
    threads
        Threads; None for all cores. Changes no result of the deterministic ones.
    preset
        Of the partitioner; None for its default.
    rows
        multiphase: every row by itself, as in the paper. Otherwise rows of the same pattern stay
        together where the balance allows: much quicker, and no worse.
    effort
        One of `EFFORTS`, for ``joint``.
    quiet
        False: what native libraries print goes to standard error.
    path
        Of the folder with part files, for the partitioner ``file``.
    command
        The program, for the partitioner ``command``.
    report
        Progress.
    warn
        Called with one line for each thing that the user should know.
    """

    parts: int
    imbalance: float = 0.03
    seed: int = 1
    threads: int | None = None
    preset: str | None = None
    rows: bool = False
    effort: str = "default"
    quiet: bool = True
    path: str | os.PathLike[str] | None = None
    command: str | None = None
    report: Report | None = None
    warn: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises
        ------
        InputError
            If there is no part, or the imbalance is negative or no number.
        UsageError
            If the seed, the threads or the effort are out of range.
        """
        if self.parts < 1:
            raise InputError(f"parts must be at least 1, found {self.parts}")
        if self.parts > LARGEST_PARTS:
            raise InputError(f"parts must be at most {LARGEST_PARTS}, found {self.parts}")
        if not 0.0 <= self.imbalance < float("inf"):
            raise InputError(f"imbalance must be a number of at least 0, found {self.imbalance}")
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"seed must be in 0 to {2**31 - 1}, found {self.seed}")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads must be at least 1, found {self.threads}")
        if self.effort not in EFFORTS:
            raise UsageError(f"no effort '{self.effort}'; there are {', '.join(EFFORTS)}")

    @property
    def cores(self) -> int:
        """Threads to run."""
        return self.threads or available_cores()

    def tell(self, line: str) -> None:
        """Give a line to `warn`, if there is somebody who listens."""
        if self.warn is not None:
            self.warn(line)

    def stage(self, name: str) -> Callable[[int, int], None] | None:
        """Progress of a stage that counts layers."""
        report = self.report
        return None if report is None else lambda done, of: report(name, done / of)


@dataclass(frozen=True, slots=True)
class Compared:
    """One line of a comparison: how, what came out, how long it took (seconds)."""

    method: str
    partitioner: str
    partition: Partition
    stats: PartitionStats
    seconds: float


@dataclass(slots=True)
class _Chain:
    """Owners of all neuron layers, and how they were made."""

    owners: Sequence[NDArray[np.int32]]
    version: str | None = None
    preset: str | None = None
    seconds: float = 0.0
    made_by: tuple[str, ...] = field(default=())


def make_partition(
    network: SparseNetwork,
    options: Options,
    *,
    method: str = "joint",
    partitioner: str | None = None,
) -> Partition:
    """Partition a network.

    Parameters
    ----------
    network
        The network.
    options
        Parts, balance, seed and so on.
    method
        One of `METHODS`.
    partitioner
        For ``multiphase``: one of `SOLVERS` (None: kahypar). For ``joint``: the only one that it
        takes a chain from (None: those that are installed, as far as the effort allows).

    Raises
    ------
    UsageError
        If a name is not known, or an option does not belong to the partitioner.
    MissingDependencyError
        If the partitioner is not installed.
    InputError
        If the network or files cannot be used.
    """
    if method not in METHODS:
        raise UsageError(f"no method '{method}'; there are {', '.join(METHODS)}")
    if method == "multiphase":
        partitioner = partitioner or "kahypar"
    for option, value, owner in (
        ("preset", options.preset, None),
        ("path", options.path, "file"),
        ("command", options.command, "command"),
    ):
        if value is not None and (partitioner is None or owner not in (None, partitioner)):
            raise UsageError(f"a {option} belongs to a partitioner: name {owner or 'it'}")
    if method == "multiphase":
        name = partitioner or ""
        chain = _chain(network, name, options)
        return _partition(network, options, "rule" if name in RULES else method, name, chain)
    if partitioner is None:
        chains = _candidates(network, options)
    else:
        chains = {partitioner: _chain(network, partitioner, options)}
    return _partition(network, options, method, "", _joint(network, options, chains))


def compare(network: SparseNetwork, options: Options) -> Iterator[Compared]:
    """Partition in every way: the rules, multiphase with each native partitioner, joint.

    ``joint`` takes all chains before it as candidates, so it is not worse than any of them that
    keeps to the balance. Its seconds include those of the native chains.

    Raises
    ------
    UsageError
        At once, if the options are those of a single partitioner.
    """
    if (options.preset, options.path, options.command) != (None, None, None):
        raise UsageError("a comparison runs all partitioners: preset, path, command belong to one")
    return _compared(network, options)


def _compared(network: SparseNetwork, options: Options) -> Iterator[Compared]:
    chains: dict[str, _Chain] = {}
    for name in (*RULES, *NATIVE):
        try:
            chains[name] = _chain(network, name, options)
        except MissingDependencyError as error:
            options.tell(f"not in the comparison: {error}")
            continue
        method = "rule" if name in RULES else "multiphase"
        partition = _partition(network, options, method, name, chains[name])
        yield Compared(
            method,
            name,
            partition,
            evaluate(network, partition),
            chains[name].seconds,
        )
    chain = _joint(network, options, chains)
    partition = _partition(network, options, "joint", "", chain)
    yield Compared(
        "joint",
        partition.meta.partitioner,
        partition,
        evaluate(network, partition),
        chain.seconds,
    )


def _partition(
    network: SparseNetwork, options: Options, method: str, partitioner: str, chain: _Chain
) -> Partition:
    meta = PartitionMeta(
        method=method,
        partitioner=partitioner or "+".join(("annealing", *chain.made_by)),
        version=chain.version,
        preset=chain.preset,
        # Numbers of NumPy have no JSON.
        seed=int(options.seed),
        threads=int(options.cores),
        imbalance=float(options.imbalance),
        network=network.name,
        hash=network.hash,
        pattern=network.pattern_hash,
    )
    return Partition(chain.owners, int(options.parts), meta)


def _chain(
    network: SparseNetwork, name: str, options: Options, *, backward: bool = False
) -> _Chain:
    """Partition with one partitioner, layer after layer or by rule."""
    from sparsednn.partitioners.balance import layer_balance
    from sparsednn.partitioners.multiphase import multiphase, settle_free

    solver = get_solver(
        name,
        preset=options.preset,
        threads=_library_threads(name, options),
        quiet=options.quiet,
        path=options.path if name == "file" else None,
        command=options.command if name == "command" else None,
    )
    start = time.perf_counter()
    if name == "file":
        from sparsednn.partitioners.export import read_layer_parts

        owners = read_layer_parts(options.path or "", network, options.parts)
        inputs = np.full(network.n_in, FREE, dtype=np.int32)
        owners = settle_free(network, [inputs, *owners], options.parts)
    elif name in RULES:
        owners = _by_rule(network, solver, options)
    else:
        balance = layer_balance(network, options.parts, options.imbalance)
        stage = options.stage(name)
        owners = multiphase(
            network,
            solver,
            balance,
            seed=options.seed,
            backward=backward,
            together=not options.rows,
            progress=stage,
        )
    info = solver.info
    return _Chain(owners, info.version, info.preset, time.perf_counter() - start, (name,))


def _by_rule(network: SparseNetwork, solver: Solver, options: Options) -> list[NDArray[np.int32]]:
    """Every neuron layer by the same rule, the inputs as if they were rows of equal weight."""
    weights = [np.ones(network.n_in, dtype=np.int64)]
    weights += [np.diff(layer.indptr) for layer in network]
    owners = []
    for k, weight in enumerate(weights):
        none = np.zeros(0, dtype=np.int64)
        free = np.full(weight.size, FREE, dtype=np.int32)
        rows = Hypergraph(np.zeros(1, np.int64), none.astype(np.int32), weight, none, free)
        # Another seed per layer: the same random division of all layers would not be random.
        seed = (options.seed + k * 7919) % 2**31
        owners.append(solver.solve(rows, options.parts, imbalance=options.imbalance, seed=seed))
    return owners


def _library_threads(name: str, options: Options) -> int | None:
    """Threads of a library, None if it has no choice (any more)."""
    if name != "mtkahypar":
        return None
    from sparsednn.partitioners.solvers.mtkahypar import running_threads

    running = running_threads()
    if running not in (None, options.cores):
        # Its pool of threads is made once per process. With a deterministic preset the number
        # changes nothing but the time.
        options.tell(f"mtkahypar goes on with the {running} threads that it has in this process")
        return None
    return options.cores


def _candidates(network: SparseNetwork, options: Options) -> dict[str, _Chain]:
    """Make the chains that joint can afford; what cannot be had is told, and done without."""
    from sparsednn.partitioners.groups import row_groups

    chains = {"cyclic": _chain(network, "cyclic", options)}
    parts = float(options.parts)
    pins = 0
    for layer, leader in zip(network, row_groups(network), strict=True):
        pins += int(np.diff(layer.indptr)[np.unique(leader)].sum())
    # The second term is what KaHyPar was seen to take for many parts and few rows.
    work = pins * max(np.log2(parts), 1.0) + len(network) * parts**3 / 150.0
    left = EFFORTS[options.effort][1]
    for name in NATIVE:
        left -= work
        if left < 0:
            break
        try:
            chains[name] = _chain(network, name, options)
            if options.effort == "thorough":
                chains[f"{name} backward"] = _chain(network, name, options, backward=True)
        except (MissingDependencyError, InputError) as error:
            options.tell(f"joint does without {name}: {error}")
    return chains


def _joint(network: SparseNetwork, options: Options, chains: Mapping[str, _Chain]) -> _Chain:
    from sparsednn.partitioners.balance import layer_balance
    from sparsednn.partitioners.joint import Effort, joint

    factor = EFFORTS[options.effort][0]
    base = Effort()
    effort = Effort(
        proposals=int(base.proposals * factor),
        sweeps=int(base.sweeps * max(factor, 0.25)),
        starts=max(2, min(int(base.starts * factor), 2 * base.starts)),
    )
    start = time.perf_counter()
    result = joint(
        network,
        layer_balance(network, options.parts, options.imbalance),
        chains={name: chain.owners for name, chain in chains.items()},
        optimised=any(name not in RULES for name in chains),
        effort=effort,
        seed=options.seed,
        threads=options.cores,
        progress=options.report,
    )
    for name in result.left_out:
        options.tell(f"joint: the chain of {name} is not balanced as asked, and no candidate")
    versions = [
        f"{name} {chain.version}"
        for name, chain in chains.items()
        if chain.version and not name.endswith(" backward")
    ]
    seconds = time.perf_counter() - start
    return _Chain(
        result.owners,
        ", ".join(versions) or None,
        options.effort,
        seconds + sum(chain.seconds for chain in chains.values() if chain.version),
        tuple(chains),
    )
