"""What the rules of the Sparse DNN Graph Challenge fix (graphchallenge.org).

The data sets (which make the official networks) and the file format (whose folders hold no biases)
both need it, and neither should load the other.
"""

from __future__ import annotations

from typing import Final

from sparsednn.activations import Activation

__all__ = ["ACTIVATION", "OFFICIAL_BIAS"]

OFFICIAL_BIAS: Final = {1024: -0.30, 4096: -0.35, 16384: -0.40, 65536: -0.45}
"""The bias of all neurons, by the number of neurons in a layer.

The rules add it to the nonzero entries of ``Y A`` only. Since it is negative and the activation
clamps at zero, adding it everywhere gives the same."""

ACTIVATION: Final = Activation("clamped_relu", 32.0)
"""Negative becomes 0, above 32 becomes 32."""
