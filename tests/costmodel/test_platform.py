"""Platforms: what their figures say, which files are refused and how, and that files keep all."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsednn.costmodel.platform import (
    SPEEDS,
    Copies,
    Link,
    Node,
    Platform,
    Processor,
    load_platform,
    platform_names,
    save_platform,
)
from sparsednn.costmodel.tables import SizeTable
from sparsednn.costmodel.toml_text import plain, read_toml, toml_text
from sparsednn.errors import FormatError, UnknownNameError, UsageError

CORE = Processor("cpu", 1e11, 1e10, 1e6, 1e11, 0.8, 0.5, 1e-5, 5e9)
SHARED = Link(1e-6, 1e10, 5e-7, 0.0)
CARD = Link(2e-6, 2e10, 5e-7, 0.5)


def cluster(ranks: int = 4, nodes: int = 8, processors: int = 4) -> Platform:
    """A toy: nodes of 4 cores."""
    return Platform(
        "toy", "made up", CORE, Node(processors, ranks, 8e9, 4e10), nodes, SHARED, CARD
    )  # fmt: skip


# Documented platforms


def test_the_documented_platforms_are_these() -> None:
    assert platform_names() == ("gpu-node-8", "infiniband-128", "node-64", "two-core-server")


@pytest.mark.parametrize("name", platform_names())
def test_a_documented_platform_loads_and_is_saved_equal(name: str, tmp_path: Path) -> None:
    platform = load_platform(name)
    assert platform.name == name
    assert set(platform.speed.values()) == {1.0}
    save_platform(platform, tmp_path / "again.toml")
    assert load_platform(tmp_path / "again.toml") == platform


@pytest.mark.parametrize("name", platform_names())
def test_every_figure_of_a_documented_platform_has_a_comment_above(name: str) -> None:
    folder = Path(load_platform.__code__.co_filename).with_name("platforms")
    covered = False
    for line in (folder / f"{name}.toml").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            covered = True
        elif not line or line.startswith("["):
            covered = False
        elif line.split(" = ")[0] not in ("format", "version", "name", "source", "nodes", "kind"):
            # Figures that follow each other may share a comment.
            assert covered, line


@pytest.mark.parametrize("name", platform_names())
def test_a_documented_platform_is_a_machine_that_could_be(name: str) -> None:
    platform = load_platform(name)
    processor, node = platform.processor, platform.node
    assert processor.cache_bandwidth > processor.memory_bandwidth
    assert node.memory_bandwidth >= processor.memory_bandwidth
    assert node.memory_bandwidth <= processor.memory_bandwidth * node.processors
    assert processor.cache_bytes * node.processors < node.memory_bytes
    if platform.between is not None:
        assert platform.between.latency_seconds >= platform.within.latency_seconds


def test_the_cluster_has_room_for_thousands_of_ranks() -> None:
    platform = load_platform("infiniband-128")
    assert platform.max_ranks == 8192
    assert platform.nodes_of(1024) == 16


# What follows from the figures


def test_ranks_fill_nodes_in_order() -> None:
    platform = cluster(ranks=4, nodes=3)
    assert [platform.nodes_of(ranks) for ranks in (1, 4, 5, 12)] == [1, 1, 2, 3]
    assert platform.max_ranks == 12
    assert platform.link(0, 3) is platform.within
    assert platform.link(3, 4) is platform.between
    assert platform.link(5, 5) is platform.within
    assert [platform.ranks_on_node(ranks) for ranks in (1, 3, 4, 9)] == [1, 3, 4, 4]


@pytest.mark.parametrize(
    ("ranks_per_node", "processors", "ranks", "threads", "crowding"),
    [
        (4, 2, 1, 1, 1.0),
        (4, 2, 2, 1, 1.0),
        (4, 2, 3, 1, 1.5),
        (4, 2, 4, 1, 2.0),
        (4, 2, 2, 2, 2.0),
        (4, 2, 9, 1, 2.0),  # no node has more than four
        (8, 64, 8, 8, 1.0),
        (8, 64, 100, 16, 2.0),
    ],
)
def test_crowding(
    ranks_per_node: int, processors: int, ranks: int, threads: int, crowding: float
) -> None:
    platform = cluster(ranks=ranks_per_node, processors=processors)
    assert platform.crowding(ranks, threads) == crowding


def test_threads_and_memory_per_rank() -> None:
    assert cluster(ranks=2, processors=8).threads_per_rank == 4
    assert cluster(ranks=4, processors=2).threads_per_rank == 1
    platform = cluster(ranks=4)
    assert platform.memory_per_rank() == 2e9
    assert platform.memory_per_rank(2) == 4e9
    assert platform.memory_per_rank(9) == 2e9
    gpus = load_platform("gpu-node-8")
    assert gpus.threads_per_rank == 1
    assert gpus.crowding(8, threads=16) == 1


def test_too_many_ranks_are_told() -> None:
    platform = cluster(ranks=4, nodes=2)
    platform.check_ranks(8)
    with pytest.raises(UsageError, match=r"platform toy has 8 ranks \(2 nodes of 4\), 9 are"):
        platform.check_ranks(9)
    with pytest.raises(UsageError, match="at least 1 rank, found 0"):
        platform.check_ranks(0)


# α, β, γ


def test_the_wire_within_a_node_is_its_link() -> None:
    wire = cluster(ranks=4).wire(4)
    assert wire.latency == pytest.approx(1e-6 + 2 * 5e-7)  # α + 2o
    assert wire.per_byte == pytest.approx(1e-10)
    assert wire.reduction == pytest.approx(1 / 5e9)
    assert (wire.members, wire.near) == (1, None)


@pytest.mark.parametrize(
    ("ranks", "stride", "members", "groups"),
    [
        (8, 1, 4, 1),  # two nodes: one group of four on each
        (4, 2, 2, 2),  # ranks 0, 2 | 4, 6 and 1, 3 | 5, 7 share the card
        (8, 4, 1, 4),  # a rank of each of four groups on every node
        (2, 16, 1, 4),
    ],
)
def test_groups_on_several_nodes_share_the_card(
    ranks: int, stride: int, members: int, groups: int
) -> None:
    wire = cluster(ranks=4).wire(ranks, stride)
    assert wire.latency == pytest.approx(2e-6 + 2 * 5e-7)
    assert wire.per_byte == pytest.approx(max(1 / 1e10, groups / 2e10))
    assert wire.members == members
    assert wire.near is not None
    assert wire.near.per_byte == pytest.approx(1e-10)


def test_a_stride_within_a_node_stays_there() -> None:
    assert cluster(ranks=4).wire(2, stride=2) == cluster(ranks=4).wire(2)
    assert cluster(ranks=4).wire(2, stride=4).latency > cluster(ranks=4).wire(2).latency


def test_crowded_processors_take_longer_for_messages() -> None:
    platform = cluster(ranks=4, processors=2)
    alone, crowded = platform.wire(2), platform.wire(2, job=4)
    assert alone.latency == pytest.approx(1e-6 + 2 * 5e-7)
    assert crowded.latency == pytest.approx(1e-6 + 2 * 2 * 5e-7)
    assert crowded.reduction == pytest.approx(2 * alone.reduction)
    assert platform.wire(4) == crowded


def test_two_nodes_need_a_network() -> None:
    platform = dataclasses.replace(cluster(ranks=4, nodes=1), between=None)
    with pytest.raises(UsageError, match=r"without \[links.between\]: 8 ranks"):
        platform.wire(8)
    with pytest.raises(UsageError, match=r"without \[links.between\]: 6 ranks"):
        platform.link(5, 1)


# Other machines


def test_scaled_multiplies_what_the_axis_says() -> None:
    platform = load_platform("gpu-node-8")
    faster = platform.scaled(flops=2.0, memory_bandwidth=3.0, link_bandwidth=4.0, link_latency=0.5)
    assert faster.processor.flops == 2 * platform.processor.flops
    assert faster.processor.cache_bandwidth == 2 * platform.processor.cache_bandwidth
    assert faster.processor.memory_bandwidth == 3 * platform.processor.memory_bandwidth
    assert faster.processor.reduction_bandwidth == 3 * platform.processor.reduction_bandwidth
    assert faster.node.memory_bandwidth == 3 * platform.node.memory_bandwidth
    assert faster.within.bandwidth == 4 * platform.within.bandwidth
    assert faster.within.latency_seconds == platform.within.latency_seconds / 2
    assert faster.within.overhead_seconds == platform.within.overhead_seconds / 2
    assert faster.copies is not None
    assert platform.copies is not None
    assert faster.copies.bandwidth == 4 * platform.copies.bandwidth
    assert faster.processor.gemm_efficiency == platform.processor.gemm_efficiency


def test_scaled_adds_up_and_is_kept_in_files(tmp_path: Path) -> None:
    platform = cluster().scaled(flops=2.0).scaled(flops=3.0, link_bandwidth=0.5)
    assert platform.speed == {
        "flops": 6.0, "memory_bandwidth": 1.0, "link_bandwidth": 0.5, "link_latency": 1.0,
    }  # fmt: skip
    assert platform.between is not None
    assert platform.between.bandwidth == CARD.bandwidth / 2
    save_platform(platform, tmp_path / "scaled.toml")
    assert load_platform(tmp_path / "scaled.toml") == platform


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_scaled_refuses_factors_that_are_none(factor: float) -> None:
    with pytest.raises(UsageError, match="flops: a positive number is needed"):
        cluster().scaled(flops=factor)


def test_scaled_names_its_axes() -> None:
    with pytest.raises(UsageError, match=f"no axis 'speed'; there are {', '.join(SPEEDS)}"):
        cluster().scaled(speed=2.0)


# Files that are refused


def _changed(table: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(tables: dict[str, Any]) -> None:
        place = tables
        for name in filter(None, table.split(".")):
            place = place[name]
        if value is None:
            del place[key]
        else:
            place[key] = value

    return change


REFUSED = [
    ("", "format", "toml", 'format: "sparsednn platform" is needed, found'),
    ("", "format", None, 'format: "sparsednn platform" is needed, found None'),
    ("", "version", 2, "version: 1 is needed, found 2"),
    ("", "name", None, "name: a text is needed, it is missing"),
    ("", "name", "", "name: a text is needed, found ''"),
    ("", "nodes", None, "nodes: a whole number from 1 is needed, it is missing"),
    ("", "nodes", 0, "nodes: a whole number from 1 is needed, found 0"),
    ("", "nodes", 1.5, "nodes: a whole number from 1 is needed, found 1.5"),
    ("", "colour", 1, "colour: no such key; there are format,"),
    ("", "processor", None, r"\[processor\]: this table is missing"),
    ("", "processor", 3, r"\[processor\] a table is needed, found 3"),
    ("", "links", None, r"\[links\]: this table is missing"),
    ("", "links", 3, "links: a table is needed, found 3"),
    ("", "measured", 3, "measured: a table is needed, found 3"),
    ("", "copies", {"latency_seconds": 0, "bandwidth": 1e9}, r"\[copies\]: only for GPUs"),
    ("processor", "kind", "tpu", r'\[processor\] kind: "cpu" or "gpu" is needed, found \'tpu\''),
    ("processor", "kind", "gpu", r"\[copies\]: needed for GPUs, it is missing"),
    ("processor", "flops", -3, r"\[processor\] flops: a positive number is needed, found -3"),
    ("processor", "flops", 0, r"\[processor\] flops: a positive number is needed, found 0"),
    (
        "processor",
        "flops",
        math.nan,
        r"\[processor\] flops: a positive number is needed, found nan",
    ),
    (
        "processor",
        "flops",
        math.inf,
        r"\[processor\] flops: a positive number is needed, found inf",
    ),
    (
        "processor",
        "flops",
        "fast",
        r"\[processor\] flops: a positive number is needed, found 'fast'",
    ),
    ("processor", "flops", True, r"\[processor\] flops: a positive number is needed, found True"),
    (
        "processor",
        "flops",
        None,
        r"\[processor\] flops: a positive number is needed, it is missing",
    ),
    ("processor", "flop", 1e9, r"\[processor\] flop: no such figure; there are kind, flops"),
    ("processor", "launch_seconds", -1e-6, r"\[processor\] launch_seconds: a number from 0"),
    (
        "processor",
        "gemm_efficiency",
        1.2,
        r"\[processor\] gemm_efficiency: a number above 0 and at",
    ),
    ("processor", "sparse_efficiency", 0, r"\[processor\] sparse_efficiency: a number above 0"),
    ("node", "processors", 0, r"\[node\] processors: a whole number from 1 is needed, found 0"),
    ("node", "ranks", 2.0, r"\[node\] ranks: a whole number from 1 is needed, found 2.0"),
    ("node", "ranks", True, r"\[node\] ranks: a whole number from 1 is needed, found True"),
    ("node", "memory_bytes", [1], r"\[node\] memory_bytes: a positive number is needed"),
    ("links", "within", None, r"\[links.within\]: this table is missing"),
    ("links", "across", {}, r"\[links\] across: no such link; there are within and between"),
    ("links", "between", None, r"\[links.between\]: needed between 8 nodes, it is missing"),
    ("links.within", "overlap", 1.5, r"\[links.within\] overlap: a number from 0 to 1 is needed"),
    ("links.between", "bandwidth", 0.0, r"\[links.between\] bandwidth: a positive number is"),
    ("links.between", "latency_seconds", None, r"\[links.between\] latency_seconds: a number from"),
    ("", "speed", {"flops": 2.0}, r"\[speed\]: needs flops, memory_bandwidth,"),
    ("", "speed", dict.fromkeys(SPEEDS, 0), r"\[speed\] flops: a positive number is needed, found"),
]


@pytest.mark.parametrize(("table", "key", "value", "message"), REFUSED)
def test_a_file_with_a_wrong_figure_is_refused_in_one_line(
    table: str, key: str, value: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "my.toml"
    save_platform(cluster(), path)
    tables = read_toml(path)
    _changed(table, key, value)(tables)
    path.write_text(toml_text(tables), encoding="utf-8")
    with pytest.raises(FormatError, match=message) as caught:
        load_platform(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"format = ", "my.toml: not TOML: Invalid value"),
        (b"\x80\x02", "my.toml: not TOML: byte 0 is not UTF-8"),
        (b'{"a": 1}', "my.toml: not TOML: "),
        (b"", 'my.toml: format: "sparsednn platform" is needed, found None'),
    ],
)
def test_something_that_is_no_platform_is_refused(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "my.toml").write_bytes(content)
    with pytest.raises(FormatError, match=message):
        load_platform(tmp_path / "my.toml")


def test_a_folder_is_no_platform(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot read: Is a directory"):
        load_platform(tmp_path)


def test_an_unknown_name_lists_the_documented_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"neither a file nor .* gpu-node-8, infiniband-128"):
        load_platform("laptop")


def test_a_figure_is_checked_without_a_file_too() -> None:
    with pytest.raises(UsageError, match="bandwidth: a positive number is needed, found 0"):
        Link(1e-6, 0, 0, 0)
    with pytest.raises(UsageError, match=r"\[links.between\]: needed between 2 nodes"):
        dataclasses.replace(cluster(nodes=2), between=None)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    save_platform(cluster(), tmp_path / "p.toml")
    bad = dataclasses.replace(cluster(), measured={"m": {"when": None}})
    with pytest.raises(UsageError, match=r"measured.m.when: TOML has no NoneType"):
        save_platform(bad, tmp_path / "p.toml")
    assert load_platform(tmp_path / "p.toml") == cluster()


# Files keep everything

_POSITIVE = st.floats(1e-300, 1e300)
_SHARE = st.floats(0, 1)
_LINK = st.builds(Link, st.floats(0, 1), _POSITIVE, st.floats(0, 1), _SHARE)
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
_LEAF = (
    st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.booleans()
    | st.text(st.characters(exclude_categories=["Cs"]))
)
_VALUE = st.recursive(
    _LEAF,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


@st.composite
def platforms(draw: st.DrawFn) -> Platform:
    gpu = draw(st.booleans())
    numbers = [draw(_POSITIVE) for _ in range(8)]
    efficiencies = [draw(st.floats(1e-6, 1)) for _ in range(2)]
    processor = Processor(
        "gpu" if gpu else "cpu", *numbers[:4], *efficiencies, draw(st.floats(0, 1)), numbers[4]
    )
    node = Node(draw(st.integers(1, 256)), draw(st.integers(1, 256)), *numbers[5:7])
    nodes = draw(st.integers(1, 1000))
    between = draw(_LINK) if nodes > 1 else draw(st.none() | _LINK)
    return Platform(
        draw(_TEXT), draw(_TEXT), processor, node, nodes, draw(_LINK), between,
        Copies(draw(st.floats(0, 1)), numbers[7]) if gpu else None,
        draw(st.dictionaries(st.text(st.sampled_from("ab.- \"'é\n")), _VALUE, max_size=3)
             .map(lambda tables: {key: {"value": value} for key, value in tables.items()})),
        draw(st.fixed_dictionaries(dict.fromkeys(SPEEDS, st.floats(1e-3, 1e3)))),
    )  # fmt: skip


@given(platforms())
@settings(max_examples=60, deadline=None)
def test_saved_and_loaded_is_equal(platform: Platform) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.toml"
        save_platform(platform, path)
        assert load_platform(path) == platform


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), _VALUE, max_size=5))
@settings(max_examples=100, deadline=None)
def test_toml_reads_back_what_was_written(tables: dict[str, Any]) -> None:
    import tomllib

    assert tomllib.loads(toml_text(tables)) == tables


def test_measured_tables_may_be_numpys(tmp_path: Path) -> None:
    tables = {"m": {"bytes": np.arange(3), "seconds": (np.float32(0.5), 1.0), "n": np.int64(4)}}
    save_platform(dataclasses.replace(cluster(), measured=tables), tmp_path / "p.toml")
    loaded = load_platform(tmp_path / "p.toml")
    assert loaded.measured == {"m": {"bytes": [0, 1, 2], "seconds": [0.5, 1.0], "n": 4}}
    assert loaded.measured == plain(tables)


def test_a_measured_table_is_parsed_once_and_its_errors_name_it() -> None:
    calls = []

    def parse(table: Any) -> int:
        calls.append(table)
        if table < 0:
            raise UsageError("figure: a positive number is needed, found -1")
        return int(table) + 1

    platform = dataclasses.replace(cluster(), measured={"good": 1, "bad": -1})
    assert [platform.parsed("good", parse) for _ in range(3)] == [2, 2, 2]
    assert platform.parsed("other", parse) is None
    assert calls == [1]
    with pytest.raises(FormatError, match=r"platform toy: \[measured.bad\] figure: a positive"):
        platform.parsed("bad", parse)


# Tables over sizes


def test_a_size_table_is_a_power_between_sizes_flat_below_and_proportional_beyond() -> None:
    table = SizeTable.of([10, 1000], [1e-6, 1e-4])  # s = n/10^7
    assert table.at([10, 100, 1000]) == pytest.approx([1e-6, 1e-5, 1e-4])
    assert table.at([0, 1, 9]) == pytest.approx([1e-6] * 3)
    assert table.at([2000, 1e6]) == pytest.approx([2e-4, 1e-1])
    # Twice the latency, four times the bandwidth: 2·10⁻⁶ + (10⁻⁴ - 10⁻⁶)/4.
    assert table.at(1000, latency=2, bandwidth=4) == pytest.approx(2e-6 + 99e-6 / 4)


@given(
    st.lists(st.floats(1e-7, 1), min_size=1, max_size=8),
    st.lists(st.floats(0, 1e9), min_size=2, max_size=20),
)
def test_a_size_table_never_falls(seconds: list[float], wanted: list[float]) -> None:
    table = SizeTable.of([8 << (2 * power) for power in range(len(seconds))], seconds)
    found = table.at(sorted(wanted))
    assert (np.diff(found) >= -1e-12 * found[1:]).all()
    assert (found >= seconds[0] * (1 - 1e-12)).all()


@pytest.mark.parametrize(
    ("sizes", "seconds", "message"),
    [
        ([], [], "bytes: a list of numbers is needed"),
        (8, [1.0], "bytes: a list of numbers is needed"),
        ([8, 16], [1.0], "2 sizes, but 1 times"),
        ([16, 8], [1.0, 2.0], "ascending sizes are needed"),
        ([8, 8], [1.0, 2.0], "ascending sizes are needed"),
        ([0, 8], [1.0, 2.0], "bytes: positive numbers are needed"),
        ([8, 16], [1.0, -2.0], "seconds: positive numbers are needed"),
        ([8, 16], [1.0, math.nan], "seconds: positive numbers are needed"),
        ([8, 16], [1.0, "x"], "seconds: a list of numbers is needed"),
        ([8, 16], [1.0, [2.0]], "seconds: a list of numbers is needed"),
    ],
)
def test_a_size_table_that_is_none_is_refused(sizes: Any, seconds: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SizeTable.of(sizes, seconds)
