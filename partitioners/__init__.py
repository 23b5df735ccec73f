"""Who owns which neuron: hypergraph models, partitioners and their metrics.

The way data goes::

    SparseNetwork ── balance ──► what parts may weigh
      │
      ├── hypergraph ── solvers/ ──► multiphase: layer after layer ─┐ chains
      └── joint/ units ── anneal ── recombine ◄─────────────────────┘
                                        │
    metrics: words, messages ◄── Partition (and its file)

`make_partition` and `compare` (in `methods`) put these together. Importing this package loads
NumPy only; kahypar, mtkahypar, SciPy and numba are loaded by what needs them.
"""

from __future__ import annotations

from sparsednn.partitioners.hypergraph import FREE, Hypergraph, layer_hypergraph
from sparsednn.partitioners.methods import (
    EFFORTS,
    METHODS,
    Compared,
    Options,
    compare,
    make_partition,
)
from sparsednn.partitioners.metrics import LayerStats, PartitionStats, evaluate
from sparsednn.partitioners.partition import Partition, PartitionMeta, read_partition
from sparsednn.partitioners.solvers import SOLVERS, get_solver, presets

__all__ = [
    "EFFORTS",
    "FREE",
    "METHODS",
    "SOLVERS",
    "Compared",
    "Hypergraph",
    "LayerStats",
    "Options",
    "Partition",
    "PartitionMeta",
    "PartitionStats",
    "compare",
    "evaluate",
    "get_solver",
    "layer_hypergraph",
    "make_partition",
    "presets",
    "read_partition",
]
