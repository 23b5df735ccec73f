"""Every solver: legal labels, fixed vertices kept, balance, repeatability, silence, errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypergraphs import hypergraph, hypergraphs, planted
from networks import networks
from sparsednn import SparseNetwork
from sparsednn.datasets import graph_challenge_network
from sparsednn.errors import (
    FormatError,
    InputError,
    MissingDependencyError,
    SparseDNNError,
    UsageError,
)
from sparsednn.partitioners import hmetis
from sparsednn.partitioners.hypergraph import FREE, Hypergraph, layer_hypergraph
from sparsednn.partitioners.solvers import SOLVERS, _native, get_solver, presets
from sparsednn.partitioners.solvers._balance import balance_bound, pack, rebalance

PLAIN = [("block", None), ("cyclic", None), ("random", None)]
NATIVE = [(name, preset) for name in ("kahypar", "mtkahypar") for preset in presets(name)]
BALANCED = {"random", "kahypar", "mtkahypar"}
REPEATABLE = [*PLAIN, ("kahypar", "default"), ("mtkahypar", "deterministic")]
REPEATABLE += [("kahypar", "quality"), ("mtkahypar", "deterministic-quality")]


def solver(name: str, preset: str | None = None) -> Any:
    """The solver, or skip where its library is not installed.

    Threads of Mt-KaHyPar: whatever it already runs with in this process.
    """
    if name in ("kahypar", "mtkahypar"):
        pytest.importorskip(name)
    return get_solver(name, preset=preset)


def check(graph: Hypergraph, labels: Any, parts: int, imbalance: float, name: str) -> None:
    assert labels.dtype == np.int32
    assert labels.shape == (graph.n_vertices,)
    if labels.size:
        assert 0 <= labels.min() <= labels.max() < parts
    kept = graph.fixed != FREE
    np.testing.assert_array_equal(labels[kept], graph.fixed[kept])
    if name in BALANCED:
        bound = balance_bound(graph, parts, imbalance)
        assert graph.part_weights(labels, parts).max() <= bound


@pytest.mark.parametrize(("name", "preset"), PLAIN + NATIVE)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_hypergraph(name: str, preset: str | None, data: Any) -> None:
    parts = data.draw(st.sampled_from([1, 2, 3, 8, 40]))
    graph = data.draw(hypergraphs(parts=parts))
    if preset == "large-k":
        free = np.full(graph.n_vertices, FREE, np.int32)
        graph = Hypergraph(graph.net_ptr, graph.pins, graph.vertex_weights, graph.net_weights, free)
    imbalance = data.draw(st.sampled_from([0.0, 0.03, 0.5]))
    seed = data.draw(st.sampled_from([0, 1, 2**31 - 1]))
    before = [a.copy() for a in (graph.net_ptr, graph.pins, graph.vertex_weights, graph.fixed)]
    labels = solver(name, preset).solve(graph, parts, imbalance=imbalance, seed=seed)
    check(graph, labels, parts, imbalance, name)
    after = (graph.net_ptr, graph.pins, graph.vertex_weights, graph.fixed)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("name", "preset"), REPEATABLE)
@settings(max_examples=15, deadline=None)
@given(network=networks(), parts=st.sampled_from([2, 3, 8]), seed=st.integers(0, 2**32 - 1))
def test_layers_of_networks(
    name: str, preset: str | None, network: SparseNetwork, parts: int, seed: int
) -> None:
    layer = network[0]
    owners = np.random.default_rng(seed).integers(0, parts, layer.n_in)
    graph = layer_hypergraph(layer, parts, owners=owners)
    labels = solver(name, preset).solve(graph, parts, imbalance=0.03, seed=1)
    check(graph, labels, parts, 0.03, name)
    again = solver(name, preset).solve(graph, parts, imbalance=0.03, seed=1)
    np.testing.assert_array_equal(labels, again)


@pytest.mark.parametrize(("name", "preset"), PLAIN + NATIVE)
def test_extremes(name: str, preset: str | None) -> None:
    cases = {
        "no vertices": hypergraph([], []),
        "no nets": hypergraph([], [1] * 9),
        "one vertex": hypergraph([[0]], [3]),
        "all weights 0": hypergraph([[0, 1, 2], [3, 4]], [0] * 5),
        "one very heavy": hypergraph([[0, 1], [1, 2], [2, 3]], [10**6, 1, 1, 1]),
        "one net of all": hypergraph([list(range(50))], [1] * 50),
    }
    if preset != "large-k":
        cases["all fixed"] = hypergraph([[0, 1], [1, 2]], [0, 5, 1], fixed=[0, 1, 0])
        cases["one free"] = hypergraph([[0, 1], [1, 2]], [0, 5, 0], fixed=[0, -1, 1])
        cases["fixed, no nets"] = hypergraph([], [0, 5, 5, 0], fixed=[0, -1, -1, 1])
        cases["free ones weigh 0"] = hypergraph([[0, 1], [1, 2]], [0, 0, 0], fixed=[0, -1, 1])
    for graph in cases.values():
        for parts in (2, 3, 64):
            labels = solver(name, preset).solve(graph, parts, imbalance=0.03, seed=1)
            check(graph, labels, parts, 0.03, name)


@pytest.mark.parametrize(("name", "preset"), REPEATABLE)
def test_same_seed_same_parts(name: str, preset: str | None) -> None:
    graph = layer_hypergraph(
        graph_challenge_network(1024, 1)[0],
        8,
        owners=np.random.default_rng(3).permutation(1024) % 8,
    )
    made = solver(name, preset)
    assert made.info.deterministic
    first = made.solve(graph, 8, imbalance=0.03, seed=7)
    for _ in range(3):
        np.testing.assert_array_equal(made.solve(graph, 8, imbalance=0.03, seed=7), first)
    if name not in ("block", "cyclic"):
        assert (made.solve(graph, 8, imbalance=0.03, seed=8) != first).any()


@pytest.mark.parametrize(("name", "preset"), NATIVE)
def test_planted_clusters_are_found(name: str, preset: str | None) -> None:
    graph = planted(4, 60, np.random.default_rng(5))
    cost = {}
    for key, made in (("random", solver("random")), ("native", solver(name, preset))):
        labels = made.solve(graph, 4, imbalance=0.03, seed=1)
        cost[key] = graph.connectivity_cost(labels, 4)
    assert cost["native"] <= 2 * 60  # the nets across clusters; random cuts most of the 780
    assert cost["native"] < cost["random"] / 5


def test_known_costs_of_the_official_network() -> None:
    layer = graph_challenge_network(1024, 1)[0]
    graph = layer_hypergraph(layer, 8)
    labels = solver("block").solve(graph, 8, imbalance=0.0, seed=0)
    assert graph.connectivity_cost(labels, 8) == 7168
    labels = solver("random").solve(graph, 8, imbalance=0.0, seed=0)
    assert abs(graph.connectivity_cost(labels, 8) - 7074) < 100
    assert graph.part_weights(labels, 8).tolist() == [4096] * 8


def test_block_and_cyclic_by_hand() -> None:
    graph = hypergraph([], [1, 1, 2, 0, 4, 0], fixed=[-1, -1, -1, -1, -1, 2])
    found = solver("block").solve(graph, 3, imbalance=0.0, seed=0)
    assert found.tolist() == [0, 0, 1, 1, 2, 2]
    found = solver("cyclic").solve(graph, 3, imbalance=0.0, seed=0)
    assert found.tolist() == [0, 1, 2, 0, 1, 2]


@settings(max_examples=100, deadline=None)
@given(hypergraphs(), st.sampled_from([1, 2, 3, 8, 40]))
def test_blocks_are_contiguous_and_even(graph: Hypergraph, parts: int) -> None:
    labels = solver("block").solve(graph, parts, imbalance=0.0, seed=0)
    free = graph.fixed == FREE
    assert (np.diff(labels[free]) >= 0).all()
    weights = np.bincount(labels[free], graph.vertex_weights[free], parts)
    heaviest = graph.vertex_weights[free].max(initial=0)
    assert weights.max() <= graph.vertex_weights[free].sum() / parts + heaviest


@settings(max_examples=150, deadline=None)
@given(hypergraphs(parts=4), st.sampled_from([0.0, 0.1]), st.integers(0, 2**32 - 1), st.booleans())
def test_rebalance_keeps_every_reachable_bound(
    graph: Hypergraph, imbalance: float, seed: int, skewed: bool
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 1 if skewed else 4, graph.n_vertices).astype(np.int32)
    labels = np.where(graph.fixed == FREE, labels, graph.fixed)
    bound = balance_bound(graph, 4, imbalance)
    assert graph.part_weights(pack(graph, 4), 4).max() <= bound
    given_labels = labels.copy()
    result = rebalance(graph, labels, 4, bound)
    np.testing.assert_array_equal(labels, given_labels)
    check(graph, result, 4, imbalance, "random")
    if graph.part_weights(labels, 4).max() <= bound:
        assert result is labels


def test_rebalance_moves_what_costs_least(caplog: pytest.LogCaptureFixture) -> None:
    # Vertex 3 alone hangs on no net of part 0.
    graph = hypergraph([[0, 1], [0, 1, 2], [3, 4]], [1] * 6)
    labels = np.array([0, 0, 0, 0, 1, 1], np.int32)
    assert rebalance(graph, labels, 2, 3).tolist() == [0, 0, 0, 1, 1, 1]
    # No single vertex fits: 3 + 3 against 2 + 2, bound 5.
    graph = hypergraph([], [3, 3, 2, 2])
    assert rebalance(graph, np.array([0, 0, 1, 1], np.int32), 2, 5).tolist() == [1, 0, 0, 1]
    assert not caplog.records


def test_rebalance_deals_anew_as_a_last_resort(caplog: pytest.LogCaptureFixture) -> None:
    graph = hypergraph([], [15, 18, 1, 7, 13, 3, 10, 12])
    assert balance_bound(graph, 2, 0.0) == 40
    labels = np.array([1, 1, 0, 0, 0, 1, 0, 0], np.int32)
    result = rebalance(graph, labels, 2, 40)
    assert graph.part_weights(result, 2).max() == 40
    assert caplog.messages == [
        "part 0 of weight 42 cannot be brought to 40 by moves: dealt anew, by weight only"
    ]


def test_weightless_vertices_go_where_they_cost_least() -> None:
    # As an empty row is, which the next layer's ranks need: on rank 1 twice as much.
    graph = hypergraph(
        [[0, 4], [0, 5], [1, 2], [1, 3], [1, 4]],
        [0, 4, 4, 4, 0, 0],
        net_weights=[1, 2, 1, 1, 1],
        fixed=[-1, -1, -1, -1, 0, 1],
    )
    for name in ("kahypar", "mtkahypar"):
        labels = solver(name).solve(graph, 2, imbalance=0.5, seed=1)
        assert labels[0] == 1
        assert labels[1] == labels[2] == 0 or graph.connectivity_cost(labels, 2) <= 3
    # Without nets they are spread.
    graph = hypergraph([], [0] * 6)
    labels = solver("kahypar").solve(graph, 3, imbalance=0.0, seed=1)
    assert np.bincount(labels).tolist() == [2, 2, 2]


def test_scaling_keeps_the_asked_balance() -> None:
    """96 rows of weight 1 on 8 ranks: with fixed vertices of weight 1 the bound would be 13."""
    rng = np.random.default_rng(0)
    nets = [[*rng.choice(96, 5, replace=False).tolist(), 96 + k % 8] for k in range(200)]
    graph = hypergraph(nets, [1] * 96 + [0] * 8, fixed=[-1] * 96 + list(range(8)))
    for name in ("kahypar", "mtkahypar"):
        labels = solver(name).solve(graph, 8, imbalance=0.03, seed=1)
        assert graph.part_weights(labels, 8).tolist() == [12] * 8


def test_weights_that_do_not_fit() -> None:
    graph = hypergraph([[0, 1]], [2**30, 2**30])
    with pytest.raises(InputError, match="kahypar: the sum of the vertex weights, 2147483648,"):
        solver("kahypar").solve(graph, 2, imbalance=0.0, seed=1)
    graph = hypergraph([[0, 1]], [1, 1], net_weights=[2**31])
    with pytest.raises(InputError, match="kahypar: the sum of the net weights"):
        solver("kahypar").solve(graph, 2, imbalance=0.0, seed=1)


@pytest.mark.parametrize("name", ["block", "cyclic", "random", "kahypar", "mtkahypar"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": 0}, "parts must be at least 1, found 0"),
        ({"imbalance": -0.1}, "imbalance must be"),
        ({"imbalance": float("nan")}, "imbalance must be"),
        ({"seed": -1}, "seed must be in 0 to 2147483647, found -1"),
        ({"seed": 2**31}, "seed must be in 0 to 2147483647"),
    ],
)
def test_wrong_calls(name: str, change: dict[str, Any], message: str) -> None:
    call = {"parts": 2, "imbalance": 0.03, "seed": 1} | change
    with pytest.raises(UsageError, match=message):
        solver(name).solve(hypergraph([[0, 1]], [1, 1]), **call)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([0, 0, 1], "3 parts for 4 vertices"),
        ([0, 2, 0, 1], "vertex 1 is in part 2, outside 0 to 1"),
        ([0, -1, 0, 1], "vertex 1 is in part -1"),
        ([0, 0, 1, 1], "vertex 2 is in part 1, but is fixed to 0"),
    ],
)
def test_a_wrong_native_result_is_an_error(wrong: list[int], message: str) -> None:
    graph = hypergraph([[0, 1], [1, 2, 3]], [1, 1, 0, 0], fixed=[-1, -1, 0, 1])
    with pytest.raises(InputError, match=message):
        _native.solve_native(
            lambda _: np.array(wrong, np.int32), graph, 2, imbalance=1.0, seed=1, name="x"
        )


def test_an_unbalanced_native_result_is_repaired() -> None:
    graph = hypergraph([[0, 1], [1, 2], [2, 3]], [1] * 4)
    labels = _native.solve_native(
        lambda _: np.zeros(4, np.int32), graph, 2, imbalance=0.0, seed=1, name="x"
    )
    assert graph.part_weights(labels, 2).tolist() == [2, 2]
    assert graph.connectivity_cost(labels, 2) == 1


def test_large_k_refuses_fixed_vertices() -> None:
    graph = hypergraph([[0, 1], [1, 2]], [1, 1, 0], fixed=[-1, -1, 0])
    with pytest.raises(InputError, match="large-k cannot keep fixed vertices"):
        solver("mtkahypar", "large-k").solve(graph, 2, imbalance=0.03, seed=1)


def test_names_and_options() -> None:
    with pytest.raises(UsageError, match="no partitioner 'metis'; there are kahypar, mtkahypar"):
        get_solver("metis")
    with pytest.raises(UsageError, match="no partitioner"):
        presets("metis")
    for name in ("kahypar", "mtkahypar"):
        with pytest.raises(UsageError, match=f"{name}: no preset 'best'; there are "):
            get_solver(name, preset="best")
    for options, message in [
        ({"preset": "default"}, "block: has no presets"),
        ({"threads": 2}, "block: runs on one thread"),
        ({"path": "x"}, "block: takes no path"),
        ({"command": "x"}, "block: takes no command"),
    ]:
        with pytest.raises(UsageError, match=message):
            get_solver("block", **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="file: needs a path"):
        get_solver("file")
    with pytest.raises(UsageError, match="command: needs a command"):
        get_solver("command")
    with pytest.raises(UsageError, match="threads must be at least 1"):
        get_solver("mtkahypar", threads=0)
    for name in ("block", "cyclic", "random", "kahypar", "mtkahypar"):
        assert solver(name).info.name == name
        assert name in SOLVERS


@pytest.mark.parametrize("name", ["kahypar", "mtkahypar"])
def test_missing_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=f"pip install {name}$"):
        get_solver(name)


def test_the_thread_pool_cannot_change() -> None:
    threads = solver("mtkahypar").info.threads
    assert get_solver("mtkahypar", threads=threads).info.threads == threads
    with pytest.raises(UsageError, match=f"already runs with {threads} threads in this process"):
        get_solver("mtkahypar", threads=threads + 1)
    assert get_solver("mtkahypar", preset="default").info.deterministic == (threads == 1)


# --- what needs a process of its own ---

SOLVE = """
import sys, numpy as np
sys.path.insert(0, {tests!r})
from hypergraphs import planted
from sparsednn.partitioners.solvers import get_solver
graph = planted(4, 60, np.random.default_rng(5))
made = get_solver({name!r}, preset={preset!r}, threads={threads}, quiet={quiet})
print("before")  # in Python's buffer while the library prints
labels = made.solve(graph, 4, imbalance=0.03, seed=1)
print("".join(map(str, labels)))
"""


def in_a_process(name: str, preset: str, *, threads: int | None = None, quiet: bool = True) -> Any:
    pytest.importorskip(name)
    code = SOLVE.format(
        tests=str(Path(__file__).parents[1]), name=name, preset=preset, threads=threads, quiet=quiet
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(("name", "preset"), NATIVE)
def test_silence(name: str, preset: str) -> None:
    quiet = in_a_process(name, preset)
    assert quiet.stderr == ""
    before, labels = quiet.stdout.splitlines()
    assert before == "before"
    assert len(labels) == 240


@pytest.mark.parametrize(("name", "preset"), [("kahypar", "quality"), ("mtkahypar", "default")])
def test_chatter_goes_to_standard_error(name: str, preset: str) -> None:
    loud = in_a_process(name, preset, quiet=False)
    assert len(loud.stdout.splitlines()) == 2
    assert len(loud.stderr.splitlines()) > 20


def test_threads_do_not_change_the_deterministic_preset() -> None:
    for preset in ("deterministic", "deterministic-quality"):
        one = in_a_process("mtkahypar", preset, threads=1).stdout
        assert one == in_a_process("mtkahypar", preset, threads=2).stdout


def test_standard_output_comes_back_after_an_error() -> None:
    code = """
