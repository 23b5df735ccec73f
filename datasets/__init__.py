"""Networks and inputs by recipe: RadiX-Net, the Graph Challenge, topologies, MNIST, digits.

Everything here is made or read, never stored: networks come out as `SparseLayer` and
`SparseNetwork`, inputs as `InputSet`. Importing this package loads NumPy only; SciPy,
scikit-learn and pooch are loaded by the functions that need them.
"""

from __future__ import annotations

from sparsednn.datasets.digits import digits_images, digits_inputs
from sparsednn.datasets.graph_challenge import (
    OFFICIAL_LAYERS,
    OFFICIAL_NONZEROS,
    graph_challenge_inputs,
    graph_challenge_layers,
    graph_challenge_network,
)
from sparsednn.datasets.images import interpolate_images, square_side
from sparsednn.datasets.labelled import load_labelled
from sparsednn.datasets.mnist import is_original_mnist, load_mnist, read_idx
from sparsednn.datasets.radixnet import radix_net, radix_net_layers
from sparsednn.datasets.topologies import Topology, topology_layers, topology_network

__all__ = [
    "OFFICIAL_LAYERS",
    "OFFICIAL_NONZEROS",
    "Topology",
    "digits_images",
    "digits_inputs",
    "graph_challenge_inputs",
    "graph_challenge_layers",
    "graph_challenge_network",
    "interpolate_images",
    "is_original_mnist",
    "load_labelled",
    "load_mnist",
    "radix_net",
    "radix_net_layers",
    "read_idx",
    "square_side",
    "topology_layers",
    "topology_network",
]
