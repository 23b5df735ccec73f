"""``infer``: every format of networks and inputs, both kernels, outputs, categories, the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from cli.cli_program import Program
from cli.conftest import BIAS

MODELS = [["net.safetensors"], ["npz"], ["mtx"], ["neuron64", "--bias", BIAS]]
INPUTS = ["digits.tsv", "digits.npz", "digits.npy", "digits.safetensors", "digits:64"]
KERNELS = ["numba", "reference"]
KEYS = {
    "network", "neurons", "layers", "edges", "images", "threads", "kernel", "seconds",
    "edges_per_second", "categories", "truth",
}  # fmt: skip


@pytest.mark.parametrize("model", MODELS, ids=lambda model: str(model[0]))
@pytest.mark.parametrize("inputs", INPUTS)
def test_every_format_gives_the_answer(small: Program, model: list[object], inputs: str) -> None:
    done = small.ok(
        "infer", *model, "--inputs", inputs, "--images", 300, "--truth", "truth.tsv",
        "--kernel", "reference", "--json",
    )  # fmt: skip
    assert done.err == ""
    assert set(done.json) >= KEYS
    assert set(done.json["seconds"]) >= {"read", "infer"}
    expected = {
        "neurons": 64,
        "layers": 2,
        "edges": 1024,
        "images": 300,
        "threads": 1,
        "kernel": "reference",
        "categories": len(Path("truth.tsv").read_text().split()),
        "truth": "pass",
    }
    assert {key: done.json[key] for key in expected} == expected
    rate = 300 * 1024 / done.json["seconds"]["infer"]
    assert done.json["edges_per_second"] == pytest.approx(rate)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".tsv"])
def test_kernels_write_the_same_files(small: Program, suffix: str) -> None:
    for kernel in KERNELS:
        found = small.ok(
            "infer", "net.safetensors", "--inputs", "digits.tsv", "--kernel", kernel, "--json",
            "--categories-out", f"{kernel}.categories", "--outputs-out", f"{kernel}{suffix}",
        ).json  # fmt: skip
        assert (found["kernel"], found["truth"]) == (kernel, None)
    assert Path("numba.categories").read_bytes() == Path("reference.categories").read_bytes()
    assert Path("numba.categories").read_bytes() == Path("truth.tsv").read_bytes()
    a, b = (Path(f"{kernel}{suffix}") for kernel in KERNELS)
    if suffix == ".npz":
        assert (sp.load_npz(a) != sp.load_npz(b)).nnz == 0
    else:
        assert a.read_bytes() == b.read_bytes()


def test_outputs_and_categories_belong_together(small: Program) -> None:
    for suffix in (".npy", ".npz", ".tsv"):
        small.ok(
            "infer", "npz", "--inputs", "digits.npz", "--kernel", "reference",
            "--categories-out", "ids", "--outputs-out", f"out{suffix}",
        )  # fmt: skip
    ids = np.loadtxt("ids", dtype=np.int64)
    dense = np.load("out.npy")
    assert (dense.shape, dense.dtype) == ((64, 300), np.float32)
    np.testing.assert_array_equal(ids, np.flatnonzero(dense.any(axis=0)) + 1)
    np.testing.assert_array_equal(sp.load_npz("out.npz").toarray(), dense)
    image, neuron, value = np.loadtxt("out.tsv", unpack=True)
    again = np.zeros_like(dense)
    again[neuron.astype(int) - 1, image.astype(int) - 1] = value
    np.testing.assert_array_equal(again, dense)


def test_threads_images_and_layers(small: Program) -> None:
    run = ("infer", "net.safetensors", "--inputs", "digits.npy", "--json")
    assert small.ok(*run, "--threads", 1).json["threads"] == 1
    assert small.ok(*run, "--threads", 3).json["threads"] == 3
    assert small.ok(*run, "--images", 7).json["images"] == 7
    small.fails(3, r"digits\.npy: has 300 images, --images asks for 9999", *run, "--images", 9999)
    one = small.ok(*run, "--layers", 1).json
    assert (one["layers"], one["edges"]) == (1, 512)
    for threads in (1, 3):
        small.ok(*run, "--threads", threads, "--outputs-out", f"{threads}.npy")
    assert Path("1.npy").read_bytes() == Path("3.npy").read_bytes()


def test_table_for_people(small: Program) -> None:
    done = small.ok("infer", "net.safetensors", "--inputs", "digits.npy", "--kernel", "reference")
    rows = dict(line.split(maxsplit=1) for line in done.out.splitlines() if "seconds" not in line)
    assert (rows["edges"], rows["truth"], rows["kernel"]) == ("1,024", "not given", "reference")
    assert "seconds infer" in done.out
    assert done.err == ""


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_wrong_id_is_exit_code_4(small: Program, kernel: str) -> None:
    ids = Path("truth.tsv").read_text().split()
    missing = next(str(k) for k in range(1, 301) if str(k) not in ids)
    wrong = sorted([*ids[1:], missing], key=int)
    Path("wrong.tsv").write_text("\n".join(wrong))
    done = small(
        "infer", "net.safetensors", "--inputs", "digits.npy", "--kernel", kernel, "--truth",
        "wrong.tsv", "--json", "--categories-out", "found",
    )  # fmt: skip
    assert done.code == 4
    assert done.json["truth"] == "fail"
    assert done.json["categories"] == len(ids)
    assert done.err == (
        f"sparsednn: error: wrong.tsv: {len(ids)} categories found, {len(ids)} in the truth; "
        f"1 missing (first: {missing}), 1 too many (first: {ids[0]})\n"
    )
    assert Path("found").read_bytes() == Path("truth.tsv").read_bytes()
    table = small(
        "infer", "net.safetensors", "--inputs", "digits.npy", "--kernel", kernel, "--truth",
        "wrong.tsv",
    )  # fmt: skip
    assert table.code == 4
    assert table.out.splitlines()[-1].split() == ["truth", "fail"]


def test_an_empty_truth_is_an_answer(small: Program) -> None:
    Path("none.tsv").touch()
    done = small("infer", "npz", "--inputs", "digits.npy", "--truth", "none.tsv", "--json")
    assert (done.code, done.json["truth"]) == (4, "fail")
    small.ok("convert", "neuron64", "dead.safetensors", "--bias", -30)
    dead = small.ok("infer", "dead.safetensors", "--inputs", "digits.npy", "--truth", "none.tsv")
    assert dead.out.splitlines()[-1].split() == ["truth", "pass"]


def test_official_network_on_digits(program: Program) -> None:
    for kernel in KERNELS:
        program.ok(
            "infer", "graph-challenge:1024", "--layers", 8, "--inputs", "digits:1024",
            "--kernel", kernel, "--categories-out", kernel, "--outputs-out", f"{kernel}.npy",
        )  # fmt: skip
    assert Path("numba").read_bytes() == Path("reference").read_bytes() != b""
    a, b = (np.load(f"{kernel}.npy") for kernel in KERNELS)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    program.ok(
        "datasets", "radixnet", "--graph-challenge", 1024, "--layers", 8, "--format", "tsv",
        "--out", "tsv",
    )  # fmt: skip
    program.ok("datasets", "digits", "--out", "tsv")
    found = program.ok(
        "infer", "tsv/neuron1024", "--inputs", "tsv/sparse-digits-1024.tsv", "--truth",
        "reference", "--json",
    ).json  # fmt: skip
    assert (found["truth"], found["images"], found["edges"]) == ("pass", 1797, 8 * 32768)


def test_inputs_of_another_hand(small: Program) -> None:
    """CRLF, any order, blanks, negative and zero values: all of it is a triplet file."""
    Path("a.tsv").write_bytes(b"2 1 -1\r\n1\t64\t0.5\r\n1\t2\t0\r\n")
    found = small.ok("infer", "npz", "--inputs", "a.tsv", "--kernel", "reference", "--json").json
    assert found["images"] == 2
