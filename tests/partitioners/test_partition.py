"""`Partition` and its file: what goes in comes out, and what is wrong is named."""

from __future__ import annotations

import contextlib
import io
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from networks import random_layer
from sparsednn import SparseLayer, SparseNetwork
from sparsednn.errors import FormatError, InputError, ShapeError
from sparsednn.partitioners import Partition, PartitionMeta, read_partition

META = PartitionMeta("joint", "kahypar+cyclic", "1.3.7", "default", 7, 2, 0.03, "net", "ab" * 32)
VECTOR = np.array([0, 1, 2, 1], np.int32)


def sample() -> Partition:
    return Partition([VECTOR, VECTOR[:2], VECTOR], 3, META)


def meta_text(**changed: Any) -> str:
    values = {"parts": 3, **{name: getattr(META, name) for name in META.__slots__}} | changed
    return json.dumps({name: value for name, value in values.items() if value != "left out"})


def write(path: Path, meta: Any, **vectors: Any) -> Path:
    np.savez(path, allow_pickle=False, meta=np.array(meta), **vectors)
    return path


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=6),
    st.sampled_from([1, 2, 70_000, 2**31 - 1]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([None, "1.7"]),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    parts: int,
    seed: int,
    version: str | None,
) -> None:
    rng = np.random.default_rng(seed)
    owners = [rng.integers(0, parts, size) for size in sizes]
    meta = replace(META, version=version, network="größer → kleiner\n'x'", imbalance=0.1 + 0.2)
    path = tmp_path_factory.getbasetemp() / "round-trip.npz"
    Partition(owners, parts, meta).save(path)
    found = read_partition(path)
    assert (found.parts, found.meta) == (parts, meta)
    for one, other in zip(owners, found.owners, strict=True):
        np.testing.assert_array_equal(one, other)
        assert other.dtype == np.int32


def test_more_than_nine_layers_stay_in_order(tmp_path: Path) -> None:
    owners = [np.full(3, k % 3) for k in range(25)]
    Partition(owners, 3, META).save(tmp_path / "p.npz")
    found = read_partition(tmp_path / "p.npz")
    assert [vector[0] for vector in found.owners] == [k % 3 for k in range(25)]


def test_values_that_fit_are_shared_and_others_converted() -> None:
    vector = np.array([1, 0], np.int32)
    given = Partition([vector, [0, 1, 1]], 2, META)
    assert given.owners[0] is vector
    assert given.owners[1].dtype == np.int32
    assert repr(given) == "Partition(joint, 2 parts, 1 layers, network='net')"


def test_keys_of_a_later_version_are_no_reason_to_refuse(tmp_path: Path) -> None:
    text = meta_text(colour="green")
    found = read_partition(write(tmp_path / "p.npz", text, layer_0=VECTOR, layer_1=VECTOR))
    assert found.meta == META


