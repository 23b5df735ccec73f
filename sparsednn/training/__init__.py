"""SGD training of sparse networks whose neurons, and whose images, are divided among ranks.

`TrainingRun` is the whole; `Stepper` is one step on an `Engine`, for those who have their own loop.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsednn.training.checkpoints import TrainingState, read_checkpoint, write_checkpoint
    from sparsednn.training.engine import Engine
    from sparsednn.training.examples import Examples, load_examples
    from sparsednn.training.optimizers import SGD, Adam, make_optimizer
    from sparsednn.training.progress import Moment, TrainingResult
    from sparsednn.training.schedules import Schedule
    from sparsednn.training.settings import Settings
    from sparsednn.training.sparsity import DynamicSparsity
    from sparsednn.training.stepper import DivergenceError, Stepper
    from sparsednn.training.trainer import TrainingRun

__all__ = [
    "SGD",
    "Adam",
    "DivergenceError",
    "DynamicSparsity",
    "Engine",
    "Examples",
    "Moment",
    "Schedule",
    "Settings",
    "Stepper",
    "TrainingResult",
    "TrainingRun",
    "TrainingState",
    "load_examples",
    "make_optimizer",
    "read_checkpoint",
    "write_checkpoint",
]

_HOMES = {
    "checkpoints": ("TrainingState", "read_checkpoint", "write_checkpoint"),
    "engine": ("Engine",),
    "examples": ("Examples", "load_examples"),
    "optimizers": ("SGD", "Adam", "make_optimizer"),
    "progress": ("Moment", "TrainingResult"),
    "schedules": ("Schedule",),
    "settings": ("Settings",),
    "sparsity": ("DynamicSparsity",),
    "stepper": ("DivergenceError", "Stepper"),
    "trainer": ("TrainingRun",),
}


def __getattr__(name: str) -> Any:
    """Load what is asked for: a part of this package must not bring numba for all of it."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
