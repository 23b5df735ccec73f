"""The row-wise engine: a network whose neurons are divided among ranks."""

from sparsednn.distributed.inference import DistributedResult, DistributedRun
from sparsednn.distributed.layer import DistributedLayer
from sparsednn.distributed.plan import ExchangePlan
from sparsednn.distributed.shard import LayerShard, NetworkShard, shard_network

__all__ = [
    "DistributedLayer",
    "DistributedResult",
    "DistributedRun",
    "ExchangePlan",
    "LayerShard",
    "NetworkShard",
    "shard_network",
]