@pytest.mark.parametrize(
    ("owners", "parts", "error", "message"),
    [
        ([VECTOR, VECTOR], 0, InputError, "at least 1 part, found 0"),
        ([VECTOR, VECTOR], 2**31, InputError, "at most 2147483647 parts"),
        ([VECTOR, VECTOR], 2, InputError, "layer_0 gives neuron 2 to part 2; parts are 0 to 1"),
        ([VECTOR, VECTOR - 1], 9, InputError, "layer_1 gives neuron 0 to part -1"),
        ([VECTOR, np.array([2**63], np.uint64)], 9, InputError, "part 9223372036854775808"),
        ([VECTOR], 3, ShapeError, "at least 2 neuron layers are needed, found 1"),
        ([], 3, ShapeError, "found 0"),
        ([VECTOR, VECTOR.astype(float)], 3, ShapeError, "layer_1 must be a vector of whole"),
        ([VECTOR > 0, VECTOR], 3, ShapeError, "layer_0 must be .* found bool"),
        ([VECTOR.reshape(2, 2), VECTOR], 3, ShapeError, r"of shape \(2, 2\)"),
    ],
)
def test_vectors_that_are_none(
    owners: Any, parts: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Partition(owners, parts, META)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ("{", "'meta' is not understood"),
        ("[]", "'meta' is not understood"),
        ("3", "'meta' is not understood"),
        ("[" * 100_000, "'meta' is not understood"),
        (5.0, "'meta' is not understood"),
        (meta_text(parts="left out"), "not understood: 'parts'"),
        (meta_text(hash="left out"), "not understood: 'hash'"),
        (meta_text(parts="3"), "'meta' has parts = '3'"),
        (meta_text(parts=3.0), "'meta' has parts = 3.0"),
        (meta_text(parts=True), "'meta' has parts = True"),
        (meta_text(parts=0), "at least 1 part, found 0"),
        (meta_text(hash=None), "'meta' has hash = None"),
        (meta_text(method=["joint"]), r"'meta' has method = \['joint'\]"),
        (meta_text(seed=1.5), "'meta' has seed = 1.5"),
        (meta_text(version=3), "'meta' has version = 3"),
        (meta_text(parts=2), "layer_0 gives neuron 2 to part 2"),
    ],
)
def test_wrong_meta(tmp_path: Path, meta: Any, message: str) -> None:
    path = write(tmp_path / "p.npz", meta, layer_0=VECTOR, layer_1=VECTOR)
    with pytest.raises(InputError, match=message) as caught:
        read_partition(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_wrong_files(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    sample().save(path)
    whole = path.read_bytes()
    text, npy, cut, empty = (tmp_path / n for n in ("a.txt", "a.npy", "cut.npz", "empty.npz"))
    text.write_text("0 1 2\n")
    np.save(npy, VECTOR)
    empty.touch()
    with zipfile.ZipFile(tmp_path / "pickled.npz", "w") as box:
        data = io.BytesIO()
        np.save(data, np.array([{}], dtype=object), allow_pickle=True)
        box.writestr("meta.npy", data.getvalue())
    no_meta = tmp_path / "no-meta.npz"
    np.savez(no_meta, layer_0=VECTOR)
    more = write(tmp_path / "more.npz", meta_text(), layer_0=VECTOR, layer_1=VECTOR, other=VECTOR)
    gap = write(tmp_path / "gap.npz", meta_text(), layer_0=VECTOR, layer_2=VECTOR)
    none = write(tmp_path / "none.npz", meta_text(), layer_0=VECTOR)
    real = write(tmp_path / "real.npz", meta_text(), layer_0=VECTOR, layer_1=VECTOR * 1.0)
    cases = [
        (tmp_path, "cannot read"),
        (tmp_path / "missing.npz", "no such file"),
        (text, "no partition file"),
        (npy, "no partition file"),
        (empty, "no partition file"),
        (tmp_path / "pickled.npz", "no partition file"),
        (no_meta, "an .npz with 'meta'"),
        (more, "layer_2"),
        (gap, "layer_1"),
        (none, "at least 2 neuron layers"),
        (real, "layer_1 must be a vector of whole numbers"),
    ]
    for wrong, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            read_partition(wrong)
        assert str(caught.value).startswith(f"{wrong}: ")
        assert "\n" not in str(caught.value)
    for length in range(0, len(whole), 7):
        cut.write_bytes(whole[:length])
        with pytest.raises(FormatError, match="no partition file"):
            read_partition(cut)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=3))
