"""``infer`` on ranks: under mpirun, by ``--ranks``; grids, files, figures, refusals, left-overs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from cli.cli_program import Outcome, Program, snapshot
from cli.conftest import BIAS

from mpi_runs import MpiRuns, require_mpi, run_session
from row_wise import by_hand, dying_network, make_inputs, tolerance
from sparsednn.formats import write_inputs, write_network
from sparsednn.kernels.linked import PHASES
from sparsednn.machine import available_cores
from sparsednn.sources import load_network

CALLS = Path(__file__).with_name("calls_on_ranks.py")
IMAGES = 203
RANDOM = ("infer", "net.safetensors", "--inputs", "in.npz")
#: Models (their names are also those of their partition files) and inputs.
MODELS = {
    "net": (("net.safetensors",), ("in.npz",)),
    "neuron64": (("neuron64", "--bias", str(BIAS)), ("digits.tsv",)),
    "graph-challenge:1024": (
        ("graph-challenge:1024", "--layers", "4"), ("digits:1024", "--images", "301"),
    ),
}  # fmt: skip
FILES = {"net.safetensors", "in.npz", "neuron64", "digits.tsv"} | {
    f"{name}.p{parts}.npz" for name in MODELS for parts in (2, 4)
}
#: Compiling takes a minute where nothing has been compiled yet.
PATIENCE = 240
TIMES = {"seconds", "layer_seconds", "edges_per_second"}
HERE_KEYS = {
    "network", "neurons", "layers", "edges", "images", "threads", "kernel", "device",
    "precision", "seconds", "edges_per_second", "categories", "truth",
}  # fmt: skip
KEYS = HERE_KEYS | {
    "ranks", "grid", "words_sent", "words_predicted", "messages_sent", "messages_predicted",
    "tile_columns", "layer_seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, small_files: Path) -> Path:
    """net.safetensors with in.npz, neuron64/ with digits.tsv, and partitions of both."""
    folder = tmp_path_factory.mktemp("ranks")
    shutil.copytree(small_files / "neuron64", folder / "neuron64")
    shutil.copy(small_files / "digits.tsv", folder)
    networks = {
        "net": dying_network(4),
        "neuron64": load_network(str(folder / "neuron64"), bias=BIAS),
        "graph-challenge:1024": load_network("graph-challenge:1024", layers=4),
    }
    write_network(networks["net"], folder / "net.safetensors")
    write_inputs(make_inputs(networks["net"], IMAGES, 1), folder / "in.npz")
    for (name, network), parts in product(networks.items(), (2, 4)):
        by_hand(network, parts, 7).save(folder / f"{name}.p{parts}.npz")
    assert {one.name for one in folder.iterdir()} == FILES
    return folder


@dataclass(frozen=True)
class OnRanks:
    """The program in a folder with these files, on the ranks of one MPI."""

    here: Program
    mpi: MpiRuns

    def mpirun(self, ranks: int, *arguments: str) -> Outcome:
        program = ["-m", "sparsednn", *arguments]
        return self._told(self.mpi.run(ranks, program, check=False, timeout=PATIENCE))

    def ranks(self, ranks: int, *arguments: str) -> Outcome:
        """By ``--ranks``."""
        command = [sys.executable, "-m", "sparsednn", *arguments, "--ranks", str(ranks)]
        temporary = self.here.folder.parent / "temporary"
        temporary.mkdir(exist_ok=True)
        environ = self.mpi.environ({"TMPDIR": str(temporary)})
        done = self._told(run_session(command, environ, PATIENCE))
        left = [one.name for one in temporary.iterdir() if one.name.startswith("sparsednn")]
        assert left == []
        return done

    def alone(self, *arguments: str) -> Outcome:
        """Without ranks, in a process of its own."""
        command = [sys.executable, "-m", "sparsednn", *arguments]
        return self._told(run_session(command, self.mpi.environ(), 60))

    def files(self) -> set[str]:
        return {one.name for one in self.here.folder.iterdir()}

    def calls(self, ranks: int, calls: list[list[str]]) -> Iterator[list[Any]]:
        """Many calls in one start; for each a list of what the ranks have, see calls_on_ranks."""
        beside = self.here.folder.parent
        asked, answers = beside / "calls.json", beside / "answers"
        asked.write_text(json.dumps(calls))
        done = self.mpi.run(ranks, [CALLS, asked, answers], timeout=2 * PATIENCE)
        assert (done.stdout, done.stderr) == ("", "")
        told = [json.loads(Path(f"{answers}-{rank}.json").read_text()) for rank in range(ranks)]
        assert [len(one) for one in told] == [len(calls)] * ranks
        return zip(*told, strict=True)  # type: ignore[return-value]

    @staticmethod
    def _told(done: subprocess.CompletedProcess[str]) -> Outcome:
        return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Program:
    """In a folder of its own, so that files beside it are no left-overs."""
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SPARSEDNN_DEBUG", "")
    return Program(folder, capsys, monkeypatch)


@pytest.fixture
def here(program: Program, files: Path) -> Program:
    shutil.copytree(files, program.folder, dirs_exist_ok=True)
    return program


@pytest.fixture
def on(here: Program, mpi: MpiRuns) -> OnRanks:
    return OnRanks(here, mpi)


def one_line(done: Outcome, says: str) -> None:
    """Our one line of error, among the launcher's own ones; nobody says anything else of ours."""
    ours = [line for line in done.err.splitlines() if "sparsednn" in line or "Error" in line]
    assert len(ours) == 1, done.err
    assert ours[0].startswith("sparsednn: error: ")
    assert re.search(says, ours[0]), ours[0]


