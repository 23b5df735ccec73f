"""`Setting`: a divided network for the checks of several devices, and the truth for its runs."""

from __future__ import annotations

import numpy as np

from row_wise import by_hand, local, make_inputs, tolerance
from sparsednn.distributed.device_plan import DevicePlan
from sparsednn.distributed.device_shard import DeviceShard
from sparsednn.distributed.gathering import finish_softmax
from sparsednn.distributed.plan import exchange_plans
from sparsednn.distributed.shard import shard_network
from sparsednn.gpu.twin import TwinDevice
from sparsednn.kernels.reference import ReferencePlan as SerialReference
from sparsednn.partitioners import evaluate


class Setting:
    """A network divided by hand, this rank's shard and plans, and the serial truth."""

    def __init__(self, world, network, images, seed):
        self.world, self.network = world, network
        self.partition = by_hand(network, world.size, seed)
        self.inputs = make_inputs(network, images, seed)
        self.truth = np.zeros((network.n_out, images), np.float32)
        SerialReference(network).run(self.inputs, self.truth)
        self.shard = shard_network(network, self.partition, world.rank)
        self.plans = exchange_plans(self.shard, world)
        self.own = [int(np.count_nonzero(one == world.rank)) for one in self.partition.owners]
        self.rows = np.flatnonzero(self.partition.owners[-1] == world.rank)
        self.mine = local(self.inputs, self.partition.owners[0], world.rank)

    def plan(self, *, spare=None, store=0, device=None, **given):
        """A plan on a device of its own, which has so many bytes left behind the weights."""
        device = device or TwinDevice()
        rows = DeviceShard(device, self.shard, self.plans, store)
        if spare is not None:
            device._total = device._held + spare
        given = {"columns": self.inputs.n_images, **given}
        return DevicePlan(device, rows, self.plans, self.world, **given)

    def check(self, *, times=2, rtol=1e-4, atol=None, **given):
        """Run; outputs, flags, words and messages are what they should be. Returns the plan."""
        world, images = self.world, self.inputs.n_images
        stats = evaluate(self.network, self.partition)
        plan = self.plan(**given)
        for _ in range(times):  # buffers are used again
            outputs = np.zeros((self.rows.size, images), np.float32)
            traffic = world.traffic
            before = traffic.words("exchange"), traffic.messages("exchange")
            flags = plan.run(self.mine, outputs).astype(np.uint8)
            after = traffic.words("exchange"), traffic.messages("exchange")
            sent = np.subtract(after, before)
            if self.shard.layers[-1].activation.kind == "softmax":
                finish_softmax(outputs, world)
                flags[:] = 1
            where = f"{given}, {self.partition}, {self.network}"
            atol = tolerance(self.network) if atol is None else atol
            np.testing.assert_allclose(
                outputs, self.truth[self.rows], rtol=rtol, atol=atol, err_msg=where
            )
            world.allreduce(flags, "or")
            if atol == tolerance(self.network):
                assert np.array_equal(flags != 0, self.truth.any(axis=0)), where
            world.allreduce(sent)
            predicted = stats.words_total * images, stats.messages_total * plan.tiles(images)
            if given.get("drop", True):
                assert sent[0] <= predicted[0], where
            else:
                assert tuple(sent) == predicted, where
        plan.free()
        return plan
