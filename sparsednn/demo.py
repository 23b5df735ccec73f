"""The demonstration: the main job on data that every installation has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["run_demo"]

_PARTS = 4


def run_demo(
    *,
    neurons: int = 1024,
    layers: int = 120,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Push scikit-learn's digits through an official network with both kernels and compare; divide
    the network among four ranks.

    Returns
    -------
    The figures: what four ranks would send per image and layer with random and with joint
    partitioning; network, images, edges, categories, seconds of both kernels (inference only),
    the rate in edges per second, the largest difference of any output, and ``answer``: ``pass`` if
    categories and outputs are equal bit by bit (as they must be where all weights are 1/16),
    ``fail`` otherwise.
    """
    from sparsednn.datasets import digits_inputs, graph_challenge_network
    from sparsednn.inference import infer
    from sparsednn.partitioners import Options, evaluate, make_partition

    progress(f"generating the network: {neurons} neurons, {layers} layers")
    network = graph_challenge_network(neurons, layers)
    progress("interpolating the digits")
    inputs = digits_inputs(neurons)
    kept: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}
    results = {}
    for kernel in ("numba", "reference"):
        progress(f"running {inputs.n_images} images with the {kernel} kernel")
        outputs = np.zeros((network.n_out, inputs.n_images), np.float32)

        def sink(first: int, block: Any, outputs: Any = outputs) -> None:
            outputs[:, first : first + block.shape[1]] = block

        results[kernel] = infer(network, inputs, kernel=kernel, sink=sink)
        kept[kernel] = outputs
    fast, truth = results["numba"], results["reference"]
    difference = float(np.abs(kept["numba"] - kept["reference"]).max())
    progress(f"partitioning for {_PARTS} ranks")
    words = {}
    for method, partitioner in (("multiphase", "random"), ("joint", None)):
        options = Options(_PARTS, effort="quick")
        partition = make_partition(network, options, method=method, partitioner=partitioner)
        words[partitioner or method] = evaluate(network, partition).words_total / len(network)
    same = np.array_equal(fast.categories, truth.categories) and difference == 0
    return {
        "network": network.name,
        "layers": len(network),
        "edges": network.edges,
        "images": inputs.n_images,
        "threads": fast.threads,
        "categories": int(fast.categories.size),
        "seconds_numba": fast.infer_seconds,
        "seconds_reference": truth.infer_seconds,
        "edges_per_second": fast.edges_per_second,
        "ranks": _PARTS,
        "words_per_layer_random": words["random"],
        "words_per_layer_joint": words["joint"],
        "largest_difference": difference,
        "answer": "pass" if same else "fail",
    }
