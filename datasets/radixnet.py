"""RadiX-Net: sparse layers of any width in which every input reaches every output equally often.

Robinett and Kepner, "RadiX-Net: Structured Sparse Matrices for Deep Neural Networks", 2019
(arXiv 1905.00416). A list of radices ``N_1, …, N_L`` writes each number below their product
``n'`` in a mixed-radix system. Layer i of the *mixed-radix topology* on n' nodes lets digit i take
any value: node j is connected with the nodes ``j + t·ν_i mod n'``, ``t = 0 … N_i - 1``, where
``ν_i = N_1 ⋯ N_{i-1}`` is the place value. After all layers of a list, each node has been
connected with every node by exactly one path. Several lists follow each other (*extended*
mixed-radix topology), and the Kronecker product with a matrix of ones makes a layer ``D`` times as
wide (the RadiX-Net proper).

The paper's matrices have a row per node of the layer before. Ours are the transposes: **rows are
outputs**, as in every `SparseLayer`.

The official Graph Challenge networks are of this kind, but permuted in their own way: see
`sparsednn.datasets.graph_challenge`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from sparsednn.activations import Activation
from sparsednn.errors import InputError, UsageError
from sparsednn.network import SparseLayer, SparseNetwork

__all__ = ["Permute", "radix_net", "radix_net_layers"]

Permute = Literal["none", "lists", "layers"]

_PERMUTE: Final = ("none", "lists", "layers")
_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
_WEIGHTS: Final = ("normal", "uniform")


def radix_net(
    radices: Sequence[Sequence[int]],
    *,
    widths: Sequence[int] | None = None,
    weight: float | Literal["normal", "uniform"] = 1.0,
    permute: Permute = "none",
    seed: int = 0,
    bias: float = 0.0,
    activation: Activation | str = "relu",
    name: str = "radix-net",
) -> SparseNetwork:
    """Make a RadiX-Net as a network; `radix_net_layers` makes the same layers one at a time.

    Parameters
    ----------
    radices
        The radix lists, e.g. ``[[2, 2, 2], [4, 2]]``: one layer per radix, each at least 2. Every
        list has the same product ``n'``; only the last of several may have a divisor of it.
    widths
        Kronecker factors ``D_0, …, D_M``, one more than there are layers, each at least 1: there
        are ``D_i · n'`` neurons behind layer i. None: all 1.
    weight
        The value of all weights, or the distribution that they are drawn from: "normal" with
        variance ``2 / fan-in`` or "uniform" with the same variance (He et al., ICCV 2015, eq. 10).
    permute
        "none"; "lists": the inputs of the first layer of every list but the first are permuted at
        random, which keeps the equal number of paths; "layers": the inputs of every layer but the
        first are, which keeps the number of connections per neuron only.
    seed
        Of the permutations and weights, not negative. Layer i depends on it and on i only.
    bias
        The bias of all neurons.
    activation
        Of all layers.
    name
        Name of the network.

    Returns
    -------
    SparseNetwork
        Layer i (from 1) is ``(D_i·n', D_{i-1}·n')`` with ``D_{i-1}·D_i·n'·N_i`` weights. Between
        each input and each output there are ``(Π_{0<i<M} D_i)·(Π all radices) / n'`` paths.

    Raises
    ------
    InputError
        If radices, widths, weight, bias or activation cannot be used.
    UsageError
        If `permute`, `seed` or the name of a distribution is none of those above.

    Examples
    --------
    >>> radix_net([[2, 3]], widths=[1, 2, 1])
    SparseNetwork('radix-net', 2 layers, 6 -> 6, edges=60)
    """
    layers = radix_net_layers(
        radices,
        widths=widths,
        weight=weight,
        permute=permute,
        seed=seed,
        bias=bias,
        activation=activation,
    )
    return SparseNetwork(list(layers), name=name)


def radix_net_layers(
    radices: Sequence[Sequence[int]],
    *,
    widths: Sequence[int] | None = None,
    weight: float | Literal["normal", "uniform"] = 1.0,
    permute: Permute = "none",
    seed: int = 0,
    bias: float = 0.0,
    activation: Activation | str = "relu",
) -> Iterator[SparseLayer]:
    """Make the layers of a RadiX-Net one at a time; parameters and errors as for `radix_net`.

    What is wrong with the arguments is raised by the call, not by the first layer.
    """
    plans = _plan(radices, widths)
    if isinstance(weight, str):
        if weight not in _WEIGHTS:
            raise UsageError(f"weight is a number or one of {', '.join(_WEIGHTS)}: '{weight}'")
    elif not abs(weight) <= _FLOAT32_MAX:
        raise InputError(f"the weight must be a finite float32, found {weight}")
    if not abs(bias) <= _FLOAT32_MAX:
        raise InputError(f"the bias must be a finite float32, found {bias}")
    if permute not in _PERMUTE:
        raise UsageError(f"permute is one of {', '.join(_PERMUTE)}: '{permute}'")
    if seed < 0:
        raise UsageError(f"a seed must not be negative, found {seed}")
    if isinstance(activation, str):
        activation = Activation.parse(activation)
    return _layers(plans, weight, permute, seed, bias, activation)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What one layer is made of: radix, place value ν, nodes n', Kronecker factors."""

    radix: int
    place: int
    nodes: int
    width_in: int
    width_out: int
    starts_list: bool


