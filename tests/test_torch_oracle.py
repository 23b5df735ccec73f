"""PyTorch as an oracle: a model pruned and saved there gives the same outputs here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparsednn import InputSet
from sparsednn.formats import read_network
from sparsednn.inference import infer

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch==2.13.0")


@pytest.mark.parametrize("masks", ["applied", "beside the weights"])
@pytest.mark.parametrize("kernel", ["numba", "reference"])
def test_a_model_pruned_with_torch(tmp_path: Path, kernel: str, masks: str) -> None:
    from safetensors.torch import save_file
    from torch.nn.utils import prune

    torch.manual_seed(4)
    model = torch.nn.Sequential(
        torch.nn.Linear(60, 50),
        torch.nn.ReLU(),
        torch.nn.Linear(50, 33),
        torch.nn.ReLU(),
        torch.nn.Linear(33, 10),
    )
    for part in model[::2]:
        prune.l1_unstructured(part, "weight", amount=0.8)
        if masks == "applied":
            prune.remove(part, "weight")
    x = torch.rand(200, 60)
    with torch.no_grad():
        expected = model(x).numpy().T
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)

    network = read_network(path)
    assert [layer.nnz for layer in network] == [600, 330, 66]
    outputs = np.zeros((10, 200), np.float32)

    def keep(first: int, block: np.ndarray) -> None:
        outputs[:, first : first + block.shape[1]] = block

    infer(network, InputSet.from_dense(x.numpy().T), kernel=kernel, sink=keep)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
