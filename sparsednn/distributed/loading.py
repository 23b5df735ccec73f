"""Networks for ranks: each its own rows (`load_shard`), or all of them (`load_whole`).

Who reads what:

================  ==============================  ==============================================
source            `load_shard`                    `load_whole`
================  ==============================  ==============================================
native file       every rank, its own rows only   every rank; the file's map is shared by a node
official network  every rank makes its own rows   every rank makes it
every other       rank 0 reads it all, and sends  rank 0 reads it, and broadcasts layer by layer
================  ==============================  ==============================================

Rank 0 alone looks at the source first and says which of these it is, so ranks never disagree.
All that can fail on one rank stands in `together`, and nothing waits for another rank in there.
Must not know: plans, kernels, inputs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsednn.activations import Activation
from sparsednn.comm.failure import together
from sparsednn.datasets.graph_challenge import (
    graph_challenge_layers,
    graph_challenge_name,
    graph_challenge_rows,
)
from sparsednn.distributed.shard import LayerShard, NetworkShard, owned, share_equal
from sparsednn.errors import FormatError, InputError, UsageError
from sparsednn.formats._common import located
from sparsednn.formats._container import read_header
from sparsednn.formats.native import RowReader, is_native
from sparsednn.formats.registry import detect_format
from sparsednn.network import (
    NetworkDigest,
    SparseLayer,
    SparseNetwork,
    check_chain,
    first_droppable,
)
from sparsednn.partitioners.partition import Partition
from sparsednn.sources import load_network, official_size

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator
    from sparsednn.formats.options import ReadOptions

__all__ = ["load_shard", "load_whole"]


def load_shard(
    model: str,
    partition: Partition,
    part: int,
    group: Communicator,
    *,
    world: Communicator | None = None,
    file: str | os.PathLike[str] = "partition",
    layers: int | None = None,
    bias: float | None = None,
    options: ReadOptions | None = None,
) -> NetworkShard:
    """Load the rows of one part, on every rank of a model group.

    A rank holds what it owns and no more than one layer besides; where rank 0 has to read the
    whole network (see the module), it holds what it has not sent yet.

    Parameters
    ----------
    model, layers, bias, options
        As for `sparsednn.sources.load_network`.
    partition
        Made for just this network: for its first `layers` layers, if these are asked for.
    part
        This rank's part: its rank in the group.
    group
        As many ranks as the partition has parts. Collective: two small broadcasts and allreduces;
        for formats that rank 0 reads, four messages per layer and part.
    world
        All groups, if there are several that load the same at a time: they fail together, too.
    file
        Where the partition comes from, for messages.

    Raises
    ------
    InputError
        (any of its kinds) as `load_network` and `Partition.check` do; and if the group has another
        number of ranks than the partition has parts.
    UsageError, MissingDependencyError
        As `load_network` does; and if `part` is not the rank in the group.

    Every rank raises the same error.

    Notes
    -----
    A native file is identified by the hash in its header; it is computed only for a file without,
    and for the first layers of a longer network. Official networks are hashed by rank 0 while it
    makes them, layer by layer. Arrays that are equal in consecutive layers are shared.
    """
    stage = f"loading {model}"
    everyone = group if world is None else world
    outline: _Outline | None = None
    whole: list[SparseLayer] = []
    with together(everyone, stage):
        if group.size != partition.parts:
            raise InputError(f"{file}: is for {partition.parts} ranks, found {group.size}")
        if group.rank != part:
            raise UsageError(f"part {part} is not that of rank {group.rank} of its model group")
        if group.rank == 0:
            outline, whole = _looked_at(model, layers, bias, options)
            partition.check(outline, file=file)
    outline = _agreed(outline, group)
    if outline.kind == "other":
        mine = _collected(_scattered(whole, outline, partition, group))
    else:
        with together(everyone, stage):
            mine = _collected(_own_rows(model, outline, partition, part))
    keep_zero = np.array([layer.keeps_zero for layer in mine], np.int32)
    group.allreduce(keep_zero, "min")
    return NetworkShard(
        outline.name,
        outline.hash,
        outline.edges,
        mine,
        part,
        partition.parts,
        partition.owners,
        first_droppable(keep_zero.astype(bool).tolist()),
    )


def load_whole(
    model: str,
    world: Communicator,
    *,
    layers: int | None = None,
    bias: float | None = None,
    options: ReadOptions | None = None,
) -> SparseNetwork:
    """Load the whole network on every rank, for ranks that divide the images only.

    Parameters
    ----------
    model, layers, bias, options
        As for `sparsednn.sources.load_network`.
    world
        The ranks. Collective; for formats that rank 0 reads, four broadcasts per layer.

    Raises
    ------
    InputError, UsageError, MissingDependencyError
        As `load_network` does, the same on every rank.
    """
    stage = f"loading {model}"
    kind = network = None
    with together(world, stage):
        if world.rank == 0:
            kind = _kind(model, layers, bias, options)
            if kind == "other":
                network = load_network(model, layers=layers, bias=bias, options=options)
    if world.broadcast_json(kind) != "other":
        with together(world, stage):
            return load_network(model, layers=layers, bias=bias, options=options)
    outline = _agreed(None if network is None else _Outline.of(network), world)
    return _broadcast(network, outline, world)


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a layer is, without its weights."""

    n_out: int
    n_in: int
    activation: Activation


