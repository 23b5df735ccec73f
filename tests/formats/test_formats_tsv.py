"""Triplet files: the compiled reader and writer against slow, readable twins."""

from __future__ import annotations

import gzip
import re
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
from formats.formats_samples import names
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparsednn.errors import FormatError
from sparsednn.formats import _text, tsv
from sparsednn.formats.tsv import Triplets, compress, read_triplets, write_triplets

LINE = re.compile(
    rb"[ \t]*([0-9]+)[ \t]+([0-9]+)[ \t]+"
    rb"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)[ \t]*\r?"
)


def float32(text: bytes | str) -> np.float32:
    with np.errstate(over="ignore"):
        return np.float32(float(text))


def slow_read(text: bytes, max_row: int, max_col: int) -> list[tuple[int, int, bytes]] | int:
    """All entries as (row, col, bytes of the value), or the number of the first bad line."""
    whole = text
    text = text.rstrip(b" \t\r\n")
    entries = []
    for number, line in enumerate(text.split(b"\n") if text else [], 1):
        match = LINE.fullmatch(line)
        if match is None:
            return number
        row, col, value = int(match[1]), int(match[2]), float32(match[3])
        if not (1 <= row <= max_row and 1 <= col <= max_col and np.isfinite(value)):
            return number
        entries.append((row - 1, col - 1, value.tobytes()))
    if text and b"\n" not in whole[len(text) :]:
        return text.count(b"\n") + 1  # cut off, perhaps within a number
    return entries


def fast_read(path: Path, max_row: int, max_col: int, chunk: int, narrow: bool) -> object:
    message = ""
    try:
        got = read_triplets(
            path, max_row=max_row, max_col=max_col, chunk_bytes=chunk, narrow=narrow, threads=2
        )
    except FormatError as error:
        message = str(error)
    if message:
        match = re.fullmatch(re.escape(str(path)) + r": line ([0-9]+): .+", message)
        assert match, message
        return int(match[1])
    assert got.cols.dtype == (np.uint16 if narrow else np.int32)
    data = np.ones(got.rows.size, np.float32) if got.values is None else got.values
    return [(int(r), int(c), v.tobytes()) for r, c, v in zip(got.rows, got.cols, data, strict=True)]


numbers = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(-1e3, 1e3).map("{:e}".format),
    st.floats(width=32, allow_nan=False, allow_infinity=False).map("{:.25e}".format),
    st.integers(-(10**25), 10**25).map(str),
    st.sampled_from(["1", "0", "-0", "+1", "1.", ".5", "-.5e-3", "1E+2", "0.0625", "00.10"]),
    st.sampled_from(["3.4028235e38", "3.4028236e38", "1e39", "7e-46", "8e-46", "1e400", "1e-400"]),
)
fields = st.tuples(st.integers(1, 6), st.sampled_from(["\t", " ", " \t"]), st.integers(1, 6))
good_lines = st.builds(
    lambda f, sep, v, end: f"{f[0]}{f[1]}{f[2]}{sep}{v}{end}",
    fields,
    st.sampled_from(["\t", "  "]),
    numbers,
    st.sampled_from(["\n", "\r\n", " \n", "\t\r\n"]),
)
scraps = st.sampled_from(
    [
        *("1", "2", "0", "7", "\t", " ", "\n", "\r", ".", "e", "-", "+", "nan", "inf", "\0", "x"),
        *("1\t1\t1\n", "1 2 3", "5 5 0.5\r\n", "1e5", "9" * 20, "_", "1_0", "\x0b", "é"),
    ]
)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(good_lines, max_size=12), st.integers(1, 40), st.sampled_from(["", "\n", " \r\n\n"])
)
@example(["1\t1\t1\n"] * 5, 1, "")
def test_reads_what_the_slow_twin_reads(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], chunk: int, end: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "good.tsv"
    for text in ("".join(lines) + end, "".join(lines).rstrip() + end):
        path.write_bytes(text.encode())
        expected = slow_read(text.encode(), 6, 6)
        assert fast_read(path, 6, 6, chunk, narrow=chunk % 2 == 0) == expected


@settings(deadline=None, max_examples=600)
@given(st.lists(scraps, max_size=14), st.integers(1, 20))
def test_rejects_what_the_slow_twin_rejects(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], chunk: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "scraps.tsv"
    text = "".join(parts).encode()
    path.write_bytes(text)
    assert fast_read(path, 6, 6, chunk, narrow=False) == slow_read(text, 6, 6)


