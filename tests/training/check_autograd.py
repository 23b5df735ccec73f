"""Checks on the ranks against PyTorch's autograd and torch.optim on the masked dense network."""

from __future__ import annotations

import numpy as np

from learning import (
    IMAGES,
    Ranks,
    TorchTwin,
    close,
    gradients,
    grids,
    make_task,
    own_examples,
    tasks,
    trained,
)
from sparsednn.training.optimizers import SGD, Adam


def told(world, make):
    """What rank 0 makes (PyTorch is slow to load): a loss, and weights and biases by layer."""
    made = None
    if world.rank == 0:
        loss, layers = make()
        made = [loss, [[values.tolist(), bias.tolist()] for values, bias in layers]]
    loss, layers = world.broadcast_json(made)
    return loss, [(np.array(values, float), np.array(bias, float)) for values, bias in layers]


def check_gradients_equal_autograd(world):
    ids = np.random.default_rng(1).permutation(IMAGES)
    for seed, loss, (network, inputs, labels, values) in tasks(world):

        def autograd(network=network, inputs=inputs, labels=labels, values=values, loss=loss):
            import torch

            return TorchTwin(torch, network, inputs, labels, values, loss).gradients(ids)

        expected_loss, expected = told(world, autograd)
        for shape in grids(world):
            ranks = Ranks(world, shape, network, seed)
            examples = own_examples(ranks.shard, inputs, labels, values)
            for engine, relative in (
                (ranks.engine("reference", dtype=np.float64), 1e-9),
                (ranks.engine("compiled"), 2e-4),
            ):
                score, found = gradients(
                    engine, ranks.shard, examples, ranks.own(ids), IMAGES, loss, ranks.group
                )
                close(found, expected, network, ranks.shard, relative=relative)
                total = np.array([score.loss])
                ranks.across.allreduce(total)
                assert np.isclose(total[0] / IMAGES, expected_loss, rtol=1e-4)
                engine.free()
            ranks.free()


def check_steps_equal_those_of_torch_optim(world):
    """Ten steps of every optimizer: in float64 to 1e-7, compiled to 5 in 10,000."""
    cases = [
        (SGD(), lambda torch, p: torch.optim.SGD(p, lr=0.05), None),
        (
            SGD(momentum=0.9, weight_decay=1e-2),
            lambda torch, p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
            None,
        ),
        (
            SGD(momentum=0.8, nesterov=True),
            lambda torch, p: torch.optim.SGD(p, lr=0.05, momentum=0.8, nesterov=True),
            0.1,
        ),
        (
            Adam(weight_decay=1e-2),
            lambda torch, p: torch.optim.Adam(p, lr=0.05, weight_decay=1e-2),
            None,
        ),
    ]
    rng = np.random.default_rng(5)
    batches = [rng.permutation(IMAGES)[: 8 + step % 3] for step in range(10)]
    for number, (optimizer, make, clip) in enumerate(cases):
        network, inputs, labels, values = make_task(70 + number, IMAGES, last="softmax", most=25)

        def steps(
            network=network, inputs=inputs, labels=labels, values=values, make=make, clip=clip
        ):
            import torch

            twin = TorchTwin(torch, network, inputs, labels, values, "cross-entropy")
            parameters = [*twin.weights, *twin.biases]
            rule = make(torch, parameters)
            for ids in batches:
                rule.zero_grad()
                last = twin.loss(ids)
                last.backward()
                if clip is not None:
                    torch.nn.utils.clip_grad_norm_(parameters, clip)
                rule.step()
            return float(last.detach()), twin.at_entries(twin.weights, twin.biases)

        expected_loss, expected = told(world, steps)
        for shape in grids(world):
            ranks = Ranks(world, shape, network, number)
            examples = own_examples(ranks.shard, inputs, labels, values)
            for engine, relative in (
                (ranks.engine("reference", dtype=np.float64), 1e-7),
                (ranks.engine("compiled"), 5e-4),
            ):
                losses, found = trained(
                    engine, ranks.group, ranks.across, ranks.shard, examples, ranks.own, batches,
                    "cross-entropy", optimizer=optimizer, clip=clip,
                )  # fmt: skip
                assert np.isclose(losses[-1], expected_loss, rtol=max(relative, 1e-6))
                close(found, expected, network, ranks.shard, relative=relative)
                engine.free()
            ranks.free()
