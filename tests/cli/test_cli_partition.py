"""``partition``, ``evaluate`` and ``hypergraph``, from files to files."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.cli_program import Outcome, Program, snapshot

from networks import random_layer
from sparsednn import SparseLayer, SparseNetwork
from sparsednn.cli._progress import Progress
from sparsednn.formats import read_network, write_network
from sparsednn.partitioners import methods, read_partition
from sparsednn.partitioners.hmetis import read_fix, read_hgr, write_parts, write_parts_folder

NET = "net.safetensors"
QUICK = ("partition", NET, "--parts", 4, "--effort", "quick")
CYCLIC = ("partition", NET, "--parts", 4, "--partitioner", "cyclic")

ENTRY = {
    "method", "partitioner", "version", "preset", "words_total", "words_per_layer",
    "words_per_training_step", "messages_total", "max_words_per_rank", "max_messages_per_rank",
    "imbalance_max", "empty_parts_max", "seconds", "seconds_per_million_nonzeros",
}  # fmt: skip
DOCUMENT = {
    "network", "hash", "layers", "edges", "parts", "imbalance", "seed", "threads", "methods", "out"
}  # fmt: skip

FIGURES = ENTRY - {"seconds", "seconds_per_million_nonzeros"}


def figures(entry: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on the time of day."""
    return {name: entry[name] for name in FIGURES}


# ---- partition


def test_partition_writes_what_evaluate_counts(small: Program) -> None:
    done = small.ok(*QUICK, "-o", "p.npz", "--json")
    found = done.json
    assert set(found) == DOCUMENT
    network = read_network(NET)
    assert (found["network"], found["hash"]) == (network.name, network.hash)
    assert (found["parts"], found["imbalance"], found["seed"]) == (4, 0.03, 1)
    assert found["out"] == "p.npz"
    (entry,) = found["methods"]
    assert set(entry) == ENTRY
    assert entry["method"] == "joint"
    assert sum(entry["words_per_layer"]) == entry["words_total"] > 0
    assert entry["words_per_training_step"] == 2 * entry["words_total"]
    assert 1.0 <= entry["imbalance_max"] <= 1.03
    assert entry["seconds"] > 0
    # The hash is of what the network is, not of its file.
    for model in (NET, "npz"):
        again = small.ok("evaluate", model, "p.npz", "--json")
        assert again.err == ""
        assert {**found, "methods": None, "out": None} == {
            **again.json, "methods": None, "out": None,
        }  # fmt: skip
        assert figures(again.json["methods"][0]) == figures(entry)
        assert again.json["methods"][0]["seconds"] is None