@dataclass(frozen=True, slots=True)
class _Outline:
    """What a network is, without its weights: small enough to be told to everyone."""

    kind: str  # how it is loaded: "native", "official" or "other"
    name: str
    hash: str
    pattern_hash: str | None
    edges: int
    layers: tuple[_Shape, ...]

    @classmethod
    def of(cls, network: SparseNetwork, *, hash: str = "", pattern: str | None = None) -> _Outline:
        links = [_Shape(layer.n_out, layer.n_in, layer.activation) for layer in network]
        return cls("other", network.name, hash, pattern, network.edges, tuple(links))

    @property
    def n_in(self) -> int:
        return self.layers[0].n_in

    def __iter__(self) -> Iterator[_Shape]:
        return iter(self.layers)


def _agreed(outline: _Outline | None, comm: Communicator) -> _Outline:
    """Tell all ranks the outline that rank 0 has."""
    told: Any = None
    if outline is not None:
        links = [(link.n_out, link.n_in, str(link.activation)) for link in outline]
        told = [outline.kind, outline.name, outline.hash, outline.edges, links]
    kind, name, hash, edges, links = comm.broadcast_json(told)
    made = [_Shape(n_out, n_in, Activation.parse(text)) for n_out, n_in, text in links]
    return _Outline(kind, name, hash, None, edges, tuple(made))


def _kind(model: str, layers: int | None, bias: float | None, options: ReadOptions | None) -> str:
    """Tell how a source is loaded; whatever is wrong is "other", and `load_network` says what."""
    if bias is not None or (options is not None and options.given):
        return "other"
    if os.path.exists(model):
        if detect_format(model) == "native" and is_native(read_header(Path(model))):
            return "native"
        return "other"
    return "other" if official_size(model, layers) is None else "official"


def _looked_at(
    model: str, layers: int | None, bias: float | None, options: ReadOptions | None
) -> tuple[_Outline, list[SparseLayer]]:
    """Identify a network; its layers only if there is no way to read parts of it."""
    match _kind(model, layers, bias, options):
        case "native":
            return _native_outline(model, layers), []
        case "official":
            neurons, count = official_size(model, layers) or (0, 0)
            made = graph_challenge_layers(neurons, count)
            return _hashed("official", graph_challenge_name(neurons, count), made), []
        case _:
            network = load_network(model, layers=layers, bias=bias, options=options)
            known = {"hash": network.hash, "pattern": network.pattern_hash}
            return _Outline.of(network, **known), list(network)


def _native_outline(model: str, layers: int | None) -> _Outline:
    with RowReader(model, layers=layers) as reader:
        if reader.hash is None:
            whole = (reader.layer(i) for i in range(len(reader.layers)))
            outline = _hashed("native", reader.name, whole)
        else:
            edges = sum(this.nnz for this in reader.layers)
            outline = _Outline(
                "native", reader.name, reader.hash, reader.pattern_hash, edges, _links(reader)
            )
    with located(model):
        check_chain(outline.layers, outline.name)
    return outline


