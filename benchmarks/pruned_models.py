"""Real pruned models to partition: perceptrons, trained, pruned by magnitude, trained again.

``python benchmarks/pruned_models.py --out FOLDER [--mnist FOLDER]`` trains LeNet-300-100 and a
wider network (three hidden layers of 1024) with PyTorch, prunes 90, 95 and 98 % of all weights by
magnitude over the whole network, trains the rest for another epoch, and saves state dicts with
PyTorch's own pruning masks (``weight_orig``, ``weight_mask``). Without ``--mnist`` it takes
scikit-learn's digits. The models are not stored in the repository: they take half a minute.
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from sparsednn.datasets import digits_images, load_mnist

#: Name and hidden widths.
NETWORKS: Final = {"lenet-300-100": (300, 100), "mlp-3x1024": (1024, 1024, 1024)}
SPARSITIES: Final = (0.90, 0.95, 0.98)
_BATCH: Final = 128


def data(mnist: Path | None) -> tuple[Any, Any, Any, Any]:
    """Training and test images and labels as tensors."""
    import torch

    if mnist is None:
        images, labels = digits_images()
        cut = len(images) * 4 // 5
        split = (images[:cut], labels[:cut]), (images[cut:], labels[cut:])
    else:
        split = load_mnist(mnist, "train"), load_mnist(mnist, "test")
    tensors = []
    for pixels, classes in split:
        tensors.append(torch.from_numpy(pixels.reshape(len(pixels), -1).astype(np.float32) / 255))
        tensors.append(torch.from_numpy(classes.astype(np.int64)))
    return tuple(tensors)  # type: ignore[return-value]  # four of them


def train(model: Any, images: Any, labels: Any, epochs: int) -> None:
    """Adam on batches; pruned weights stay zero, since PyTorch multiplies by the masks."""
    import torch

    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(epochs):
        order = torch.randperm(len(images))
        for start in range(0, len(images), _BATCH):
            batch = order[start : start + _BATCH]
            loss: Any = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def make(folder: Path, mnist: Path | None, *, seed: int = 1) -> list[Path]:
    """Make all models; returns their files."""
    import torch
    from torch.nn.utils import prune

    images, labels, test_images, test_labels = data(mnist)
    first, rest = (2, 1) if mnist else (40, 20)
    files = []
    for name, hidden in NETWORKS.items():
        torch.manual_seed(seed)
        widths = (images.shape[1], *hidden, 10)
        modules: list[Any] = []
        for n_in, n_out in pairwise(widths):
            modules += [torch.nn.Linear(n_in, n_out), torch.nn.ReLU()]
        model = torch.nn.Sequential(*modules[:-1])
        linear = [module for module in model if isinstance(module, torch.nn.Linear)]
        train(model, images, labels, first)
        kept = 1.0
        for sparsity in SPARSITIES:  # each goes on from the one before
            prune.global_unstructured(
                [(module, "weight") for module in linear],
                pruning_method=prune.L1Unstructured,
                amount=1.0 - (1.0 - sparsity) / kept,
            )
            kept = 1.0 - sparsity
            train(model, images, labels, rest)
            with torch.no_grad():
                right = (model(test_images).argmax(1) == test_labels).float().mean().item()
            file = folder / f"{name}-{100 * sparsity:.0f}.pt"
            torch.save(model.state_dict(), file)
            files.append(file)
            print(f"{file}: accuracy {right:.4f}", file=sys.stderr)
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description="Make pruned models.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the .pt files")
    parser.add_argument("--mnist", type=Path, help="folder with the idx files (default: digits)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    make(options.out, options.mnist)


if __name__ == "__main__":
    main()
