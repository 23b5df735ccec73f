"""``cnn lower``: from a trained (and pruned) dense network to a sparse one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsednn.cli._common import JsonOption, note, print_json, print_table
from sparsednn.cli._targets import check_targets
from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from sparsednn.dense.graph import OperationGraph
    from sparsednn.network import SparseNetwork

__all__ = ["lower"]


def lower(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="What 'cnn train' wrote (.safetensors), or an ONNX file; or, with --weights, a "
            "network's name or graph (.json).",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE",
            help="Where to write the sparse network (.safetensors).",
            show_default=False,
        ),
    ],
    first: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NAME",
            help="The first operation (default: the one behind the images).",
            show_default=False,
        ),
    ] = None,
    last: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="NAME",
            help="The last operation (default: the network's output).",
            show_default=False,
        ),
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(
            "--sparsity",
            help="First set this fraction of all kernel weights of the network, the smallest ones, "
            "to zero, such as 0.9; nothing is retrained.",
            show_default=False,
        ),
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(
            "--scope",
            help="Of --sparsity: global: one threshold (default); layer: each kernel to the same.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep",
            metavar="NAME",
            help="Of --sparsity: leave this operation's kernel as it is. May be repeated.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="A state dict of the network that is named (.safetensors, .pt, .pth).",
            show_default=False,
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            "--image",
            metavar="CxHxW",
            help="Images of the network that is named (default: the usual ones).",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(
            "--classes",
            help="Classes of the network that is named (default: the usual ones).",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Turn a chain of a CNN's operations into a sparse network, which can be partitioned and run.

    Its inputs are images flattened channel by channel. Max-pooling, additions and concatenations
    are no matrices: --from and --to choose a piece without them.
    """
    from sparsednn.dense.lowering import layer_operations
    from sparsednn.dense.lowering import lower as lowered
    from sparsednn.dense.pruning import prune_kernels
    from sparsednn.formats import check_target_format, write_network
    from sparsednn.pruning import check_pruning

    # What is wrong with the call is told before any number is read.
    check_target_format(output)
    if sparsity is None and (scope or keep):
        raise UsageError(f"--{'scope' if scope else 'keep'} says how to prune: give --sparsity")
    check_pruning(sparsity or 0.0, scope or "global")
    check_targets(checkpoint, {"--out": output}, (weights,))
    graph = _network(checkpoint, weights, image, classes)
    operations = layer_operations(graph, first, last)
    arrays = _arrays(graph, Path(checkpoint) if weights is None else weights)
    if sparsity is not None:
        arrays = prune_kernels(arrays, sparsity, graph, scope=scope or "global", keep=keep or ())
    network = lowered(graph, arrays, first, last)
    write_network(network, output)
    for names, layer in zip(operations, network, strict=True):
        if not layer.nnz:
            note(f"'{names[0]}' has no weights left: its outputs do not depend on the input")
    _print(graph, network, _rows(operations, network, arrays), output, json)


def _network(
    name: str, weights: Path | None, image: str | None, classes: int | None
) -> OperationGraph:
    from sparsednn.cli._cnn import check_own_sizes, network_named
    from sparsednn.dense.runs.source import numbers_file

    if numbers_file(name) is not None:
        check_own_sizes(name, {"--weights": weights})
    graph = network_named(name, image, classes)
    if weights is None and numbers_file(name) is None:
        raise UsageError(f"{name} is a network without numbers: give --weights FILE")
    return graph


def _arrays(graph: OperationGraph, path: Path) -> Mapping[str, NDArray[Any]]:
    from sparsednn.dense.runs.checkpoint import CnnCheckpoint, is_checkpoint
    from sparsednn.dense.state_dict import read_state_dict

    if is_checkpoint(path):  # its checksum is looked at
        trained = CnnCheckpoint(path)
        if trained.graph == graph:
            return {name: trained.block(name) for name in graph.parameters}
        raise UsageError(f"{path}: is a checkpoint of {trained.graph.name}: give it as CHECKPOINT")
    return read_state_dict(path, graph)


def _rows(
    operations: Sequence[Sequence[str]], network: SparseNetwork, arrays: Mapping[str, NDArray[Any]]
) -> list[dict[str, Any]]:
    """What is told of each layer."""
    rows = []
    for names, layer in zip(operations, network, strict=True):
        kernel = arrays.get(f"{names[0]}.weight")
        if kernel is not None and kernel.ndim != 4:
            kernel = None  # a batch norm's
        rows.append(
            {
                "operations": list(names),
                "n_out": layer.n_out,
                "n_in": layer.n_in,
                "kernel_weights": None if kernel is None else kernel.size,
                "kernel_nonzeros": None if kernel is None else int((kernel != 0).sum()),
                "nnz": layer.nnz,
                "density": layer.summary.density,
                "activation": str(layer.activation),
            }
        )
    return rows


def _print(
    graph: OperationGraph,
    network: SparseNetwork,
    rows: Sequence[Mapping[str, Any]],
    output: Path,
    json: bool,
) -> None:
    first, last = rows[0]["operations"][0], rows[-1]["operations"][-1]
    shapes = graph.input_shapes(first)[0], graph.shape(last)
    positions = sum(layer.n_out * layer.n_in for layer in network)
    if json:
        print_json(
            {
                "network": network.name,
                "out": str(output),
                "from": first,
                "to": last,
                "input_shape": list(shapes[0]),
                "output_shape": list(shapes[1]),
                "layers": len(network),
                "edges": network.edges,
                "sparsity": 1 - network.edges / positions,
                "hash": network.hash,
                "layer": rows,
            }
        )
        return
    inputs, outputs = ("×".join(map(str, shape)) for shape in shapes)
    print_table(
        [
            ("network", network.name),
            ("out", str(output)),
            ("inputs", f"{network.n_in:,} ({inputs})"),
            ("outputs", f"{network.n_out:,} ({outputs})"),
            ("edges", f"{network.edges:,}"),
            ("sparsity", f"{1 - network.edges / positions:.3%}"),
            ("hash", network.hash),
        ]
    )
    print(
        f"\n{'layer':>5} {'outputs':>9} {'inputs':>9} {'kernel':>12} {'not zero':>12} "
        f"{'nonzeros':>12} {'density':>9}  operations"
    )
    for number, row in enumerate(rows, 1):
        kernel, kept = (
            "-" if row[key] is None else f"{row[key]:,}"
            for key in ("kernel_weights", "kernel_nonzeros")
        )
        print(
            f"{number:>5} {row['n_out']:>9} {row['n_in']:>9} {kernel:>12} {kept:>12} "
            f"{row['nnz']:>12,} {row['density']:>9.3%}  {', '.join(row['operations'])}"
        )
