"""Random networks of branches that split and meet, and random profiles of their tasks."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from sparsednn.dense.concurrency.kernels import Algorithm
from sparsednn.dense.concurrency.profile import Choice, Profile
from sparsednn.dense.concurrency.tasks import TaskGraph
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.operations import (
    Add,
    AveragePool,
    BatchNorm,
    Concatenate,
    Convolution,
    FullyConnected,
    Input,
    MaxPool,
    Operation,
    Relu,
)

KINDS = ("convolution", "pointwise", "relu", "norm", "max", "average", "add", "join")


def random_network(
    dice: random.Random, *, most: int = 12, norm: bool = True, classes: int = 3
) -> OperationGraph:
    """Up to `most` small operations that read any earlier ones; logits of all ends added up.

    Among them: outputs that several read, concatenations of concatenations, of the images, and of
    the same output twice; without batch normalisation if `norm` is false.
    """
    graph = OperationGraph("random")
    graph.add(Input("image", (dice.randint(1, 4), dice.randint(4, 8), dice.randint(4, 8))))
    for number in range(dice.randint(1, most)):
        ends = [name for name in graph.nodes if not graph.successors(name)]
        source = dice.choice([*ends, *graph.nodes])
        kind = dice.choice(KINDS)
        name = f"{kind}{number}"
        shape = graph.shape(source)
        alike = [each for each in graph.nodes if graph.shape(each) == shape]
        level = [each for each in graph.nodes if graph.shape(each)[1:] == shape[1:]]
        operation: Operation = Relu(name)
        inputs = [source]
        if kind == "convolution":
            taps = dice.choice(((3, 3), (1, 3), (3, 1)))
            operation = Convolution(
                name, dice.randint(1, 4), taps, padding=(taps[0] // 2, taps[1] // 2),
                bias=dice.random() < 0.5,
            )  # fmt: skip
        elif kind == "pointwise":
            stride = dice.choice((1, 1, 1, 2))
            operation = Convolution(name, dice.randint(1, 4), (1, 1), stride=(stride, stride))
        elif kind == "norm" and norm:
            operation = BatchNorm(name)
        elif kind == "max":
            stride = dice.choice((1, 1, 2))
            operation = MaxPool(name, (3, 3), (stride, stride), (1, 1))
        elif kind == "average":
            operation = AveragePool(name, (3, 3), (1, 1), (1, 1))
        elif kind == "add" and len(alike) > 1:
            operation, inputs = Add(name), dice.sample(alike, dice.randint(2, min(3, len(alike))))
        elif kind == "join":
            operation = Concatenate(name)
            inputs = [dice.choice([*set(level) & set(ends), *level]) for _ in range(2)]
            inputs = sorted([*inputs, source], key=lambda each: dice.random())
        graph.add(operation, *inputs)
    ends = [name for name in graph.nodes if not graph.successors(name)]
    logits = [graph.add(FullyConnected(f"fc{k}", classes), end) for k, end in enumerate(ends)]
    if len(logits) > 1:
        graph.add(Add("logits"), *logits)
    return graph.finish()


@st.composite
def random_networks(draw: st.DrawFn, *, most: int = 12, norm: bool = True) -> OperationGraph:
    """Networks of `random_network`."""
    dice = random.Random(draw(st.integers(0, 2**32 - 1)))
    return random_network(dice, most=draw(st.integers(1, most)), norm=norm)


@st.composite
def random_tasks(draw: st.DrawFn, *, most: int = 12) -> TaskGraph:
    """Passes through networks of `random_network`, of all kinds."""
    graph = draw(random_networks(most=most))
    return TaskGraph(
        graph, draw(st.integers(1, 3)), training=draw(st.booleans()),
        itemsize=draw(st.sampled_from([4, 8])), fuse=draw(st.booleans()),
    )  # fmt: skip


def random_profile(
    dice: random.Random,
    tasks: TaskGraph,
    lanes: int,
    *,
    plain: bool = False,
) -> Profile:
    """Choices of all kinds for each task; `plain`: one of one part, and nothing else costs time."""
    choices = {}
    for task in tasks:
        found = []
        for number in range(1 if plain else dice.randint(1, 4)):
            parts = 1 if plain else dice.choice((1, 1, 2, lanes, lanes + 1))
            workspace = 0 if plain else dice.choice((0, 0, 1, 100, 640, 1000, 5000))
            seconds = (
                dice.choice((0.0, 1e-6, 1e-3)) if dice.random() < 0.2 else dice.random() * 1e-3
            )
            share = 0.0 if plain else dice.random()
            algorithm = Algorithm(f"way{number}", parts, workspace)
            found.append(Choice(algorithm, seconds / parts, share))
        choices[task.name] = found
    profile = Profile("random", lanes, choices)
    if not plain:
        profile.launch_seconds = dice.choice((0.0, 1e-6, 1e-4))
        profile.wait_seconds = dice.choice((0.0, 1e-6, 1e-4))
        keys = [
            profile.key(name, each.algorithm) for name, rows in choices.items() for each in rows
        ]
        for _ in range(dice.choice((0, 10))):
            first, second = dice.choice(keys), dice.choice(keys)
            profile.pairs[first, second] = dice.uniform(0.9, 3.0)
            profile.pairs[second, first] = dice.uniform(0.9, 3.0)
    return profile


@st.composite
def random_profiles(draw: st.DrawFn, tasks: TaskGraph, *, plain: bool = False) -> Profile:
    """Profiles of `random_profile` on one to four lanes."""
    dice = random.Random(draw(st.integers(0, 2**32 - 1)))
    return random_profile(dice, tasks, draw(st.integers(1, 4)), plain=plain)
