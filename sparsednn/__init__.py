"""Sparse deep neural networks on many processors."""

from sparsednn.activations import Activation
from sparsednn.inputs import InputSet
from sparsednn.network import SparseLayer, SparseNetwork

__version__ = "0.1.0"

__all__ = ["Activation", "InputSet", "SparseLayer", "SparseNetwork", "__version__"]
