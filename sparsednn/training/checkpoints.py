"""Checkpoints: all that a training run needs to go on, in one file that is whole or not there.

A checkpoint is a native network file (`sparsednn.formats.native`), so that every command takes it
as a network, with more in it: the optimizer's arrays as tensors ``optimizer.SLOT.LAYER.values`` and
``.bias`` (F32, one number per weight, in CSR order, and per neuron; layers from 0), and in the
metadata ``training``, a JSON text with what is not an array, and ``digest``, a SHA-256 over the
metadata (the network's content hash is one of them) and the optimizer's arrays. So a damaged file
is told from a good one. Knows files and arrays, nothing of ranks, optimizers or steps.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import FormatError, InputError, ShapeError
from sparsednn.formats import native
from sparsednn.formats._common import reading
from sparsednn.formats._container import Container, write_container
from sparsednn.network import SparseNetwork

__all__ = [
    "CHECKPOINT",
    "DIGEST",
    "TRAINING",
    "Difference",
    "TrainingState",
    "check_origin",
    "check_settings",
    "content_digest",
    "differences",
    "read_checkpoint",
    "read_training",
    "training_text",
    "write_checkpoint",
]

#: Name of the file in the folder of a run.
CHECKPOINT: Final = "checkpoint.safetensors"
#: Keys of the metadata.
TRAINING: Final = "training"
DIGEST: Final = "digest"
_VERSION: Final = 1

Slot: TypeAlias = list[tuple[NDArray[np.float32], NDArray[np.float32]]]
"""An array of the optimizer: per layer one number per weight ``(nnz,)`` and bias ``(n_out,)``."""


@dataclass(frozen=True, eq=False, slots=True)
class TrainingState:
    """A training run between two steps.

    Attributes
    ----------
    network
        The pattern, weights and biases of now.
    slots
        The optimizer's arrays by name: per layer float32 ``((nnz,), (n_out,))``, weights in the
        CSR order of `network`. Empty for an optimizer without a memory.
    origin
        Content hash of the network that training began with.
    settings
        What determines the numbers: optimizer, schedule, loss, batch size, seed and so on.
    progress
        Where the run is: epoch, images done in it, step, running sums and so on.

    Notes
    -----
    `settings` and `progress` are what JSON can hold: texts as keys, lists, no tuples. Whole and
    floating numbers come back exactly as they were.
    """

    network: SparseNetwork
    slots: dict[str, Slot]
    origin: str
    settings: dict[str, Any]
    progress: dict[str, Any]


def write_checkpoint(path: str | os.PathLike[str], state: TrainingState) -> None:
    """Write a checkpoint; until it is on the disk as a whole, `path` stays what it was.

    The arrays go to the file one by one: no copy of the network is made in memory. They may be
    those of a running trainer, as long as no step is done meanwhile.

    Raises
    ------
    FormatError
        If the file cannot be written (no folder, no permission, disk full).
    InputError
        If a weight, bias or number of the optimizer is NaN or infinite: such a state cannot go on,
        and must not replace one that can.
    ShapeError
        If slots do not fit the network's layers, or are not float32.
    TypeError
        If JSON cannot hold the settings or the progress.
    """
    _check_numbers(path, state)
    # A new object, since a network keeps its hash, and the trainer may have gone on in its arrays.
    network = SparseNetwork(state.network.layers, name=state.network.name)
    tensors, metadata = native.pack(network)
    slots = {
        tensor: array
        for name, slot in state.slots.items()
        for layer, arrays in enumerate(slot)
        for tensor, array in zip(_tensor_names(name, layer), arrays, strict=True)
    }
    metadata[TRAINING] = training_text(
        state.origin, list(state.slots), state.settings, state.progress
    )
    metadata[DIGEST] = content_digest(metadata, slots)
    write_container(Path(path), tensors | slots, metadata, sync=True)


def read_checkpoint(path: str | os.PathLike[str]) -> TrainingState:
    """Read a checkpoint and check all of it.

    Returns
    -------
    TrainingState
        All arrays are read-only views on one memory map of the file: who trains copies them. The
        file may be replaced by `write_checkpoint` meanwhile; the views stay on the old one.

    Raises
    ------
    FormatError
        If there is no such file, or it is truncated, damaged, no checkpoint, or of a version that
        this program does not know.
    """
    path = Path(path)
    with reading(path):
        if not path.exists():
            raise FormatError(f"{path}: no checkpoint there")
    box = Container(path)
    metadata = box.header.metadata
    if not native.is_native(box.header) or TRAINING not in metadata:
        raise FormatError(f"{path}: not a checkpoint of a training run")
    training = read_training(path, metadata[TRAINING])
    try:
        network = native.unpack(box)
    except FormatError:
        raise
    except InputError as error:
        raise FormatError(f"{error}: this checkpoint is damaged") from error
    tensors: dict[str, NDArray[np.float32]] = {}
    slots: dict[str, Slot] = {}
    for name in training["slots"]:
        slots[name] = []
        for index, layer in enumerate(network):
            weights, biases = _tensor_names(name, index)
            tensors[weights] = box.typed(weights, ("F32",), (layer.nnz,))
            tensors[biases] = box.typed(biases, ("F32",), (layer.n_out,))
            slots[name].append((tensors[weights], tensors[biases]))
    whole = network.hash == metadata.get("hash")
    if not whole or content_digest(metadata, tensors) != metadata.get(DIGEST):
        raise FormatError(f"{path}: this checkpoint is damaged: its content has another checksum")
    return TrainingState(
        network, slots, training["origin"], training["settings"], training["progress"]
    )


def training_text(
    origin: str, slots: Sequence[str], settings: Mapping[str, Any], progress: Mapping[str, Any]
) -> str:
    """Return as JSON what of a run is no array.

    Parameters
    ----------
    origin
        Identifies the network that training began with.
    slots
        Names of the optimizer's arrays.
    settings, progress
        As of `TrainingState`.

    Raises
    ------
    TypeError
        If JSON cannot hold it.
    """
    return json.dumps(
        {
            "version": _VERSION,
            "origin": origin,
            "slots": list(slots),
            "settings": settings,
            "progress": progress,
        }
    )


def read_training(path: Path, text: str) -> dict[str, Any]:
    """Return what `training_text` was given, and ``version``.

    Raises
    ------
    FormatError
        If it is something else, or of a version that this program does not know.
    """
    kinds = {"origin": str, "slots": list, "settings": dict, "progress": dict}
    try:
        training = json.loads(text)
        version = training["version"]
        usable = all(isinstance(training.get(key), kind) for key, kind in kinds.items())
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise FormatError(f"{path}: its metadata '{TRAINING}' cannot be used: {error}") from error
    if version != _VERSION:
        raise FormatError(
            f"{path}: checkpoint of version {version!r}, this program reads {_VERSION}"
        )
    if not usable or not all(isinstance(name, str) for name in training["slots"]):
        raise FormatError(
            f"{path}: its metadata '{TRAINING}' cannot be used: it must have {', '.join(kinds)}"
        )
    return dict(training)


def content_digest(metadata: Mapping[str, str], arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over all metadata but the digest itself, and over the arrays.

    What has its own hash among the metadata, as a sparse network's arrays, is in it by that.
    """
    digest = hashlib.sha256(b"sparsednn-checkpoint-1")
    for key in sorted(metadata):
        if key != DIGEST:
            for text in (key, metadata[key]):
                raw = text.encode(errors="replace")  # as the container writes them
                digest.update(b"|%d:" % len(raw))
                digest.update(raw)
    for name in sorted(arrays):
        digest.update(f"|{name}:{arrays[name].size}:".encode(errors="replace"))
        little = np.ascontiguousarray(arrays[name], arrays[name].dtype.newbyteorder("<"))
        digest.update(little.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


class HasSettings(Protocol):
    """What of a state is compared."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that determines the numbers."""


class Difference(NamedTuple):
    """A setting that differs: its name (of one in another: ``optimizer.momentum``), and both."""

    name: str
    saved: str
    asked: str


def differences(
    saved: Mapping[str, Any], asked: Mapping[str, Any], *, may_differ: Collection[str] = ()
) -> list[Difference]:
    """Compare the settings of a checkpoint with those that are asked for.

    Parameters
    ----------
    saved, asked
        Settings as in `TrainingState`; a tuple is as good as a list here.
    may_differ
        Names of settings not to compare; one that has settings in it goes with all of them.

    Returns
    -------
    list of Difference
        In the order of `asked`, then what only `saved` has. Values as JSON, or ``not set``.

    Examples
    --------
    >>> differences({"rate": 0.1, "seed": 1}, {"rate": 0.2, "seed": 1.0})
    [Difference(name='rate', saved='0.1', asked='0.2')]
    """
    there, wanted = _flat(saved, may_differ), _flat(asked, may_differ)
    found = []
    for name in wanted | there:  # a union of dicts keeps the order
        both = name in there and name in wanted
        texts = [_text(settings, name) for settings in (there, wanted)]
        # Equal as texts or as values: NaN is another value than itself, 1.0 another text than 1.
        if texts[0] != texts[1] and not (both and there[name] == wanted[name]):
            found.append(Difference(name, *texts))
    return found


def check_settings(
    state: HasSettings,
    settings: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    may_differ: Collection[str] = (),
) -> None:
    """Refuse to go on with other settings than a checkpoint has, see `differences`.

    Raises
    ------
    InputError
        If there is a difference; tells the first one with both values.
    """
    found = differences(state.settings, settings, may_differ=may_differ)
    if found:
        name, saved, asked = found[0]
        more = f" ({len(found) - 1} more settings differ)" if len(found) > 1 else ""
        raise InputError(
            f"{os.fspath(path)}: this run has {name} {saved}, asked for is {asked}{more}: resume "
            "it as it began, or begin another run in another folder"
        )


def check_origin(state: TrainingState, network_hash: str, path: str | os.PathLike[str]) -> None:
    """Refuse a checkpoint of another network than the one that training is to begin with.

    Raises
    ------
    InputError
        If the content hashes differ.
    """
    if state.origin != network_hash:
        raise InputError(
            f"{os.fspath(path)}: is of another network: its training began with "
            f"{state.origin[:12]}, this network is {network_hash[:12]}"
        )


def _tensor_names(slot: str, layer: int) -> tuple[str, str]:
    return f"optimizer.{slot}.{layer}.values", f"optimizer.{slot}.{layer}.bias"


def _check_numbers(path: str | os.PathLike[str], state: TrainingState) -> None:
    """Refuse what `read_checkpoint` would, and what no run can go on with."""
    layers = state.network.layers
    parameters = [(layer.values, layer.bias) for layer in layers]
    for name, slot in [("weights or biases", parameters), *state.slots.items()]:
        if len(slot) != len(layers):
            raise ShapeError(
                f"{os.fspath(path)}: '{name}' has {len(slot)} layers, the network {len(layers)}"
            )
        for index, (arrays, layer) in enumerate(zip(slot, layers, strict=True), 1):
            for array, size in zip(arrays, (layer.nnz, layer.n_out), strict=True):
                if array.shape != (size,) or array.dtype != np.float32:
                    raise ShapeError(
                        f"{os.fspath(path)}: layer {index}: '{name}' is {array.dtype} "
                        f"{list(array.shape)}, expected float32 [{size}]"
                    )
                if not np.isfinite(array).all():
                    raise InputError(
                        f"{os.fspath(path)}: not written: layer {index}: '{name}' has numbers "
                        "that are NaN or infinite"
                    )


def _flat(settings: Mapping[str, Any], left_out: Collection[str], at: str = "") -> dict[str, Any]:
    """Settings by their full names, those inside of others too; tuples as lists."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{at}{key}"
        if name in left_out:
            continue
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, left_out, f"{name}.")
        else:
            flat[name] = json.loads(json.dumps(value))
    return flat


def _text(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name]) if name in settings else "not set"
