"""What the compiled sparse kernels take: seconds of a rank's blocks on a tile of columns.

A layer's rows are packed into blocks of h = 1, 2, 4 or 8 rows that share one pattern of n columns
(`kernels.packing`); a tile of columns is worked off in panels of v vectors (`kernels.tiles`). One
block on one panel takes

    base(h, v, S) + n · slope(h, v, S)

seconds: entering and leaving the loop, and n times loading an activation vector and multiplying it
with h weights. S, the bytes of the tile that is read, says from which cache activations come;
between the measured S the two are interpolated in log S. A layer takes the sum over its blocks and
panels, so what a model must know of a layer is how many blocks of each height there are, and the
sum of their pattern lengths (`work.SparseWork`). What shares patterns is quicker per weight: that
is why the rate depends on the network and on the partition, and is no number per edge.

Where nothing was measured (a machine that is not here), one block on one panel is a roofline:

    max(2 n h v w / (e F),  4 (n v w + n h) / B) + base

with w lanes, F the peak of a core, e its `sparse_efficiency` in a full block, B the bandwidth of
the cache that S fits, else of the memory. Williams, Waterman and Patterson, 2009.

Must not know: networks, ranks, messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsednn.errors import FormatError

if TYPE_CHECKING:
    from sparsednn.costmodel.platform import Platform

__all__ = ["HEIGHTS", "KINDS", "OPTIMIZERS", "SMALL", "BlockCosts", "SparseRates", "panels_of"]

_Floats = NDArray[np.float64]

#: Rows of a block.
HEIGHTS: Final = (1, 2, 4, 8)
#: The compiled loops, and the vectors of the panels that each works in.
KINDS: Final[Mapping[str, tuple[int, ...]]] = {
    "forward": (1, 2, 3),
    "transposed": (1, 2, 3),
    "sampled": (1, 2, 4),
    "outer": (1,),
}
#: Whose loops over parameters are measured.
OPTIMIZERS: Final = ("sgd", "momentum", "adam")
_FLOAT: Final = 4  # bytes
#: Lanes of a vector (AVX-512), and cycles that a block costs besides, where nothing was measured.
_LANES: Final = 16
_BASE_SECONDS: Final = 10e-9


def panels_of(columns: int, kind: str = "forward", lanes: int = _LANES) -> dict[int, int]:
    """Return how many panels of each number of vectors a tile of so many columns is worked off in.

    >>> panels_of(64), panels_of(112), panels_of(1, "sampled")
    ({2: 2}, {3: 1, 2: 2}, {1: 1})
    """
    left = -(-columns // lanes)
    found: dict[int, int] = {}
    while left > 0:
        if kind == "sampled":
            vectors = 4 if left >= 4 else (2 if left >= 2 else 1)
        elif kind == "outer":
            vectors = 1
        else:  # a panel of one vector takes nearly as long as one of three
            vectors = 2 if left == 4 else min(3, left)
        found[vectors] = found.get(vectors, 0) + 1
        left -= vectors
    return found


@dataclass(frozen=True, slots=True, eq=False)
class BlockCosts:
    """Seconds of one block on one panel, measured.

    Attributes
    ----------
    panels
        Vectors of the panels.
    working_set
        ``(levels, panels)`` bytes, ascending: the tile that was read.
    base, slope
        ``(levels, heights, panels)`` seconds; per block, and per block and column of its pattern.
    """

    panels: tuple[int, ...]
    working_set: _Floats
    base: _Floats
    slope: _Floats

    def at(self, vectors: int, working_set: ArrayLike) -> tuple[_Floats, _Floats]:
        """Return ``(..., heights)`` base and slope for tiles of so many bytes ``(...)``."""
        panel = self.panels.index(vectors)
        known = np.log(self.working_set[:, panel])
        wanted = np.log(np.maximum(np.asarray(working_set, float), 1.0))
        pairs = []
        for values in (self.base, self.slope):
            columns = [np.interp(wanted, known, values[:, h, panel]) for h in range(len(HEIGHTS))]
            pairs.append(np.stack(columns, axis=-1))
        return pairs[0], pairs[1]

    def as_table(self) -> dict[str, Any]:
        """Return what `from_table` takes."""
        return {
            "panels": list(self.panels),
            "working_set_bytes": self.working_set.tolist(),
            "base_seconds": self.base.tolist(),
            "slope_seconds": self.slope.tolist(),
        }

    @classmethod
    def from_table(cls, table: Any, where: str) -> BlockCosts:
        """Read what `as_table` gave.

        Raises
        ------
        FormatError
            If it is something else; `where` names the place.
        """
        try:
            panels = tuple(int(one) for one in table["panels"])
            sets, base, slope = (
                np.asarray(table[name], np.float64)
                for name in ("working_set_bytes", "base_seconds", "slope_seconds")
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{where}: {type(error).__name__} {error}") from error
        shape = (len(sets), len(HEIGHTS), len(panels))
        fits = sets.shape == (len(sets), len(panels)) and base.shape == slope.shape == shape
        if not fits or not len(sets) or not all(map(_sensible, (sets, base, slope))):
            raise FormatError(
                f"{where}: working_set_bytes, base_seconds and slope_seconds must be numbers from "
                f"0 on of {len(HEIGHTS)} heights and {len(panels)} panels for each working set"
            )
        return cls(panels, sets, base, slope)


def _parameters(table: Mapping[str, Any], where: str) -> dict[str, list[float]]:
    """Seconds of a parameter by optimizer and size, checked."""
    found = table.get("parameters", {})
    try:
        read = {name: np.asarray(found[name], np.float64) for name in found}
        sizes = read.get("sizes", np.empty(0))
        wanted = {"sizes", *OPTIMIZERS} if found else set()
        fits = set(read) == wanted and all(one.shape == sizes.shape for one in read.values())
    except (TypeError, ValueError):
        fits = False
    if not fits or not all(map(_sensible, read.values())) or (np.diff(sizes) <= 0).any():
        raise FormatError(
            f"{where}.parameters]: ascending sizes and as many seconds for each of "
            f"{', '.join(OPTIMIZERS)} are needed"
        )
    return {name: one.tolist() for name, one in read.items()}


def _sensible(values: _Floats) -> bool:
    return bool(np.isfinite(values).all() and (values >= 0).all())


@dataclass(frozen=True)
class SparseRates:
    """All that the models of sparse networks know of a processor.

    Attributes
    ----------
    measured
        By kind (`KINDS`); empty: rooflines.
    platform
        Whose rates they are.
    small
        Seconds of small things, by name; see `SMALL`.
    last_cache
        Bytes of the cache behind the private ones; 0: none is known.
    busy
        How many times longer a core takes when all cores of the node are busy.
    inference_factor, training_factor
        What forward blocks take in whole runs, and transposed and sampled ones in whole steps, over
        what they take alone.
    again_factor
        The same of blocks that find their activations in the nearest cache, as the block before
        had the same pattern; besides the other factor.
    team_factor
        What the threads of a team take in a step, over their share of it.
    parameters
        ``sizes``, and for each optimizer the seconds of one parameter of arrays of so many; {}: one
        figure for all sizes, in `small`.
    """

    platform: Platform
    measured: Mapping[str, BlockCosts]
    small: Mapping[str, float]
    last_cache: float = 0.0
    busy: float = 1.0
    inference_factor: float = 1.0
    training_factor: float = 1.0
    again_factor: float = 1.0
    team_factor: float = 1.0
    parameters: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, platform: Platform) -> SparseRates:
        """Return a platform's rates: measured ones if it has them.

        Raises
        ------
        FormatError
            If its table is nonsense.
        """
        table = platform.measured.get("sparse")
        small = {name: default for name, (default, _) in SMALL.items()}
        if table is None:
            return cls(platform, {}, small)
        where = f"{platform.name}: [measured.sparse"
        found = {}
        for kind in KINDS:
            if kind not in table:
                raise FormatError(f"{where}] {kind} is missing")
            found[kind] = BlockCosts.from_table(table[kind], f"{where}.{kind}]")
        for name in small:
            value = table.get("small", {}).get(name, small[name])
            if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise FormatError(f"{where}.small] {name}: seconds are needed, found {value!r}")
            small[name] = float(value)
        numbers: dict[str, float] = {}
        for name, least, usual in (
            ("last_cache_bytes", 0.0, 0.0),
            ("busy", 1.0, 1.0),
            ("inference_factor", 0.1, 1.0),
            ("training_factor", 0.1, 1.0),
            ("again_factor", 0.1, 1.0),
            ("team_factor", 0.1, 1.0),
        ):
            value = table.get(name, usual)
            if not isinstance(value, (int, float)) or not least <= value < float("inf"):
                raise FormatError(
                    f"{where}] {name}: a number from {least:g} on is needed, found {value!r}"
                )
            numbers[name.removesuffix("_bytes")] = float(value)
        return cls(platform, found, small, **numbers, parameters=_parameters(table, where))

    def slowdown(self, busy: float) -> float:
        """Return how many times longer a thread takes beside others.

        Parameters
        ----------
        busy
            Busy threads of the node; more than it has processors share them in turns.
        """
        node = self.platform.node
        others = min(max(busy, 1.0), node.processors) - 1
        share = 1.0 + (self.busy - 1.0) * others / max(1, node.processors - 1)
        return share * max(1.0, busy / node.processors)

    def streamed(self, passed: ArrayLike, total: ArrayLike) -> tuple[_Floats, _Floats]:
        """Return the bytes of weights that come from the last cache, and from memory.

        Weights that are read again before others have pushed them out of a core's own cache cost
        nothing besides their blocks. Which part is pushed out grows from nothing, where all of them
        take half of a cache, to everything where they fill it.

        Parameters
        ----------
        passed
            ``(...)`` bytes of weights and patterns that are read.
        total
            ``(...)`` bytes of all that are read before these come again.
        """
        passed, total = np.asarray(passed, float), np.asarray(total, float)
        missed = _outside(total, self.platform.processor.cache_bytes)
        far = missed if self.last_cache <= 0 else _outside(total, self.last_cache)
        return (missed - far) * passed, far * passed

    def crowded_out(self, total: ArrayLike) -> _Floats:
        """Return which part of random accesses to so many bytes ``(...)`` leave the core's cache.

        It grows from nothing at four tenths of the cache to all at twice its size: what is accessed
        in no order stays by chance.
        """
        cache = self.platform.processor.cache_bytes
        return np.asarray(np.clip((np.asarray(total, float) / cache - 0.4) / 1.6, 0.0, 1.0))

    def stream_seconds(self, passed: ArrayLike, total: ArrayLike) -> _Floats:
        """Return what reading them adds; arguments as for `streamed`."""
        near, far = self.streamed(passed, total)
        return near * self.seconds("near_byte") + far * self.seconds("far_byte")

    def parameter_seconds(self, optimizer: str, parameters: ArrayLike) -> _Floats:
        """Return what an optimizer's loop over so many parameters ``(...)`` takes.

        `optimizer` is sgd, momentum or adam.
        """
        count = np.asarray(parameters, float)
        sizes = self.parameters.get("sizes", ())
        if not len(sizes):
            return count * self.seconds(f"{optimizer}_parameter")
        factor = self.platform.speed.get(SMALL[f"{optimizer}_parameter"][1], 1.0)
        each = np.interp(np.log(np.maximum(count, 1)), np.log(sizes), self.parameters[optimizer])
        return np.asarray(count * each / factor)

    def layer_seconds(
        self,
        blocks: NDArray[np.int64],
        lengths: NDArray[np.int64],
        columns: int,
        working_set: ArrayLike,
        kind: str = "forward",
        again: ArrayLike = 0.0,
    ) -> _Floats:
        """Return the seconds of one thread for blocks on one tile.

        Parameters
        ----------
        blocks, lengths
            ``(..., heights)``: how many blocks of each of `HEIGHTS`, and the sums of the lengths of
            their patterns.
        columns
            Of the tile.
        working_set
            ``(...)``: bytes of the tile that is read.
        kind
            One of `KINDS`.
        again
            ``(...)``: which part of the blocks have the pattern of the block before, so that their
            activations are in the nearest cache.

        Returns
        -------
        ``(...)`` seconds.
        """
        total = np.zeros(np.shape(blocks)[:-1])
        if columns < 1:
            return total
        if kind == "sampled" and columns == 1:
            kind = "outer"
        factor = self.inference_factor if kind == "forward" else self.training_factor
        factor /= self.platform.speed.get("flops", 1.0)
        for vectors, count in panels_of(columns, kind).items():
            if self.measured:
                far = self._measured(blocks, lengths, kind, vectors, working_set)
                near = self._measured(blocks, lengths, kind, vectors, 1.0)
                repeats = np.asarray(again)
                seconds = (1.0 - repeats) * far + self.again_factor * repeats * near
                total = total + count * factor * seconds
            else:
                total = total + count * self._roofline(blocks, lengths, vectors, working_set)
        return total

    def _measured(
        self,
        blocks: NDArray[np.int64],
        lengths: NDArray[np.int64],
        kind: str,
        vectors: int,
        working_set: ArrayLike,
    ) -> _Floats:
        base, slope = self.measured[kind].at(vectors, working_set)
        return np.asarray((blocks * base).sum(-1) + (lengths * slope).sum(-1))

    def _roofline(
        self,
        blocks: NDArray[np.int64],
        lengths: NDArray[np.int64],
        vectors: int,
        working_set: ArrayLike,
    ) -> _Floats:
        processor = self.platform.processor
        heights = np.array(HEIGHTS, float)
        wide = vectors * _LANES
        flops = 2 * wide * heights / (processor.flops * processor.sparse_efficiency)
        near = np.asarray(working_set, float) <= processor.cache_bytes
        bandwidth = np.where(near, processor.cache_bandwidth, processor.memory_bandwidth)[..., None]
        loads = _FLOAT * (wide + heights) / bandwidth
        base = _BASE_SECONDS * self._small_scale()
        return np.asarray((lengths * np.maximum(flops, loads)).sum(-1) + (blocks * base).sum(-1))

    def _small_scale(self) -> float:
        """A GPU runs thousands of blocks at a time: what one costs besides is hidden."""
        return 1.0 if self.platform.processor.kind == "cpu" else 0.0

    def seconds(self, name: str) -> float:
        """Return the seconds of one of `SMALL`."""
        factor = SMALL[name][1]
        return self.small[name] / (self.platform.speed.get(factor, 1.0) if factor else 1.0)


def _outside(total: _Floats, cache: float) -> _Floats:
    """Which part of so many bytes a cache does not keep: none up to half of it, all from it on."""
    return np.asarray(np.clip(2.0 * total / cache - 1.0, 0.0, 1.0))


#: Small things: what is taken where nothing was measured (seconds; of one Zen 5 core, by
#: `sparsednn calibrate`), and which of the platform's figures makes them quicker.
SMALL: Final[Mapping[str, tuple[float, str]]] = {
    "run": (60e-6, ""),  # one call of an engine for inference
    "workspace_byte": (6e-11, "memory_bandwidth"),  # new memory of a tile, touched first
    "tile_layer": (60e-9, "flops"),  # one layer of a tile, besides its blocks
    "linked_layer": (250e-9, "flops"),  # the same on ranks: clocks, requests that have no message
    "input_nonzero": (1.0e-9, "flops"),  # an input written into a tile
    "input_far": (5e-10, "memory_bandwidth"),  # the same, from behind the core's own cache
    "near_byte": (1.5e-11, "memory_bandwidth"),  # weights that come from the last cache
    "far_byte": (4e-11, "memory_bandwidth"),  # weights that come from memory
    "thread": (60e-6, ""),  # one more thread, started and joined
    "pack_byte": (5e-11, "memory_bandwidth"),  # rows copied for a message
    "pack_row": (5e-9, "flops"),
    "step": (150e-6, ""),  # one step of training: Python's part
    "train_layer": (200e-9, "flops"),  # a layer, forward and backward, besides its blocks
    "meet": (150e-9, ""),  # threads of a team meet once
    "load_element": (5e-10, "flops"),  # an input written into a tile of training
    "derivative_element": (1.2e-10, "flops"),
    "bias_element": (2.5e-10, "flops"),
    "bias_row": (8e-9, "flops"),
    "loss_element": (2e-8, "flops"),
    "train_byte": (1.5e-11, "memory_bandwidth"),  # weights from behind the core's own cache
    "gather": (3e-10, "memory_bandwidth"),  # one of them alone
    "sgd_parameter": (3e-10, "memory_bandwidth"),
    "momentum_parameter": (6e-10, "memory_bandwidth"),
    "adam_parameter": (1.5e-9, "flops"),
}
