"""Our own model over all layers at once: see `search.joint`."""

from __future__ import annotations

from sparsednn.partitioners.joint.search import Effort, JointResult, joint

__all__ = ["Effort", "JointResult", "joint"]