import os
from sparsednn.partitioners.solvers._silence import native_output
for quiet in (True, False):
    try:
        with native_output(quiet=quiet):
            os.write(1, b"chatter")
            raise ValueError
    except ValueError:
        print("back")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "back\nback\n"
    assert done.stderr == "chatter"


def test_no_standard_output_at_all() -> None:
    code = """
import os, sys
from sparsednn.partitioners.solvers._silence import native_output
print("never seen")
os.close(1)
with native_output(quiet=True):
    sys.stderr.write("done")
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "done"


def test_imports_are_light() -> None:
    code = (
        "import sys, sparsednn.partitioners.solvers as s; s.presets('kahypar')\n"
        "s.presets('mtkahypar'); s.get_solver('random'); s.get_solver('file', path='x')\n"
        "print([m for m in ('kahypar', 'mtkahypar', 'scipy', 'numba') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- parts from files and from programs ---


def test_file_solver(tmp_path: Path) -> None:
    graph = hypergraph([[0, 1, 2]], [1, 1, 0], fixed=[-1, -1, 1])
    hmetis.write_parts(np.array([0, 1]), tmp_path / "layer-1.part")
    hmetis.write_parts(np.array([1, 0, 1]), tmp_path / "layer-2.part")
    hmetis.write_parts(np.array([1, 0, 0]), tmp_path / "layer-3.part")
    hmetis.write_parts(np.array([1]), tmp_path / "layer-4.part")
    made: Any = get_solver("file", path=tmp_path)
    call = {"imbalance": 0.0, "seed": 0}
    assert made.for_layer(1).solve(graph, 2, **call).tolist() == [0, 1, 1]
    assert made.for_layer(2).solve(graph, 2, **call).tolist() == [1, 0, 1]
    with pytest.raises(InputError, match=r"layer-3.part: vertex 2 is in part 0, but is fixed to 1"):
        made.for_layer(3).solve(graph, 2, **call)
    with pytest.raises(FormatError, match=r"layer-4.part: has 1 lines, there are 2 .*\(or 3"):
        made.for_layer(4).solve(graph, 2, **call)
    with pytest.raises(FormatError, match="no such file"):
        made.for_layer(5).solve(graph, 2, **call)
    with pytest.raises(UsageError, match="is a folder"):
        made.solve(graph, 2, **call)


TOOL = """
import os, sys
hgr, fix, parts, mode = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
print("chatter of the tool")
header = open(hgr).readline().split()
fixed = [int(line) for line in open(fix)]
assert len(fixed) == int(header[1])
usual = f"{hgr}.part.{parts}"
names = {"usual": usual, "wrong": usual, "odd": f"{hgr}.part{parts}.KaHyPar"}
if mode == "fail":
    sys.stderr.write("reading\\ntool: out of patience\\n\\n")
    sys.exit(7)
