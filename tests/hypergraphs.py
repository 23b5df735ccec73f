"""Random hypergraphs for property tests: empty and repeated nets, weights of 0, fixed vertices."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from sparsednn.partitioners.hypergraph import FREE, Hypergraph


def hypergraph(
    nets: list[list[int]],
    weights: list[int],
    *,
    net_weights: list[int] | None = None,
    fixed: list[int] | None = None,
) -> Hypergraph:
    net_ptr = np.zeros(len(nets) + 1, np.int64)
    np.cumsum([len(net) for net in nets], out=net_ptr[1:])
    return Hypergraph(
        net_ptr,
        np.array([pin for net in nets for pin in net], np.int32),
        np.array(weights, np.int64),
        np.array([1] * len(nets) if net_weights is None else net_weights, np.int64),
        np.array([FREE] * len(weights) if fixed is None else fixed, np.int32),
    )


def pin_lists(graph: Hypergraph) -> list[list[int]]:
    return [net.tolist() for net in np.split(graph.pins, graph.net_ptr[1:-1])][: graph.n_nets]


def planted(clusters: int, size: int, rng: np.random.Generator) -> Hypergraph:
    """Clusters of vertices in random order; nets within a cluster, a few across."""
    n = clusters * size
    members = rng.permutation(n).reshape(clusters, size)
    nets = [rng.choice(row, 4, replace=False).tolist() for row in members for _ in range(3 * size)]
    nets += [rng.choice(n, 3, replace=False).tolist() for _ in range(size)]
    return hypergraph(nets, [5] * n)


@st.composite
def hypergraphs(
    draw: st.DrawFn, *, parts: int = 1, most: int = 30, least_pins: int = 0
) -> Hypergraph:
    """Up to `most` vertices and as many nets; vertices fixed to `parts` parts."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(0, most))
    largest = min(n, draw(st.sampled_from([2, 5, most])))
    nets = []
    if n >= least_pins:
        for _ in range(draw(st.integers(0, most))):
            pins = rng.choice(n, rng.integers(least_pins, largest + 1), replace=False).tolist()
            nets.append(pins)
            if rng.random() < 0.3:
                nets.append(rng.permutation(pins).tolist())
    high = draw(st.sampled_from([1, 2, 10, 1000]))
    weights = rng.integers(draw(st.sampled_from([0, 1])), high + 1, n)
    fixed = np.full(n, FREE)
    share = draw(st.sampled_from([0.0, 0.2, 1.0]))
    chosen = rng.random(n) < share
    fixed[chosen] = rng.integers(0, parts, int(chosen.sum()))
    if draw(st.booleans()):
        weights[chosen] = 0  # as in the layers' model
    net_high = draw(st.sampled_from([1, 7]))
    return hypergraph(
        nets,
        weights.tolist(),
        net_weights=rng.integers(1, net_high + 1, len(nets)).tolist(),
        fixed=fixed.tolist(),
    )
