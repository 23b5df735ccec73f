"""Metrics files: valid lines, cut back when a run is resumed; and the pictures of them."""

from __future__ import annotations

import json
import math
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsednn.errors import FormatError, InputError, MissingDependencyError, UsageError
from sparsednn.pictures import check_picture
from sparsednn.training.curves import plot_curves
from sparsednn.training.metrics import MetricsFile, read_metrics


def write(path: Path, steps: Any, **given: Any) -> None:
    with MetricsFile(path, **given) as file:
        for step in steps:
            file.write({"step": step, "loss": 1 / step})


def steps_of(path: Path) -> list[int]:
    return [record["step"] for record in read_metrics(path)]


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.text().filter(lambda key: key != "step"),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.floats()),
    )
)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, record: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "round.jsonl"

    def expected(value: Any) -> Any:
        if isinstance(value, list):
            return [expected(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    with MetricsFile(path, fresh=True) as file:
        file.write({"step": 1, **record})
        file.write({"step": np.int64(2), "loss": np.float32(0.5), "nan": np.float32(np.nan)})
    first, second = (strict(line) for line in path.read_text().splitlines())
    assert first == {"step": 1, **{key: expected(value) for key, value in record.items()}}
    assert second == {"step": 2, "loss": 0.5, "nan": None}
    assert read_metrics(path) == [first, second]


def test_lines_are_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    with MetricsFile(path) as file:
        assert path.read_bytes() == b""
        file.write({"step": 1, "loss": 0.1})
        assert path.read_text() == '{"step": 1, "loss": 0.1}\n'
        for bad in ({}, {"step": 1.0}, {"step": True}, {"step": "1"}):
            with pytest.raises(ValueError, match="whole number 'step'"):
                file.write(bad)
        file.sync()
        file.write({"step": 2})
    assert steps_of(path) == [1, 2]
    file.close()


def test_resumed_and_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write(path, range(1, 11))
    write(path, [5, 6], keep_until=4)
    assert steps_of(path) == [1, 2, 3, 4, 5, 6]
    write(path, [7])
    assert steps_of(path) == [1, 2, 3, 4, 5, 6, 7]
    write(path, [1], keep_until=0)
    assert steps_of(path) == [1]
    write(path, [3, 4], fresh=True)
    assert steps_of(path) == [3, 4]
    write(tmp_path / "new.jsonl", [9], keep_until=8)
    assert steps_of(tmp_path / "new.jsonl") == [9]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["m.jsonl", "new.jsonl"]


def test_half_a_last_line(tmp_path: Path) -> None:
    """Wherever a kill has cut the file, what is whole is read, kept, and continued."""
    path = tmp_path / "m.jsonl"
    write(path, [1, 2, 3])
    good = path.read_bytes()
    ends = [at for at, byte in enumerate(good) if byte == ord("}")]
    for size in range(len(good)):
        path.write_bytes(good[:size])
        whole = [k for k, end in enumerate(ends, 1) if end < size]
        assert steps_of(path) == whole
        write(path, [100], keep_until=100)
        assert steps_of(path) == [*whole, 100]
        assert all(strict(line) for line in path.read_text().splitlines())
    path.write_bytes(good + bytes(50))  # what some file systems leave after a power cut
    assert steps_of(path) == [1, 2, 3]


@pytest.mark.parametrize("line", [b"{", b"[]", b"", b"{}", b'{"step": 1.5}', b"\xff", b"[" * 99999])
def test_what_is_no_metrics(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "m.jsonl"
    raw = b'{"step": 1}\n' + line + b'\n{"step": 2}\n'
    path.write_bytes(raw)
    with pytest.raises(FormatError, match=r"m\.jsonl: line 2 is no line of metrics"):
        read_metrics(path)
    with pytest.raises(FormatError, match=r"m\.jsonl: line 2 is no line of metrics"):
        MetricsFile(path, 1)
    assert path.read_bytes() == raw
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such file"):
        read_metrics(tmp_path / "m.jsonl")
    with pytest.raises(FormatError, match="no folder"):
        MetricsFile(tmp_path / "no" / "m.jsonl")
    with pytest.raises(FormatError, match="is a folder"):
        MetricsFile(tmp_path)


def test_full_disk(tmp_path: Path) -> None:
    """The line that does not fit is not there by half, and a shorter one still fits."""
    path = tmp_path / "m.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with MetricsFile(path) as file:
        file.write({"step": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (30, hard))
        try:
            with pytest.raises(FormatError, match=r"m\.jsonl: cannot write: File too large"):
                file.write({"step": 2, "loss": 0.123456789012345})
            assert path.read_bytes() == b'{"step": 1}\n'
            file.write({"step": 3})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert steps_of(path) == [1, 3]


# ---- pictures

HEADS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


def epochs(count: int) -> list[dict[str, Any]]:
    return [
        {
            "step": 100 * k,
            "epoch": k,
            "loss": 2.0 / k**3,
            "train_accuracy": 1 - 0.5 / k,
            "test_accuracy": 1 - 0.75 / k,
        }
        for k in range(1, count + 1)
    ]


def text_of(records: list[dict[str, Any]], path: Path, **given: Any) -> str:
    """The picture as SVG with its text as text."""
    matplotlib = pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot_curves(records, path, **given)
    return path.read_text()


@pytest.mark.parametrize("suffix", [*HEADS, ".PNG"])
def test_every_kind_of_picture(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    path = tmp_path / f"a{suffix}"
    plot_curves(epochs(1), path)
    assert path.read_bytes().startswith(HEADS[suffix.lower()])
    assert list(tmp_path.iterdir()) == [path]
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )


def test_what_the_picture_says(tmp_path: Path) -> None:
    records = epochs(10)
    records[-1]["test_accuracy"] = 0.9
    text = text_of(records, tmp_path / "a.svg", title="mlp on digits")
    for label in (
        "mlp on digits",
        "epoch",
        "loss (logarithmic)",
        "training: 0.002",
        "training: 95.00% (best 95.00%)",
        "test: 90.00% (best 91.67%)",
    ):
        assert f">{label}<" in text


def test_steps_where_epochs_do_not_tell_points_apart(tmp_path: Path) -> None:
    records = epochs(40)
    records[0]["epoch"] = 2
    text = text_of(records, tmp_path / "a.svg")
    assert ">step<" in text
    assert ">epoch<" not in text
    plain = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 0.5}]
    text = text_of(plain, tmp_path / "b.svg")
    assert ">step<" in text
    assert ">Accuracy<" not in text
    assert ">training: 0.5<" in text


def test_what_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "a.gif", "a.jsonl"):
        with pytest.raises(UsageError, match=r"unknown suffix .* known are \.png"):
            plot_curves(epochs(2), tmp_path / name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"pip install matplotlib"):
        check_picture(tmp_path / "a.png")


def test_nothing_to_draw_and_nowhere_to(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    for records in ([], [{"step": 1, "loss": None, "test_accuracy": math.nan}]):
        with pytest.raises(InputError, match=r"a\.png: nothing to draw"):
            plot_curves(records, tmp_path / "a.png")
    with pytest.raises(FormatError, match="no folder"):
        plot_curves(epochs(2), tmp_path / "no" / "a.png")
