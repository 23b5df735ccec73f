"""The kernels of the exchange against plain NumPy: on the twin, as PTX, on a device."""

from __future__ import annotations

import numpy as np
import pytest

from sparsednn.gpu.storage import TILE, narrow, stored_dtype, widen

THREADS = 64

#: Lines of the messages, and columns: one message, several of odd sizes, more columns than a tile.
CASES = [((1,), 1), ((3, 1, 5), 33), ((7, 2), 64), ((4, 4, 4, 1), 31), ((9,), 70)]


def kernel(device, name, store=0):
    return device.function("exchange", name, THREADS=THREADS, STORE=store)


def stored(rng, shape, store):
    """Numbers as they are stored; sums of them differ by the order in which they are made."""
    return narrow(rng.standard_normal(shape).astype(np.float32), store)


def pack(messages):
    """Message behind message, each tile by tile; `messages` are ``(tiles, lines, TILE)``."""
    return np.concatenate([one.reshape(-1) for one in messages])


def bits(values):
    """What is moved, or summed in a fixed order, is the same bit by bit."""
    return values.view(np.uint32 if values.itemsize == 4 else np.uint16)


class Case:
    """Random tiles on a device, with places for messages of so many lines."""

    def __init__(self, device, sizes, columns, store=0, spare=2):
        self.device, self.store = device, store
        self.rng = np.random.default_rng([*sizes, columns, store])
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
        self.lines = int(self.starts[-1])
        self.tiles = -(-columns // TILE)
        self.x_lines = 2 * self.lines + spare
        # A tile more than there are columns: nobody may touch it.
        self.x = stored(self.rng, (self.tiles + 1, self.x_lines, TILE), store)
        self.there = device.upload(self.x)
        self.columns = device.upload(np.array([columns], np.int32))
        self.starts_there = device.upload(self.starts)
        self.messages = np.int32(len(sizes))

    def pieces(self):
        """First and last line of each message."""
        return zip(self.starts[:-1], self.starts[1:], strict=True)

    def packed(self):
        """Room for all messages, with ones behind it."""
        size = (self.tiles * self.lines + 1) * TILE
        return self.device.upload(np.ones(size, stored_dtype(self.store)))

    def launch(self, name, arguments, grid=(2, 2)):
        function = kernel(self.device, name, self.store)
        self.device.launch(function, grid, THREADS, arguments)
        self.device.synchronize()


@pytest.mark.parametrize("store", [0, 1, 2])
@pytest.mark.parametrize(("sizes", "columns"), CASES)
def test_gather_and_scatter(device, sizes, columns, store):
    """Chosen lines go out, the same one to several ranks; what comes in lies behind the others."""
    case = Case(device, sizes, columns, store)
    lines = case.rng.integers(0, max(1, case.lines // 2), case.lines).astype(np.int32)
    packed, x_lines = case.packed(), np.int32(case.x_lines)
    case.launch(
        "gather_lines",
        (
            case.there, packed, device.upload(lines), np.int32(0), case.starts_there,
            case.messages, case.columns, x_lines,
        ),
    )  # fmt: skip
    inside = case.x[: case.tiles]
    expected = pack([inside[:, lines[first:last]] for first, last in case.pieces()])
    found = device.download(packed)
    assert np.array_equal(bits(found[:-TILE]), bits(expected))
    assert np.all(found[-TILE:] == 1)

    at = case.lines + 1
    case.launch(
        "scatter_lines",
        (
            packed, case.there, np.int32(at), case.starts_there, case.messages, case.columns,
            x_lines,
        ),
    )  # fmt: skip
    wanted = case.x.copy()
    wanted[: case.tiles, at : at + case.lines] = case.x[: case.tiles, lines]
    assert np.array_equal(bits(device.download(case.there)), bits(wanted))


@pytest.mark.parametrize("store", [0, 2])
def test_gather_consecutive_lines(device, store):
    """The way back of a fold: no list of lines."""
    case = Case(device, (3, 1, 5), 33, store)
    packed = case.packed()
    case.launch(
        "gather_lines",
        (
            case.there, packed, None, np.int32(4), case.starts_there, case.messages, case.columns,
            np.int32(case.x_lines),
        ),
        grid=(1, 1),
    )  # fmt: skip
    inside = case.x[: case.tiles, 4:]
    expected = pack([inside[:, first:last] for first, last in case.pieces()])
    assert np.array_equal(bits(device.download(packed)[:-TILE]), bits(expected))


@pytest.mark.parametrize("store", [0, 1, 2])
@pytest.mark.parametrize(("sizes", "columns"), CASES)
def test_add(device, sizes, columns, store):
    """Lines of several messages are added to the same one, by message, and rounded once."""
    case = Case(device, sizes, columns, store)
    packed = [
        stored(case.rng, (case.tiles, last - first, TILE), store) for first, last in case.pieces()
    ]
    # Within a message lines are different, as an owner sends each of its rows to a rank once.
    rows = [case.rng.permutation(case.lines)[: one.shape[1]] for one in packed]
    targets = np.unique(np.concatenate(rows)).astype(np.int32)
    places = [
        [(m, list(rows[m]).index(row)) for m in range(len(rows)) if row in rows[m]]
        for row in targets
    ]
    first = np.cumsum([0, *map(len, places)]).astype(np.int32)
    flat = np.array([pair for some in places for pair in some], np.int32)
    case.launch(
        "add_lines",
        (
            device.upload(pack(packed)), case.there, device.upload(targets), device.upload(first),
            device.upload(flat), np.int32(targets.size), case.starts_there, case.columns,
            np.int32(case.x_lines),
        ),
        grid=(2, 1),
    )  # fmt: skip
    wanted = case.x.copy()
    for row, some in zip(targets, places, strict=True):
        total = widen(case.x[: case.tiles, row], store)
        for message, line in some:
            total = total + widen(packed[message][:, line], store)
        wanted[: case.tiles, row] = narrow(total, store)
    assert np.array_equal(bits(device.download(case.there)), bits(wanted))


def test_no_messages_and_no_columns(device):
    """Nothing is read or written."""
    case = Case(device, (2, 3), 0)
    packed, x_lines = device.upload(np.ones(TILE, np.float32)), np.int32(case.x_lines)
    lines, places = (device.zeros(size, np.int32) for size in (5, 10))
    for messages in (0, 2):
        counts = np.int32(messages), case.columns, x_lines
        case.launch(
            "gather_lines", (case.there, packed, lines, np.int32(0), case.starts_there, *counts)
        )
        case.launch("scatter_lines", (packed, case.there, np.int32(0), case.starts_there, *counts))
        case.launch(
            "add_lines",
            (
                packed, case.there, lines, case.starts_there, places, np.int32(messages),
                case.starts_there, case.columns, x_lines,
            ),
        )  # fmt: skip
    assert np.array_equal(device.download(packed), np.ones(TILE))
    assert np.array_equal(bits(device.download(case.there)), bits(case.x))
