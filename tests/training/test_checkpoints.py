"""Checkpoints come back exactly, and a damaged, half or foreign one is told."""

from __future__ import annotations

import contextlib
import json
import math
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.cli_program import Program
from hypothesis import given, settings
from hypothesis import strategies as st

from networks import networks
from row_wise import make_network
from sparsednn import SparseLayer, SparseNetwork
from sparsednn.errors import FormatError, InputError, ShapeError
from sparsednn.formats import native, read_network, summarize_network, write_network
from sparsednn.formats._container import read_header
from sparsednn.training.checkpoints import (
    TrainingState,
    check_origin,
    check_settings,
    differences,
    read_checkpoint,
    write_checkpoint,
)

FLOATS = (0.1, 1 / 3, 5e-324, -0.0, 1.7976931348623157e308, 2.0**53 + 2, 1e-8, 3.0)


def make_state(network: SparseNetwork, seed: int, slots: tuple[str, ...]) -> TrainingState:
    rng = np.random.default_rng(seed)

    def array(size: int) -> Any:
        return (rng.standard_normal(size) * 10.0 ** rng.integers(-40, 38, size)).astype(np.float32)

    return TrainingState(
        network,
        {name: [(array(layer.nnz), array(layer.n_out)) for layer in network] for name in slots},
        "0123456789abcdef" * 4,
        {"optimizer": {"name": "sgd", "momentum": 0.9}, "seed": seed, "loss": "mse"},
        {"step": 7 + seed, "epoch": 1, "sums": list(FLOATS), "seconds": float(rng.random())},
    )


def assert_same(one: TrainingState, other: TrainingState) -> None:
    assert one.network.name == other.network.name
    assert SparseNetwork(one.network.layers).hash == SparseNetwork(other.network.layers).hash
    assert list(one.slots) == list(other.slots)
    for name, slot in one.slots.items():
        for arrays, others in zip(slot, other.slots[name], strict=True):
            for array, same in zip(arrays, others, strict=True):
                assert array.dtype == same.dtype == np.float32
                assert array.shape == same.shape
                assert array.tobytes() == same.tobytes()
    assert one.origin == other.origin
    # The texts tell -0.0 from 0.0, and 3.0 from 3.
    assert json.dumps([one.settings, one.progress]) == json.dumps([other.settings, other.progress])


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, TrainingState]:
    network = SparseNetwork(
        [
            SparseLayer([0, 2, 2, 3], [0, 1, 1], [1.0, -2.0, 0.5], 2, activation="relu"),
            SparseLayer([0, 3], [0, 1, 2], [0.25, 4.0, 1e-3], 3, bias=0.5),
        ],
        name="small",
    )
    path = tmp_path / "checkpoint.safetensors"
    state = make_state(network, 0, ("first", "second"))
    write_checkpoint(path, state)
    return path, state


