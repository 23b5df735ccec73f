"""hMetis files: round trips, the format byte by byte, other programs' readers, broken files."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypergraphs import hypergraph, hypergraphs, pin_lists
from sparsednn.errors import FormatError, InputError, ShapeError
from sparsednn.partitioners import _numbers, hmetis
from sparsednn.partitioners.hypergraph import FREE, Hypergraph
from sparsednn.partitioners.solvers import get_solver

# The example of the hMetis manual (figure 7): weights on nets and vertices.
MANUAL = b"""% of the manual
4 7 11
2 1 2
%between
3 1 7 5 6
8 5 6 4
7 2 3 4
5
1
8
7
3
9
3
"""
MANUAL_GRAPH = hypergraph(
    [[0, 1], [0, 6, 4, 5], [4, 5, 3], [1, 2, 3]], [5, 1, 8, 7, 3, 9, 3], net_weights=[2, 3, 8, 7]
)


def assert_same(one: Hypergraph, other: Hypergraph) -> None:
    for name in ("net_ptr", "pins", "vertex_weights", "net_weights", "fixed"):
        a, b = getattr(one, name), getattr(other, name)
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


@settings(max_examples=100, deadline=None)
@given(hypergraphs(parts=3, least_pins=1), st.sampled_from([1, 3, 1 << 18]))
def test_round_trip(graph: Hypergraph, chunk: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(_numbers, "_CHUNK", chunk)
        hgr, fix = Path(folder) / "a.hgr", Path(folder) / "a.fix"
        hmetis.write_hgr(graph, hgr)
        hmetis.write_fix(graph.fixed, fix)
        free = np.full(graph.n_vertices, FREE, np.int32)
        fields = (graph.net_ptr, graph.pins, graph.vertex_weights, graph.net_weights, free)
        assert_same(hmetis.read_hgr(hgr), Hypergraph(*fields))
        np.testing.assert_array_equal(hmetis.read_fix(fix, graph.n_vertices, 3), graph.fixed)


def test_the_manuals_example(tmp_path: Path) -> None:
    path = tmp_path / "a.hgr"
    path.write_bytes(MANUAL)
    assert_same(hmetis.read_hgr(path), MANUAL_GRAPH)
    hmetis.write_hgr(MANUAL_GRAPH, path)
    assert path.read_bytes() == b"".join(
        line + b"\n" for line in MANUAL.splitlines() if not line.startswith(b"%")
    )


@pytest.mark.parametrize(
    ("text", "net_weights", "vertex_weights"),
    [
        (b"2 3\n1 2\n3 2\n", [1, 1], [1, 1, 1]),
        (b"2 3 0\n1 2\n3 2\n", [1, 1], [1, 1, 1]),
        (b"2 3 1\n4 1 2\n9 3 2\n", [4, 9], [1, 1, 1]),
        (b"2 3 10\n1 2\n3 2\n0\n7\n10\n", [1, 1], [0, 7, 10]),
        (b"2\t3 11 \r\n 4  1 2\r\n9 3 2\r\n0\r\n7\r\n10\r\n\r\n", [4, 9], [0, 7, 10]),
    ],
)
def test_weights_and_blanks(
    tmp_path: Path, text: bytes, net_weights: list[int], vertex_weights: list[int]
) -> None:
    path = tmp_path / "a.hgr"
    path.write_bytes(text)
    expected = hypergraph([[0, 1], [2, 1]], vertex_weights, net_weights=net_weights)
    assert_same(hmetis.read_hgr(path), expected)


@settings(max_examples=25, deadline=None)
@given(hypergraphs(least_pins=2))
def test_kahypar_reads_the_same(graph: Hypergraph) -> None:
    kahypar = pytest.importorskip("kahypar")
    if not graph.n_nets or not graph.vertex_weights.all():
        return  # KaHyPar ends the process
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.hgr"
        hmetis.write_hgr(graph, path)
        native = kahypar.createHypergraphFromFile(str(path), 2)
        assert native.numNodes() == graph.n_vertices
        assert [sorted(native.pins(e)) for e in native.edges()] == [
            sorted(net) for net in pin_lists(graph)
        ]
        assert [native.edgeWeight(e) for e in native.edges()] == graph.net_weights.tolist()
        assert [native.nodeWeight(v) for v in native.nodes()] == graph.vertex_weights.tolist()


@settings(max_examples=25, deadline=None)
@given(hypergraphs(parts=3, least_pins=2))
def test_mtkahypar_reads_the_same(graph: Hypergraph) -> None:
    mtkahypar = pytest.importorskip("mtkahypar")
    if not graph.n_nets:
        return
    made: Any = get_solver("mtkahypar")  # it has the process's one thread pool
    initializer = made._initializer
    context = initializer.context_from_preset(mtkahypar.PresetType.DEFAULT)
    context.logging = False
    with tempfile.TemporaryDirectory() as folder:
        path, fix = Path(folder) / "a.hgr", Path(folder) / "a.fix"
        hmetis.write_hgr(graph, path)
        hmetis.write_fix(graph.fixed, fix)
        native = initializer.hypergraph_from_file(str(path), context)
        native.add_fixed_vertices_from_file(str(fix), 3)
        assert native.num_nodes() == graph.n_vertices
        nets = sorted((sorted(native.pins(e)), native.edge_weight(e)) for e in native.edges())
        weights = graph.net_weights.tolist()
        ours = zip((sorted(net) for net in pin_lists(graph)), weights, strict=True)
        assert nets == sorted(ours)
        assert [native.node_weight(v) for v in native.nodes()] == graph.vertex_weights.tolist()
        assert [native.fixed_vertex_block(v) for v in native.nodes()] == graph.fixed.tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "no header line"),
        (b"% only this\n", "no header line"),
        (b"2\n", "line 1: the header has 1 numbers"),
        (b"1 2 1 1\n1 2\n", "line 1: the header has 4 numbers"),
        (b"1 2 3\n1 2\n", "line 1: weights 3, expected 0, 1, 10 or 11"),
        (b"-1 2\n", "line 1: -1 nets and 2 vertices"),
        (b"1 9999999999\n1 2\n", "line 1: 1 nets and 9999999999 vertices"),
        (b"2 3\n1 2\n", "has 2 lines, expected 3"),
        (b"% c\n1 3\n1 2\n\n2 3\n", "line 4: expected the end, after 2 lines"),
        (b"1 3 10\n1 2\n1\n1\n", "has 4 lines, expected 5"),
        (b"2 3\n\n1 2\n", "line 2: net 1 has no vertices"),
        (b"2 3 1\n1 2\n4\n", "line 3: net 2 has no vertices"),
        (b"1 3 1\n0 1 2\n", "line 2: net 1 has weight 0"),
        (b"2 3\n1 2\n1 4\n", "line 3: vertex 4 of net 2 is outside 1 to 3"),
        (b"2 3\n1 2\n%\n1 0\n", "line 4: vertex 0 of net 2 is outside 1 to 3"),
        (b"2 3\n1 2\n3 1 3\n", "line 3: net 2 has vertex 3 twice"),
        (b"1 2 10\n1 2\n1\n-1\n", "line 4: vertex weight -1, expected at least 0"),
        (b"1 2 10\n1 2\n1\n1 1\n", "line 4: has 2 numbers, expected one"),
        (b"1 2\n1 2.5\n", "line 2: '.', expected whole numbers only"),
        (b"1 2\n1 % 2\n", "line 2: '%', expected whole numbers only"),
        (b"1 2\n1 2-\n", "line 2: '-', expected whole numbers only"),
        (b"1 2\n1 \xff\n", r"line 2: '\xff', expected whole numbers only"),
        (b"1 2\n1 2", "line 2: no newline at its end: the file was cut off"),
        (b"1 2\n1 1234567890123456789\n", "line 2: a number of more than 18 digits"),
    ],
)
def test_malformed_hypergraphs(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "a.hgr"
    path.write_bytes(text)
    with pytest.raises(FormatError) as caught:
        hmetis.read_hgr(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([b"0", b"1", b"2", b"12", b"-", b" ", b"\n", b"%", b"\r", b"x"])))
def test_any_text_is_read_or_refused(pieces: list[bytes]) -> None:
    """The numbers of a file, against Python's own idea of lines and whole numbers."""
    text = b"".join(pieces)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(text)
        whole = text == b"" or text.endswith(b"\n")
        lines = [
            (number, line)
            for number, line in enumerate(text.split(b"\n")[:-1], 1)
            if not line.startswith(b"%")
        ]
        while lines and not lines[-1][1].strip(b" \r"):
            lines.pop()
        bad = [n for n, line in lines if not re.fullmatch(rb"[ \r]*(-?[0-9]+([ \r]+|$))*", line)]
        if not whole or bad:
            with pytest.raises(FormatError, match=f"line {bad[0]}:" if whole else "cut off"):
                _numbers.read_numbers(path)
            return
        numbers = _numbers.read_numbers(path)
        assert numbers.lines.tolist() == [n for n, _ in lines]
        assert [numbers.line(i).tolist() for i in range(len(lines))] == [
            [int(word) for word in line.split()] for _, line in lines
        ]