def test_the_same_seed_is_the_same_file(small: Program) -> None:
    for name in ("a.npz", "b.npz"):
        small.ok(*QUICK, "--seed", 7, "--out", name)
    first, second = read_partition("a.npz"), read_partition("b.npz")
    assert first.meta == second.meta
    for a, b in zip(first.owners, second.owners, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_table_for_people(small: Program) -> None:
    before = snapshot(small.folder)
    done = small.ok(*CYCLIC)
    lines = done.out.splitlines()
    assert lines[0].split() == ["network", "small", "(2", "layers,", "1,024", "edges)"]
    head = next(line for line in lines if line.startswith("method "))
    assert re.split(r"  +", head) == [
        "method", "partitioner", "words/layer", "words", "messages", "max words/rank", "imbalance",
        "seconds", "s/Mnnz",
    ]  # fmt: skip
    (row,) = [line.split() for line in lines if line.startswith("rule ")]
    assert row[:2] == ["rule", "cyclic"]
    assert "a training step sends twice the words" in lines[-1]
    assert done.err == ""
    assert snapshot(small.folder) == before


@pytest.mark.parametrize("parts", [1, 200])
def test_one_part_and_more_than_rows(small: Program, parts: int) -> None:
    entry = small.ok("partition", NET, "--parts", parts, "--effort", "quick", "--quiet", "--json")
    (found,) = entry.json["methods"]
    assert entry.err == ""
    assert (found["words_total"] == 0) == (parts == 1)
    assert found["empty_parts_max"] == max(parts - 64, 0)


def test_what_cannot_be_balanced_is_a_warning(small: Program) -> None:
    """100 parts share 64 equal rows: the mean is less than a row."""
    call = ("partition", NET, "--parts", 100, "--partitioner", "cyclic", "--json")
    done = small.ok(*call)
    (line,) = done.err.splitlines()
    assert line.startswith("warning: layer")
    assert "100 parts cannot be balanced as asked" in line
    silent = small.ok(*call, "--quiet")
    assert silent.err == ""
    assert figures(silent.json["methods"][0]) == figures(done.json["methods"][0])


def process(folder: Path, *arguments: object) -> Outcome:
    """The program as a process: what native libraries write counts, too."""
    done = subprocess.run(
        [sys.executable, "-m", "sparsednn", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_quiet_leaves_stderr_empty(small: Program) -> None:
    pytest.importorskip("kahypar")
    call = ("partition", NET, "--parts", 4, "--partitioner", "kahypar", "--json")
    done = process(small.folder, *call, "--quiet")
    assert (done.code, done.err) == (0, "")
    assert done.json["methods"][0]["partitioner"] == "kahypar"
    loud = process(small.folder, *call, "--native-output")
    assert figures(loud.json["methods"][0]) == figures(done.json["methods"][0])
    assert "km1" in loud.err


def test_compare(small: Program) -> None:
    done = small.ok("partition", NET, "--parts", 4, "--effort", "quick", "--compare", "--json",
                    "-o", "best.npz", "--quiet")  # fmt: skip
    entries = {(entry["method"], entry["partitioner"]): entry for entry in done.json["methods"]}
    assert all(set(entry) == ENTRY for entry in entries.values())
    names = list(entries)
    assert names[:3] == [("rule", "block"), ("rule", "cyclic"), ("rule", "random")]
    assert [name for name, _ in names[3:]] == ["multiphase"] * (len(names) - 4) + ["joint"]
    joint = entries[names[-1]]
    kept = [entry["words_total"] for entry in entries.values() if entry["imbalance_max"] <= 1.03]
    assert joint["words_total"] == min(kept)
    evaluated = small.ok("evaluate", NET, "best.npz", "--json").json["methods"][0]
    assert figures(evaluated) == figures(joint)


def test_compare_for_people(small: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """One table; what is not installed is a line on stderr."""
    monkeypatch.setattr(methods, "NATIVE", ("kahypar",))
    monkeypatch.setitem(sys.modules, "kahypar", None)
    done = small.ok("partition", NET, "--parts", 4, "--effort", "quick", "--compare")
    assert [line.split()[:2] for line in done.out.splitlines()[7:11]] == [
        ["rule", "block"], ["rule", "cyclic"], ["rule", "random"], ["joint", "annealing+3"],
    ]  # fmt: skip
    assert "(joint)" in done.out.splitlines()[-1]
    (line,) = done.err.splitlines()
    assert line.startswith("warning: not in the comparison: ")
    assert "pip install kahypar" in line


def test_what_is_not_installed_is_told_first(
    small: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kahypar", None)
    small.fails(5, "pip install kahypar", "partition", "nothing.npz", "--parts", 2,
                "--partitioner", "kahypar")  # fmt: skip


@pytest.mark.parametrize(
    ("code", "says", "arguments"),
    [
        (3, "parts must be at least 1, found 0$", ("--parts", 0)),
        (3, "parts must be at least 1, found -3$", ("--parts", -3)),
        (3, r"imbalance must be a number of at least 0, found -0\.1$", ("--imbalance", -0.1)),
        (3, "imbalance must be .* found nan$", ("--imbalance", "nan")),
        (3, "imbalance must be .* found inf$", ("--imbalance", "inf")),
        (2, "seed must be in 0", ("--seed", -1)),
        (2, "threads must be at least 1", ("--threads", 0)),
        (2, "no effort 'much'; there are quick", ("--effort", "much")),
        (2, "--method best: known are joint, multiphase", ("--method", "best")),
        (2, "no partitioner 'metis'; there are kahypar", ("--partitioner", "metis")),
        (2, "block: has no presets", ("--partitioner", "block", "--preset", "x")),
        (2, "--preset belongs to a partitioner", ("--preset", "quality")),
        (2, "--partitioner file needs --parts-from", ("--partitioner", "file")),
        (2, "--partitioner command needs --command", ("--partitioner", "command")),
        (2, "--parts-from belongs to '--partitioner file', not to 'block'",
         ("--partitioner", "block", "--parts-from", "npz")),
        (2, "--command belongs to", ("--parts-from", "npz", "--command", "x {hgr}")),
        (2, "has no {hgr}", ("--command", "shmetis")),
        (5, "no program 'no-such-program'", ("--command", "no-such-program {hgr}")),
        (3, "nowhere: no such folder", ("--parts-from", "nowhere")),
        (3, r"npz/layer-1\.part: no such file", ("--parts-from", "npz")),
        (2, "--compare runs every method .* no --method", ("--compare", "--method", "joint")),
        (2, "no --preset", ("--compare", "--preset", "quality")),
        (2, "no --parts-from", ("--compare", "--parts-from", "npz")),
        (2, "--quiet and --native-output exclude", ("--quiet", "--native-output")),
        (2, r"net\.safetensors: is the model itself", ("-o", "./net.safetensors")),
        (2, "link: is the model itself", ("-o", "link")),
        (2, r"a\.png: is both --out and --plot", ("-o", "a.png", "--plot", "./a.png")),
        (2, r"a\.gif: unknown suffix '\.gif' for a picture", ("--plot", "a.gif")),
        (3, r"no/a\.npz: cannot write: no folder", ("-o", "no/a.npz")),
        (3, r"no/a\.png: cannot write: no folder", ("--plot", "no/a.png")),
        (3, "npz: cannot write: it is a folder", ("-o", "npz")),
    ],
)  # fmt: skip
def test_bad_calls(small: Program, code: int, says: str, arguments: tuple[Any, ...]) -> None:
    Path("link").symlink_to(NET)
    parts = () if "--parts" in arguments else ("--parts", 4)
    small.fails(code, says, "partition", NET, *parts, *arguments)


@pytest.mark.parametrize("command", ["partition", "evaluate", "hypergraph"])
def test_what_commands_need(small: Program, command: str) -> None:
    done = small(command, NET)
    assert (done.code, done.out) == (2, "")
    assert {"partition": "--parts", "evaluate": "PARTITION", "hypergraph": "--out"}[
        command
    ] in done.err


def test_a_dense_model_is_refused(program: Program) -> None:
    rng = np.random.default_rng(1)
    layer = random_layer(rng, 8, 6, density=2.0)
    write_network(SparseNetwork([layer], name="dense"), "dense.safetensors")
    call = ("partition", "dense.safetensors", "--parts", 2, "--partitioner", "cyclic", "-o", "a")
    program.fails(3, r"dense.safetensors: no weight is zero.*'sparsednn prune dense", *call)
    program.ok(*call, "--allow-dense")
    assert Path("a").is_file()


def test_an_interrupt_leaves_nothing_behind(
    small: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    Path("old.npz").write_bytes(b"old")
    monkeypatch.setattr(np, "savez_compressed", stop)
    small.fails(143, "terminated$", *CYCLIC, "-o", "old.npz")
    small.fails(143, "terminated$", *CYCLIC, "-o", "new.npz")


def test_the_plot(small: Program) -> None:
    pytest.importorskip("matplotlib")
    small.ok(*CYCLIC, "-o", "p.npz", "--plot", "p.png")
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")
    small.ok("evaluate", NET, "p.npz", "--plot", "p.svg")
    assert "</svg>" in Path("p.svg").read_text()


def test_the_plot_without_matplotlib(small: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    small.fails(5, "pip install matplotlib", *CYCLIC, "--plot", "p.png")


# ---- evaluate


def test_evaluate_refuses_another_network(small: Program) -> None:
    small.ok(*CYCLIC, "-o", "p.npz")
    line = small.fails(3, r"p\.npz: made for network", "evaluate", "graph-challenge:1024-2",
                       "p.npz")  # fmt: skip
    assert "'small' (hash " in line
    assert "'graph-challenge:1024-2' (hash " in line


def test_evaluate_per_layer(small: Program) -> None:
    small.ok(*CYCLIC, "-o", "p.npz")
    (entry,) = small.ok("evaluate", NET, "p.npz", "--per-layer", "--json").json["methods"]
    assert set(entry) == ENTRY | {"layers"}
    assert [row["layer"] for row in entry["layers"]] == [1, 2]
    assert [row["words"] for row in entry["layers"]] == entry["words_per_layer"]
    assert sum(row["messages"] for row in entry["layers"]) == entry["messages_total"]
    out = small.ok("evaluate", NET, "p.npz", "--per-layer").out.splitlines()
    assert out[-3].split() == ["layer", "words", "messages", "max", "sent", "max", "received",
                               "imbalance", "empty", "parts"]  # fmt: skip
    assert [line.split()[1] for line in out[-2:]] == [
        f"{words:,}" for words in entry["words_per_layer"]
    ]


@pytest.mark.parametrize(
    ("code", "says", "arguments"),
    [
        (3, r"nothing\.npz: no such file", ("nothing.npz",)),
        (3, r"net\.safetensors: is no partition file", (NET,)),
        (3, r"layer-0001\.npz: is no partition file", ("npz/layer-0001.npz",)),
        (3, r"cut\.npz: is no partition file", ("cut.npz",)),
        (2, r"p\.npz: unknown suffix", ("p.npz", "--plot", "p.npz")),
        (2, r"p\.png: is read by this command", ("p.png", "--plot", "p.png")),
    ],
)
def test_bad_partition_files(
    small: Program, code: int, says: str, arguments: tuple[str, ...]
) -> None:
    small.ok(*CYCLIC, "-o", "p.npz")
    Path("p.png").write_bytes(Path("p.npz").read_bytes())
    Path("cut.npz").write_bytes(Path("p.npz").read_bytes()[:200])
    first = sorted(Path("npz").glob("*.npz"))[0]
    first.rename("npz/layer-0001.npz")
    small.fails(code, says, "evaluate", NET, *arguments)


# ---- hypergraph, and what other tools make of it


def by_number(path: str, folder: str, parts: int) -> None:
    """A partitioner that knows nothing: blocks of vertices; fixed ones stay."""
    graph = read_hgr(f"{path}.hgr")
    fixed = read_fix(f"{path}.fix", graph.n_vertices, parts)
    labels = np.arange(graph.n_vertices) * parts // graph.n_vertices
    write_parts(np.where(fixed >= 0, fixed, labels), f"{folder}/{Path(path).name}.part")


def test_hypergraph_there_and_back(small: Program) -> None:
    done = small.ok("hypergraph", NET, "--parts", 4, "-o", "hg", "--json")
    assert set(os.listdir("hg")) == {"layer-1.hgr", "layer-1.fix", "layer-2.hgr", "layer-2.fix"}
    assert done.json["layers"] == [
        {"layer": k, "vertices": 64, "nets": 64, "pins": 512, "fixed": 0} for k in (1, 2)
    ]
    Path("made").mkdir()
    for k in (1, 2):
        by_number(f"hg/layer-{k}", "made", 4)
    read = small.ok("partition", NET, "--parts", 4, "--parts-from", "made", "-o", "p.npz", "--json")
    (entry,) = read.json["methods"]
    assert (entry["method"], entry["partitioner"]) == ("multiphase", "file")
    partition = read_partition("p.npz")
    for owners in partition.owners[1:]:
        np.testing.assert_array_equal(owners, np.arange(64) // 16)

    # With that partition's owners fixed, connectivity-1 is the words of each layer.
    small.ok("hypergraph", NET, "--partition", "p.npz", "-o", "fixed")
    Path("again").mkdir()
    for k in (1, 2):
        graph = read_hgr(f"fixed/layer-{k}.hgr")
        fixed = read_fix(f"fixed/layer-{k}.fix", 68, 4)
        np.testing.assert_array_equal(fixed[64:], range(4))
        labels = np.concatenate((partition.owners[k], fixed[64:]))
        assert graph.connectivity_cost(labels, 4) == entry["words_per_layer"][k - 1]
        # As tools write them: with the fixed vertices.
        write_parts(labels, f"again/layer-{k}.part")
    again = small.ok("partition", NET, "--parts", 4, "--partitioner", "file", "--parts-from",
                     "again", "--json")  # fmt: skip
    assert figures(again.json["methods"][0]) == figures(entry)


def test_joint_starts_from_the_parts_of_another_tool(small: Program) -> None:
    small.ok(*CYCLIC, "-o", "p.npz")
    write_parts_folder(read_partition("p.npz").owners[1:], "made")
    given = ("partition", NET, "--parts", 4, "--parts-from", "made", "--json", "--quiet")
    before = small.ok(*given).json["methods"][0]
    after = small.ok(*given, "--method", "joint", "--effort", "quick").json["methods"][0]
    assert after["partitioner"] == "annealing+file"
    assert after["words_total"] <= before["words_total"]


def test_one_layer_after_the_other(small: Program) -> None:
    for layer in (2, 1):
        small.ok("hypergraph", NET, "--parts", 4, "--layer", layer, "-o", "hg")
    assert len(os.listdir("hg")) == 4
    out = small.ok("hypergraph", NET, "--parts", 4, "-o", "hg").out
    assert [line.split()[0] for line in out.splitlines()] == [
        "network", "parts", "out", "vertices", "nets", "pins",
    ]  # fmt: skip


def test_columns_that_nobody_needs(program: Program) -> None:
    """An empty net cannot be written; it is left out, and costs nothing."""
    layer = SparseLayer([0, 1, 3, 3], [0, 0, 2], [1.0, 1.0, 1.0], 4)
    write_network(SparseNetwork([layer], name="holes"), "holes.safetensors")
    program.ok("hypergraph", "holes.safetensors", "--parts", 2, "-o", "hg")
    graph = read_hgr("hg/layer-1.hgr")
    assert (graph.n_nets, graph.n_vertices) == (1, 3)
    np.testing.assert_array_equal(graph.vertex_weights, [1, 2, 0])


@pytest.mark.parametrize(
    ("code", "says", "arguments"),
    [
        (2, "--parts is needed, or a --partition", ("-o", "new")),
        (3, "parts must be at least 1, found 0", ("-o", "new", "--parts", 0)),
        (3, "the partition has 4 parts, 5 were asked", ("-o", "new", "--parts", 5,
                                                        "--partition", "p.npz")),
        (3, "no layer 3: the network has 2", ("-o", "new", "--parts", 4, "--layer", 3)),
        (3, "no layer 0", ("-o", "new", "--parts", 4, "--layer", 0)),
        (3, "p.npz: cannot write: it is a file", ("-o", "p.npz", "--parts", 4)),
        (3, "cannot write: no folder", ("-o", "no/new", "--parts", 4)),
        (3, r"old: already has layer-3\.hgr", ("-o", "old", "--parts", 4)),
        (3, "nothing: no such file", ("-o", "new", "--partition", "nothing")),
        (3, "other.npz: made for network 'graph-challenge:1024-1'",
         ("-o", "new", "--partition", "other.npz")),
    ],
)  # fmt: skip
def test_bad_exports(small: Program, code: int, says: str, arguments: tuple[Any, ...]) -> None:
    small.ok(*CYCLIC, "-o", "p.npz")
    small.ok("partition", "graph-challenge:1024-1", "--parts", 4, "--partitioner", "cyclic",
             "-o", "other.npz")  # fmt: skip
    Path("old").mkdir()
    Path("old/layer-3.hgr").touch()
    small.fails(code, says, "hypergraph", NET, *arguments)


@pytest.mark.parametrize(
    ("says", "change"),
    [
        (r"layer-1\.part: has 63 lines, layer 1 has 64 rows", lambda lines: lines[:63]),
        (r"layer-1\.part: has 65 lines", lambda lines: [*lines, "0"]),
        (r"layer-1\.part: line 66: the vertex fixed to part 1 is in part 2",
         lambda lines: [*lines, "0", "2", "1", "3"]),
        (r"layer-1\.part.*line 5.* part 4", lambda lines: [*lines[:4], "4", *lines[5:]]),
        (r"layer-1\.part.*line 2", lambda lines: [lines[0], "x", *lines[2:]]),
        (r"layer-3\.part: the network has only 2 layers", None),
    ],
)  # fmt: skip
def test_bad_part_files(small: Program, says: str, change: Any) -> None:
    labels = np.arange(64) % 4
    write_parts_folder([labels, labels], "made")
    if change is None:
        write_parts(labels, "made/layer-3.part")
    else:
        lines = change([str(label) for label in labels])
        Path("made/layer-1.part").write_text("".join(f"{line}\n" for line in lines))
    small.fails(3, says, "partition", NET, "--parts", 4, "--parts-from", "made", "-o", "p.npz")


TOOL = """
import sys
hgr, fix, parts, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
print("this is for nobody")
print("nor is this", file=sys.stderr)
with open(fix) as file:
    fixed = [int(line) for line in file]
with open(out, "w") as file:
    for vertex, part in enumerate(fixed):
        print(part if part >= 0 else vertex % parts, file=file)
"""


def test_a_program_as_partitioner(small: Program) -> None:
    Path("tool.py").write_text(TOOL)
    command = f"{sys.executable} tool.py {{hgr}} {{fix}} {{parts}} {{out}}"
    call = ("partition", NET, "--parts", 4, "--json", "--command", command)
    done = process(small.folder, *call)
    assert (done.code, done.err) == (0, "")
    (entry,) = done.json["methods"]
    assert (entry["method"], entry["partitioner"]) == ("multiphase", "command")
    assert entry["preset"] == command
    loud = process(small.folder, *call, "--native-output")
    assert "this is for nobody" in loud.err
    assert "nor is this" in loud.err
    assert figures(loud.json["methods"][0]) == figures(entry)


def test_a_program_that_fails(small: Program) -> None:
    Path("tool.py").write_text("import sys; sys.exit('no licence')")
    small.fails(3, "exit status 1: no licence$", *QUICK[:4], "-o", "p.npz", "--command",
                f"{sys.executable} tool.py {{hgr}} {{fix}}")  # fmt: skip


# ---- progress


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("terminal", [False, True])
def test_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    clock = _Clock()
    monkeypatch.setattr("sparsednn.cli._progress.time.monotonic", clock)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with Progress(20, frozenset(["kahypar"])) as progress:
        for _ in range(2):
            clock.now += 3.0
            progress("kahypar", (clock.now - 100.0) / 60.0)
        progress("kahypar", 0.2)  # too soon to be shown
        clock.now += 3.0
        progress("annealed", 0.75)
    lines = [
        "kahypar: layer 1 of 20, about 57 s left",
        "kahypar: layer 2 of 20, about 54 s left",
        "annealed: 75%, about 1 s left",
    ]
    err = capsys.readouterr().err
    if terminal:
        width = len(lines[1])
        assert err == "".join(f"\r{line:<{width}}" for line in lines) + f"\r{'':<{29}}\r"
    else:
        assert err.splitlines() == lines
