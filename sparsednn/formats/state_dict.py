"""From named tensors to a network: the core that safetensors and PyTorch checkpoints share.

Tensors of one module form a layer: ``X.weight`` ``(n_out, n_in)`` and, if it is there, ``X.bias``;
or ``X.weight_orig`` times ``X.weight_mask`` (and ``X.bias_orig``, ``X.bias_mask``) as PyTorch's
pruning leaves them. F16, BF16 and F64 become float32. A dense weight is stored without its zeros,
a sparse one as it is. All modules must be layers unless `ReadOptions.select` chooses some: a
network that silently lacks its convolutions is a wrong one. Activations are not in such a file:
relu and, for the last layer, identity, unless the options say otherwise.

Shapes are checked before any weight is touched. Knows nothing about files: a `TensorSource` does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import FormatError, ShapeError, UsageError
from sparsednn.formats import _csr, lowering, selection
from sparsednn.formats._common import first_layers, located, reading
from sparsednn.formats._csr import CsrArrays
from sparsednn.formats.lowering import Convolution
from sparsednn.formats.options import ReadOptions
from sparsednn.network import SparseLayer, SparseNetwork

__all__ = ["FLOATS", "TensorInfo", "TensorSource", "read_state_dict"]

FLOATS: Final = ("F16", "BF16", "F32", "F64")
"""The dtypes of weights and biases, by their names in safetensors files."""

_HINT: Final = "--select chooses the layers to read"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Dtype (a safetensors name), shape, and whether the tensor is stored sparse."""

    dtype: str
    shape: tuple[int, ...]
    sparse: bool = False

    def __str__(self) -> str:
        """Return what a message says of it: ``F32 [10, 20]``."""
        return f"{'sparse ' if self.sparse else ''}{self.dtype} {list(self.shape)}"


