"""Models of sparse networks: what a partition makes of them, and what that takes."""

from sparsednn.costmodel.sparse.work import Messages, SparseWork

__all__ = ["Messages", "SparseWork"]
