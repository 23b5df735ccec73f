"""Predicted time of one step of SGD of a sparse network on a grid of data groups × ranks.

The images of a data group go through in pieces of at most a tile. In each layer, rank r of a group
packs, starts its messages, multiplies what it owns, waits, multiplies what it received; backward it
multiplies the received columns first and sends their sums back (the forward messages reversed),
then its own columns and the gradients, waits, and adds what came (`kernels.backprop`). Ranks meet
their neighbours in every layer and direction:

    step = Σ_pieces Σ_l [ max_r (pack + owned + exposed + received)_{l,r}
                        + max_r (folded + pack + back + sampled + exposed + added)_{l,r} ]
           + loss + sums of gradients over data groups, as far as the backward pass does not hide
           them + optimizer + what Python takes

Messages, loss and sums are `exchanges`' and `collectives`'; the counts of everything else are those
of `terms`. A team of t threads divides blocks, derivatives and biases by t, and meets four times a
layer. With the paper's model (Demirci and Ferhatosmanoglu, 2021) words are the same both ways.

Must not know: measuring, the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.costmodel.collectives.measured import collective_seconds
from sparsednn.costmodel.prediction import Prediction
from sparsednn.costmodel.sparse.exchanges import Transfers, transfers_of
from sparsednn.costmodel.sparse.kernels import OPTIMIZERS
from sparsednn.costmodel.sparse.layers import busy_threads, rates_of
from sparsednn.costmodel.sparse.linked import linked_costs
from sparsednn.costmodel.sparse.terms import StepCosts, step_costs
from sparsednn.costmodel.sparse.tiles import training_columns
from sparsednn.costmodel.sparse.work import SparseWork
from sparsednn.errors import UsageError
from sparsednn.kernels.sizes import row_stride

if TYPE_CHECKING:
    from sparsednn.costmodel.platform import Platform
    from sparsednn.costmodel.sparse.kernels import SparseRates

__all__ = ["PieceTimes", "divided_step", "piece_times", "predict_training", "training_bytes"]

_Floats = NDArray[np.float64]
_WORD: Final = 4  # bytes
_DOUBLE: Final = 8
_MEETINGS: Final = 4  # of a team's threads in a layer, forward and backward
_SLOTS: Final = {"sgd": 0, "momentum": 1, "adam": 2}
#: From so many parameters on, a team divides the optimizer's loop (`kernels.updates`).
_DIVIDED: Final = 1 << 21


class PieceTimes:
    """Seconds of a piece on each rank's own processor, ``(layers, ranks)``, messages not included.

    Attributes
    ----------
    pack, owned, received
        Forward: rows copied for messages; parts that need none; the part that does.
    folded, hidden, added
        Backward: what is computed and packed before the messages go; while they travel; behind.
    small
        What of these is neither blocks nor copies.
    """

    def __init__(
        self, rates: SparseRates, work: SparseWork, one: StepCosts, columns: int, threads: int,
        slower: float,
    ) -> None:  # fmt: skip
        share = slower / threads * (rates.team_factor if threads > 1 else 1.0)
        row, byte = rates.seconds("pack_row"), _WORD * columns * rates.seconds("pack_byte")
        meet = rates.seconds("meet") * _MEETINGS if threads > 1 else 0.0
        rows = work.neurons[1:]
        bias = rows * (rates.seconds("bias_row") + columns * rates.seconds("bias_element"))
        between = work.neurons[:-1] * float(row_stride(columns))
        between[0] = 0.0
        self.small = slower * (rates.seconds("train_layer") + meet) * np.ones(rows.shape)
        self.pack = slower * work.words_sent * (row + byte)
        self.owned = share * one.forward_owned + self.small / 2
        self.received = share * one.forward_received
        down = np.ones(work.layers)
        if not one.input_gradient:
            down[0] = 0.0
        words = work.words_received * down[:, None]
        self.folded = share * one.folded + slower * words * (row + byte)
        derivative = between * rates.seconds("derivative_element")
        self.hidden = share * (one.back + one.sampled + bias + derivative)
        self.hidden = self.hidden + self.small / 2
        self.added = slower * work.words_sent * down[:, None] * (row + byte)

    @property
    def forward(self) -> _Floats:
        """``(layers, ranks)``."""
        return np.asarray(self.pack + self.owned + self.received)

    @property
    def backward(self) -> _Floats:
        """``(layers, ranks)``."""
        return np.asarray(self.folded + self.hidden + self.added)


def piece_times(
    platform: Platform,
    work: SparseWork,
    batch: int,
    *,
    groups: int = 1,
    threads: int = 1,
    optimizer: str = "sgd",
    input_gradient: bool | None = None,
    rates: SparseRates | None = None,
) -> tuple[list[tuple[int, int, PieceTimes]], dict[str, _Floats], float, SparseRates]:
    """Return the pieces of a step, and what comes once.

    Parameters
    ----------
    As for `predict_training`.

    Returns
    -------
    pieces, once, slower, rates
        How many pieces of how many columns, with their times; ``(ranks,)`` seconds of the parts of
        a step that do not belong to a layer (``python``, ``inputs``, ``loss``, ``weights``,
        ``update``); the slowdown that is in all of them; the rates.
    """
    ranks = groups * work.ranks
    busy = busy_threads(platform, ranks, threads)
    rates = rates_of(platform, busy) if rates is None else rates
    slower = rates.slowdown(busy)
    share = -(-batch // groups)
    back = work.ranks > 1 if input_gradient is None else input_gradient
    tile = training_columns(platform, work, share, threads)
    alone = optimizer == "sgd" and groups == 1
    pieces, terms, _ = step_costs(
        rates, work, share, tile=tile, optimizer="sgd", input_gradient=back
    )
    parameters = work.edges.sum(axis=0) + work.neurons[1:].sum(axis=0)
    update = np.zeros(work.ranks)
    if not alone:
        update = rates.parameter_seconds(optimizer, parameters)
        update = np.where(parameters > _DIVIDED, update / threads, update)

    team = rates.team_factor if threads > 1 else 1.0

    def cost(name: str) -> _Floats:
        return np.asarray(slower * rates.seconds(name) * terms[name])

    once = {
        "python": cost("step"),
        "inputs": cost("load_element"),
        "loss": cost("loss_element"),
        "weights": team / threads * (cost("train_byte") + cost("gather")),
        "update": slower * update,
    }
    factor = slower * linked_costs(platform, "training", ranks, work.ranks).blocks
    timed = [
        (count, one.columns, PieceTimes(rates, work, one, one.columns, threads, factor))
        for count, one in pieces
    ]
    return timed, once, slower, rates


def divided_step(
    platform: Platform, work: SparseWork, batch: int, *, threads: int, rates: SparseRates
) -> tuple[float, float, float]:
    """Return a step on one rank as a team does it, with momentum.

    Returns
    -------
    Seconds of what one thread does alone; of each one's share of the rest; how often they meet.
    """
    pieces, once, slower, _ = piece_times(
        platform, work, batch, threads=threads, optimizer="momentum", rates=rates
    )
    weights = float(once.pop("weights")[0])
    alone = sum(float(one[0]) for one in once.values())
    shared, meetings = weights, 0.0
    for count, _, times in pieces:
        small = float(times.small.sum())
        meetings += count * _MEETINGS * work.layers * slower
        alone += count * small
        shared += count * (float(times.forward.sum() + times.backward.sum()) - small)
    return alone, shared, meetings


def predict_training(
    platform: Platform,
    work: SparseWork,
    batch: int,
    *,
    groups: int = 1,
    threads: int = 1,
    optimizer: str = "sgd",
    input_gradient: bool | None = None,
) -> Prediction:
    """Predict one step of SGD with cross-entropy.

    Parameters
    ----------
    platform
        The machine.
    work
        What the ranks of a data group do, counted for training.
    batch
        Images of the step, of all groups together.
    groups
        Data groups: the run has ``groups * work.ranks`` ranks.
    threads
        Of each rank.
    optimizer
        One of `kernels.OPTIMIZERS`.
    input_gradient
        Whether the first layer's words are sent back; None: where ranks share the neurons, as
        `training.settings` has it.

    Returns
    -------
    Prediction
        ``details``: columns of a piece, and pieces.

    Raises
    ------
    UsageError
        If the work was not counted for training, the optimizer is unknown, there are fewer images
        than groups, or no room for the ranks.
    """
    if not work.trained:
        raise UsageError(f"'{work.name}': its work was not counted for training")
    if optimizer not in OPTIMIZERS:
        raise UsageError(f"the optimizer is one of {', '.join(OPTIMIZERS)}: '{optimizer}'")
    if min(groups, threads, batch) < 1 or batch < groups:
        raise UsageError(f"a step of {batch} images cannot be divided among {groups} data groups")
    ranks = groups * work.ranks
    if ranks > 1:
        platform.check_ranks(ranks)
    back = work.ranks > 1 if input_gradient is None else input_gradient
    pieces, once, _, _ = piece_times(
        platform, work, batch, groups=groups, threads=threads, optimizer=optimizer,
        input_gradient=back,
    )  # fmt: skip
    parts = dict.fromkeys(("forward", "backward", "exchange", "imbalance"), 0.0)
    charged = dict.fromkeys(("flops", "latency", "link bandwidth", "imbalance", "overhead"), 0.0)
    hidden = 0.0
    linked = linked_costs(platform, "training", ranks, work.ranks)
    for count, columns, times in pieces:
        per_byte = linked.seconds_per_byte * _WORD * columns
        moved = transfers_of(platform, work, columns, groups=groups).corrected(
            linked.exchanges, linked.layer_seconds, per_byte * work.words_sent
        )
        backward = _reversed(platform, work, columns, groups, back).corrected(
            linked.exchanges, linked.layer_seconds, per_byte * work.words_received
        )
        for name, total, transfers, during in (
            ("forward", times.forward, moved, times.owned),
            ("backward", times.backward, backward, times.hidden),
        ):
            exposed = transfers.exposed(during)
            everything = total + transfers.processor + exposed
            slowest, mean = everything.max(axis=1).sum(), everything.mean(axis=1).sum()
            wait = np.minimum(exposed, transfers.latency).mean(axis=1).sum()
            start = transfers.processor.mean(axis=1).sum()
            own = total.mean(axis=1).sum()
            small = times.small.mean(axis=1).sum() / 2
            parts[name] += count * own
            parts["exchange"] += count * (exposed.mean(axis=1).sum() + start)
            parts["imbalance"] += count * (slowest - mean)
            charged["flops"] += count * (own - small)
            charged["overhead"] += count * small
            charged["latency"] += count * (wait + start)
            charged["link bandwidth"] += count * (exposed.mean(axis=1).sum() - wait)
            charged["imbalance"] += count * (slowest - mean)
            hidden += count * float(times.backward.max(axis=1).sum()) * (name == "backward")
    for name, seconds in once.items():
        parts[name] = linked.others * float(seconds.max())
    charged["overhead"] += parts["python"]
    charged["flops"] += parts["inputs"] + parts["loss"]
    charged["memory bandwidth"] = parts["weights"] + parts["update"]
    sums, small = _sums(platform, work, batch, groups, hidden)
    small *= linked.others
    parts |= {"gradients": sums, "agreement": small}
    charged["link bandwidth"] += sums
    charged["latency"] += small
    rows = sum(count for count, _, _ in pieces)
    words = int(work.words_sent.sum()) + int(work.words_sent[0 if back else 1 :].sum())
    gradient = 0
    if groups > 1:
        total = work.edges.sum() + work.neurons[1:].sum()
        gradient = int(2 * (groups - 1) * total)
    memory = training_bytes(work, pieces[-1][1], optimizer, groups)
    return Prediction(
        seconds=sum(parts.values()),
        parts=parts,
        charged=charged,
        words=words * batch + gradient,
        memory_bytes=float(memory.max()),
        edges=3.0 * float(work.edges.sum()) * batch,
        details={"tile_columns": pieces[-1][1], "pieces": rows},
    )


def _reversed(
    platform: Platform, work: SparseWork, columns: int, groups: int, back: bool
) -> Transfers:
    """The fold: forward messages the other way round, the first layer's perhaps not."""
    from dataclasses import replace

    turned = replace(work, sends=tuple(one.reversed for one in work.sends))
    moved = transfers_of(platform, turned, columns, groups=groups)
    if not back:
        for one in (moved.within, moved.between, moved.latency, moved.processor):
            one[0] = 0.0
    return moved


