"""`Engine`: what a rank can do with its share of a network while training.

Three engines have this interface: `compiled.CompiledEngine` (numba), `device_engine.DeviceEngine`
(a GPU), and `reference.ReferenceEngine` (SciPy, any float type), which is the truth for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from sparsednn.activations import Activation
from sparsednn.inputs import InputSet

__all__ = ["Engine"]

#: Weights and biases of a layer, in the order of the shard's rows.
Layer = tuple[NDArray[Any], NDArray[Any]]


class Engine(Protocol):
    """One rank's layers, their gradients, and the passes; all ranks of a group call all in step.

    Attributes
    ----------
    theta, gradient
        All parameters of the rank, flat, and the gradient of the loss with respect to each, in the
        same order, which is the engine's own: `layers_of` and `flat` translate. There may be
        entries that stand for nothing: parameter and gradient are zero there, and stay so.
    tile
        The most images of one pass; the same on all ranks of the group.
    n_rows
        Output neurons that this rank owns.
    last_activation
        Of the network; softmax is not applied, it belongs to the loss.
    """

    theta: NDArray[Any]
    gradient: NDArray[Any]
    tile: int
    n_rows: int
    last_activation: Activation

    def layers_of(self, flat: NDArray[Any]) -> list[Layer]:
        """Weights and biases of each layer, copied out of an array like `theta`."""

    def flat(self, layers: Sequence[Layer]) -> NDArray[Any]:
        """The reverse of `layers_of`."""

    def forward(self, inputs: InputSet, ids: NDArray[Any]) -> NDArray[Any]:
        """Run images through all layers.

        Parameters
        ----------
        inputs
            ``(own inputs, images)``, with the same images on all ranks of the group.
        ids
            ``(n,)`` int64, n up to `tile`, in any order: which of them.

        Returns
        -------
        ``(own outputs, n)``: a view that holds until the next `forward`.
        """

    def backward(
        self,
        delta: NDArray[Any],
        *,
        add: bool = False,
        last: bool = True,
        rate: float | None = None,
    ) -> None:
        """Gradients of all parameters, for the images of the last `forward`.

        Parameters
        ----------
        delta
            ``(own outputs, n)``: gradient of the loss with respect to the last layer's sums z. With
            no images (n = 0) the gradient is zero.
        add
            Add to `gradient` instead of replacing it.
        last
            Whether this is the step's last tile: then sums over data groups start (if there are
            several), and `finish_gradient` has to follow.
        rate
            Do not store gradients, but subtract `rate` times them from the parameters, layer by
            layer: plain SGD. Only for a step of a single tile, and without data groups.
        """

    def finish_gradient(self) -> None:
        """Wait for the sums over data groups; `gradient` is the same on all of them then."""

    def input_gradients(self) -> NDArray[Any]:
        """``(own inputs, n)``: of the last `backward`, if it went through the first layer."""

    def activations_of(self, neuron_layer: int) -> NDArray[Any]:
        """``(own neurons, n)`` behind a layer (0: the inputs) of the last `forward`; a view."""

    def free(self) -> None:
        """Give everything back; collective."""