def tamper(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the header with `change` applied to it; the data stays."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def tamper_training(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite what the metadata say of the training."""

    def inside(header: dict[str, Any]) -> None:
        training = json.loads(header["__metadata__"]["training"])
        change(training)
        header["__metadata__"]["training"] = json.dumps(training)

    tamper(path, inside)


@settings(deadline=None, max_examples=40)
@given(
    networks(),
    st.integers(0, 99),
    st.sampled_from([(), ("momentum",), ("first", "second")]),
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=5,
        ),
        max_size=4,
    ),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    network: SparseNetwork,
    seed: int,
    slots: tuple[str, ...],
    extra: dict[str, Any],
) -> None:
    path = tmp_path_factory.getbasetemp() / "checkpoint.safetensors"
    state = make_state(network, seed, slots)
    state = replace(state, settings=state.settings | extra, progress=state.progress | extra)
    write_checkpoint(path, state)
    assert_same(read_checkpoint(path), state)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_a_network_too(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "checkpoint.safetensors"
    network = make_network(seed)
    write_checkpoint(path, make_state(network, seed, ("momentum",)))
    assert read_network(path).hash == network.hash
    assert summarize_network(path) == network.summary
    with native.RowReader(path) as reader:
        assert reader.hash == network.hash
        assert reader.layer(0).values.tobytes() == network[0].values.tobytes()
    # As a network it is written without the rest.
    write_network(read_network(path), tmp_path / "plain.safetensors")
    write_network(network, tmp_path / "same.safetensors")
    plain = (tmp_path / "plain.safetensors").read_bytes()
    assert plain == (tmp_path / "same.safetensors").read_bytes()


def test_commands_take_it(
    small: tuple[Path, TrainingState],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, state = small
    program = Program(path.parent, capsys, monkeypatch)
    assert program.ok("inspect", path, "--json").json["hash"] == state.network.hash
    program.ok("convert", path, path.with_name("plain.safetensors"))
    program.ok(
        "partition", path, "--parts", 2, "--partitioner", "cyclic", "-o", path.parent / "p.npz"
    )
    np.save(path.parent / "x.npy", np.ones((2, 4), np.float32))
    program.ok("infer", path, "--inputs", path.parent / "x.npy", "--kernel", "reference")
    assert read_network(path.with_name("plain.safetensors")).hash == state.network.hash
    assert path.with_name("plain.safetensors").stat().st_size < path.stat().st_size


def test_arrays_are_views_that_outlive_the_file(small: tuple[Path, TrainingState]) -> None:
    path, state = small
    back = read_checkpoint(path)
    for values, bias in back.slots["second"]:
        assert not values.flags.writeable
        assert not bias.flags.owndata
    write_checkpoint(path, make_state(state.network, 9, ()))
    assert_same(back, state)
    write_checkpoint(path, back)  # onto the file it came from, or anywhere
    assert_same(read_checkpoint(path), state)


def test_hash_is_that_of_the_weights_of_now(small: tuple[Path, TrainingState]) -> None:
    """A network keeps its hash, and a trainer changes weights in place."""
    path, state = small
    before = state.network.hash
    state.network[0].values[0] += 1.0
    write_checkpoint(path, state)
    back = read_checkpoint(path)
    assert_same(back, state)
    assert back.network.hash != before


# ---- damage


def test_every_damaged_byte_is_found(small: tuple[Path, TrainingState]) -> None:
    path, state = small
    good = path.read_bytes()
    rng = np.random.default_rng(1)
    harmless = 0
    for at in range(len(good)):
        change = int(rng.choice([1 << rng.integers(8), rng.integers(1, 256)]))
        raw = bytearray(good)
        raw[at] ^= change
        path.write_bytes(raw)
        try:
            back = read_checkpoint(path)
        except FormatError:
            continue
        assert_same(back, state)
        assert good[at : at + 1] == b" ", f"byte {at} ^ {change}"
        harmless += 1
    assert harmless <= 8  # what fills the header up
    path.write_bytes(good)
    assert_same(read_checkpoint(path), state)


def test_truncated_at_every_byte(small: tuple[Path, TrainingState]) -> None:
    path, _ = small
    good = path.read_bytes()
    for size in range(len(good)):
        path.write_bytes(good[:size])
        with pytest.raises(FormatError, match=r"checkpoint\.safetensors: truncated"):
            read_checkpoint(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(FormatError, match="too long"):
        read_checkpoint(path)


def test_damage_of_each_kind_of_data(small: tuple[Path, TrainingState]) -> None:
    """Whatever is wrong with the arrays, the message is that the file is damaged."""
    path, _ = small
    good = path.read_bytes()
    tensors = read_header(path).tensors
    for name, new in {
        "optimizer.first.0.values": np.float32(1.0),
        "optimizer.second.1.bias": np.float32(np.nan),
        "layers.0.values": np.float32(np.inf),
        "layers.1.bias": np.float32(0.125),
        "layers.0.indices": np.int32(77),
        "layers.1.indptr": np.int64(1),
    }.items():
        begin = tensors[name].begin
        path.write_bytes(good[:begin] + new.tobytes() + good[begin + new.nbytes :])
        with pytest.raises(FormatError, match="this checkpoint is damaged"):
            read_checkpoint(path)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(FormatError, match=r"a\.safetensors: no checkpoint there"):
        read_checkpoint(path)
    with pytest.raises(FormatError, match="is a folder"):
        read_checkpoint(tmp_path)
    path.touch()
    with pytest.raises(FormatError, match="truncated"):
        read_checkpoint(path)
    write_network(make_network(1), path)
    with pytest.raises(FormatError, match="not a checkpoint of a training run"):
        read_checkpoint(path)
    path.write_text("no safetensors file at all")
    with pytest.raises(FormatError, match="not a safetensors file"):
        read_checkpoint(path)


def test_another_version(small: tuple[Path, TrainingState]) -> None:
    path, _ = small
    tamper_training(path, lambda training: training.update(version=2))
    with pytest.raises(FormatError, match="version 2, this program reads 1"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '"a"', "{}", "[" * 100_000, '{"version": 1}']
)
def test_unusable_metadata(small: tuple[Path, TrainingState], text: str) -> None:
    path, _ = small
    tamper(path, lambda header: header["__metadata__"].update(training=text))
    with pytest.raises(FormatError, match="its metadata 'training' cannot be used"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": ["first", "third"]}, r"no tensor 'optimizer\.third\.0\.values'"),
        ({"slots": "first"}, "cannot be used"),
        ({"slots": [1]}, "cannot be used"),
        ({"settings": []}, "cannot be used"),
        ({"origin": None}, "cannot be used"),
        ({"slots": ["first"]}, "damaged"),
        ({"progress": {}}, "damaged"),
        ({"origin": "0"}, "damaged"),
    ],
)
def test_changed_metadata(
    small: tuple[Path, TrainingState], change: dict[str, Any], message: str
) -> None:
    path, _ = small
    tamper_training(path, lambda training: training.update(change))
    with pytest.raises(FormatError, match=message):
        read_checkpoint(path)


def test_slots_that_do_not_fit(small: tuple[Path, TrainingState]) -> None:
    path, state = small
    tamper(path, lambda header: header["optimizer.first.1.values"].update(shape=[3, 1]))
    with pytest.raises(FormatError, match=r"values' is F32 \[3, 1\], expected F32 \[3\]"):
        read_checkpoint(path)
    write_checkpoint(path, state)
    good = path.read_bytes()
    (values, bias), last = state.slots["first"]
    for slot, message in (
        ([(values, bias)], "'momentum' has 1 layers, the network 2"),
        ([(values[:-1], bias), last], r"layer 1: 'momentum' is float32 \[2\], expected .* \[3\]"),
        ([(values, bias.astype(np.float64)), last], r"is float64 \[3\]"),
    ):
        with pytest.raises(ShapeError, match=message):
            write_checkpoint(path, replace(state, slots={"momentum": slot}))
    assert path.read_bytes() == good


def test_a_state_that_cannot_go_on_is_not_saved(small: tuple[Path, TrainingState]) -> None:
    path, state = small
    good = path.read_bytes()
    for array in (state.slots["first"][1][0], state.network[1].bias, state.network[0].values):
        for bad in (np.nan, np.inf):
            kept, array[0] = array[0], bad
            with pytest.raises(InputError, match=r"not written: layer [12]: .* NaN or infinite"):
                write_checkpoint(path, state)
            array[0] = kept
    with pytest.raises(TypeError):
        write_checkpoint(path, replace(state, progress={"step": np.int64(1)}))
    assert path.read_bytes() == good


# ---- writing that fails


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file can be larger, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_leaves_the_old_one(small: tuple[Path, TrainingState]) -> None:
    path, state = small
    good = path.read_bytes()
    after = make_state(state.network, 3, ("first", "second"))
    write_checkpoint(path, after)
    size = path.stat().st_size
    path.write_bytes(good)
    for limit in (0, 8, 100, size // 2, size - 4, size - 1):
        with (
            largest_file(limit),
            pytest.raises(FormatError, match=r"checkpoint\.safetensors: cannot write: "),
        ):
            write_checkpoint(path, after)
        assert path.read_bytes() == good
        assert list(path.parent.iterdir()) == [path]
    with largest_file(size):
        write_checkpoint(path, after)
    assert_same(read_checkpoint(path), after)


@pytest.mark.parametrize("moment", ["data", "fsync", "replace"])
def test_killed_while_writing(small: tuple[Path, TrainingState], moment: str) -> None:
    """SIGKILL behind half of the data, before they are on the disk, and before renaming."""
    path, state = small
    program = f"""
import contextlib, dataclasses, os, signal, sys
from sparsednn.formats import _container
from sparsednn.training.checkpoints import read_checkpoint, write_checkpoint

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

class Dying:
    def __init__(self, file):
        self.file, self.left = file, 10
    def write(self, data):
        self.file.write(data)
        self.left -= 1
        if not self.left:
            self.file.flush()
            die()

@contextlib.contextmanager
def half(*given, real=_container.atomic_file, **named):
    with real(*given, **named) as file:
        yield Dying(file)

if {moment!r} == "data":
    _container.atomic_file = half
else:
    setattr(os, {moment!r}, die)
state = read_checkpoint(sys.argv[1])
write_checkpoint(sys.argv[1], dataclasses.replace(state, progress={{"step": 8}}))
"""
    ended = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert ended.returncode == -9, ended.stderr
    assert_same(read_checkpoint(path), state)
    later = replace(state, progress={"step": 9})
    write_checkpoint(path, later)
    assert_same(read_checkpoint(path), later)


# ---- the same run?


def test_differences() -> None:
    saved = {"optimizer": {"name": "sgd", "momentum": 0.9}, "seed": 1, "widths": [1, 2], "x": None}
    same = {"optimizer": {"momentum": 0.9, "name": "sgd"}, "seed": 1.0, "widths": (1, 2), "x": None}
    assert differences(saved, same) == []
    assert differences({"a": math.nan, "b": {}}, {"a": math.nan, "b": {}}) == []
    asked = {"optimizer": {"name": "adam"}, "widths": [1, 2], "new": "not set", "x": None}
    assert differences(saved, asked) == [
        ("optimizer.name", '"sgd"', '"adam"'),
        ("new", "not set", '"not set"'),
        ("optimizer.momentum", "0.9", "not set"),
        ("seed", "1", "not set"),
    ]
    assert differences(saved, asked, may_differ={"optimizer", "seed", "new"}) == []
    assert [one.name for one in differences(saved, asked, may_differ=["optimizer.name"])] == [
        "new",
        "optimizer.momentum",
        "seed",
    ]


def test_check_settings_and_origin(small: tuple[Path, TrainingState]) -> None:
    path, _ = small
    state = read_checkpoint(path)
    check_settings(state, state.settings, path)
    asked = {**state.settings, "seed": 5}
    check_settings(state, asked, path, may_differ={"seed"})
    message = r"checkpoint\.safetensors: this run has seed 0, asked for is 5: resume"
    with pytest.raises(InputError, match=message):
        check_settings(state, asked, path)
    message = r"has optimizer not set, asked for is 3 \(3 more settings differ\)"
    with pytest.raises(InputError, match=message):
        check_settings(state, {**asked, "optimizer": 3}, path)
    check_origin(state, state.origin, path)
    message = "is of another network: its training began with 0123456789ab, this network is feed"
    with pytest.raises(InputError, match=message):
        check_origin(state, "feed" * 16, path)
