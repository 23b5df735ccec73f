"""`DeviceExamples`: images, labels and targets that stay on a device while training.

A step names its images by number; nothing of them travels. What is uploaded is kept for the next
network (patterns and partitions change, the images do not).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import DeviceMemoryError, InputError
from sparsednn.gpu.device import Array, Device
from sparsednn.gpu.packing import index_dtype
from sparsednn.inputs import InputSet
from sparsednn.training.data import LocalExamples

__all__ = ["DeviceExamples", "ResidentInputs", "ResidentTargets"]


@dataclass(frozen=True, slots=True, eq=False)
class ResidentInputs:
    """Images as lists of features, see `InputSet`; `index_bits` are those of a feature."""

    indptr: Array
    features: Array
    values: Array | None
    index_bits: int


@dataclass(frozen=True, slots=True, eq=False)
class ResidentTargets:
    """``(images,)`` int32 labels, or ``(images, outputs)`` float32; the other one is None."""

    labels: Array | None
    values: Array | None


class DeviceExamples:
    """What is on a device of the examples of a training.

    Parameters
    ----------
    device
        Where.

    Raises
    ------
    DeviceMemoryError
        (the methods) If there is no room for them.
    InputError
        (`targets`) If a label is no output neuron.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        # Owners are kept, so that an identity means the same as long as its entry lives.
        self._inputs: dict[int, tuple[InputSet, ResidentInputs]] = {}
        self._targets: dict[int, tuple[LocalExamples, ResidentTargets]] = {}

    def inputs(self, inputs: InputSet) -> ResidentInputs:
        """Return the images; uploaded when they are first asked for."""
        if id(inputs) not in self._inputs:
            kind = index_dtype(max(1, inputs.n_features))
            made = ResidentInputs(
                self._upload(inputs.indptr, inputs.name),
                self._upload(inputs.indices.astype(kind, copy=False), inputs.name),
                None if inputs.values is None else self._upload(inputs.values, inputs.name),
                8 * np.dtype(kind).itemsize,
            )
            self._inputs[id(inputs)] = inputs, made
        return self._inputs[id(inputs)][1]

    def targets(self, examples: LocalExamples, n_out: int) -> ResidentTargets:
        """Return labels or targets of `n_out` outputs; uploaded when they are first asked for."""
        if id(examples) not in self._targets:
            labels = values = None
            if examples.labels is not None:
                if (
                    examples.labels.size
                    and not 0 <= examples.labels.min() <= (examples.labels.max()) < n_out
                ):
                    raise InputError(
                        f"{examples.name}: labels {examples.labels.min()} to "
                        f"{examples.labels.max()}, but {n_out} outputs"
                    )
                labels = self._upload(examples.labels.astype(np.int32), examples.name)
            elif examples.values is not None:  # an image's targets side by side
                values = self._upload(
                    np.ascontiguousarray(examples.values.T, np.float32), examples.name
                )
            self._targets[id(examples)] = examples, ResidentTargets(labels, values)
        return self._targets[id(examples)][1]

    def forget(self) -> None:
        """Give the memory back, such as before other examples come."""
        self._inputs.clear()
        self._targets.clear()

    def _upload(self, array: NDArray[Any], name: str) -> Array:
        try:
            # An empty array would have no address.
            return self.device.upload(array if array.size else np.zeros(1, array.dtype))
        except DeviceMemoryError as error:
            raise DeviceMemoryError(
                f"{name}: training keeps all images on the GPU: {error}; train on the CPU, or with "
                "fewer --images", error.wanted, error.free
            ) from error  # fmt: skip