def _sums(
    platform: Platform, work: SparseWork, batch: int, groups: int, hidden: float
) -> tuple[float, float]:
    """Seconds of gradients' sums that show, and of the small agreements of a step."""
    small = 0.0
    ranks = groups * work.ranks

    def allreduce(size: int, nbytes: float, stride: int = 1, **how: Any) -> float:
        return collective_seconds(
            platform, "allreduce", size, nbytes, stride, job=ranks, **how
        ).seconds

    if work.ranks > 1:
        share = -(-batch // groups)
        small += allreduce(work.ranks, _WORD * share)
        small += allreduce(work.ranks, 3 * _DOUBLE * share)
    if groups == 1:
        return 0.0, small
    small += allreduce(groups, 3 * _DOUBLE, work.ranks)
    layers = [_WORD * float(edges) for edges in work.edges.max(axis=1)]
    layers.append(_WORD * float(work.neurons[1:].sum(axis=0).max()))
    total = sum(allreduce(groups, size, work.ranks, started=True) for size in layers)
    link = platform.within if ranks <= platform.node.ranks else platform.between
    overlap = 0.0 if link is None else link.overlap
    # The last sum, of the biases, starts when the backward pass is over.
    return max(0.0, total - overlap * hidden), small


def training_bytes(
    work: SparseWork, columns: int, optimizer: str = "sgd", groups: int = 1
) -> _Floats:
    """``(ranks,)`` bytes that a rank needs: parameters, packings, activations of a piece.

    Parameters and gradient, and as many again for each array of the optimizer; the places of the
    weights twice (`training.packed`) with their patterns; the activations of all layers of a piece,
    two of deltas, and messages both ways.
    """
    arrays = 2 + _SLOTS[optimizer]
    parameters = work.edges.sum(axis=0) + work.neurons[1:].sum(axis=0)
    patterns = work.patterns.sum(axis=(0, 2)) + work.back_patterns.sum(axis=(0, 2))
    places = 2 * work.edges.sum(axis=0) + patterns
    stride = row_stride(columns)
    tiles = stride * (work.neurons.sum(axis=0) + 2 * work.neurons.max(axis=0))
    messages = columns * (work.words_received.sum(axis=0) + 3 * work.words_sent.max(axis=0))
    return np.asarray(_WORD * (arrays * parameters + places + tiles + messages), float)
