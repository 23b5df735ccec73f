"""Bad input of every kind: exit code, one line that names the place, and no file is touched."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp
from cli.cli_program import Edit, Program, edit
from cli.conftest import BIAS

from sparsednn import inference

INFER = ("infer", "net.safetensors", "--inputs")
RUN = (*INFER, "digits.npy", "--kernel", "reference")
FOLDER = ("neuron64", "--bias", BIAS)


@pytest.mark.parametrize(
    ("code", "says", "arguments"),
    [
        # MODEL
        (3, r"nothing\.npz: no such file", ("inspect", "nothing.npz")),
        (3, "nothing: no such file", ("convert", "nothing", "out.safetensors")),
        (3, "x{300}: cannot read: File name too long", ("inspect", "x" * 300)),
        (3, r"net\.h5: unknown suffix '\.h5' for a network", ("inspect", "net.h5")),
        (3, "empty: no network in this folder", ("inspect", "empty")),
        (3, r"\.: holds files of several formats", ("inspect", "")),
        (3, "'graph-chalenge:1': no such file, and no network", ("inspect", "graph-chalenge:1")),
        (3, "'https://x.y/z': no such file, and no network", ("inspect", "https://x.y/z")),
        (3, "'graph-challenge:': '' is not a number", ("inspect", "graph-challenge:")),
        (3, "'12x' is not a number of layers", ("inspect", "graph-challenge:1024-12x")),
        (3, "networks of 1024, .* found 1000", ("inspect", "graph-challenge:1000")),
        (3, "1 to 1920 layers .* found 0", ("inspect", "graph-challenge:1024-0")),
        (3, "1 to 1920 layers .* found 1921", ("inspect", "graph-challenge:1024-1921")),
        # --layers and --bias
        (2, "layers must be at least 1, found 0", ("inspect", "npz", "--layers", "0")),
        (2, "--layers must be at least 1", ("inspect", "graph-challenge:1024", "--layers", "-1")),
        (3, "net.safetensors: has 2 layers, 3", ("inspect", "net.safetensors", "--layers", "3")),
        (3, "neuron64: has 2 layers, 3", ("inspect", *FOLDER, "--layers", "3")),
        (3, "mtx: has 2 layers, 3", ("convert", "mtx", "out.safetensors", "--layers", "3")),
        (3, "asks for 5", ("inspect", "graph-challenge:1024-4", "--layers", "5")),
        (2, "neuron64: there is no official bias for 64", ("inspect", "neuron64")),
        (2, r"bias 0\.5: it must not be positive", ("inspect", "neuron64", "--bias", "0.5")),
        (2, "neuron64: bias nan", ("inspect", "neuron64", "--bias", "nan")),
        (2, r"bias -1e\+300: .* float32", ("inspect", "neuron64", "--bias", "-1e300")),
        (2, "has its biases inside", ("inspect", "net.safetensors", "--bias", "-1")),
        (2, r"npz/network\.json says what the biases are", ("inspect", "npz", "--bias", "-1")),
        (2, "--bias does not apply", ("inspect", "graph-challenge:1024-2", "--bias", "-1")),
        # INPUTS
        (3, r"nothing\.tsv: no such file", (*INFER, "nothing.tsv")),
        (3, r"net\.h5: unknown suffix '\.h5' for inputs", (*INFER, "net.h5")),
        (3, "empty: is a folder, a file was expected", (*INFER, "empty")),
        (3, "'digit:64': no such file, and no inputs of this name", (*INFER, "digit:64")),
        (3, "'x' is not a number of neurons", (*INFER, "digits:x")),
        (3, "'mnist:validation': no such file", (*INFER, "mnist:validation")),
        (3, "square number of neurons .* found 60", (*INFER, "digits:60")),
        (2, "--images must be at least 1", (*INFER, "digits.npy", "--images", "0")),
        # MODEL and INPUTS swapped
        (3, r"digits\.tsv: unknown suffix", ("infer", "digits.tsv", "--inputs", "npz")),
        (3, r"digits\.safetensors: neither a native network", ("inspect", "digits.safetensors")),
        (3, r"net\.safetensors: not a native input set", (*INFER, "net.safetensors")),
        (3, "'digits:64': no such file, and no network", ("infer", "digits:64", "--inputs", "npz")),
        # Inputs of another width than the network's
        (3, "'digits:81' have 81 features, network 'small' takes 64", (*INFER, "digits:81")),
        (3, r"wide\.npy: has 65 features, expected 64", (*INFER, "wide.npy")),
        (3, r"wide\.tsv: line 2: feature 65 is out of range", (*INFER, "wide.tsv")),
        (3, r"images-16\.tsv: has 16 features by its name", (*INFER, "sparse-images-16.tsv")),
        # The run
        (2, "unknown kernel 'cuda': known are numba, reference", (*RUN, "--kernel", "cuda")),
        (2, "--threads must be at least 1, found 0", (*RUN, "--threads", "0")),
        (2, "--threads must be at least 1, found -2", (*RUN, "--threads", "-2")),
        # The truth
        (3, "nothing: no such file", (*RUN, "--truth", "nothing")),
        (3, "empty: is a folder", (*RUN, "--truth", "empty")),
        (3, r"digits\.npy: line 1: .* is not an image id", (*RUN, "--truth", "digits.npy")),
        (3, "zero: line 2: '0' is not an image id", (*RUN, "--truth", "zero")),
        (3, "order: line 3: id 2 after 4: ids must ascend", (*RUN, "--truth", "order")),
        (3, "beyond: has image 301, but there are only 300", (*RUN, "--truth", "beyond")),
        (
            3,
            "beyond: has image 301",
            (*RUN, "--truth", "beyond", "--categories-out", "a", "--outputs-out", "a.npz"),
        ),
        # What is written
        (3, "no/ids: cannot write: no folder", (*RUN, "--categories-out", "no/ids")),
        (3, "empty: cannot write: it is a folder", (*RUN, "--categories-out", "empty")),
        (3, r"no/a\.npy: cannot write: no folder", (*RUN, "--outputs-out", "no/a.npy")),
        (3, r"no/a\.tsv: cannot write: no folder", (*RUN, "--outputs-out", "no/a.tsv")),
        (3, r"folder\.npz: cannot write: it is a folder", (*RUN, "--outputs-out", "folder.npz")),
        (2, r"a\.csv: outputs are written as \.npy", (*RUN, "--outputs-out", "a.csv")),
        (2, "given twice", (*RUN, "--outputs-out", "a.npy", "--categories-out", "./a.npy")),
        (2, r"digits\.npy: given twice", (*RUN, "--outputs-out", "digits.npy")),
        (
            2,
            r"truth\.tsv: given twice",
            (*RUN, "--truth", "truth.tsv", "--categories-out", "truth.tsv"),
        ),
        (2, "unknown format 'h5'", ("convert", "npz", "out", "--format", "h5")),
        (2, "out: writing a folder needs a format", ("convert", "npz", "out")),
        (2, "out: the name of a native", ("convert", "npz", "out", "--format", "native")),
        (2, "does not fit format 'npz'", ("convert", "npz", "a.safetensors", "--format", "npz")),
        (2, r"a\.npz: one \.npz file holds one layer", ("convert", "mtx", "a.npz")),
        (3, r"no/a\.safetensors: cannot write", ("convert", "npz", "no/a.safetensors")),
        (3, "no/a: cannot write: no folder", ("convert", "npz", "no/a", "--format", "npz")),
        (3, "truth.tsv: cannot write: it", ("convert", "npz", "truth.tsv", "--format", "npz")),
        (
            3,
            r"npz: already has layer-1\.npz and 1 more",
            ("convert", "mtx", "npz", "--format", "graph-challenge"),
        ),
    ],
)  # fmt: skip
def test_bad_call(small: Program, code: int, says: str, arguments: tuple[object, ...]) -> None:
    for folder in ("empty", "folder.npz"):
        Path(folder).mkdir()
    Path("net.h5").touch()
    Path("wide.tsv").write_text("1 1 1\n1 65 1\n")
    Path("sparse-images-16.tsv").write_text("1 1 1\n")
    np.save("wide.npy", np.ones((65, 3)))
    Path("zero").write_text("1\n0\n")
    Path("order").write_text("1\n4\n2\n")
    Path("beyond").write_text("1\n301\n")
    small.fails(code, says, *arguments)


TRIPLETS: list[tuple[Edit, str]] = [
    (lambda b: b[: b.rindex(b"\t")], r"line \d+: found 2 fields"),  # cut off within a line
    (lambda b: b"\0" * 40, "line 1: binary content"),
    (lambda b: bytes(range(128, 256)), "line 1: found 1 field"),
    (gzip.compress, r"line 1: gzip-compressed content: its name must end in \.gz"),
    (lambda b: b"image pixel value\n" + b, "line 1: .* is not a whole number"),
    (lambda b: b.replace(b"\t", b","), "line 1: found 1 field"),
    (lambda b: b + b"1\t99\t1\n", r"line \d+: \w+ 99 is out of range, the largest is 64"),
    (lambda b: b + b"1\t0\t1\n", r"line \d+: \w+ 0 is out of range"),
    (lambda b: b + b"1\t-3\t1\n", r"line \d+: \w+ '-3' is not a whole number"),
    (lambda b: b + b.splitlines(True)[4], r"line \d+: entry .* is there twice, first in line 5"),
    (lambda b: b + b"64\t64\tnan\n", r"line \d+: value 'nan' is not a finite float32"),
    (lambda b: b + b"64\t64\tinf\n", r"line \d+: value 'inf' is not a finite float32"),
    (lambda b: b + b"64\t64\t1e39\n", r"line \d+: value '1e39' is not a finite float32"),
    (lambda b: b + b"64\t64\t9.4e-8513046e-01\n", r"line \d+: value '9\.4.*' is not a number"),
    (lambda b: b + b"\n\n1\t1\t1\n", r"line \d+: empty line"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "says"), TRIPLETS)
def test_bad_triplets(small: Program, change: Edit, says: str) -> None:
    layer = edit(Path("neuron64/n64-l2.tsv"), change)
    small.fails(3, f"{layer}: {says}", "infer", *FOLDER, "--inputs", "digits.npy")
    small.fails(3, f"{layer}: {says}", "inspect", *FOLDER, "--check", "--json")
    small.fails(3, f"{layer}: {says}", "convert", *FOLDER, "out", "--format", "npz")
    edit(Path("digits.tsv"), change)
    small.fails(3, rf"digits\.tsv: {says}", *INFER, "digits.tsv", "--outputs-out", "a.npy")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "there are no images in it"),
        (b"\n \n", "there are no images in it"),
        (b"\xef\xbb\xbf1 1 1\n", "line 1: image .* is not a whole number"),
        ("1 1 1\n".encode("utf-16"), "line 1: "),
    ],
)
def test_triplets_without_images(small: Program, content: bytes, says: str) -> None:
    Path("a.tsv").write_bytes(content)
    small.fails(3, rf"a\.tsv: {says}", *INFER, "a.tsv")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"1 1 1\n", r"not a whole gzip file: Not a gzipped file"),
        (gzip.compress(b"1 1 1\n" * 9, mtime=0)[:-9], "not a whole gzip file"),
        (gzip.compress(b"1 1 x\n", mtime=0), "line 1: value 'x' is not a number"),
    ],
)
def test_bad_gzip(small: Program, content: bytes, says: str) -> None:
    Path("a.tsv.gz").write_bytes(content)
    Path("neuron64/n64-l1.tsv").unlink()
    Path("neuron64/n64-l1.tsv.gz").write_bytes(content)
    small.fails(3, rf"a\.tsv\.gz: {says}", *INFER, "a.tsv.gz")
    small.fails(3, rf"neuron64/n64-l1\.tsv\.gz: {says}", "inspect", *FOLDER, "--check")


def test_layer_files_missing_or_mixed(small: Program) -> None:
    second = Path("neuron64/n64-l2.tsv")
    second.rename("neuron64/n64-l3.tsv")
    small.fails(3, rf"{second}: no such file, but there is n64-l3\.tsv", "inspect", *FOLDER)
    Path("neuron64/n64-l3.tsv").rename("neuron64/n32-l2.tsv")
    small.fails(3, r"neuron64: layers of several widths \(32, 64\)", "inspect", *FOLDER)
    Path("neuron64/n32-l2.tsv").unlink()
    second.symlink_to("nowhere")
    small.fails(3, rf"{second}: no such file", "inspect", *FOLDER)
    second.unlink()
    second.mkdir()
    small.fails(3, rf"{second}: is a folder", "inspect", *FOLDER)
    Path("neuron64").rename("parent")
    Path("parent/neuron64").mkdir()
    Path("parent/neuron128").mkdir()
    for name in ("n64-l1.tsv", "n64-l2.tsv"):
        Path("parent", name).rename(Path(name))
    small.fails(3, "parent: has neuron128, neuron64: name the one to read", "inspect", "parent")


SAVE: dict[str, Callable[[Path, Any], None]] = {
    ".npz": lambda path, matrix: sp.save_npz(path, sp.csr_array(matrix)),
    ".mtx": lambda path, matrix: scipy.io.mmwrite(path, sp.coo_array(matrix)),
}


@pytest.mark.parametrize("suffix", SAVE)
def test_layers_that_do_not_chain(program: Program, suffix: str) -> None:
    for number, shape in enumerate([(5, 4), (6, 5), (2, 7)], 1):
        Path("net").mkdir(exist_ok=True)
        SAVE[suffix](Path(f"net/layer-{number}{suffix}"), np.ones(shape))
    says = r"net: .*layer 2 has shape \(6, 5\), layer 3 has shape \(2, 7\): 6 outputs do not fit 7"
    program.fails(3, says, "inspect", "net")
    program.fails(3, says, "convert", "net", "out.safetensors")
    program.ok("inspect", "net", "--layers", 2)


@pytest.mark.parametrize("suffix", SAVE)
@pytest.mark.parametrize(
    ("value", "says"),
    [(np.nan, "is nan"), (-np.inf, "is -inf"), (1e300, "is inf")],
)
def test_weights_that_are_no_numbers(
    program: Program, suffix: str, value: float, says: str
) -> None:
    Path("net").mkdir()
    SAVE[suffix](Path(f"net/layer-1{suffix}"), np.array([[1.0, 0.0], [2.0, value]]))
    program.fails(3, rf"net/layer-1{suffix}: weight \(1, 1\) {says}", "inspect", "net")
    program.fails(2, r"net: bias 1e\+300: .*finite", "inspect", "net", "--bias", "1e300")


HEAD = b"%%MatrixMarket matrix coordinate real general\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "line 1: not a Matrix Market file"),
        (b"hello\n", "line 1: not a Matrix Market file"),
        (HEAD, "Premature EOF"),
        (HEAD + b"2 2 2\n1 1 1\n", "Truncated file"),
        # SciPy's reader ends Python with a segmentation fault on some of the next four.
        (HEAD + b"2 2 2\n1 1 1\n2 ", "line 4: found 1 numbers, expected 3"),
        (HEAD + b"2 2 2\n1 1 1\n2 2 -\n", "Line 4: Invalid floating-point"),
        (HEAD + b"2 2 2\n1 1 1\n2 2 1\0\n", r"line 4: binary content"),
        (HEAD + b"% c\n\0\n2 2 2\n1 1 1\n", r"line 3: binary content"),
        (HEAD + b"2 2 1\n3 1 1\n", "Line 3: Row index out of bounds"),
        (HEAD + b"2 2 1\n1 0 1\n", "Line 3: Column index out of bounds"),
        (HEAD + b"2 2 1\n1 1 x\n", "Line 3: Invalid floating-point"),
        (HEAD + b"2 2 2\n1 1 1\n1 1 2\n", r"entry \(1, 1\) is there twice"),
        (HEAD + b"2 2 1\n1 1 1\n1 2 1\n", "Line 4: Too many lines"),
        (HEAD + b"0 0 0\n", r"a matrix of shape \(0, 0\)"),
        (HEAD.replace(b"real", b"complex") + b"1 1 1\n1 1 1 1\n", "weights are complex128"),
        (HEAD.replace(b"real", b"pattern") + b"2 2 1\n1\n", "line 3: found 1 numbers, expected 2"),
    ],
)  # fmt: skip
def test_bad_matrix_market(program: Program, content: bytes, says: str) -> None:
    Path("a.mtx").write_bytes(content)
    program.fails(3, rf"a\.mtx: .*{says}", "inspect", "a.mtx")
    Path("a.mtx.gz").write_bytes(gzip.compress(content))
    program.fails(3, rf"a\.mtx\.gz: .*{says}", "inspect", "a.mtx.gz")


def test_a_last_line_without_newline_was_cut_off(program: Program) -> None:
    # Half a number is a number, too: "3" may have been "3.5e-2".
    Path("a.mtx").write_bytes(HEAD + b"2 2 2\n\n1 1 1\n2 2 3")
    program.fails(3, r"a\.mtx: line 5: no newline at the end", "inspect", "a.mtx")
    Path("a.tsv").write_bytes(b"1\t1\t1\n2\t2\t5.0")
    model = "graph-challenge:1024-1"
    program.fails(3, r"a\.tsv: line 2: no newline at the end", "infer", model, "--inputs", "a.tsv")


def test_sizes_that_no_memory_has(program: Program) -> None:
    Path("a.mtx").write_bytes(HEAD + b"2 2 99999999999999\n1 1 1\n")
    program.fails(3, r"out of memory: a\.mtx: Unable to allocate", "inspect", "a.mtx")


@pytest.mark.parametrize(
    ("path", "change", "says"),
    [
        ("net.safetensors", lambda b: b[:-5], "truncated: its header tells of"),
        ("net.safetensors", lambda b: b"", "truncated: 0 bytes"),
        ("net.safetensors", lambda b: b"\x80\x04K\x01." * 9, "not a safetensors file"),
        ("npz/layer-2.npz", lambda b: b[:-5], "not a matrix as scipy"),
        ("npz/layer-2.npz", lambda b: b"PK", "not a matrix as scipy"),
        ("npz/network.json", lambda b: b[:-5], "not JSON"),
        ("npz/network.json", lambda b: b.replace(b"clamped_relu", b"gelu"), "layer 1: unknown act"),
        ("npz/network.json", lambda b: b.replace(b"layer-2", b"layer-3"), r"npz/layer-3\.npz: no"),
        ("mtx/network.json", lambda b: b.replace(b'"layer-2', b'"../layer-2'), "layer 2: '../lay"),
    ],
)
def test_damaged_models(small: Program, path: str, change: Edit, says: str) -> None:
    edit(Path(path), change)
    model = path.partition("/")[0]
    for arguments in (("inspect", model), ("infer", model, "--inputs", "digits.npy")):
        line = small.fails(3, says, *arguments)
        assert path in line or "layer-3.npz" in line


def test_a_native_file_with_an_index_that_is_out_of_range(small: Program) -> None:
    raw = bytearray(Path("net.safetensors").read_bytes())
    at = len(raw) - 4 * 1024 * 2  # somewhere in the second half: indices or values
    raw[at : at + 8] = b"\xff" * 8
    Path("net.safetensors").write_bytes(raw)
    small.fails(3, r"net\.safetensors: layer [12]: ", *RUN)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.ones((300, 64)), "has 300 features, expected 64"),  # transposed
        (np.full((64, 2), np.nan), "image 0, feature 0 is nan"),
        (np.full((64, 2), 1e300), "image 0, feature 0 is inf"),
        (np.ones(64), r"float64 array of shape \(64,\)"),
        (np.ones((64, 2), np.complex64), "complex64 array"),
        (np.array(["a"]), "<U1 array"),
        (np.ones((64, 0)), "there are no images in it"),
        (np.ones((0, 3)), "0 features"),
    ],
)
def test_bad_dense_inputs(small: Program, array: np.ndarray, says: str) -> None:
    np.save("a.npy", array)
    small.fails(3, rf"a\.npy: {says}", *INFER, "a.npy")


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("digits.npy", lambda b: b[:-7], "not a NumPy array file"),
        ("digits.npy", lambda b: b.replace(b"}", b" "), "not a NumPy array file"),
        ("digits.npy", lambda b: b"1 1 1\n", "not a NumPy array file"),
        ("digits.npz", lambda b: b[:-7], "not a matrix as scipy"),
        ("digits.npz", lambda b: b"1 1 1\n", "not a matrix as scipy"),
        ("digits.safetensors", lambda b: b[:-7], "truncated"),
    ],
)
def test_damaged_inputs(small: Program, name: str, change: Edit, says: str) -> None:
    edit(Path(name), change)
    small.fails(3, f"{name}: {says}", *INFER, name)


def test_pickles_are_not_opened(small: Program) -> None:
    np.save("a.npy", np.array([{}], object), allow_pickle=True)
    small.fails(3, r"a\.npy: not a NumPy array file", *INFER, "a.npy")
    np.savez("a.npz", data=np.array([{}], object), format="csc", allow_pickle=True)
    small.fails(3, r"a\.npz: not a matrix", *INFER, "a.npz")
    small.fails(3, r"a\.npz: not a matrix", "inspect", "a.npz")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(small: Program) -> None:
    Path("locked").mkdir(mode=0o500)
    for option, name in (("--categories-out", "ids"), ("--outputs-out", "a.npy")):
        small.fails(3, f"locked/{name}: cannot write: Permission", *RUN, option, f"locked/{name}")
    small.fails(3, "locked/a: cannot write", "convert", "npz", "locked/a", "--format", "npz")
    small.fails(3, "locked/a: cannot make", "datasets", "digits", "--out", "locked/a")


@pytest.mark.parametrize(
    ("option", "name"),
    [("--outputs-out", "a.npy"), ("--outputs-out", "a.tsv"), ("--categories-out", "ids")],
)
def test_outputs_that_fail_are_not_left_behind(
    small: Program, monkeypatch: pytest.MonkeyPatch, option: str, name: str
) -> None:
    """The old file stays, whatever happens in the middle of the run."""
    Path(name).write_text("old")

    def fail(*args: object, sink: Any = None, **options: object) -> None:
        if sink is not None:
            sink(0, np.ones((64, 5), np.float32))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(inference, "infer", fail)
    small.fails(3, "No space left on device", *RUN, option, name)