def test_values_near_the_middle_of_two_floats(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 0x7F000000, 300).astype(np.uint32)
    below, above = bits.view(np.float32), (bits + np.uint32(1)).view(np.float32)
    texts = []
    with localcontext() as context:
        context.prec = 120
        for a, b in zip(below, above, strict=True):
            middle = (Decimal(float(a)) + Decimal(float(b))) / 2
            for digits in (17, 19, 20, 25, 110):
                texts += [f"{middle:.{digits}e}", f"{middle * (1 + Decimal('1e-18')):.{digits}e}"]
    path = tmp_path / "middle.tsv"
    path.write_text("".join(f"1\t{k}\t{text}\n" for k, text in enumerate(texts, 1)))
    got = read_triplets(path).values
    assert got is not None
    expected = np.array([float32(text) for text in texts])
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("1\t1\t1\n1\t2\n", 2, "found 2 fields ('1' '2'), expected 'row column value'"),
        ("1\t1\t1\n\n1\t2\t1\n", 2, "empty line"),
        ("1 1 1 1\n", 1, "found 4 fields"),
        ("5\n", 1, "found 1 field ('5')"),
        ("1\t1\t1\n1\t2\tabc\n", 2, "value 'abc' is not a number"),
        ("1\tx\t1", 1, "column 'x' is not a whole number"),
        ("1.0\t1\t1", 1, "row '1.0' is not a whole number"),
        ("-1\t1\t1", 1, "row '-1' is not a whole number"),
        ("1\t1\t1\n0\t1\t1", 2, "row 0 is out of range: ids start at 1"),
        ("1\t10\t1", 1, "column 10 is out of range, the largest is 9"),
        ("99999999999999999999 1 1", 1, "row 99999999999999999999 is out of range"),
        ("1\t1\tnan", 1, "value 'nan' is not a finite float32 number"),
        ("1\t1\t-inf", 1, "value '-inf' is not a finite"),
        ("1\t1\t1e39", 1, "value '1e39' is not a finite float32"),
        ("1\t1\t1e999", 1, "value '1e999' is not a finite float32"),
        ("1\t1\t1_0", 1, "cannot read '1\\t1\\t1_0', expected"),
        ("1\t1\t1\n\0\0\0", 2, "binary content (a NUL byte)"),
        ("\x1f\x8b\x08\x00abc", 1, "binary content"),
        ("\x1f\x8b\x08abc", 1, "gzip-compressed content"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, text: str, line: int, what: str) -> None:
    path = tmp_path / "bad.tsv"
    path.write_bytes(text.encode("latin-1"))
    if "gzip" in what or text.startswith("\x1f"):
        what = "gzip-compressed content: its name must end in .gz"
    for chunk in (1, 1 << 20):
        with pytest.raises(FormatError) as caught:
            read_triplets(path, max_row=9, max_col=9, chunk_bytes=chunk)
        assert str(caught.value).startswith(f"{path}: line {line}: {what}")


def test_first_bad_line_wins_over_chunks(tmp_path: Path) -> None:
    path = tmp_path / "bad.tsv"
    path.write_text("1\t1\t1\n" * 50 + "bad\n" + "1\t1\t1\n" * 50 + "worse\n")
    for chunk in (1, 6, 7, 100, 305, 306, 307):
        with pytest.raises(FormatError, match="line 51: found 1 field"):
            read_triplets(path, chunk_bytes=chunk, threads=2)


def test_empty_files_have_no_entries(tmp_path: Path) -> None:
    for text in ("", "\n", " \r\n\n", "\n" * 5000):
        (tmp_path / "empty.tsv").write_text(text)
        got = read_triplets(tmp_path / "empty.tsv")
        assert (got.rows.size, got.n_rows, got.n_cols) == (0, 0, 0)
        indptr, indices, _ = compress(got, 3, 2)
        assert indptr.tolist() == [0, 0, 0, 0]
        assert indices.size == 0


def test_large_file_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_text, "_MAP_FROM", 1)
    path = tmp_path / "a.tsv"
    path.write_text("1\t2\t0.5\n2\t1\t1\n")
    got = read_triplets(path)
    assert (got.rows.tolist(), got.cols.tolist()) == ([0, 1], [1, 0])
    assert got.values is not None
    assert got.values.tolist() == [0.5, 1.0]