class TensorSource(Protocol):
    """What a file of named tensors has to offer."""

    path: Path
    name: str
    """What to call the network."""
    unlike: str
    """What to call a file without any layer."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors, without reading them."""

    def dense(self, name: str) -> NDArray[Any]:
        """Read a dense tensor; BF16 as float32."""

    def sparse(self, name: str) -> CsrArrays:
        """Read a sparse matrix."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """One layer before its weights are read."""

    name: str
    parts: Mapping[str, str]  # "weight" → "fc.weight"
    shape: tuple[int, int]
    turned: bool = False  # stored (n_in, n_out)
    convolution: Convolution | None = None

    @property
    def weight(self) -> str:
        """The name of the tensor that holds the weights."""
        return _weight_name(self.parts)


def read_state_dict(
    source: TensorSource, options: ReadOptions, *, layers: int | None = None
) -> SparseNetwork:
    """Make the network of a source's layers, holding one dense layer at a time.

    Raises
    ------
    FormatError
        If there is no layer, or a (chosen) tensor that is not a part of one.
    ShapeError
        If layers do not follow one upon the other, naming both.
    InputError
        As for `SparseLayer`, with file and layer in front.
    UsageError
        If options do not apply to these layers.
    """
    path = source.path
    modules = _modules(source.tensors)
    names = selection.choose(path, {n: [*m.values()] for n, m in modules.items()}, options.select)
    _refuse_parametrized(path, names, modules)
    if not any("weight" in modules[n] or "weight_orig" in modules[n] for n in names):
        raise FormatError(f"{path}: {source.unlike}: no 2-D tensor '*.weight'")
    for name in names:
        _check_module(source, modules[name], options)
    count = first_layers(path, len(names), layers)
    plans = _plan(source, names, modules, options)[:count]
    _check_chain(path, plans)
    hidden, last = options.activation or "relu", options.output_activation or "identity"
    made = [
        _layer(source, plan, k + 1, last if k == len(names) - 1 else hidden)
        for k, plan in enumerate(plans)
    ]
    with located(path):
        return SparseNetwork(made, name=source.name)


def _weight_name(parts: Mapping[str, str]) -> str:
    return parts.get("weight_orig") or parts["weight"]


def _modules(tensors: Mapping[str, TensorInfo]) -> dict[str, dict[str, str]]:
    """Tensors by module: ``{"fc": {"weight": "fc.weight", "bias": "fc.bias"}}``."""
    modules: dict[str, dict[str, str]] = {}
    for full in tensors:
        # X.parametrizations.weight.original belongs to X, too.
        name, inner, rest = f".{full}".partition(".parametrizations.")
        if inner:
            part = inner[1:] + rest
        else:
            name, _, part = f".{full}".rpartition(".")
        modules.setdefault(name[1:], {})[part] = full
    return modules


def _refuse_parametrized(
    path: Path, names: Sequence[str], modules: Mapping[str, Mapping[str, str]]
) -> None:
    for name in names:
        for part, full in modules[name].items():
            if part.startswith("parametrizations."):
                raise FormatError(
                    f"{path}: tensor '{full}' is a parametrization, not a weight: before saving "
                    f"call torch.nn.utils.parametrize.remove_parametrizations(module, "
                    f"'{part.split('.')[1]}')"
                )


def _check_module(source: TensorSource, parts: Mapping[str, str], options: ReadOptions) -> None:
    """Check that a module is a layer and nothing else, and its weight of a kind that is read."""
    path = source.path
    used = set()
    for kind in ("weight", "bias"):
        pruned, mask = f"{kind}_orig", f"{kind}_mask"
        for one, other in ((pruned, mask), (mask, pruned)):
            if one in parts and other not in parts:
                missing = parts[one].removesuffix(one) + other
                raise FormatError(f"{path}: no tensor '{missing}' beside '{parts[one]}'")
        if pruned in parts and kind in parts:
            raise FormatError(
                f"{path}: both '{parts[kind]}' and '{parts[pruned]}' are there: which one is meant?"
            )
        used.update({pruned, mask} if pruned in parts else {kind})
    for part, full in parts.items():
        if part not in used or ("weight" not in parts and "weight_orig" not in parts):
            raise FormatError(
                f"{path}: tensor '{full}' belongs to no fully connected layer '*.weight', "
                f"'*.bias'; {_HINT}"
            )
    weight = _weight_name(parts)
    info = source.tensors[weight]
    lowered = options.conv is not None or options.input_size is not None
    dimensions = (2, 4) if lowered and not info.sparse else (2,)
    if len(info.shape) not in dimensions or info.dtype not in FLOATS or 0 in info.shape:
        advice = _HINT
        if len(info.shape) == 4 and not lowered:
            advice = "a convolution needs --input-size HxW or --conv matrix, or " + _HINT
        raise FormatError(
            f"{path}: tensor '{weight}' is {info}; only fully connected layers are read: a 2-D "
            f"float tensor (n_out, n_in); {advice}"
        )


def _plan(
    source: TensorSource,
    names: Sequence[str],
    modules: Mapping[str, Mapping[str, str]],
    options: ReadOptions,
) -> list[_Plan]:
    """Shapes of all layers; those of convolutions follow from the image that reaches them."""
    path = source.path
    shapes = {n: source.tensors[_weight_name(modules[n])].shape for n in names}
    kernels = [name for name in names if len(shapes[name]) == 4]
    if not kernels and (options.input_size or options.conv):
        option = "--input-size" if options.input_size else "--conv"
        raise UsageError(f"{path}: {option} does not apply: no layer is a convolution")
    if len(kernels) == len(names) and options.transposed:
        raise UsageError(f"{path}: --transposed does not apply: all layers are convolutions")
    strides = _each(path, "--conv-stride", options.conv_stride or (1,), len(kernels))
    paddings = _each(path, "--conv-padding", options.conv_padding or (0,), len(kernels))
    image: tuple[int, ...] | None = options.input_size
    plans = []
    for k, name in enumerate(names):
        shape = shapes[name]
        convolution = None
        turned = len(shape) == 2 and options.transposed
        if len(shape) == 2:
            n_out, n_in = reversed(shape) if turned else shape
            image = None
        elif options.conv:
            n_out, n_in = shape[0], math.prod(shape[1:])
        else:
            where = f"{path}: layer {k + 1} ('{name}')"
            if image is None:
                raise ShapeError(
                    f"{where}: a convolution behind a fully connected layer: the size of its "
                    "images is not known"
                )
            at = kernels.index(name)
            with located(where):
                convolution = _convolution(where, shape, image, strides[at], paddings[at])
            image = convolution.output
            n_out, n_in = convolution.shape
        plans.append(_Plan(name, modules[name], (n_out, n_in), turned, convolution))
    return plans


def _each(path: Path, option: str, given: Sequence[Any], count: int) -> Sequence[Any]:
    """One value for each of `count` convolutions."""
    if len(given) not in (1, count):
        raise UsageError(f"{path}: {option} has {len(given)} values for {count} convolutions")
    return given if len(given) == count else [*given] * count


def _convolution(
    where: str, shape: Sequence[int], image: tuple[int, ...], stride: int, padding: int | str
) -> Convolution:
    k, c, r, s = shape
    if len(image) == 2:  # as given: the first convolution is taken to have one group
        image = (c, *image)
    if padding == "same":
        if stride != 1:
            raise UsageError(f"{where}: --conv-padding same needs stride 1, found {stride}")
        top, left, bottom, right = lowering.same_padding((r, s))
    else:
        top = left = bottom = right = int(padding)
    channels, height, width = image
    return Convolution(
        (k, c, r, s), (channels, height, width), (stride, stride), (top, left, bottom, right)
    )


def _check_chain(path: Path, plans: Sequence[_Plan]) -> None:
    for k, (before, after) in enumerate(itertools.pairwise(plans), 1):
        if before.shape[0] == after.shape[1]:
            continue
        advice = "--select chooses the layers and their order"
        if before.convolution:
            sizes = "×".join(map(str, before.convolution.output))
            advice = f"the images there are {sizes}; pooling in between is not read"
        elif all(a.shape[1] == b.shape[0] for a, b in itertools.pairwise(plans)):
            advice = "they would fit with --transposed"
        raise ShapeError(
            f"{path}: network '{path.stem}': layer {k} has shape {before.shape} "
            f"('{before.weight}'), layer {k + 1} has shape {after.shape} ('{after.weight}'): "
            f"{before.shape[0]} outputs do not fit {after.shape[1]} inputs; {advice}"
        )


def _layer(source: TensorSource, plan: _Plan, number: int, activation: str) -> SparseLayer:
    where = f"{source.path}: layer {number} ('{plan.name or plan.weight}')"
    # What is too large for float32 becomes inf: the layer's own check names its place.
    with located(where), reading(source.path), np.errstate(over="ignore", invalid="ignore"):
        arrays = _weights(source, plan)
        return SparseLayer(*arrays, plan.shape[1], bias=_bias(source, plan), activation=activation)


def _weights(source: TensorSource, plan: _Plan) -> CsrArrays:
    info = source.tensors[plan.weight]
    mask = _mask(source, plan, "weight")
    if info.sparse:
        if mask is not None:
            raise FormatError(f"{source.path}: '{plan.weight}' is sparse and has a mask")
        arrays = source.sparse(plan.weight)
        if arrays.indptr.shape != (info.shape[0] + 1,):
            raise ShapeError(f"row pointers {arrays.indptr.shape} for {info.shape[0]} rows")
        return _csr.transpose(arrays, info.shape[1]) if plan.turned else arrays
    weight = source.dense(plan.weight)
    if plan.convolution:
        kernel = weight if mask is None else weight * mask
        return lowering.toeplitz(kernel.astype(np.float32), plan.convolution)
    if len(info.shape) == 4:
        weight = lowering.kernel_matrix(weight)
        mask = None if mask is None else lowering.kernel_matrix(mask)
    if plan.turned:
        weight, mask = weight.T, None if mask is None else mask.T
    return _csr.compress(weight, mask)


def _mask(source: TensorSource, plan: _Plan, kind: str) -> NDArray[Any] | None:
    name = plan.parts.get(f"{kind}_mask")
    if name is None:
        return None
    values = plan.parts[f"{kind}_orig"]
    mask, info = source.tensors[name], source.tensors[values]
    if mask.shape != info.shape or mask.sparse:
        raise FormatError(f"{source.path}: '{name}' is {mask}, but '{values}' is {info}")
    return source.dense(name)


def _bias(source: TensorSource, plan: _Plan) -> NDArray[np.float32] | float:
    name = plan.parts.get("bias_orig") or plan.parts.get("bias")
    if name is None:
        return 0.0
    info = source.tensors[name]
    size = plan.convolution.kernel[0] if plan.convolution else plan.shape[0]
    if info.dtype not in FLOATS or info.shape != (size,) or info.sparse:
        raise FormatError(
            f"{source.path}: tensor '{name}' is {info}, expected {' or '.join(FLOATS)} [{size}]"
        )
    mask = _mask(source, plan, "bias")
    values = source.dense(name) if mask is None else source.dense(name) * mask
    # One bias per channel of a convolution: all its pixels have it.
    return np.repeat(values.astype(np.float32), plan.shape[0] // size)