if mode == "kill":
    os.kill(os.getpid(), 9)
if mode != "nothing":
    out = names.get(mode, mode)
    with open(out, "w") as file:
        for vertex, part in enumerate(fixed):
            file.write(f"{vertex % parts if part < 0 else part}\\n" if mode != "wrong" else "99\\n")
"""


@pytest.fixture
def tool(tmp_path: Path) -> str:
    folder = tmp_path / "with blank"
    folder.mkdir()
    (folder / "tool.py").write_text(TOOL)
    return f"'{sys.executable}' '{folder / 'tool.py'}' {{hgr}} {{fix}} {{parts}}"


FIXED = hypergraph(
    [[0, 1, 4], [2, 3, 5], [0], [1, 0, 4]], [2, 2, 2, 2, 0, 0], fixed=[-1] * 4 + [0, 1]
)


@pytest.mark.parametrize("mode", ["usual", "odd", "{out}"])
def test_command(tool: str, mode: str, capfd: pytest.CaptureFixture[str]) -> None:
    made = get_solver("command", command=f"{tool} {mode} --seed={{seed}} -e {{imbalance}}")
    labels = made.solve(FIXED, 2, imbalance=0.03, seed=1)
    assert labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert capfd.readouterr() == ("", "")
    made = get_solver("command", command=f"{tool} {mode}", quiet=False)
    made.solve(FIXED, 2, imbalance=0.03, seed=1)
    out, err = capfd.readouterr()
    assert out == ""
    assert "chatter of the tool" in err


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("fail", "exit status 7: tool: out of patience$"),
        ("kill", "killed by signal 9"),
        ("nothing", r"no layer.hgr.part.2, and not one \*.part\* file beside layer.hgr: none"),
        ("wrong", r"layer.hgr.part.2: line 1: part 99, expected 0 to 1$"),
    ],
)
def test_command_fails(tool: str, mode: str, message: str) -> None:
    made = get_solver("command", command=f"{tool} {mode}")
    with pytest.raises(InputError, match=f"^command .*: {message}"):
        made.solve(FIXED, 2, imbalance=0.03, seed=1)


def test_command_templates() -> None:
    for template, error, message in [
        ("", UsageError, "no program"),
        ("a 'b", UsageError, "No closing quotation"),
        ("a {hgr} {k}", UsageError, r"no field \{k\}; there are \{hgr\}"),
        ("a {fix}", UsageError, r"has no \{hgr\}"),
        ("no-such-program-here {hgr}", MissingDependencyError, "no program 'no-such-program-here'"),
    ]:
        with pytest.raises(error, match=message) as caught:
            get_solver("command", command=template)
        assert isinstance(caught.value, SparseDNNError)
    with pytest.raises(UsageError, match=r"has no \{fix\}, but vertices are fixed"):
        get_solver("command", command=f"{sys.executable} {{hgr}}").solve(
            FIXED, 2, imbalance=0.03, seed=1
        )


def test_settings_files_are_found_beside_the_module() -> None:
    """That the presets load is what all other tests of kahypar show: it would end the process."""
    from sparsednn.partitioners.solvers import kahypar

    folder = Path(kahypar.__file__).parent
    assert sorted(name for name in os.listdir(folder) if name.endswith(".ini")) == sorted(
        kahypar._SETTINGS.values()
    )
    assert set(kahypar._SETTINGS) == set(kahypar.PRESETS)
