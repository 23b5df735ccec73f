"""The digits that come with scikit-learn, and the package's public surface."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import sparsednn.datasets
from sparsednn.datasets import digits_images, digits_inputs, interpolate_images
from sparsednn.errors import InputError


def test_digits() -> None:
    images, labels = digits_images()
    assert images.shape == (1797, 8, 8)
    assert images.dtype == labels.dtype == np.uint8
    assert np.unique(images).size == 17
    assert (images.min(), images.max()) == (0, 255)
    assert np.unique(labels).tolist() == list(range(10))


def test_digits_as_inputs() -> None:
    inputs = digits_inputs(1024)
    inputs._check()
    assert (inputs.name, inputs.n_images, inputs.n_features) == ("digits:1024", 1797, 1024)
    assert 0.05 < inputs.nnz / (1797 * 1024) < 0.5
    assert np.diff(inputs.indptr).min() > 0
    some = digits_inputs(1024, limit=10)
    assert np.array_equal(some.indices, inputs.indices[: inputs.indptr[10]])
    same = interpolate_images(digits_images()[0], 32)
    assert np.array_equal(same.indices, inputs.indices)


def test_at_their_own_size_digits_are_only_compared() -> None:
    images, _ = digits_images()
    expected = (images > 127.5).transpose(2, 1, 0).reshape(64, 1797)
    assert np.array_equal(digits_inputs(64).to_dense() == 1, expected)


@pytest.mark.parametrize(
    ("neurons", "message"), [(100_000, "square"), (49, "8 to 32768 .* found 7")]
)
def test_sizes_that_do_not_work(neurons: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        digits_inputs(neurons)


def test_public_names_exist() -> None:
    public = {name for name in vars(sparsednn.datasets) if not name.startswith("_")}
    modules = {
        "annotations",
        "digits",
        "graph_challenge",
        "images",
        "mnist",
        "radixnet",
        "topologies",
        "labelled",
        "cifar10",
        "pictures",
    }
    assert public - modules == set(sparsednn.datasets.__all__)


def test_import_loads_numpy_only() -> None:
    code = (
        "import sys, sparsednn.datasets; "
        "print(*{'numba', 'scipy', 'sklearn', 'pooch'} & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == ""
