"""Planning: the best configuration for each number of ranks, sweeps, simulated scaling.

ModelRequest ──► SparseModel, DenseModel: which configurations there are, what each takes
                            │
plan_ranks, plan_row: the quickest that fits          sweep_axis: the same along an axis
"""

from sparsednn.costmodel.planning.request import ModelRequest
from sparsednn.costmodel.planning.rows import (
    Candidate,
    Configuration,
    PlanRow,
    plan_ranks,
    plan_row,
)
from sparsednn.costmodel.planning.sweep import SweepRow, sweep_axis

__all__ = [
    "Candidate",
    "Configuration",
    "ModelRequest",
    "PlanRow",
    "SweepRow",
    "plan_ranks",
    "plan_row",
    "sweep_axis",
]
