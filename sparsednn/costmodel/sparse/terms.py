"""What a rank does in a run or a step, by kind of cost: blocks, and counts of small things.

The seconds of a rank that waits for nobody are those of its blocks (`kernels.SparseRates`), and for
each of `kernels.SMALL` its seconds times how often it occurs. The calibration fits the small costs
to these counts, and the predictions multiply them: so both have them from here.

*Inference* of m images on one rank, in tiles of T columns, with L layers, n the widest, n_0 inputs:

==================  =============================================================
run                 1
workspace_byte      4 S (2 n + n_0), S the row stride of a tile
tile_layer          L · ⌈m / T⌉
input_nonzero       nonzeros of the inputs
input_far           those of them that come from behind the core's own cache
near_byte           bytes of weights and patterns that come from the last cache
far_byte            and from memory
==================  =============================================================

*A step* of B images, in pieces of at most T: forward blocks, transposed blocks (but for the first
layer's, unless its words are sent back), sampled blocks, derivatives of the elements between
layers, the optimizer's loop, and

==================  =============================================================
step                1 for each piece
train_layer         L for each piece
load_element        inputs written into the tile
bias_row            rows of all layers, for each piece
bias_element        the same, times columns
loss_element        outputs × images
train_byte          weights and patterns from behind the core's own cache, in all three products
gather              weights that the transposed product takes one by one, for each panel, where
                    they and the tiles are more than the core's own cache keeps
==================  =============================================================

Must not know: other ranks, messages.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.costmodel.sparse.kernels import SparseRates, panels_of
from sparsednn.costmodel.sparse.work import SparseWork
from sparsednn.kernels.sizes import row_stride

__all__ = [
    "RUN_TERMS",
    "STEP_TERMS",
    "StepCosts",
    "repeated_share",
    "run_terms",
    "step_costs",
    "step_terms",
    "weight_bytes",
]

RUN_TERMS: Final = (
    "run", "workspace_byte", "tile_layer", "input_nonzero", "input_far", "near_byte", "far_byte",
)  # fmt: skip
STEP_TERMS: Final = (
    "step", "train_layer", "load_element", "bias_row", "bias_element", "loss_element",
    "train_byte", "gather",
)  # fmt: skip
_FLOAT: Final = 4
_INPUT: Final = 6  # bytes of an input's nonzero: a feature and a value

_Floats = NDArray[np.float64]


def weight_bytes(work: SparseWork) -> _Floats:
    """``(layers, ranks)`` bytes of weights and patterns that a forward pass of a tile reads."""
    return np.asarray(_FLOAT * (work.edges + work.patterns.sum(axis=-1)), np.float64)


def repeated_share(work: SparseWork) -> _Floats:
    """``(layers, ranks, parts)``: which part of the blocks' patterns the block before has, too.

    Blocks of one group follow each other: all but the first find their activations in the nearest
    cache.
    """
    lengths = work.lengths.sum(axis=-1)
    return np.asarray(1.0 - work.patterns / np.maximum(lengths, 1))


def run_terms(
    rates: SparseRates, work: SparseWork, images: int, *, columns: int, nonzeros: float
) -> tuple[float, dict[str, float]]:
    """Return the blocks' seconds and the counts of `RUN_TERMS`, of inference on one rank.

    Parameters
    ----------
    rates
        Of the processor.
    work
        Of one rank.
    images, columns
        Images of the run, columns of a tile.
    nonzeros
        Of the inputs of all images.
    """
    stride = row_stride(columns)
    neurons = work.neurons[:, 0]
    full, rest = divmod(images, columns)
    sets = _FLOAT * stride * neurons[:-1].astype(float)
    seconds = 0.0
    for width, tiles in ((columns, full), (rest, 1)):
        if width and tiles:
            each = rates.layer_seconds(
                work.blocks[:, 0, 0], work.lengths[:, 0, 0], width, sets,
                again=repeated_share(work)[:, 0, 0],
            )  # fmt: skip
            seconds += tiles * float(each.sum())
    tiles = full + (rest > 0)
    read = weight_bytes(work)[:, 0].sum()
    near, far = rates.streamed(tiles * read, read)
    beyond = sum(rates.streamed(nonzeros, _INPUT * nonzeros))
    return seconds, {
        "run": 1.0,
        "workspace_byte": float(_FLOAT * stride * (2 * neurons.max() + neurons[0])),
        "tile_layer": float(tiles * work.layers),
        "input_nonzero": float(nonzeros),
        "input_far": float(beyond),
        "near_byte": float(near),
        "far_byte": float(far),
    }


class StepCosts:
    """Seconds of the parts of one piece (a tile) of a step, on each rank, by layer.

    Attributes
    ----------
    forward_owned, forward_received
        ``(layers, ranks)``: blocks that are multiplied before messages are there, and behind.
    folded, back, sampled
        The same backward: the received columns' sums, which are sent; the owned ones'; gradients.
    columns, input_gradient
        As given.
    """

    def __init__(
        self, rates: SparseRates, work: SparseWork, columns: int, *, input_gradient: bool = False
    ) -> None:
        self.columns, self.input_gradient = columns, input_gradient
        stride = row_stride(columns)
        before, after = (_FLOAT * stride * work.neurons[a:b] for a, b in ((0, -1), (1, None)))
        received = _FLOAT * columns * work.words_received
        blocks, lengths = work.blocks, work.lengths

        again = repeated_share(work)

        def forward(part: int, sets: NDArray[np.int64], kind: str) -> _Floats:
            return rates.layer_seconds(
                blocks[:, :, part], lengths[:, :, part], columns, sets, kind, again[:, :, part]
            )

        def back(part: int) -> _Floats:
            return rates.layer_seconds(
                work.back_blocks[:, :, part], work.back_lengths[:, :, part], columns, after,
                "transposed",
            )  # fmt: skip

        self.forward_owned = forward(0, before, "forward") + forward(1, before, "forward")
        self.forward_received = forward(2, received, "forward")
        self.sampled = (
            forward(0, before, "sampled")
            + forward(1, before, "sampled")
            + forward(2, received, "sampled")
        )
        self.folded, self.back = back(0), back(1)
        if not input_gradient:  # nobody asks for the gradient of the inputs
            self.folded[0] = self.back[0] = 0.0

    @property
    def forward(self) -> _Floats:
        """``(ranks,)`` seconds of the forward blocks."""
        return np.asarray((self.forward_owned + self.forward_received).sum(axis=0))

    @property
    def backward(self) -> _Floats:
        """``(ranks,)`` seconds of all others."""
        return np.asarray((self.folded + self.back + self.sampled).sum(axis=0))


def step_costs(
    rates: SparseRates,
    work: SparseWork,
    batch: int,
    *,
    tile: int,
    optimizer: str,
    input_gradient: bool = False,
) -> tuple[list[tuple[int, StepCosts]], dict[str, _Floats], _Floats]:
    """Return a step's pieces, the counts of `STEP_TERMS`, and the seconds of the rest.

    Parameters
    ----------
    rates, work
        Rates of the processor; a network on ranks, counted for training.
    batch, tile
        Images of the step on each rank, and of a piece at most.
    optimizer
        One of `kernels.OPTIMIZERS`.
    input_gradient
        Whether the first layer's words are sent back.

    Returns
    -------
    pieces, terms, rest
        How many pieces of which size (as number and `StepCosts`); ``(ranks,)`` each; the seconds
        ``(ranks,)`` of derivatives and of the optimizer's loop.
    """
    count = max(1, -(-batch // tile))
    sizes = np.diff([batch * i // count for i in range(count + 1)])
    pieces = [
        (
            int((sizes == size).sum()),
            StepCosts(rates, work, int(size), input_gradient=input_gradient),
        )
        for size in np.unique(sizes)
    ]
    rows = work.neurons[1:].sum(axis=0).astype(float)
    ones = np.ones(work.ranks)
    terms = {
        "step": count * ones,
        "train_layer": count * work.layers * ones,
        "load_element": work.neurons[0] * float(batch),
        "bias_row": count * rows,
        "bias_element": rows * batch,
        "loss_element": work.neurons[-1] * float(batch),
        **_far_weights(rates, work, sizes, input_gradient=input_gradient),
    }
    inner = work.neurons[1:-1].sum(axis=0) * float(row_stride(min(tile, max(1, batch)))) * count
    rest = inner * rates.seconds("derivative_element")
    # Plain SGD goes straight into the weights.
    if optimizer != "sgd":
        rest = rest + rates.parameter_seconds(optimizer, work.edges.sum(axis=0) + rows)
    return pieces, terms, np.asarray(rest)


def _far_weights(
    rates: SparseRates,
    work: SparseWork,
    sizes: NDArray[np.int64],
    *,
    input_gradient: bool,
) -> dict[str, _Floats]:
    """Weights from behind the core's own cache; all passes of a step come between two of a kind."""
    read = weight_bytes(work)
    places = _FLOAT * (work.edges + work.back_patterns.sum(axis=-1))
    total = (2 * read + places).sum(axis=0)
    passed = sizes.size * (2 * read + places).sum(axis=0)
    first = 0 if input_gradient else 1
    gathered = np.zeros(work.ranks)
    for columns in sizes.tolist():
        panels = sum(panels_of(columns, "transposed").values())
        tiles = _FLOAT * row_stride(columns) * (work.neurons[:-1] + work.neurons[1:])
        missed = rates.crowded_out(tiles + places + _FLOAT * work.edges)
        gathered += panels * (work.edges * missed)[first:].sum(axis=0)
    return {"train_byte": np.asarray(sum(rates.streamed(passed, total))), "gather": gathered}


def step_terms(
    rates: SparseRates, work: SparseWork, batch: int, *, tile: int, optimizer: str
) -> tuple[float, float, dict[str, float]]:
    """Return a step on one rank: seconds of backward blocks, of what else is known, and counts.

    Arguments as for `step_costs`.
    """
    pieces, terms, rest = step_costs(rates, work, batch, tile=tile, optimizer=optimizer)
    backward = sum(count * float(one.backward[0]) for count, one in pieces)
    known = float(rest[0]) + sum(count * float(one.forward[0]) for count, one in pieces)
    return backward, known, {name: float(value[0]) for name, value in terms.items()}
