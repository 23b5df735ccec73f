"""Parameters of files into a model on ranks: each rank reads its own blocks.

Every rank must be able to open the file. Must not know: training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from sparsednn.dense.model import DenseModel
from sparsednn.dense.parameters import Block
from sparsednn.dense.runs.checkpoint import OPTIMIZER, CnnCheckpoint
from sparsednn.dense.state_dict import AUXILIARY, StateFile

__all__ = ["fill_from_checkpoint", "fill_from_file"]


def fill_from_file(model: DenseModel, path: Path) -> None:
    """Set a model's parameters to those of a state dict (of PyTorch, or ours).

    Raises
    ------
    SparseDNNError
        As `state_dict.StateFile`.
    """
    with StateFile(path, model.graph, ignore=(*AUXILIARY, OPTIMIZER)) as file:
        model.parameters.fill(lambda name, block: file.array(name, block, model.setting.dtype))


def fill_from_checkpoint(
    model: DenseModel, kept: CnnCheckpoint, slots: Mapping[str, NDArray[Any]]
) -> None:
    """Set a model's parameters, and the optimizer's arrays, to those of a checkpoint."""
    store, dtype = model.parameters, model.setting.dtype
    store.fill(lambda name, block: kept.block(name, block, dtype))
    for slot, flat in slots.items():

        def of_slot(name: str, block: Block, slot: str = slot) -> NDArray[Any]:
            return kept.block(name, block, dtype, slot=slot)

        store.fill_like(flat, of_slot)