def _links(reader: RowReader) -> tuple[_Shape, ...]:
    return tuple(
        _Shape(this.n_out, this.n_in, Activation.parse(this.activation)) for this in reader.layers
    )


def _hashed(kind: str, name: str, layers: Iterable[SparseLayer]) -> _Outline:
    """Compute the hashes of layers that are never there all together."""
    digest, pattern, edges, links = NetworkDigest(), NetworkDigest(pattern_only=True), 0, []
    for layer in layers:
        digest.add(layer)
        pattern.add(layer)
        edges += layer.nnz
        links.append(_Shape(layer.n_out, layer.n_in, layer.activation))
    hashes = digest.hexdigest(), pattern.hexdigest()
    return _Outline(kind, name, *hashes, edges, tuple(links))


def _collected(layers: Iterable[LayerShard]) -> tuple[LayerShard, ...]:
    mine: list[LayerShard] = []
    for layer in layers:
        mine.append(share_equal(mine[-1] if mine else None, layer))
    return tuple(mine)


def _own_rows(
    model: str, outline: _Outline, partition: Partition, part: int
) -> Iterator[LayerShard]:
    """Read or make this part's rows, layer by layer; waits for nobody."""
    rows = [owned(owners, part) for owners in partition.owners[1:]]
    if outline.kind == "native":
        with RowReader(model, layers=len(rows)) as reader:
            if _links(reader) != outline.layers or reader.hash not in (None, outline.hash):
                raise FormatError(f"{model}: is not the file that rank 0 sees by this name")
            for i, mine in enumerate(rows):
                # All other rows are empty, so this copies no weight.
                yield LayerShard.of(reader.rows(i, mine), mine)
        return
    for mine, made in zip(rows, graph_challenge_rows(outline.n_in, rows), strict=True):
        yield LayerShard(
            mine,
            made.indptr,
            made.indices,
            made.values,
            made.bias,
            outline.n_in,
            made.n_in,
            made.activation,
        )


def _scattered(
    whole: list[SparseLayer], outline: _Outline, partition: Partition, group: Communicator
) -> Iterator[LayerShard]:
    """Send each part its rows of the layers that rank 0 has, which forgets a layer behind it."""
    whole.reverse()
    for link, owners in zip(outline, partition.owners[1:], strict=True):
        rows = owned(owners, group.rank)
        if group.rank == 0:
            layer = whole.pop()
            for part in range(1, group.size):
                theirs = LayerShard.of(layer, owned(owners, part))
                for array in (theirs.indptr, theirs.indices, theirs.values, theirs.bias):
                    group.send(array, part)
            yield LayerShard.of(layer, rows)
            continue
        indptr = np.empty(rows.size + 1, np.int64)
        group.receive(indptr, 0)
        indices = np.empty(int(indptr[-1]), np.int32)
        values = np.empty(indices.size, np.float32)
        bias = np.empty(rows.size, np.float32)
        for into in (indices, values, bias):
            group.receive(into, 0)
        yield LayerShard(
            rows, indptr, indices, values, bias, link.n_out, link.n_in, link.activation
        )


def _broadcast(
    network: SparseNetwork | None, outline: _Outline, world: Communicator
) -> SparseNetwork:
    """Give every rank the layers that rank 0 has."""
    made = []
    for i, link in enumerate(outline):
        indptr = np.empty(link.n_out + 1, np.int64) if network is None else network[i].indptr
        world.broadcast(indptr)
        if network is None:
            indices = np.empty(int(indptr[-1]), np.int32)
            values = np.empty(indices.size, np.float32)
            bias = np.empty(link.n_out, np.float32)
        else:
            indices, values, bias = network[i].indices, network[i].values, network[i].bias
        for array in (indices, values, bias):
            world.broadcast(array)
        made.append(
            SparseLayer(
                indptr,
                indices,
                values,
                link.n_in,
                bias=bias,
                activation=link.activation,
                check=False,  # rank 0 has
            )
        )
    return network or SparseNetwork(made, name=outline.name)
