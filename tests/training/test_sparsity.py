"""Dynamic sparsity: the new patterns against their definition, and what must never change."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsednn.errors import InputError, ShapeError, UsageError
from sparsednn.training import sparsity
from sparsednn.training.sparsity import (
    Drift,
    DynamicSparsity,
    Replacement,
    carry,
    replace_connections,
)

Pattern = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]
Place = tuple[int, int]


def of_mask(mask: NDArray[np.bool_], values: NDArray[np.floating]) -> Pattern:
    indptr = np.concatenate(([0], np.cumsum(mask.sum(axis=1)))).astype(np.int64)
    return indptr, np.nonzero(mask)[1].astype(np.int32), values[mask].astype(np.float32)


def places(indptr: NDArray[np.int64], indices: NDArray[np.int32]) -> list[Place]:
    rows = np.repeat(np.arange(indptr.size - 1), np.diff(indptr))
    return list(zip(rows.tolist(), indices.tolist(), strict=True))


@st.composite
def layers(draw: st.DrawFn) -> tuple[Pattern, int, NDArray[np.float32]]:
    """Rows of any density, perhaps none, some empty; few levels of magnitude, so there are ties."""
    n_out, n_in = draw(st.integers(0, 7)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    mask = rng.random((n_out, n_in)) < draw(st.sampled_from([0.0, 0.1, 0.3, 0.6, 0.9, 1.0]))
    mask[rng.random(n_out) < 0.2] = draw(st.booleans())
    levels = draw(st.sampled_from([2, 5, 1000]))
    values = rng.integers(-levels, levels + 1, mask.shape) / levels
    gradient = (rng.integers(-levels, levels + 1, mask.shape) / levels).astype(np.float32)
    return of_mask(mask, values), n_in, gradient


def blocks(gradient: NDArray[np.floating]) -> Callable[[int, int], NDArray[np.floating]]:
    return lambda first, last: gradient[first:last]


def smallest(pattern: Pattern, n_in: int, share: float) -> list[int]:
    """The definition: entries by magnitude, of equal ones the later first; as many as may go."""
    indptr, _, values = pattern
    count = min(math.floor(share * values.size), (indptr.size - 1) * n_in - values.size)
    return sorted(range(values.size), key=lambda k: (abs(float(values[k])), -k))[:count]


def check(pattern: Pattern, n_in: int, share: float, new: Replacement) -> None:
    """What holds whatever has grown."""
    indptr, indices, values = pattern
    before, after = places(indptr, indices), places(new.indptr, new.indices)
    assert (new.indptr.dtype, new.indices.dtype, new.source.dtype) == (np.int64, np.int32, np.int64)
    assert new.indptr.size == indptr.size
    assert new.indptr[0] == 0
    assert new.indptr[-1] == new.indices.size == new.source.size == values.size
    assert after == sorted(set(after))
    assert all(0 <= column < n_in for _, column in after)
    for place, old in zip(after, new.source.tolist(), strict=True):
        if old < 0:
            assert place not in before
        else:
            assert place == before[old]
    gone = set(range(values.size)) - set(new.source.tolist())
    drop = smallest(pattern, n_in, share)
    assert gone <= set(drop)
    assert new.dropped == len(drop)
    assert new.grown == len(gone) == np.count_nonzero(new.source < 0)


shares = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0]))


@settings(deadline=None, max_examples=150)
@given(layers(), shares, st.integers(0, 2**32))
def test_set_keeps_the_number_and_drops_the_smallest(
    layer: tuple[Pattern, int, NDArray[np.float32]], share: float, seed: int
) -> None:
    pattern, n_in, _ = layer
    copies = [array.copy() for array in pattern]
    new = replace_connections(*pattern, n_in, share, rng=np.random.default_rng(seed))
    check(pattern, n_in, share, new)
    for array, copy in zip(pattern, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    again = replace_connections(*pattern, n_in, share, rng=np.random.default_rng(seed))
    for one, other in zip(new, again, strict=True):
        np.testing.assert_array_equal(one, other)


@settings(deadline=None, max_examples=150)
@given(layers(), shares, st.sampled_from([1, 50, 100, sparsity._BLOCK_BYTES]))
def test_rigl_against_the_definition(
    layer: tuple[Pattern, int, NDArray[np.float32]], share: float, block_bytes: int
) -> None:
    pattern, n_in, gradient = layer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparsity, "_BLOCK_BYTES", block_bytes)
        new = replace_connections(*pattern, n_in, share, scores=blocks(gradient))
    check(pattern, n_in, share, new)
    before = places(*pattern[:2])
    drop = smallest(pattern, n_in, share)
    kept = {before[k] for k in range(len(before)) if k not in drop}
    free = [place for place in np.ndindex(gradient.shape) if place not in kept]
    grown = sorted(free, key=lambda place: (-abs(float(gradient[place])), place))[: len(drop)]
    assert places(new.indptr, new.indices) == sorted(kept | set(grown))


def test_blocks_are_no_larger_than_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsity, "_BLOCK_BYTES", 100)
    asked = []

    def scores(first: int, last: int) -> NDArray[np.float32]:
        asked.append((first, last))
        return np.zeros((last - first, 10), np.float32)

    pattern = of_mask(np.eye(5, 10, dtype=np.bool_), np.ones((5, 10)))
    replace_connections(*pattern, 10, 0.4, scores=scores)
    assert asked == [(0, 2), (2, 4), (4, 5)]  # 2 rows of 10 float32 are 80 bytes


def test_a_dropped_connection_of_large_gradient_stays_with_its_weight() -> None:
    pattern = of_mask(np.array([[1, 1, 0, 0]], np.bool_), np.array([[0.1, 5.0, 0, 0]]))
    gradient = np.array([[-9.0, 1, 8, 0]], np.float32)
    new = replace_connections(*pattern, 4, 0.5, scores=blocks(gradient))
    assert (new.dropped, new.grown) == (1, 0)
    assert new.source.tolist() == [0, 1]
    gradient[0, 0] = 7.0
    new = replace_connections(*pattern, 4, 0.5, scores=blocks(gradient))
    assert (new.dropped, new.grown) == (1, 1)
    assert new.source.tolist() == [1, -1]
    assert new.indices.tolist() == [1, 2]
    np.testing.assert_array_equal(carry(pattern[2], new.source), np.float32([5, 0]))


@pytest.mark.parametrize("density", ["sparse: by trial", "dense: from a list"])
def test_set_grows_everywhere_alike(density: str) -> None:
    """One connection goes, at a known place; over many seeds every free place gets its share."""
    n_out, n_in, runs = 3, 4, 3000
    mask = np.zeros((n_out, n_in), np.bool_)
    mask.reshape(-1)[[0, 5, 6] if density.startswith("sparse") else [0, 2, 3, 5, 6, 7, 11]] = True
    values = np.where(mask, np.arange(12).reshape(3, 4) + 1.0, 0)
    pattern = of_mask(mask, values)
    hits = np.zeros(mask.shape, np.int64)
    for seed in range(runs):
        new = replace_connections(*pattern, n_in, 1.5 / mask.sum(), rng=np.random.default_rng(seed))
        assert new.dropped == 1
        now = set(places(new.indptr, new.indices))
        (grown,) = now - set(places(*pattern[:2])) or {(0, 0)}
        hits[grown] += 1
    free = ~mask
    free[0, 0] = True  # the smallest, which may come back
    assert not hits[~free].any()
    expected = runs / free.sum()
    # Six standard deviations of a binomial count; the seeds are fixed, so this is no lottery.
    assert np.abs(hits[free] - expected).max() < 6 * math.sqrt(expected)


def test_set_draws_all_pairs_alike() -> None:
    """Drawing round by round must not prefer some sets of positions."""
    pattern = of_mask(np.array([[1, 1, 0, 0, 0, 0]], np.bool_), np.ones((1, 6)))
    pairs: dict[tuple[int, ...], int] = {}
    runs = 3000
    for seed in range(runs):
        new = replace_connections(*pattern, 6, 1.0, rng=np.random.default_rng(seed))
        pair = tuple(new.indices.tolist())
        pairs[pair] = pairs.get(pair, 0) + 1
    assert len(pairs) == 15
    assert max(abs(count - runs / 15) for count in pairs.values()) < 6 * math.sqrt(runs / 15)


def no_scores(first: int, last: int) -> NDArray[np.float32]:
    raise AssertionError("nothing is dropped, so no gradient is needed")


@pytest.mark.parametrize(
    ("shape", "density", "share"),
    [((4, 5), 1.0, 0.5), ((4, 5), 0.5, 0.0), ((4, 5), 0.0, 1.0), ((0, 5), 0.0, 1.0)],
    ids=["full", "share 0", "empty", "no rows"],
)
def test_nothing_to_replace(shape: tuple[int, int], density: float, share: float) -> None:
    rng = np.random.default_rng(1)
    mask = rng.random(shape) < density
    pattern = of_mask(mask, rng.standard_normal(shape))
    for new in (
        replace_connections(*pattern, shape[1], share, rng=rng),
        replace_connections(*pattern, shape[1], share, scores=no_scores),
    ):
        assert places(new.indptr, new.indices) == places(*pattern[:2])
        assert new.source.tolist() == list(range(pattern[2].size))
        assert (new.dropped, new.grown) == (0, 0)
        assert carry(pattern[2], new.source).tolist() == pattern[2].tolist()


def test_one_column_and_rows_that_end_empty() -> None:
    mask = np.array([[1], [0], [1], [0], [0]], np.bool_)
    pattern = of_mask(mask, np.array([[0.5], [0], [2.0], [0], [0]]))
    gradient = np.array([[0.0], [1], [9], [1], [0.5]], np.float32)
    new = replace_connections(*pattern, 1, 0.5, scores=blocks(gradient))
    assert new.indptr.tolist() == [0, 0, 1, 2, 2, 2]  # of rows 1 and 3 the earlier; row 0 is empty
    assert new.source.tolist() == [-1, 1]


def test_positions_beyond_32_bits() -> None:
    """Rows times columns may pass 2^31; memory follows the connections."""
    n_in, rows = 2**31 - 1, 1000
    pattern = (
        np.arange(rows + 1, dtype=np.int64),
        np.full(rows, n_in - 1, np.int32),
        np.arange(1, rows + 1, dtype=np.float32),
    )
    new = replace_connections(*pattern, n_in, 0.25, rng=np.random.default_rng(2))
    assert new.dropped == new.grown == 250
    assert new.source[new.source >= 0].tolist() == list(range(250, 1000))
    after = places(new.indptr, new.indices)
    assert after == sorted(set(after))
    for place, old in zip(after, new.source.tolist(), strict=True):
        assert old < 0 or place == (old, n_in - 1)


def test_float64_gradients_are_compared_as_such() -> None:
    pattern = of_mask(np.array([[1, 1, 0, 0]], np.bool_), np.array([[1.0, 2, 0, 0]]))
    gradient = np.array([[0.0, 0, 1, 1 + 1e-12]])
    new = replace_connections(*pattern, 4, 0.5, scores=blocks(gradient))
    assert new.indices.tolist() == [1, 3]


def test_calls_that_are_wrong() -> None:
    pattern = of_mask(np.eye(2, dtype=np.bool_), np.ones((2, 2)))
    rng = np.random.default_rng(0)
    with pytest.raises(UsageError, match="exactly one"):
        replace_connections(*pattern, 2, 0.5)
    with pytest.raises(UsageError, match="exactly one"):
        replace_connections(*pattern, 2, 0.5, rng=rng, scores=no_scores)
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match="share"):
            replace_connections(*pattern, 2, share, rng=rng)
    with pytest.raises(ShapeError, match=r"\(2, 3\).*\(2, 2\)"):
        replace_connections(*pattern, 2, 0.5, scores=blocks(np.zeros((2, 3))))
    for bad in (math.nan, math.inf):
        with pytest.raises(InputError, match="gradient is NaN or infinite"):
            replace_connections(*pattern, 2, 0.5, scores=blocks(np.array([[0, bad], [0, 0]])))
        weights = np.array([1, bad], np.float32)
        with pytest.raises(InputError, match="weight is NaN or infinite"):
            replace_connections(*pattern[:2], weights, 2, 0.5, rng=rng)


def test_carry() -> None:
    source = np.array([2, -1, 0, -1])
    array = np.array([1, 2, 3, 4], np.float32)
    moved = carry(array, source)
    assert moved.dtype == np.float32
    assert moved.tolist() == [3, 0, 1, 0]
    assert carry(array, source, 7).tolist() == [3, 7, 1, 7]
    assert carry(array, source, np.array([5, 6])).tolist() == [3, 5, 1, 6]
    assert array.tolist() == [1, 2, 3, 4]
    assert carry(np.empty(0, np.float32), np.empty(0, np.int64)).size == 0
    with pytest.raises(ShapeError, match="does not belong to 4 connections"):
        carry(array[:3], source)


@given(
    st.builds(
        DynamicSparsity,
        st.sampled_from(sparsity.METHODS),
        st.integers(1, 10**6),
        st.floats(0, 1, exclude_min=True),
        st.floats(0, 1, exclude_min=True),
    )
)
def test_written_form_round_trips(chosen: DynamicSparsity) -> None:
    assert DynamicSparsity.parse(str(chosen)) == chosen


def test_parse() -> None:
    assert DynamicSparsity.parse("rigl") == DynamicSparsity("rigl", 100, 0.3, 0.75)
    assert str(DynamicSparsity.parse("set")) == "set:every=100,fraction=0.3,until=0.75"
    assert DynamicSparsity.parse("rigl:until=1,every=7") == DynamicSparsity("rigl", 7, 0.3, 1.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "unknown dynamic sparsity ''"),
        ("deepr", "known are set, rigl"),
        ("rigl:", "'' is not known"),
        ("rigl:often=3", "'often' is not known"),
        ("rigl:every=3,every=4", "'every' is there twice"),
        ("rigl:every=2.5", "a whole number, found '2.5'"),
        ("rigl:every", "a whole number, found ''"),
        ("rigl:fraction=much", "fraction must be a number, found 'much'"),
        ("rigl:every=0", "at least 1 step, found 0"),
        ("rigl:fraction=0", "fraction must be above 0 and at most 1"),
        ("rigl:fraction=nan", "fraction must be above 0 and at most 1"),
        ("rigl:until=1.5", "until must be above 0 and at most 1"),
    ],
)
def test_parse_refuses(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        DynamicSparsity.parse(text)


def test_when_and_how_much() -> None:
    chosen = DynamicSparsity("rigl", every=10, fraction=0.4, until=0.5)
    assert [step for step in range(101) if chosen.due(step, 100)] == [10, 20, 30, 40]
    assert chosen.share(0, 100) == pytest.approx(0.4)
    assert chosen.share(25, 100) == pytest.approx(0.2)
    assert chosen.share(10, 100) == pytest.approx(0.2 * (1 + math.cos(math.pi / 5)))
    assert chosen.share(50, 100) == chosen.share(99, 100) == 0.0
    to_the_end = DynamicSparsity("set", every=10, until=1.0)
    assert not to_the_end.due(100, 100)  # nobody would train what grows after the last step
    assert not any(to_the_end.due(step, 0) for step in range(3))
    assert to_the_end.share(0, 0) == 0.0


def test_drift() -> None:
    assert Drift(0, 0).ratio == 1.0
    assert Drift(0, 5).ratio == math.inf
    assert Drift(1000, 1340).ratio == 1.34
