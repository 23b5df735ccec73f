from __future__ import annotations

import numpy as np
from hypothesis import given, settings

from networks import networks
from sparsednn import SparseLayer, SparseNetwork
from sparsednn.patterns import equal_rows


@given(network=networks())
@settings(deadline=None, max_examples=60)
def test_groups_are_the_equal_patterns(network: SparseNetwork) -> None:
    for layer in network:
        leader = equal_rows(layer.indptr, layer.indices)
        patterns = [
            tuple(layer.indices[layer.indptr[r] : layer.indptr[r + 1]]) for r in range(layer.n_out)
        ]
        expected = [patterns.index(pattern) for pattern in patterns]
        np.testing.assert_array_equal(leader, expected)


def test_equal_hashes_do_not_join_rows(monkeypatch) -> None:
    # With a hash that is the same for all rows only the comparison keeps the groups apart.
    from sparsednn import patterns

    monkeypatch.setattr(patterns, "_pattern_hashes", lambda indptr, indices, out: out.fill(7))
    layer = SparseLayer([0, 1, 2, 3, 3, 5, 5], [0, 1, 0, 0, 1], [1, 2, 3, 4, 5.0], 2)
    np.testing.assert_array_equal(
        patterns.equal_rows(layer.indptr, layer.indices), [0, 1, 0, 3, 4, 3]
    )