def test_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv.gz"
    packed = gzip.compress(b"3\t4\t1\n" * 1000)
    path.write_bytes(packed)
    assert read_triplets(path).values is None
    path.write_bytes(packed[:-20])
    with pytest.raises(FormatError, match=r"a\.tsv\.gz: not a whole gzip file"):
        read_triplets(path)
    path.write_bytes(b"3\t4\t1\n")
    with pytest.raises(FormatError, match=r"a\.tsv\.gz: not a whole gzip file"):
        read_triplets(path)


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no\.tsv: no such file or folder"):
        read_triplets(tmp_path / "no.tsv")
    with pytest.raises(FormatError, match="is a folder, a file was expected"):
        read_triplets(tmp_path)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=15),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_compress_sorts_any_order(
    pairs: list[tuple[int, int]], ones: bool, by_column: bool, narrow: bool
) -> None:
    rows, cols = (np.array([p[k] for p in pairs], np.int32) for k in (0, 1))
    values = np.arange(len(pairs), dtype=np.float32) + 2
    entries = Triplets(
        Path("f.tsv"),
        rows,
        cols.astype(np.uint16) if narrow else cols,
        None if ones else values,
    )
    if len(set(pairs)) < len(pairs):
        with pytest.raises(FormatError) as caught:
            compress(entries, 5, 6, by_column=by_column)
        match = re.fullmatch(
            r"f\.tsv: line (\d+): entry \((\d), (\d)\) is there twice, first in line (\d+)",
            str(caught.value),
        )
        assert match
        second, row, col, first = map(int, match.groups())
        assert pairs[first - 1] == pairs[second - 1] == (row - 1, col - 1)
        assert first < second
        return
    indptr, indices, got = compress(entries, 5, 6, by_column=by_column)
    assert indices.dtype == (np.int32 if by_column or not narrow else np.uint16)
    keys = [(c, r) if by_column else (r, c) for r, c in pairs]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    runs = np.repeat(np.arange(6 if by_column else 5), np.diff(indptr))
    assert list(zip(runs.tolist(), indices.tolist(), strict=True)) == [keys[k] for k in order]
    assert (got is None) if ones else (got is not None and got.tolist() == values[order].tolist())


def slow_text(value: np.float32) -> bytes:
    text = b"%e" % value
    return text if np.float32(float(text)) == value else b"%.8e" % value


def test_writer_is_exact_for_every_kind_of_value(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 2**32, 20_000, dtype=np.uint64).astype(np.uint32)
    powers = np.array([float(f"{m}e{k}") for m in (1, 9.999999, 5) for k in range(-45, 38)])
    ties = [n * 2.0**-k for n in (1, 3, 999, 16777215) for k in range(60)]
    values = np.concatenate(
        [
            bits.view(np.float32),
            powers.astype(np.float32),
            np.nextafter(powers.astype(np.float32), np.float32(0)),
            np.array(ties, np.float32),
            rng.integers(0, 2**24, 2000).astype(np.float32) / 2,
            np.float32([0.0, -0.0, 1e-45, -1e-45, 3.4028235e38, 1.0, 1 / 16, 1 / 16]),
        ]
    )
    values = values[np.isfinite(values)]
    n = values.size
    rows, cols = rng.integers(0, 2**31 - 1, (2, n)).astype(np.int32)
    rows[:12] = cols[:12] = [0, 8, 9, 98, 99, 998, 999, 9998, 99998, 999998, 2**31 - 2, 65535]
    path = tmp_path / "out.tsv"
    write_triplets(path, [(rows[:7], cols[:7], values[:7]), (rows[7:], cols[7:], values[7:])])
    expected = [
        b"%d\t%d\t%s\n" % (r + 1, c + 1, slow_text(v))
        for r, c, v in zip(rows.tolist(), cols.tolist(), values, strict=True)
    ]
    assert path.read_bytes().splitlines(keepends=True) == expected
    back = read_triplets(path).values
    assert back is not None
    np.testing.assert_array_equal(back.view(np.uint32), values.view(np.uint32))


def test_writer_bytes_and_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.tsv"
    rows, cols = np.array([0, 9, 999], np.int32), np.array([1, 0, 65535], np.uint16)
    write_triplets(path, [(rows, cols, None)])
    assert path.read_bytes() == b"1\t2\t1\n10\t1\t1\n1000\t65536\t1\n"
    for lines in (1, 2):
        monkeypatch.setattr(tsv, "_WRITE_LINES", lines)
        write_triplets(path, [(rows, cols, np.float32([1, -0.5, 0.0625])), (rows, cols, None)])
        assert path.read_bytes() == (
            b"1\t2\t1.000000e+00\n10\t1\t-5.000000e-01\n1000\t65536\t6.250000e-02\n"
            b"1\t2\t1\n10\t1\t1\n1000\t65536\t1\n"
        )
    write_triplets(path, [])
    assert path.read_bytes() == b""


def test_writer_survives_what_no_reader_takes(tmp_path: Path) -> None:
    values = np.float32([1, np.inf, -np.inf, np.nan, np.nan, 2])
    zeros = np.zeros(6, np.int32)
    write_triplets(tmp_path / "out.tsv", [(zeros, zeros, values)])
    words = [line.split()[2] for line in (tmp_path / "out.tsv").read_text().splitlines()]
    assert words == ["1.000000e+00", "inf", "-inf", "nan", "nan", "2.000000e+00"]


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def blocks():  # type: ignore[no-untyped-def]
        yield np.zeros(5, np.int32), np.arange(5, dtype=np.int32), None
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_triplets(tmp_path / "out.tsv", blocks())
    assert names(tmp_path) == []
