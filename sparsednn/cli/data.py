"""``datasets radixnet | graph-challenge | digits | mnist``: write networks and inputs to files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sparsednn.cli._common import MnistOption, note
from sparsednn.errors import UsageError

app = typer.Typer(
    help="Write networks and inputs: RadiX-Net, Graph Challenge, digits, MNIST.",
    no_args_is_help=True,
)

OutOption = Annotated[
    Path, typer.Option("--out", help="Folder to write into (made if it is not there).")
]
LimitOption = Annotated[
    int | None,
    typer.Option("--images", help="Only the first N images.", show_default=False),
]
InputFormat = Annotated[
    str, typer.Option("--format", help="tsv (the official format), npz, npy or native.")
]
NeuronsOption = Annotated[int, typer.Option("--neurons", help="Number of features, a square.")]

_NETWORK_FORMATS = {
    "tsv": "graph-challenge",
    "native": "native",
    "npz": "npz",
    "matrix-market": "matrix-market",
}
_INPUT_SUFFIXES = {"tsv": ".tsv", "npz": ".npz", "npy": ".npy", "native": ".safetensors"}


def _chosen(name: str, known: dict[str, str]) -> str:
    if name not in known:
        raise UsageError(f"--format: '{name}' is none of {', '.join(known)}")
    return known[name]


def _integers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option}: '{text}' is not a comma-separated list of numbers") from None


#: Options of ``datasets radixnet`` that say nothing about the other kind of network.
_GENERAL_ONLY = ("widths", "weight", "permute", "seed", "bias", "activation")
_OFFICIAL_ONLY = ("layers",)


def _refuse(context: typer.Context, names: tuple[str, ...], kind: str) -> None:
    """Raise if one of these options was given: dropping it in silence would be a wrong network."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--{name} does not apply to {kind}")


@app.command()
def radixnet(
    context: typer.Context,
    out: OutOption,
    graph_challenge: Annotated[
        int | None,
        typer.Option(
            "--graph-challenge",
            help="The official network of so many neurons: 1024, 4096, 16384 or 65536.",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[int, typer.Option("--layers", help="Layers of the official network.")] = 120,
    radices: Annotated[
        str | None,
        typer.Option(
            "--radices",
            help="Radix lists of a general RadiX-Net, as in '2,2,2;4,2'.",
            show_default=False,
        ),
    ] = None,
    widths: Annotated[
        str | None,
        typer.Option(
            "--widths",
            help="Kronecker factors, one more than there are layers, as in '1,2,2,1'.",
            show_default=False,
        ),
    ] = None,
    weight: Annotated[
        str, typer.Option("--weight", help="A number, or normal, or uniform.")
    ] = "1.0",
    permute: Annotated[str, typer.Option("--permute", help="none, lists or layers.")] = "none",
    seed: Annotated[int, typer.Option("--seed", help="Seed of weights and permutations.")] = 0,
    bias: Annotated[float, typer.Option("--bias", help="Bias of a general RadiX-Net.")] = 0.0,
    activation: Annotated[
        str, typer.Option("--activation", help="Activation of a general RadiX-Net.")
    ] = "relu",
    format: Annotated[
        str, typer.Option("--format", help="tsv (official layout), native, npz or matrix-market.")
    ] = "native",
) -> None:
    """Write a RadiX-Net: an official Graph Challenge network, or any from radix lists."""
    from sparsednn.atomic import folder_for
    from sparsednn.datasets import graph_challenge_layers, graph_challenge_network, radix_net
    from sparsednn.formats import write_network
    from sparsednn.formats.graph_challenge import write_layers

    chosen = _chosen(format, _NETWORK_FORMATS)
    if (graph_challenge is None) == (radices is None):
        raise UsageError("give either --graph-challenge NEURONS or --radices LISTS")
    if graph_challenge is not None:
        _refuse(context, _GENERAL_ONLY, "an official network (--graph-challenge)")
        stem = f"neuron{graph_challenge}"
        if chosen == "graph-challenge":
            # One layer at a time: 65536 neurons by 1920 layers would not fit into memory.
            made = graph_challenge_layers(graph_challenge, layers)
            with folder_for(out):
                write_layers(made, out / stem, graph_challenge)
            note(f"{out / stem}: {layers} layers")
            return
        network = graph_challenge_network(graph_challenge, layers)
        stem += f"-l{layers}"
        drawn = ""
    else:
        _refuse(context, _OFFICIAL_ONLY, "a general RadiX-Net (--radices): it has one per radix")
        options: dict[str, Any] = {}
        if widths is not None:
            options["widths"] = _integers(widths, "--widths")
        network = radix_net(
            [_integers(part, "--radices") for part in (radices or "").split(";")],
            weight=_weight(weight),
            permute=permute,  # type: ignore[arg-type]  # checked there, with a clear line
            seed=seed,
            bias=bias,
            activation=activation,
            **options,
        )
        stem = f"neuron{network.n_in}" if chosen == "graph-challenge" else "radixnet"
        drawn = f", seed {seed}"
    target = out / (f"{stem}.safetensors" if chosen == "native" else stem)
    with folder_for(out):
        write_network(network, target, format=chosen)
    note(f"{target}: {len(network)} layers, {network.edges:,} edges{drawn}")


def _weight(text: str) -> Any:
    if text in ("normal", "uniform"):
        return text
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--weight: '{text}' is neither a number nor normal nor uniform") from None


def _write_inputs(inputs: Any, out: Path, stem: str, format: str) -> None:
    from sparsednn.atomic import folder_for
    from sparsednn.formats import write_inputs

    path = out / f"{stem}{_INPUT_SUFFIXES[format]}"
    with folder_for(out):
        write_inputs(inputs, path)
    note(f"{path}: {inputs.n_images} images, {inputs.n_features} features, {inputs.nnz:,} nonzeros")


@app.command("graph-challenge")
def graph_challenge_command(
    out: OutOption,
    neurons: NeuronsOption = 1024,
    mnist: MnistOption = None,
    images: LimitOption = None,
    format: InputFormat = "tsv",
) -> None:
    """Write the official inputs (MNIST, interpolated and thresholded)."""
    from sparsednn.sources import load_inputs

    _chosen(format, _INPUT_SUFFIXES)
    inputs = load_inputs(f"graph-challenge:{neurons}", mnist=mnist, images=images)
    _write_inputs(inputs, out, f"sparse-images-{neurons}", format)


@app.command()
def digits(
    out: OutOption,
    neurons: NeuronsOption = 1024,
    images: LimitOption = None,
    format: InputFormat = "tsv",
) -> None:
    """Write scikit-learn's digits, interpolated in the same way; needs no download."""
    from sparsednn.sources import load_inputs

    _chosen(format, _INPUT_SUFFIXES)
    inputs = load_inputs(f"digits:{neurons}", images=images)
    _write_inputs(inputs, out, f"sparse-digits-{neurons}", format)


@app.command()
def mnist(
    out: OutOption,
    split: Annotated[str, typer.Option("--split", help="train or test.")] = "train",
    mnist: MnistOption = None,
    images: LimitOption = None,
    format: InputFormat = "npz",
) -> None:
    """Write MNIST's pixels (0 to 1) as inputs of 784 features."""
    from sparsednn.sources import load_inputs

    _chosen(format, _INPUT_SUFFIXES)
    if split not in ("train", "test"):
        raise UsageError(f"--split: '{split}' is neither train nor test")
    inputs = load_inputs(f"mnist:{split}", mnist=mnist, images=images)
    _write_inputs(inputs, out, f"mnist-{split}", format)
