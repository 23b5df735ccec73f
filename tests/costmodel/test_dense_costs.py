"""Local times of dense networks: surfaces, rooflines, what a step is made of."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsednn.costmodel.calibration.dense_networks import draw_network, work_of
from sparsednn.costmodel.dense.features import (
    KINDS,
    LENGTHS,
    PLANE,
    PRODUCT,
    PRODUCTS,
    coordinates_of,
    terms_of,
)
from sparsednn.costmodel.dense.local import LocalCosts, amounts
from sparsednn.costmodel.dense.surface import Surface, fit_surface
from sparsednn.costmodel.dense.work import ProductShares, local_work, theta_sizes
from sparsednn.costmodel.platform import Platform, load_platform
from sparsednn.dense.convolution import ConvolutionShape
from sparsednn.dense.distribution import Distribution, share_of
from sparsednn.dense.flow import make_flow, products
from sparsednn.dense.grids import Grid, Placement, factorizations
from sparsednn.dense.networks import make_network
from sparsednn.errors import FormatError, UsageError

SERVER = load_platform("two-core-server")


def product_row(**sizes: float) -> np.ndarray:
    usual = dict.fromkeys(PRODUCT, 1.0) | {
        "images": 8, "channels": 16, "rows": 12, "columns": 12, "filters": 32, "taps": 3,
        "tap_columns": 3, "output_rows": 12, "output_columns": 12, "bytes": 2e6,
    }  # fmt: skip
    return np.array([[float((usual | sizes)[name]) for name in PRODUCT]])


def rows_of(kind: str, random: np.random.Generator, count: int) -> np.ndarray:
    columns = PRODUCT if kind in PRODUCTS else PLANE
    rows = random.integers(1, 40, (count, len(columns))).astype(float)
    rows[:, -1] = random.integers(1 << 12, 1 << 28, count)
    return rows


def with_table(platform: Platform, kinds: dict[str, Any], threads: str = "1") -> Platform:
    table = {"backends": {"torch": {threads: kinds}}}
    return dataclasses.replace(platform, measured={"dense": table})


# -- features ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_terms_and_coordinates_have_one_row_for_each_operation(kind: str) -> None:
    rows = rows_of(kind, np.random.default_rng(1), 5)
    terms, places = terms_of(kind, rows), coordinates_of(kind, rows)
    sort = kind.partition("_")[0] if kind in PRODUCTS else "plane"
    assert len(terms) == len(places) == 5
    assert places.shape[1] == len(LENGTHS[sort])
    assert (terms >= 0).all()
    assert np.isfinite(places).all()


@given(st.sampled_from(KINDS), st.integers(0, 5), st.integers(0, 1000))
def test_no_term_falls_where_images_channels_or_filters_grow(
    kind: str, axis: int, seed: int
) -> None:
    columns = PRODUCT if kind in PRODUCTS else PLANE
    name = ("images", "channels", "filters", "outputs", "output_rows", "bytes")[axis]
    if name not in columns:
        return
    rows = rows_of(kind, np.random.default_rng(seed), 1)
    larger = rows.copy()
    larger[:, columns.index(name)] *= 2
    whole = terms_of(kind, larger) - terms_of(kind, rows)
    # Only what is left of a plane after whole vectors, and which gradients are scattered, may fall.
    assert (whole >= 0).sum() >= whole.size - 1


# -- surfaces ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["window_forward", "matrix_backward", "pointwise_first", "update"])
def test_a_surface_finds_times_that_are_sums_of_its_terms(kind: str) -> None:
    random = np.random.default_rng(3)
    rows = rows_of(kind, random, 200)
    coefficients = random.random(terms_of(kind, rows).shape[1]) * 1e-9
    seconds = terms_of(kind, rows) @ coefficients
    surface = fit_surface(kind, rows[:150], seconds[:150])
    assert np.abs(surface.seconds(rows[150:]) / seconds[150:] - 1).max() < 0.02


def test_what_neighbours_know_is_added_and_fades() -> None:
    random = np.random.default_rng(4)
    rows = rows_of("window_forward", random, 300)
    rows[:, PRODUCT.index("filters")] = np.where(random.random(300) < 0.5, 4, 400)
    few = rows[:, PRODUCT.index("filters")] == 4
    plain = terms_of("window_forward", rows)[:, 2] * 1e-11 + 1e-5
    seconds = plain * np.where(few, 2.0, 1.0)  # another kernel of the library, half as quick
    surface = fit_surface("window_forward", rows, seconds)
    assert np.median(np.abs(surface.seconds(rows) / seconds - 1)) < 0.1
    far = rows * 1e6
    assert np.allclose(surface.correction(far), surface.mean, atol=1e-3)


def test_a_surface_comes_back_from_its_table() -> None:
    rows = rows_of("matrix_forward", np.random.default_rng(5), 60)
    surface = fit_surface("matrix_forward", rows, terms_of("matrix_forward", rows)[:, 2] * 1e-10)
    again = Surface.from_table("matrix_forward", surface.as_table())
    assert np.allclose(again.seconds(rows), surface.seconds(rows), rtol=1e-2)


def test_simple_loops_keep_no_points() -> None:
    rows = rows_of("relu_forward", np.random.default_rng(6), 60)
    surface = fit_surface("relu_forward", rows, terms_of("relu_forward", rows)[:, 2] * 1e-10)
    assert len(surface.points) == 0
    again = Surface.from_table("relu_forward", surface.as_table())
    assert np.allclose(again.seconds(rows), surface.seconds(rows), rtol=1e-3)


def test_tables_that_cannot_be_used_are_refused() -> None:
    rows = rows_of("relu_forward", np.random.default_rng(6), 60)
    good = fit_surface("relu_forward", rows, np.ones(60)).as_table()
    for broken, text in (
        ({**good, "coefficients": [1.0]}, "relu_forward: coefficients"),
        ({**good, "coefficients": [-1.0] * len(good["coefficients"])}, "numbers from 0"),
        ({**good, "weights": [1.0]}, "relu_forward: points"),
        ({**good, "mean": "much"}, "relu_forward: mean"),
        ({k: v for k, v in good.items() if k != "points"}, "relu_forward: points"),
    ):
        platform = with_table(SERVER, {"relu_forward": broken})
        with pytest.raises(FormatError, match=text):
            LocalCosts.of(platform)
    with pytest.raises(FormatError, match=r"measured\.dense.*backends"):
        LocalCosts.of(dataclasses.replace(SERVER, measured={"dense": 3}))
    with pytest.raises(FormatError, match="sigmoid: no such kind"):
        LocalCosts.of(with_table(SERVER, {"sigmoid": good}))
    with pytest.raises(FormatError, match="by number of threads"):
        LocalCosts.of(with_table(SERVER, {"relu_forward": good}, threads="many"))


# -- local costs ---------------------------------------------------------------------------------


def test_rooflines_without_a_table() -> None:
    costs = LocalCosts.of(SERVER)
    row = product_row()
    _, flops, nbytes = amounts("window_forward", row)
    assert flops[0] == 2 * 8 * 32 * 12 * 12 * 16 * 9
    assert nbytes[0] == 4 * (8 * 16 * 144 + 8 * 32 * 144 + 32 * 16 * 9)
    found = costs.seconds("window_forward", row)
    cpu = SERVER.processor
    assert not costs.calibrated
    assert found.overhead[0] == cpu.launch_seconds
    assert found.flops[0] == pytest.approx(flops[0] / (cpu.flops * cpu.gemm_efficiency))
    assert found.memory[0] == 0
    back = costs.seconds("window_backward", row)
    assert back.flops[0] == pytest.approx(2 * found.flops[0])


@settings(max_examples=30)
@given(
    st.sampled_from(["window_forward", "relu_backward", "batch_norm_forward"]), st.integers(0, 99)
)
def test_rooflines_fall_with_flops_bandwidth_and_threads(kind: str, seed: int) -> None:
    rows = rows_of(kind, np.random.default_rng(seed), 4) * 3
    here = LocalCosts.of(SERVER).seconds(kind, rows).total
    for quicker in (
        LocalCosts.of(SERVER.scaled(flops=2.0)),
        LocalCosts.of(SERVER.scaled(memory_bandwidth=2.0)),
        LocalCosts.of(SERVER, threads=2),
    ):
        assert (quicker.seconds(kind, rows).total <= here * (1 + 1e-12)).all()


def test_a_measured_table_is_scaled_by_what_bounds_it() -> None:
    row = product_row(images=64, channels=64, filters=64)
    rows = np.repeat(row, 50, axis=0)
    rows[:, 0] = np.arange(1, 51)
    terms = terms_of("window_forward", rows)
    table = fit_surface("window_forward", rows, terms[:, 2] * 1e-11 + 1e-5).as_table()
    platform = with_table(SERVER, {"window_forward": table})
    costs = LocalCosts.of(platform)
    assert costs.calibrated
    found = costs.seconds("window_forward", row)
    quicker = LocalCosts.of(platform.scaled(flops=4.0)).seconds("window_forward", row)
    assert found.flops[0] > 0
    assert quicker.flops[0] == pytest.approx(found.flops[0] / 4)
    assert quicker.overhead[0] == pytest.approx(found.overhead[0])
    shared = LocalCosts.of(platform, threads=2).seconds("window_forward", row)
    assert shared.flops[0] == pytest.approx(found.flops[0] / 2)  # only one thread was measured
    crowded = LocalCosts.of(platform, ranks=4).seconds("window_forward", row)
    assert crowded.total[0] == pytest.approx(2 * found.total[0])


def test_nothing_takes_its_call_and_no_more() -> None:
    empty = product_row(images=0)
    found = LocalCosts.of(SERVER).seconds("window_forward", empty)
    assert found.total[0] == SERVER.processor.launch_seconds


def test_unknown_kinds_and_threads() -> None:
    with pytest.raises(UsageError, match="no operation 'sigmoid'"):
        LocalCosts.of(SERVER).seconds("sigmoid", product_row())
    with pytest.raises(UsageError, match="threads: 1 or more"):
        LocalCosts.of(SERVER, threads=0)


# -- work ----------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(0, 10_000))
def test_shares_are_those_of_the_engine(seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = ConvolutionShape(
        int(random.integers(1, 9)), int(random.integers(1, 9)), int(random.integers(3, 12)),
        int(random.integers(3, 12)), int(random.integers(1, 9)), (3, 3),
        stride=(int(random.integers(1, 3)),) * 2, padding=(int(random.integers(0, 2)),) * 2,
    )  # fmt: skip
    grids = factorizations(int(random.choice([1, 2, 4, 6])))
    grid = grids[int(random.integers(len(grids)))]
    distribution = Distribution.of(shape, Placement(grid, "3d"))
    shares = ProductShares.of(distribution)
    for rank in range(grid.ranks):
        place = np.unravel_index(rank, distribution.grid)
        own = share_of(distribution, tuple(int(one) for one in place))
        assert shares.images[rank] == own.images
        assert shares.filters[rank] == own.filters
        assert shares.channels[rank] == own.channels[1] - own.channels[0]
        assert (shares.extended[0][rank], shares.extended[1][rank]) == own.extended
        assert (shares.output[0][rank], shares.output[1][rank]) == own.output


def test_work_of_a_step_on_one_rank() -> None:
    graph = make_network("smallcnn")
    alone = {name: Placement(Grid(), "data") for name in products(graph)}
    flow = make_flow(graph, 4, alone, 1)
    kinds = [one.kind for one in local_work(flow, training=True)]
    assert kinds.count("window_first") == 1  # nothing in front of the first layer is trained
    assert kinds.count("window_backward") == 1
    assert kinds.count("matrix_forward") == kinds.count("matrix_backward") == 2
    assert theta_sizes(flow).tolist() == [202_458]
    forward = [one.kind for one in local_work(flow, training=False)]
    assert not [kind for kind in forward if kind.endswith(("backward", "first", "update"))]
    assert all(one.rows.shape[0] == 1 for one in local_work(flow, training=True))


def test_random_networks_are_networks() -> None:
    random = np.random.default_rng(0)
    drawn = [draw_network(random) for _ in range(12)]
    amounts_of = [work_of(graph, images) for graph, images in drawn]
    assert all(flops > 0 and parameters > 0 for flops, _, parameters in amounts_of)
    assert len({graph.identity for graph, _ in drawn}) == 12
    again = draw_network(np.random.default_rng(0))
    assert again[0].identity == drawn[0][0].identity
