"""One rank of a dense training fails: all end soon, and the last checkpoint goes on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mpi_runs import require_mpi
from sparsednn.comm import Alone
from sparsednn.dense.runs.trainer import CnnRun
from sparsednn.training.metrics import read_metrics
from sparsednn.training.optimizers import make_optimizer
from sparsednn.training.schedules import Schedule
from sparsednn.training.settings import Settings

PROGRAM = Path(__file__).with_name("cnn_fault_program.py")
LIMIT = 60  # seconds for a run, many times what it takes
STEPS = 4  # of an epoch


def _run(folder: Path, fault: str) -> subprocess.CompletedProcess[str]:
    options = [
        "cnn", "train", "smallcnn", "--inputs", "digits", "--images", 16 * STEPS, "--epochs", 3,
        "--batch-size", 16, "--validate", "none", "--grid", "1x1x1x2x1", "--algorithm", "2d",
        "--checkpoint", folder, "--backend", "im2col",
    ]  # fmt: skip
    program = [PROGRAM, fault, *map(str, options)]
    return require_mpi("openmpi").run(2, program, check=False, timeout=LIMIT)


def _goes_on(folder: Path) -> None:
    """The checkpoint of epoch 1 is whole; on one rank it goes on where it stands."""
    settings = Settings(
        epochs=2, batch_size=16, optimizer=make_optimizer("sgd"), rate=0.1,
        schedule=Schedule.parse("constant"),
    )  # fmt: skip
    run = CnnRun(
        Alone(), "smallcnn", "digits", settings, images=16 * STEPS, folder=folder, resume=True,
        validate="none", backend="im2col",
    )  # fmt: skip
    assert run.resumed_step == STEPS
    run.run()
    run.free()
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl")] == [STEPS, 2 * STEPS]
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.safetensors",
        "metrics.jsonl",
    ]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (f"step:ValueError:1:{STEPS + 1}", "rank 1: ValueError: as the test wants it"),
        ("saving:OSError:0:1", "as the test wants it"),
        (f"step:KILL:0:{STEPS + 2}", None),
    ],
)
def test_one_rank_fails(tmp_path: Path, fault: str, says: str | None) -> None:
    done = _run(tmp_path / "run", fault)
    errors = [line for line in done.stderr.splitlines() if line.startswith("sparsednn: error: ")]
    assert done.returncode not in (0, 130, 143), done.stderr
    assert done.stdout == ""
    if says is None:
        assert errors == []
        assert "signal 9" in done.stderr
    else:
        assert len(errors) == 1, done.stderr
        assert says in errors[0]
    _goes_on(tmp_path / "run")
