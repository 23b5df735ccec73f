"""The benchmark runs from end to end, so that a session with a GPU has to mend nothing first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_dry_run(tmp_path):
    file = tmp_path / "gpu.json"
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--dry-run", "--json", str(file)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert figures["device"] == "NumPy twin"
    assert figures["dry_run"]
    training = figures["training"][0]
    assert training["losses_differ"] < 1e-4
    runs = figures["networks"][0]["runs"]
    assert len({run["categories"] for run in runs}) == 1
    assert figures["networks"][0]["parts"]
