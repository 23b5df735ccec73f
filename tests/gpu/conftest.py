"""Devices of GPU tests: the NumPy twin, the PTX interpreter, a real one if there is one."""

from __future__ import annotations

import pytest


def _cuda():
    from sparsednn.errors import SparseDNNError
    from sparsednn.gpu import find_device

    try:
        device = find_device("gpu")
    except SparseDNNError as error:
        pytest.skip(str(error))
    if device is None or device.name == "NumPy twin":
        pytest.skip("no CUDA device was asked for")
    return device


def _emulated():
    from ptx import EmulatedDevice
    from ptx.nvrtc import available

    if not available():
        pytest.skip("NVRTC is not installed: pip install nvidia-cuda-nvrtc")
    return EmulatedDevice()


def _twin():
    from sparsednn.gpu.twin import TwinDevice

    return TwinDevice()


_MAKERS = {"twin": _twin, "emulated": _emulated, "cuda": _cuda}


@pytest.fixture(
    params=["twin", "emulated", pytest.param("cuda", marks=pytest.mark.gpu)], scope="module"
)
def device(request):
    """Every way to run a kernel; what runs here must be small enough for the interpreter."""
    return _MAKERS[request.param]()


@pytest.fixture(params=["twin", pytest.param("cuda", marks=pytest.mark.gpu)], scope="module")
def quick_device(request):
    """For larger cases: no interpreter."""
    return _MAKERS[request.param]()


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)], scope="module")
def real_code(request):
    """Only what runs the compiled kernels."""
    return _MAKERS[request.param]()
