"""From a `Case` to the cost model that predicts it.

Must not know: formulas, measurements.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from sparsednn.costmodel.prediction import Prediction
from sparsednn.costmodel.validation.cases import Case
from sparsednn.costmodel.validation.networks import alive_network, divided, nonzeros_per_image

if TYPE_CHECKING:
    from sparsednn.costmodel.platform import Platform
    from sparsednn.costmodel.sparse.work import SparseWork

__all__ = ["predict"]

_FLOAT: Final = 4  # bytes
#: Arrays that an optimizer keeps, each as long as the parameters.
_SLOTS: Final = {"sgd": 0, "momentum": 1, "adam": 2}


def predict(platform: Platform, case: Case) -> Prediction:
    """Predict a case.

    Raises
    ------
    FormatError
        If a measured table of the platform is nonsense.
    UsageError
        If the platform has no room for so many ranks.
    MissingDependencyError
        If a partitioner is not installed.
    """
    if case.kind == "cnn":
        return _cnn(platform, case)
    work = _work(case.network, case.parts, case.method, case.kind == "training")
    if case.kind == "training":
        from sparsednn.costmodel.sparse.training import predict_training

        return predict_training(
            platform, work, case.batch, groups=case.groups, threads=case.threads,
            optimizer=case.optimizer,
        )  # fmt: skip
    from sparsednn.costmodel.sparse.inference import predict_inference

    return predict_inference(
        platform, work, case.batch, groups=case.groups, threads=case.threads,
        nonzeros_per_image=nonzeros_per_image(case, int(work.widths[0])),
    )  # fmt: skip


@lru_cache(maxsize=64)
def _work(network: str, parts: int, method: str, training: bool) -> SparseWork:
    from sparsednn.costmodel.sparse.work import SparseWork

    made = alive_network(network)
    if parts == 1:
        return SparseWork.whole(made, training=training)
    return SparseWork.of(made, divided(network, parts, method), parts, training=training)


def _cnn(platform: Platform, case: Case) -> Prediction:
    from sparsednn.costmodel.dense.step import predict_step
    from sparsednn.dense.networks import make_network
    from sparsednn.dense.planning.request import Planning

    graph = make_network(case.network, case.image)
    slots = _SLOTS[case.optimizer]
    plan = Planning(case.algorithm or None).plan(
        graph, case.batch, case.ranks, training=True, itemsize=_FLOAT, slots=slots
    )
    return predict_step(
        platform, graph, case.batch, plan.placements, case.ranks, threads=case.threads,
        optimizer_slots=slots,
    )  # fmt: skip