def dense(path: Path, shape: tuple[int, int]) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".npz":
        return sp.load_npz(path).toarray()
    found = np.zeros(shape, np.float32)
    image, neuron, value = np.loadtxt(path, unpack=True)
    found[neuron.astype(int) - 1, image.astype(int) - 1] = value
    return found


def words(here: Program, partition: str, model: str, *options: str) -> int:
    """What ``evaluate`` promises for one image."""
    told = here.ok("evaluate", model, partition, *options, "--json").json
    return int(told["methods"][0]["words_total"])


# --- answers ------------------------------------------------------------------------------------


def test_every_grid_kernel_and_file_gives_the_answer(on: OnRanks) -> None:
    """The same JSON and files as one process, with what is left out and what is not."""
    wanted = {
        "net": ((".npy", ".npz", ".tsv"), ("numba", "reference")),
        "neuron64": ((".tsv",), ("numba", "reference")),
        "graph-challenge:1024": ((".npy",), ("numba",)),
    }
    runs = {name: ("infer", *model, "--inputs", *given) for name, (model, given) in MODELS.items()}
    cases, calls = [], []
    for name, (suffixes, kernels) in wanted.items():
        for parts, suffix, kernel in product((1, 2, 4), suffixes, kernels):
            grid = f"{4 // parts}x{parts}"
            out, ids = f"{name}-{grid}-{kernel}{suffix}", f"{name}-{grid}-{kernel}{suffix}.ids"
            more = ["--kernel", kernel, "--outputs-out", out, "--categories-out", ids, "--json"]
            if suffix != ".tsv":
                more += ["--threads", "2"]
            if parts > 1:
                more += ["--partition", f"{name}.p{parts}.npz"]
                more += ["--no-drop"] if suffix == ".npz" else []
            if suffix == ".npy":  # the others find out
                more += ["--grid", grid]
            cases.append((name, grid, suffix, kernel, out, ids))
            calls.append([*runs[name], *more])
    promised, alone = {}, {}
    for name, (model, _) in MODELS.items():
        for parts in (2, 4):
            promised[name, parts] = words(on.here, f"{name}.p{parts}.npz", *model)
        for kernel in ("numba", "reference"):  # the last writes the truth
            alone[name, kernel] = on.here.ok(
                *runs[name], "--kernel", kernel, "--json", "--categories-out", f"{name}.ids",
                "--outputs-out", f"{name}.npy",
            ).json  # fmt: skip
            assert set(alone[name, kernel]) == HERE_KEYS

    limits = {"net": tolerance(dying_network(4))}
    for case, answer in zip(cases, on.calls(4, calls), strict=True):
        name, grid, suffix, kernel, out, ids = case
        assert [one[:3] for one in answer[1:]] == [[0, "", ""]] * 3, case
        code, printed, errors, _ = answer[0]
        assert (code, errors) == (0, ""), case
        found = json.loads(printed)
        assert set(found) == KEYS, case
        for key in HERE_KEYS - TIMES - {"threads"}:
            assert found[key] == alone[name, kernel][key], (case, key)
        threads = max(1, available_cores() // 4) if suffix == ".tsv" else 2
        assert found["threads"] == (1 if kernel == "reference" else threads)
        assert (found["ranks"], found["grid"]) == (4, grid)

        parts = int(grid[-1])
        promise = promised[name, parts] * found["images"] if parts > 1 else 0
        assert found["words_predicted"] == promise, case
        assert found["words_sent"] <= promise
        assert found["messages_sent"] <= found["messages_predicted"]
        assert (found["messages_predicted"] > 0) == (parts > 1)
        if suffix == ".npz":
            assert found["words_sent"] == promise
            assert found["messages_sent"] == found["messages_predicted"]
        assert (found["tile_columns"] > 0) == (kernel == "numba" and parts > 1)
        assert list(found["layer_seconds"]) == list(PHASES)
        for times in found["layer_seconds"].values():
            assert len(times) == found["layers"]
            assert min(times) >= 0
        assert set(found["seconds"]) == {"read", "prepare", "infer"}
        rate = found["images"] * found["edges"] / found["seconds"]["infer"]
        assert found["edges_per_second"] == pytest.approx(rate)

        truth = np.load(f"{name}.npy")
        atol = limits.get(name, 1e-5)
        np.testing.assert_allclose(dense(Path(out), truth.shape), truth, rtol=1e-5, atol=atol)
        assert Path(ids).read_bytes() == Path(f"{name}.ids").read_bytes() != b"", case
    written = {file for case in cases for file in case[4:]}
    written |= {f"{name}{suffix}" for name in MODELS for suffix in (".npy", ".ids")}
    assert on.files() == FILES | written


def test_mpirun_and_ranks_do_the_same(on: OnRanks) -> None:
    """Whole processes: one JSON object on stdout, nothing on stderr, equal files, a trace."""
    on.here.ok(*RANDOM, "--kernel", "reference", "--categories-out", "truth.tsv")
    run = [
        *RANDOM, "--partition", "net.p2.npz", "--threads", "2", "--no-drop", "--json",
        "--truth", "truth.tsv",
    ]  # fmt: skip
    told = []
    for way in (on.mpirun, on.ranks):
        name = way.__name__
        more = ["--outputs-out", f"{name}.npy", "--categories-out", f"{name}.ids"]
        done = way(4, *run, *more, "--trace", f"{name}.trace")
        assert (done.code, done.err) == (0, ""), done.err
        told.append(done.json)  # one object, or it would not be JSON
        check_trace(json.loads(Path(f"{name}.trace").read_text()), done.json)
    first, second = ({k: v for k, v in one.items() if k not in TIMES} for one in told)
    assert first == second
    assert (first["truth"], first["grid"], first["threads"]) == ("pass", "2x2", 2)
    assert first["words_sent"] == first["words_predicted"] > 0
    for suffix in ("npy", "ids"):
        assert Path(f"mpirun.{suffix}").read_bytes() == Path(f"ranks.{suffix}").read_bytes()
    written = {f"{way}.{end}" for way in ("mpirun", "ranks") for end in ("npy", "ids", "trace")}
    assert on.files() == FILES | written | {"truth.tsv"}


def check_trace(trace: Any, summary: Any) -> None:
    """Chrome's format; every rank, stream and layer; times that agree with the summary."""
    names = [one for one in trace["traceEvents"] if one["ph"] == "M"]
    assert [(one["pid"], one["name"], one["args"]) for one in names] == [
        (rank, "process_name", {"name": f"rank {rank}"}) for rank in range(summary["ranks"])
    ]
    events = [one for one in trace["traceEvents"] if one["ph"] != "M"]
    streams: dict[tuple[int, int], list[Any]] = {}
    for event in events:
        assert set(event) == {"ph", "pid", "tid", "name", "cat", "ts", "dur", "args"}
        assert event["ph"] == "X"
        assert event["name"] in PHASES
        assert event["dur"] >= 0
        assert 0 <= event["ts"] < 1e6 * summary["seconds"]["infer"] + 1e6
        streams.setdefault((event["pid"], event["tid"]), []).append(event)
    assert set(streams) == set(product(range(summary["ranks"]), range(summary["threads"])))
    layers = set(range(1, summary["layers"] + 1))
    most = dict.fromkeys(product(layers, PHASES), 0.0)
    for own in streams.values():
        assert {event["args"]["layer"] for event in own} == layers
        own.sort(key=lambda event: event["ts"])
        for event, after in pairwise(own):
            assert event["ts"] + event["dur"] <= after["ts"] + 0.01
        spent = dict.fromkeys(most, 0.0)
        for event in own:
            spent[event["args"]["layer"], event["name"]] += event["dur"] / 1e6
        most = {key: max(most[key], spent[key]) for key in most}
    for layer, phase in most:
        seconds = summary["layer_seconds"][phase][layer - 1]
        assert most[layer, phase] == pytest.approx(seconds, rel=1e-3, abs=1e-6)


# --- refusals -----------------------------------------------------------------------------------


def test_errors_are_told_once_and_leave_nothing(on: OnRanks) -> None:
    """On three ranks, which have an odd image out and fit neither 2 nor 4 parts."""
    on.here.ok(*RANDOM, "--kernel", "reference", "--categories-out", "truth.tsv")
    network = dying_network(4)
    by_hand(network, 3, 7).save("net.p3.npz")
    by_hand(dying_network(5), 3, 7).save("other.p3.npz")
    ids = Path("truth.tsv").read_text().split()
    missing = next(str(k) for k in range(1, IMAGES) if str(k) not in ids)
    Path("wrong.tsv").write_text("\n".join(sorted([*ids[1:], missing], key=int)))
    Path("far.tsv").write_text("9999\n")
    Path("old.trace").write_text("as it was")
    Path("broken.npz").write_bytes(Path("net.p3.npz").read_bytes()[:-99])
    three = [*RANDOM, "--partition", "net.p3.npz"]
    refused = [
        (2, "net.p2.npz: has 2 parts", [*RANDOM, "--partition", "net.p2.npz"]),
        (2, "net.p4.npz: has 4 parts.* start 4", [*RANDOM, "--partition", "net.p4.npz"]),
        (2, "--grid 2x2: needs 4 ranks, there are 3", [*three, "--grid", "2x2"]),
        (2, "--grid 3x1: net.p3.npz has 3 parts, not 1", [*three, "--grid", "3x1"]),
        (2, "--grid 1x3: give --partition FILE with 3 parts", [*RANDOM, "--grid", "1x3"]),
        (2, "--grid 3: give DxM", [*RANDOM, "--grid", "3"]),
        (2, "grid 'wide' is not like", [*RANDOM, "--grid", "wide"]),
        (3, "made for network .*other|other.*made for network",
         [*RANDOM, "--partition", "other.p3.npz"]),
        (3, "none.npz: no such file", [*RANDOM, "--partition", "none.npz"]),
        (3, "broken.npz: ", [*RANDOM, "--partition", "broken.npz"]),
        (3, "in.npz: ", [*RANDOM, "--partition", "in.npz"]),
        (3, "none.npz: no such file", [*three[:3], "none.npz", *three[4:]]),
        (3, "none: no such file", ["infer", "none", *three[2:]]),
        (3, "none.tsv: no such file", [*three, "--truth", "none.tsv"]),
        (3, "far.tsv: has image 9999, but there are only 203",
         [*three, "--truth", "far.tsv", "--trace", "old.trace", "--outputs-out", "out.npy"]),
        (3, "in.npz: has 203 images, --images asks for 9999", [*three, "--images", "9999"]),
        (3, "none/a: ", [*three, "--trace", "none/a"]),
        (2, "net.p3.npz: given twice", [*three, "--trace", "net.p3.npz"]),
        (2, "a: given twice", [*three, "--trace", "a", "--categories-out", "a"]),
        (2, "out.txt: outputs are written as", [*three, "--outputs-out", "out.txt"]),
        (2, "error: --threads must be at least 1, found 0", [*three, "--threads", "0"]),
        (2, "error: unknown kernel 'fast'", [*three, "--kernel", "fast"]),
        (2, "--trace is for ranks that share", [*RANDOM, "--trace", "a"]),
        (2, "--no-drop is for ranks that share", [*RANDOM, "--no-drop"]),
        (2, "--trace belongs to the numba kernel",
         [*three, "--kernel", "reference", "--trace", "a"]),
        (2, "--no-overlap belongs to the numba", [*three, "--kernel", "reference", "--no-overlap"]),
        (2, "--ranks starts the ranks itself: not under mpirun", [*RANDOM, "--ranks", "2"]),
        (2, "error: .*--activation", [*three, "--activation", "loud"]),
    ]  # fmt: skip
    wrong = [*three, "--truth", "wrong.tsv", "--json"]
    right = [*three, "--truth", "truth.tsv"]
    uneven = [*three, "--uneven-nodes", "--json"]
    answers = list(on.calls(3, [*(call for _, _, call in refused), wrong, right, uneven]))
    for (code, says, call), (first, *others) in zip(refused, answers, strict=False):
        assert first[0] == code, (call, first)
        one_line(Outcome(*first[:3]), says)
        assert len(first[2].splitlines()) == 1, first[2]
        assert first[1] == ""
        for other in others:
            # 0 from those that leave the telling to the first, before there is an MPI.
            assert other[0] in (code, 0), (call, other)
            assert other[1:3] == ["", ""], (call, other)
        assert not any(one[3] for one in (first, *others)), call
    (first, *others), (good, *_), (same, *_) = answers[-3:]
    assert (first[0], json.loads(first[1])["truth"]) == (4, "fail")
    one_line(Outcome(*first[:3]), rf"wrong.tsv: {len(ids)} .* 1 missing \(first: {missing}\)")
    assert [one[:3] for one in others] == [[4, "", ""]] * 2
    assert good[:1] + good[2:] == [0, "", False]
    rows = dict(re.split(r"  +", line) for line in good[1].splitlines())
    assert (rows["ranks"], rows["grid"], rows["truth"]) == ("3", "1x3", "pass")
    assert {f"seconds {phase}" for phase in PHASES} <= set(rows)
    assert json.loads(same[1])["threads"] == 2, "the least of all nodes, or threads wait for none"


def test_exit_codes_and_one_line_of_whole_processes(on: OnRanks) -> None:
    """What the launchers make of it."""
    Path("wrong.tsv").write_text("1\n2\n")
    before = snapshot(on.here.folder)
    wrong = on.mpirun(4, *RANDOM, "--partition", "net.p2.npz", "--truth", "wrong.tsv", "--json")
    assert (wrong.code, wrong.json["truth"]) == (4, "fail")
    one_line(wrong, "wrong.tsv: .* categories found, 2 in the truth")
    wrong = on.ranks(2, *RANDOM, "--truth", "wrong.tsv", "--json")
    assert (wrong.code, wrong.json["truth"], wrong.json["grid"]) == (4, "fail", "2x1")
    one_line(wrong, "wrong.tsv: .* categories found, 2 in the truth")
    unfit = on.ranks(3, *RANDOM, "--partition", "net.p2.npz")
    assert (unfit.code, unfit.out) == (2, "")
    one_line(unfit, "net.p2.npz: has 2 parts, which do not divide 3 ranks")
    below = on.mpirun(3, *RANDOM, "--ranks", "2")
    assert (below.code, below.out) == (2, "")
    one_line(below, "--ranks starts the ranks itself: not under mpirun")
    assert snapshot(on.here.folder) == before


def test_partition_without_ranks_says_how_to_start(on: OnRanks) -> None:
    before = snapshot(on.here.folder)
    done = on.alone(*RANDOM, "--partition", "net.p4.npz")
    assert (done.code, done.out) == (2, "")
    one_line(done, "net.p4.npz: has 4 parts.* start")
    assert len(done.err.splitlines()) == 1
    assert snapshot(on.here.folder) == before


@pytest.mark.parametrize(
    ("says", "more"),
    [
        ("--ranks 0: at least 1 rank is needed", ["--ranks", "0"]),
        ("--ranks -3: at least 1 rank is needed", ["--ranks=-3"]),
        ("--trace is for ranks that share the neurons: give --partition", ["--trace", "a"]),
        ("--no-overlap is for ranks that share", ["--no-overlap"]),
        ("--no-drop is for ranks that share", ["--no-drop"]),
    ],
)
def test_options_that_mean_nothing_here(here: Program, says: str, more: list[str]) -> None:
    here.fails(2, says, *RANDOM, *more)


# --- MPI that is not there, or another one ------------------------------------------------------


def test_launcher_and_library_that_differ(here: Program) -> None:
    """Open MPI's launcher with MPICH's library, and the reverse."""
    open_mpi, mpich = require_mpi("openmpi"), require_mpi("mpich")
    program = [sys.executable, "-m", "sparsednn", *RANDOM, "--json"]
    before = snapshot(here.folder)
    for launcher, library, names in (
        (open_mpi, mpich, ("Open MPI", "MPICH")),
        (mpich, open_mpi, ("MPICH", "Open MPI")),
    ):
        environ = {**launcher.environ(), "MPI4PY_LIBMPI": ""} | library.environ()
        if library is open_mpi:
            del environ["MPI4PY_LIBMPI"]
        environ |= open_mpi.environment
        command = [str(launcher.mpirun), *launcher.options, "-n", "3", *program]
        done = run_session(command, environ, 60)
        assert (done.returncode, done.stdout) == (6, "")
        one_line(
            Outcome(done.returncode, done.stdout, done.stderr),
            f"the launcher of {names[0]} started 3 ranks, but mpi4py loads {names[1]} .*start with",
        )
    assert snapshot(here.folder) == before


def test_without_mpi4py(here: Program, tmp_path: Path) -> None:
    """Says what to install; one process needs none of it."""
    runs = require_mpi("openmpi")
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text("import sys\nsys.modules['mpi4py'] = None\n")
    environ = runs.environ()
    environ["PYTHONPATH"] = f"{hidden}:{environ['PYTHONPATH']}"
    program = [sys.executable, "-m", "sparsednn", *RANDOM]
    before = snapshot(here.folder)
    for command in (
        [*program, "--ranks", "2"],
        [*program, "--partition", "net.p2.npz"],
        [str(runs.mpirun), *runs.options, "-n", "3", *program],
    ):
        done = run_session(command, environ, 60)
        assert (done.returncode, done.stdout) == (5, "")
        says = r"mpi4py is not installed: install 'sparsednn\[openmpi\]'"
        one_line(Outcome(done.returncode, done.stdout, done.stderr), says)
    done = run_session([*program, "--truth", "none.tsv"], environ, 60)
    assert (done.returncode, done.stderr) == (
        3, "sparsednn: error: none.tsv: no such file or folder\n",
    )  # fmt: skip
    assert snapshot(here.folder) == before


def test_one_process_loads_no_mpi(here: Program) -> None:
    code = (
        "import sys\n"
        "from sparsednn.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print([name for name in sys.modules if 'mpi4py' in name], file=sys.stderr)\n"
    )
    run = [*RANDOM, "--kernel", "reference"]
    for arguments in (run, [*RANDOM, "--help"], ["--help"]):
        done = run_session([sys.executable, "-c", code, *arguments], dict(os.environ), 60)
        assert (done.returncode, done.stderr) == (0, "[]\n")


# --- the official network -----------------------------------------------------------------------


@pytest.mark.mnist
@pytest.mark.slow
def test_official_network_on_four_ranks(
    on: OnRanks, mnist_folder: Path, official_categories: Path
) -> None:
    """60,000 images; mpirun with one MPI, ``--ranks`` with the other."""
    on.here.ok(
        "partition", "graph-challenge:1024-120", "--parts", 4, "--method", "multiphase",
        "--partitioner", "cyclic", "--quiet", "-o", "official.npz",
    )  # fmt: skip
    way = on.mpirun if on.mpi.name == "openmpi" else on.ranks
    done = way(
        4, "infer", "graph-challenge:1024-120", "--inputs", "graph-challenge:1024",
        "--mnist", str(mnist_folder), "--partition", "official.npz",
        "--truth", str(official_categories), "--json",
    )  # fmt: skip
    assert (done.code, done.err) == (0, ""), done.err
    found = done.json
    expected = {
        "truth": "pass", "images": 60000, "edges": 3932160, "ranks": 4, "grid": "1x4",
        "categories": len(official_categories.read_text().split()),
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    told = on.here.ok("evaluate", "graph-challenge:1024-120", "official.npz", "--json").json
    assert found["words_predicted"] == 60000 * told["methods"][0]["words_total"]
    assert 0 < found["words_sent"] < found["words_predicted"]
