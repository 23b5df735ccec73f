"""On ranks: every algorithm's numbers and words, on random shapes and grids."""

from __future__ import annotations

import numpy as np

from convolutions import block_of, random_shape, truth_of

#: Random convolutions of a start; each on some placements of every algorithm.
SHAPES = 6
PLACEMENTS = 3


def check_algorithms(world):
    from sparsednn.dense.distributed import DistributedConvolution
    from sparsednn.dense.distribution import Distribution
    from sparsednn.dense.grids import ALGORITHMS, legal_placements
    from sparsednn.dense.local.reference import ReferenceBackend
    from sparsednn.dense.pool import GridPool
    from sparsednn.dense.volume import convolution_volume

    local = ReferenceBackend()
    pool = GridPool(world)
    source = np.random.default_rng(world.size)
    ran = {}
    for number in range(SHAPES):
        shape = random_shape(source, images=8 if number == 0 else None)
        truth = truth_of(shape, number, world)
        for algorithm in ALGORITHMS:
            every = legal_placements(shape, world.size, algorithm)
            chosen = source.permutation(len(every))[:PLACEMENTS]
            for placement in (every[i] for i in chosen):
                distribution = Distribution.of(shape, placement)
                first = bool(source.integers(4) == 0)  # no gradient of the input
                has_bias = bool(source.integers(2))
                op = DistributedConvolution(
                    pool, distribution, local, np.float64, layer=number, has_bias=has_bias,
                    input_gradient=not first,
                )  # fmt: skip
                _compare(world, op, distribution, truth, has_bias, first)
                volume = convolution_volume(
                    distribution, has_bias=has_bias, input_gradient=not first
                )
                _compare_words(world, op, distribution, truth, volume, first)
                op.free()
                ran[algorithm] = ran.get(algorithm, 0) + 1
    pool.free()
    assert set(ran) == set(ALGORITHMS), ran
    if world.rank == 0:
        print(f"{world.size} ranks: {ran}")


def _parameters(op, distribution, truth, has_bias, rank):
    kernel = block_of(truth.kernel, distribution.kernel, rank).ravel()
    bias = block_of(truth.bias, distribution.bias, rank) if has_bias else np.empty(0)
    return np.concatenate([kernel, bias])


def _compare(world, op, distribution, truth, has_bias, first):
    rank = world.rank
    context = f"{distribution.shape} {distribution.placement} bias={has_bias} first={first}"
    parameters = _parameters(op, distribution, truth, has_bias, rank)
    gradient = np.full_like(parameters, np.nan)
    y = op.forward(block_of(truth.x, distribution.input, rank), parameters)
    wanted = truth.y if has_bias else truth.y - truth.bias[:, None, None]
    _close(y, block_of(wanted, distribution.output, rank), f"output of {context}")
    dx = op.backward(block_of(truth.dy, distribution.output, rank), parameters, gradient)
    op.finish()
    if first:
        assert dx is None
    else:
        _close(dx, block_of(truth.dx, distribution.input, rank), f"input gradient of {context}")
    kernel = block_of(truth.d_kernel, distribution.kernel, rank).ravel()
    _close(gradient[: kernel.size], kernel, f"kernel gradient of {context}")
    if has_bias:
        bias = block_of(truth.d_bias, distribution.bias, rank)
        _close(gradient[kernel.size :], bias, f"bias gradient of {context}")


def _compare_words(world, op, distribution, truth, volume, first):
    """What the communicator counted in a forward and a backward pass is the closed form."""
    rank, traffic = world.rank, world.traffic
    context = f"{distribution.shape} {distribution.placement}"
    parameters = np.zeros(op.parameter_size)
    traffic.clear()
    op.forward(block_of(truth.x, distribution.input, rank), parameters)
    _counted(traffic, volume.forward, rank, f"forward {context}")
    traffic.clear()
    op.backward(block_of(truth.dy, distribution.output, rank), parameters, parameters.copy())
    op.finish()
    _counted(traffic, volume.backward, rank, f"backward {context}")


def _counted(traffic, formula, rank, context):
    counted = {row[0]: row[2] for row in traffic.rows() if row[2]}
    expected = {verb: int(words[rank]) for verb, words in formula.items() if words[rank]}
    assert counted == expected, f"{context}: rank {rank} sent {counted}, by formula {expected}"


def _close(found, wanted, context):
    assert found.shape == wanted.shape, f"{context}: {found.shape}, expected {wanted.shape}"
    error = float(np.abs(found - wanted).max(initial=0.0))
    scale = float(np.abs(wanted).max(initial=1.0))
    assert error <= 1e-11 * scale, f"{context}: off by {error}"
