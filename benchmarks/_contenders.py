"""What `training.py` compares: our trainer, PyTorch in four ways, and the files that they all read.

All contenders of a network start from the same weights and see the same batches. NumPy and the rest
are imported where they are used: `_rivals.py` measures the memory before that, too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sparsednn.network import SparseNetwork

_CLASSES, _BATCHES = 10, 10  # of the examples: 640 images


@dataclass(frozen=True)
class Case:
    """A contender: `how` is "ours", or a way to do it with PyTorch (see `_TORCH`)."""

    network: str
    how: str
    batch: int = 64
    threads: int = 1
    ranks: int = 1
    partition: str | None = None
    momentum: float = 0.9
    rate: float = 0.001
    input_gradient: bool = False

    @property
    def name(self) -> str:
        if self.ranks > 1:
            return f"{self.how}, {self.ranks} ranks, {self.partition or 'data'}"
        return f"{self.how}, {self.threads} thread{'s' if self.threads > 1 else ''}"


class Contender(Protocol):
    rank: int

    def __init__(self, folder: Path, case: Case) -> None: ...

    def step(self, batch: int) -> float:
        """One step on this batch; the mean loss before it."""

    def told(self) -> dict[str, Any]:
        """What else is to be reported."""

    def agreed(self, count: int) -> int:
        """What rank 0 has."""

    def largest(self, numbers: list[int]) -> list[int]:
        """The largest of all ranks, one by one."""


class Batches:
    """Images and labels, ``(features, images)`` and ``(images,)``, in batches in turn."""

    def __init__(self, folder: Path, case: Case) -> None:
        import numpy as np

        with np.load(folder / f"{case.network}.examples.npz") as file:
            self.inputs: NDArray[np.float32] = file["inputs"]
            self.labels: NDArray[np.int64] = file["labels"]
        self._batch = case.batch

    def ids(self, batch: int) -> NDArray[np.int64]:
        import numpy as np

        first = batch * self._batch
        return np.arange(first, first + self._batch, dtype=np.int64) % self.labels.size


# Ours


class Ours:
    """`CompiledEngine` and `Stepper`, alone or on ranks; nothing of files, epochs, checkpoints."""

    def __init__(self, folder: Path, case: Case) -> None:
        import numpy as np

        from sparsednn import InputSet
        from sparsednn.comm.alone import Alone
        from sparsednn.comm.communicator import Communicator
        from sparsednn.distributed.plan import exchange_plans, plans_of_all
        from sparsednn.distributed.shard import owned, shard_network, whole_shard
        from sparsednn.machine import give_back_memory
        from sparsednn.partitioners import read_partition
        from sparsednn.training.compiled import CompiledEngine
        from sparsednn.training.data import LocalExamples
        from sparsednn.training.optimizers import SGD
        from sparsednn.training.stepper import Stepper

        self._case = case
        self._world: Communicator = Alone()
        group: Communicator = Alone()
        across: Communicator = Alone()
        if case.ranks > 1:
            from sparsednn.comm import world
            from sparsednn.comm.grid import ProcessGrid
            from sparsednn.comm.threads import limit_threads

            limit_threads(case.threads)
            self._world = world()
            shape = (1, case.ranks) if case.partition else (case.ranks, 1)
            grid = ProcessGrid(self._world, shape)
            across, group = grid.along(0), grid.along(1)
        self.rank = self._world.rank
        network = read(folder, case)
        if case.partition is None:
            shard = whole_shard(network)
            plans = plans_of_all([shard])[0]
        else:
            file = folder / f"{case.network}.{case.partition}.p{case.ranks}.npz"
            parts = read_partition(file)
            shard = shard_network(network, parts, group.rank)
            plans = exchange_plans(shard, group)
        self.parameters = network.edges + sum(layer.n_out for layer in network)
        del network
        self._groups, self._number = across.size, across.rank
        self._engine = CompiledEngine(
            shard, plans, group, across, threads=case.threads,
            columns=-(-case.batch // across.size), input_gradient=case.input_gradient,
        )  # fmt: skip
        self._stepper = Stepper(
            self._engine, group, across, rows=owned(shard.owners[-1], shard.part),
            n_out=shard.n_out, loss="cross-entropy", optimizer=SGD(momentum=case.momentum),
            threads=case.threads,
        )  # fmt: skip
        forward = sum(plan.words_received for plan in plans)
        backward = forward if case.input_gradient else forward - plans[0].words_received
        self._words = (forward + backward) * case.batch
        self._batches = Batches(folder, case)
        own = np.ascontiguousarray(self._batches.inputs[owned(shard.owners[0], shard.part)])
        inputs = InputSet.from_dense(own)
        self._batches.inputs = np.empty((0, 0), np.float32)
        self._examples = LocalExamples(inputs, self._batches.labels, None, case.network)
        self._traffic, self._steps = self._world.traffic, 0
        del shard, plans, own
        give_back_memory()

    def step(self, batch: int) -> float:
        ids = self._batches.ids(batch)
        share = [ids.size * i // self._groups for i in (self._number, self._number + 1)]
        self._steps += 1
        score = self._stepper.train(
            self._examples, ids[share[0] : share[1]], ids.size, rate=self._case.rate,
            step=self._steps,
        )  # fmt: skip
        return score.loss / score.images

    def told(self) -> dict[str, Any]:
        import numpy as np

        sent = [self._traffic.words(verb) for verb in ("exchange", "fold", "gradient")]
        counts = np.array([*sent, self._words], np.int64)
        self._world.allreduce(counts)
        told: dict[str, Any] = {"parameters": self.parameters}
        if self._case.ranks > 1:
            told["words_per_step"] = int(counts[0] + counts[1]) / self._steps
            told["words_predicted"] = int(counts[3])
            told["gradient_words_per_step"] = int(counts[2]) / self._steps
            told["pass_seconds"] = {
                name: seconds / self._steps for name, seconds in self._engine.seconds.items()
            }
        return told

    def agreed(self, count: int) -> int:
        return int(self._world.broadcast_json(count))

    def largest(self, numbers: list[int]) -> list[int]:
        import numpy as np

        array = np.array(numbers, np.int64)
        self._world.allreduce(array, "max")
        return [int(number) for number in array]


def read(folder: Path, case: Case) -> SparseNetwork:
    from sparsednn.formats import read_network

    return read_network(folder / f"{case.network}.safetensors")


# PyTorch


class Torch:
    """PyTorch's own layers, autograd and SGD; what differs is how a layer is sparse.

    masked weights
        Dense weights, multiplied with the mask in each forward pass: autograd masks the gradient.
    masked gradients
        Dense weights that are zero outside the mask, and stay so, as the gradient is multiplied
        with the mask behind each backward pass.
    sparse CSR, sparse COO
        The values are the parameters; the layer's product is `torch.sparse.mm`.
    """

    def __init__(self, folder: Path, case: Case) -> None:
        import warnings

        import torch

        # "Sparse CSR tensor support is in beta state."
        warnings.filterwarnings("ignore", message=".*beta state.*")
        torch.set_num_threads(case.threads)
        network = read(folder, case)
        self._torch, self._how, self.rank = torch, case.how, 0
        self._sparse = case.how.startswith("sparse")
        self._weights: list[Any] = []
        self._structure: list[Any] = []
        make = self._make_sparse if self._sparse else self._make_dense
        for layer in network:
            make(layer)
        self._biases = [torch.from_numpy(layer.bias.copy()).requires_grad_() for layer in network]
        self._relu = [layer.activation.kind == "relu" for layer in network]
        del network, layer
        self._optimizer = torch.optim.SGD(
            [*self._weights, *self._biases], lr=case.rate, momentum=case.momentum
        )
        self._batches = Batches(folder, case)
        # Dense layers take images as rows, sparse products as columns.
        whole = torch.from_numpy(self._batches.inputs)
        self._inputs = whole if self._sparse else whole.T.contiguous()
        self._labels = torch.from_numpy(self._batches.labels)

    def _make_dense(self, layer: Any) -> None:
        weight = layer.weight
        self._weights.append(self._torch.from_numpy(weight.toarray()).requires_grad_())
        weight.data = weight.data * 0 + 1
        self._structure.append(self._torch.from_numpy(weight.toarray()))

    def _make_sparse(self, layer: Any) -> None:
        torch = self._torch
        values = torch.from_numpy(layer.values.copy())
        rows = torch.from_numpy(layer.indptr.astype("int64"))
        columns = torch.from_numpy(layer.indices.astype("int64"))
        if self._how == "sparse COO":
            full = torch.repeat_interleave(torch.arange(layer.n_out), rows.diff())
            rows, columns = torch.stack([full, columns]), None
        self._weights.append(values.requires_grad_())
        self._structure.append((rows, columns, layer.shape))

    def _product(self, index: int, x: Any) -> Any:
        """W x + b of a layer; images are rows if it is dense, columns if it is sparse."""
        torch, weight, bias = self._torch, self._weights[index], self._biases[index]
        structure = self._structure[index]
        if self._how == "masked weights":
            return torch.nn.functional.linear(x, weight * structure, bias)
        if self._how == "masked gradients":
            return torch.nn.functional.linear(x, weight, bias)
        rows, columns, shape = structure
        if columns is None:
            matrix = torch.sparse_coo_tensor(
                rows, weight, shape, is_coalesced=True, check_invariants=False
            )
        else:
            matrix = torch.sparse_csr_tensor(rows, columns, weight, shape, check_invariants=False)
        return torch.sparse.mm(matrix, x) + bias[:, None]

    def step(self, batch: int) -> float:
        torch = self._torch
        ids = torch.from_numpy(self._batches.ids(batch))
        x = self._inputs[:, ids] if self._sparse else self._inputs[ids]
        self._optimizer.zero_grad()
        for index, relu in enumerate(self._relu):
            x = self._product(index, x)
            if relu:
                x = torch.relu(x)
        loss = torch.nn.functional.cross_entropy(x.T if self._sparse else x, self._labels[ids])
        loss.backward()
        if self._how == "masked gradients":
            for weight, mask in zip(self._weights, self._structure, strict=True):
                weight.grad.mul_(mask)
        self._optimizer.step()
        return float(loss.item())

    def told(self) -> dict[str, Any]:
        return {"torch": self._torch.__version__}

    def agreed(self, count: int) -> int:
        return count

    def largest(self, numbers: list[int]) -> list[int]:
        return numbers


# Files


def prepare(folder: Path, model: str, network: str) -> None:
    """Write network and examples of a model, `network` being the name of the files."""
    import numpy as np

    from sparsednn.datasets import graph_challenge_network, topology_network
    from sparsednn.formats import write_network

    if model.startswith("mlp:"):
        made = topology_network(model)
    else:
        neurons, layers = (int(part) for part in model.partition(":")[2].split("-"))
        made = drawn_anew(graph_challenge_network(neurons, layers))
    write_network(made, folder / f"{network}.safetensors")
    rng = np.random.default_rng(1)
    labels = rng.integers(0, _CLASSES, 64 * _BATCHES)
    inputs = rng.standard_normal((made.n_in, labels.size), np.float32)
    inputs *= np.float32(0.5)
    inputs += rng.standard_normal((made.n_in, _CLASSES), np.float32)[:, labels]
    np.savez(folder / f"{network}.examples.npz", inputs=inputs, labels=labels)
    print(json.dumps({"edges": made.edges}))


def drawn_anew(official: SparseNetwork) -> SparseNetwork:
    """The official pattern with weights to train: relu in hidden layers, no biases."""
    import numpy as np

    from sparsednn import SparseLayer, SparseNetwork
    from sparsednn.activations import Activation
    from sparsednn.initial import initial_values

    layers = []
    for k, layer in enumerate(official):
        activation = Activation("relu" if k + 1 < len(official) else "identity")
        values = initial_values(
            "auto", k, np.arange(layer.n_out), layer.indptr, layer.indices,
            np.diff(layer.indptr), layer.n_out, layer.n_in, activation, 1,
        )  # fmt: skip
        layers.append(
            SparseLayer(
                layer.indptr, layer.indices, values, layer.n_in, activation=activation, check=False
            )
        )
    return SparseNetwork(layers, name=official.name)