def _plan(radices: Sequence[Sequence[int]], widths: Sequence[int] | None) -> list[_Plan]:
    if not len(radices):
        raise InputError("a RadiX-Net needs at least one list of radices")
    for i, radix_list in enumerate(radices, 1):
        if not len(radix_list):
            raise InputError(f"radix list {i} is empty")
        for radix in radix_list:
            if not isinstance(radix, int | np.integer) or radix < 2:
                raise InputError(
                    f"radix list {i}: radices are whole numbers from 2 upwards, found {radix}"
                )
    products = [math.prod(map(int, radix_list)) for radix_list in radices]
    nodes = products[0]
    for i, product in enumerate(products[1:], 2):
        if product != nodes and (i < len(products) or nodes % product):
            rule = "divide that" if i == len(products) else "be equal to that"
            raise InputError(
                f"radix list {i} has the product {product}, list 1 has {nodes}: "
                f"the product of list {i} of {len(products)} must {rule}"
            )
    layers = sum(map(len, radices))
    factors = [1] * (layers + 1) if widths is None else list(widths)
    if len(factors) != layers + 1:
        raise InputError(
            f"{layers} radices make {layers} layers, which need {layers + 1} widths, "
            f"found {len(factors)}"
        )
    for i, factor in enumerate(factors):
        if not isinstance(factor, int | np.integer) or factor < 1:
            raise InputError(f"width {i}: widths are whole numbers from 1 upwards, found {factor}")
        if int(factor) * nodes >= 2**31:
            raise InputError(
                f"width {i}: {factor} × {nodes} nodes are more than 2^31 - 1 neurons in a layer"
            )
    plans: list[_Plan] = []
    for radix_list in radices:
        place = 1
        for radix in map(int, radix_list):
            i = len(plans)
            width_in, width_out = int(factors[i]), int(factors[i + 1])
            plans.append(_Plan(radix, place, nodes, width_in, width_out, i > 0 and place == 1))
            place *= radix
    return plans


def _layers(
    plans: list[_Plan],
    weight: float | str,
    permute: Permute,
    seed: int,
    bias: float,
    activation: Activation,
) -> Iterator[SparseLayer]:
    for i, plan in enumerate(plans):
        n_in, n_out = plan.width_in * plan.nodes, plan.width_out * plan.nodes
        # A generator per layer: the layers do not depend on what was drawn before them.
        random = np.random.default_rng([seed, i])
        columns = _columns(plan)
        if (permute == "layers" and i > 0) or (permute == "lists" and plan.starts_list):
            columns = np.sort(random.permutation(n_in).astype(np.int32)[columns], axis=1)
        fan_in = columns.shape[1]
        nnz = n_out * fan_in
        if isinstance(weight, str):
            deviation = math.sqrt(2.0 / fan_in)
            if weight == "normal":
                drawn = random.standard_normal(nnz, dtype=np.float32)
            else:
                drawn = (2.0 * random.random(nnz, dtype=np.float32) - 1.0) * np.float32(3**0.5)
            values = drawn * np.float32(deviation)
        else:
            values = np.full(nnz, weight, np.float32)
        yield SparseLayer(
            np.arange(n_out + 1, dtype=np.int64) * fan_in,
            np.tile(columns, (plan.width_out, 1)).ravel(),
            values,
            n_in,
            bias=bias,
            activation=activation,
            check=False,
        )


def _columns(plan: _Plan) -> NDArray[np.int32]:
    """Inputs of the first n' outputs, ascending: ``(n', width_in·radix)``; all others repeat them.

    Output q has the inputs ``q - t·ν mod n'`` within each of the ``width_in`` copies of the nodes.
    """
    nodes = np.arange(plan.nodes, dtype=np.int64)
    steps = np.arange(plan.radix, dtype=np.int64) * plan.place
    within = np.sort((nodes[:, None] - steps) % plan.nodes, axis=1)
    copies = np.arange(plan.width_in, dtype=np.int64) * plan.nodes
    every = copies[None, :, None] + within[:, None, :]
    return every.reshape(plan.nodes, -1).astype(np.int32)
