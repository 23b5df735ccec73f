"""Networks by name, at the sizes of their data sets.

>>> from sparsednn.dense.networks import make_network
>>> make_network("smallcnn").trained_words
202458
"""

from sparsednn.dense.networks.catalogue import NETWORKS, make_network

__all__ = ["NETWORKS", "make_network"]
