"""`Slot`: memory on both sides for the inputs and results of one chunk of images.

Where there are several chunks two slots take turns, so that the next chunk's inputs travel while
the kernels of this one run.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from sparsednn.gpu.device import Array, Device, Stream
from sparsednn.inputs import InputSet

__all__ = ["Slot"]

Scalar = TypeVar("Scalar", bound=np.generic)


class _Both(Generic[Scalar]):
    """Pinned memory of the host, and as much on the device."""

    def __init__(self, device: Device, size: int, dtype: type[Scalar]) -> None:
        self.here: NDArray[Scalar] = device.pinned(size, dtype)
        self.there: Array = device.empty(size, dtype)

    def send(self, device: Device, values: NDArray[Any], stream: Stream) -> None:
        """Copy values (of this or a wider type) into pinned memory, and start their way."""
        size = values.size
        self.here[:size] = values
        if size:
            device.upload(self.here[:size], out=self.there[:size], stream=stream)


class Slot:
    """Memory for up to `columns` images with `nonzeros` inputs.

    Parameters
    ----------
    device
        Where.
    columns, nonzeros
        Of a chunk, at most.
    index
        Type of the features that the kernels read.
    values
        Whether inputs have values, or are all one.
    outputs
        Neurons whose outputs are wanted; 0: none are.

    Attributes
    ----------
    flags, merged, outputs
        Results in pinned memory: by image, see `cascade.Cascade`; ``(outputs, columns)`` float32.
    copy_start, copied
        Events around the copies of inputs.
    start, finished, done
        Events in front of and behind the kernels, and behind the copies of results.
    """

    def __init__(
        self,
        device: Device,
        columns: int,
        nonzeros: int,
        *,
        index: type[np.uint16] | type[np.uint32],
        values: bool,
        outputs: int,
    ) -> None:
        self._indptr = _Both(device, columns + 1, np.int64)
        self._features = _Both(device, max(1, nonzeros), index)
        self._values = _Both(device, max(1, nonzeros), np.float32) if values else None
        self.flags = device.pinned(columns, np.uint8)
        self.merged = device.pinned(columns, np.int32)
        self.outputs = device.pinned((outputs, columns), np.float32) if outputs else None
        self.copy_start, self.copied = device.event(), device.event()
        self.start, self.finished, self.done = device.event(), device.event(), device.event()

    def holds(self, nonzeros: int, *, values: bool) -> bool:
        """Whether a chunk with so many inputs fits."""
        return self._features.here.size >= nonzeros and (self._values is not None or not values)

    def send(self, device: Device, inputs: InputSet, stream: Stream) -> None:
        """Start copying inputs; whatever was sent before must have arrived."""
        device.record(self.copy_start, stream)
        self._indptr.send(device, inputs.indptr, stream)
        self._features.send(device, inputs.indices, stream)
        if self._values is not None:
            ones = np.ones(inputs.nnz, np.float32) if inputs.values is None else inputs.values
            self._values.send(device, ones, stream)
        device.record(self.copied, stream)

    @property
    def arrays(self) -> tuple[Array, Array, Array | None]:
        """Row pointers, features and values on the device."""
        values = None if self._values is None else self._values.there
        return self._indptr.there, self._features.there, values