def test_a_net_without_pins_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "a.hgr"
    with pytest.raises(InputError, match=r"net 1 .* has no pins"):
        hmetis.write_hgr(hypergraph([[0], []], [1]), path)
    assert not path.exists()


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such file"):
        hmetis.read_hgr(tmp_path / "a.hgr")
    with pytest.raises(FormatError, match="is a folder"):
        hmetis.read_parts(tmp_path, 1, 1)
    with pytest.raises(FormatError, match="no folder"):
        hmetis.write_hgr(MANUAL_GRAPH, tmp_path / "b" / "a.hgr")


def test_fix_and_part_files(tmp_path: Path) -> None:
    path = tmp_path / "a.part"
    hmetis.write_fix(np.array([-1, 0, 12]), path)
    assert path.read_bytes() == b"-1\n0\n12\n"
    assert hmetis.read_fix(path, 3, 13).tolist() == [-1, 0, 12]
    for parts, size, message in [
        (12, 3, "line 3: part 12, expected -1 to 11"),
        (13, 2, "line 3: expected the end, after 2 lines"),
        (13, 4, "has 3 lines, expected 4"),
    ]:
        with pytest.raises(FormatError, match=message):
            hmetis.read_fix(path, size, parts)
    with pytest.raises(FormatError, match="line 1: part -1, expected 0 to 12"):
        hmetis.read_parts(path, 3, 13)
    with pytest.raises(InputError, match="vertex 0 has part -1"):
        hmetis.write_parts(np.array([-1]), path)
    with pytest.raises(ShapeError, match="flat array of integers"):
        hmetis.write_parts(np.array([0.5]), path)
    hmetis.write_parts(np.array([], np.int32), path)
    assert hmetis.read_parts(path, 0, 1).size == 0


def test_parts_folder(tmp_path: Path) -> None:
    labels = [np.array([0, 1, 1], np.int32), np.array([1], np.int32)]
    folder = tmp_path / "parts"
    hmetis.write_parts_folder(labels, folder)
    for layer, expected in enumerate(labels, 1):
        found = hmetis.read_parts(folder / hmetis.layer_part_file(layer), expected.size, 2)
        np.testing.assert_array_equal(expected, found)
        assert found.dtype == np.int32
    with pytest.raises(FormatError, match=r"layer-1.part: line 2: part 1, expected 0 to 0"):
        hmetis.read_parts(folder / "layer-1.part", 3, 1)
    with pytest.raises(FormatError, match=r"layer-2.part"):
        hmetis.write_parts_folder(labels[:1], folder)