def test_damaged_files_raise_nothing_but_input_errors(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    sample().save(path)
    data = bytearray(path.read_bytes())
    for place, value in damage:
        data[place % len(data)] = value
    path.write_bytes(data)
    # Zip has bytes that mean nothing here, such as dates.
    with contextlib.suppress(InputError):
        assert read_partition(path).meta == META


@pytest.mark.parametrize("field", ["compression", "encryption", "size"])
def test_zip_files_that_cannot_be_read_here(tmp_path: Path, field: str) -> None:
    path = tmp_path / "p.npz"
    sample().save(path)
    data = bytearray(path.read_bytes())
    if field == "size":
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<i4", "fortran_order": False, "shape": (10**15,)}
        )
        with zipfile.ZipFile(path, "w") as box:
            box.writestr("meta.npy", header.getvalue())
            box.writestr("layer_0.npy", header.getvalue())
    else:
        for start, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
            at = data.index(start) + offset
            if field == "encryption":
                data[at] |= 1
            else:
                data[at + 2] = 99
        path.write_bytes(data)
    with pytest.raises(FormatError, match="no partition file"):
        read_partition(path)


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.npz"
    sample().save(path)
    before = path.read_bytes()

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "write_array", fails)
        with pytest.raises(FormatError, match=r"p\.npz"):
            Partition([VECTOR, VECTOR], 3, META).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["p.npz"]
    with pytest.raises(FormatError, match="folder"):
        sample().save(tmp_path)
    with pytest.raises(FormatError):
        sample().save(tmp_path / "nowhere" / "p.npz")


def test_saving_over_a_file_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "p"  # the name stays as it is: no suffix is added
    sample().save(path)
    Partition([[0], [0]], 1, META).save(path)
    assert read_partition(path).parts == 1


def test_another_network_is_refused() -> None:
    rng = np.random.default_rng(1)
    one = SparseNetwork([random_layer(rng, 4, 3)], name="one")
    two = SparseNetwork([random_layer(rng, 4, 3)], name="two")
    meta = replace(META, network=one.name, hash=one.hash)
    made = Partition([[0] * 3, [0] * 4], 1, meta)
    made.check(one)
    with pytest.raises(InputError) as caught:
        made.check(two, file="mine.npz")
    message = str(caught.value)
    assert message.startswith("mine.npz: ")
    for piece in ("'one'", "'two'", one.hash[:16], two.hash[:16]):
        assert piece in message


def test_other_weights_in_the_same_pattern_are_welcome(tmp_path: Path) -> None:
    """Training changes weights, biases and nothing that a partition depends on."""
    network = SparseNetwork([random_layer(np.random.default_rng(1), 5, 3)])
    layer = network[0]

    def changed(**arrays: Any) -> SparseNetwork:
        given = {"indptr": layer.indptr, "indices": layer.indices, "values": layer.values}
        return SparseNetwork([SparseLayer(**(given | arrays), n_in=3, bias=layer.bias + 1)])

    trained = changed(values=layer.values * 2)
    assert trained.hash != network.hash
    meta = replace(META, hash=network.hash, pattern=network.pattern_hash)
    made = Partition([[0] * 3, [0] * 5], 1, meta)
    made.save(tmp_path / "p.npz")
    read_partition(tmp_path / "p.npz").check(trained)
    moved = layer.indices.copy()
    row = int(np.argmax(np.diff(layer.indptr) == 1))
    assert np.diff(layer.indptr)[row] == 1
    moved[layer.indptr[row]] = (moved[layer.indptr[row]] + 1) % 3
    with pytest.raises(InputError, match="not for"):
        made.check(changed(indices=moved))
    # Files of older versions know the network only.
    with pytest.raises(InputError, match="not for"):
        Partition(made.owners, 1, replace(meta, pattern=None)).check(trained)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([3, 4], "2 neuron layers for a network of 3"),
        ([3, 4, 2, 2], "4 neuron layers for a network of 3"),
        ([4, 4, 2], "layer_0 has 4 neurons, the network's has 3"),
        ([3, 4, 1], "layer_2 has 1 neurons, the network's has 2"),
    ],
)
def test_sizes_that_were_changed(sizes: list[int], message: str) -> None:
    rng = np.random.default_rng(1)
    network = SparseNetwork([random_layer(rng, 4, 3), random_layer(rng, 2, 4)])
    made = Partition([np.zeros(n, int) for n in sizes], 1, replace(META, hash=network.hash))
    with pytest.raises(ShapeError, match=message):
        made.check(network)
