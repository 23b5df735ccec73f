"""The kernels that measure a device compute what their twins say."""

from __future__ import annotations

import numpy as np

from sparsednn.gpu.ceilings import measure
from sparsednn.gpu.twins import ceilings as twins

THREADS = 64


def test_kernels_equal_their_twins(device):
    rng = np.random.default_rng(0)
    source = rng.standard_normal((100, 4)).astype(np.float32)
    for kernel, extra in (("multiply_adds", (np.float32(0.999),)), ("shared_loads", ())):
        out = device.empty(3 * THREADS, np.float32)
        function = device.function("ceilings", kernel, THREADS=THREADS)
        device.launch(function, 3, THREADS, (out, np.int32(2), *extra))
        expected = np.zeros(3 * THREADS, np.float32)
        getattr(twins, kernel)({"THREADS": THREADS}, expected, np.int32(2), *extra)
        np.testing.assert_allclose(device.download(out), expected, rtol=1e-5)
    target = device.zeros((100, 4), np.float32)
    function = device.function("ceilings", "copy_vectors", THREADS=THREADS)
    device.launch(function, 1, THREADS, (device.upload(source), target, np.int64(90)))
    assert np.array_equal(device.download(target)[:90], source[:90])
    assert not device.download(target)[90:].any()


def test_every_rate_is_measured(quick_device):
    found = measure(quick_device, megabytes=1, rounds=2)
    assert min(
        found.multiply_adds, found.memory_bytes, found.shared_words, found.upload_bytes,
        found.download_bytes,
    ) > 0  # fmt: skip
