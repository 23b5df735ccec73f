"""Pictures: every format, extreme partitions, nothing half-written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sparsednn import SparseNetwork
from sparsednn.datasets import radix_net
from sparsednn.errors import FormatError, MissingDependencyError, UsageError
from sparsednn.partitioners import Options
from sparsednn.partitioners.plot import plot_comparison
from sparsednn.partitioners.report import Compared, best_of, partitioned
from sparsednn.pictures import check_picture

pytest.importorskip("matplotlib")

HEADS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.fixture(scope="module")
def network() -> SparseNetwork:
    return radix_net([[4, 4], [4, 4]], weight=0.5, bias=-1.0, name="radix")


def result(network: SparseNetwork, name: str, parts: int) -> Compared:
    return partitioned(network, Options(parts), method="multiphase", partitioner=name)


@pytest.mark.parametrize("suffix", [*HEADS, ".PNG"])
@pytest.mark.parametrize("parts", [1, 2, 100])
def test_every_format(network: SparseNetwork, tmp_path: Path, suffix: str, parts: int) -> None:
    path = tmp_path / f"a{suffix}"
    plot_comparison([result(network, "cyclic", parts)], path)
    assert path.read_bytes().startswith(HEADS[suffix.lower()])
    assert list(tmp_path.iterdir()) == [path]


def test_what_the_picture_says(network: SparseNetwork, tmp_path: Path) -> None:
    """An SVG with its text as text has names, totals and units."""
    import matplotlib

    results = [result(network, name, 4) for name in ("block", "cyclic", "random")]
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot_comparison(results, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    for one in results:
        assert f"{one.partitioner}: {one.stats.words_total:,}" in text
    assert "radix: 4 layers, 4 parts" in text
    assert f"Who sends to whom: {best_of(results).partitioner}" in text
    for label in ("layer", "words per image", "sending part", "receiving part"):
        assert label in text


def test_no_window_and_no_figure_stay(network: SparseNetwork, tmp_path: Path) -> None:
    plot_comparison([result(network, "block", 2)], tmp_path / "a.png")
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )


def test_the_best_has_the_fewest_words(network: SparseNetwork) -> None:
    results = [result(network, name, 4) for name in ("cyclic", "block", "random")]
    best = best_of(results)
    assert best.stats.words_total == min(one.stats.words_total for one in results)


def test_what_cannot_be_drawn(
    network: SparseNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = [result(network, "cyclic", 2)]
    for name in ("a", "a.gif", "a.npz"):
        with pytest.raises(UsageError, match=r"unknown suffix .* known are \.png"):
            plot_comparison(one, tmp_path / name)
    with pytest.raises(FormatError, match="no folder"):
        plot_comparison(one, tmp_path / "no" / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match="pip install matplotlib"):
        check_picture(tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
