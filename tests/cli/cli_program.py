"""Running the program in this process, and what every error has to look like."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sparsednn.cli.main import main

CRASH = "(--debug shows where)"


@dataclass(frozen=True)
class Outcome:
    """Exit code, stdout and stderr of one run."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Program:
    """The program, run in `folder` (which is the working directory)."""

    folder: Path
    capture: pytest.CaptureFixture[str]
    patch: pytest.MonkeyPatch

    def __call__(self, *arguments: object) -> Outcome:
        self.capture.readouterr()
        self.patch.setattr(sys, "argv", ["sparsednn", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = self.capture.readouterr()
        assert isinstance(end.value.code, int)
        return Outcome(end.value.code, captured.out, captured.err)

    def ok(self, *arguments: object) -> Outcome:
        done = self(*arguments)
        assert done.code == 0, done.err
        return done

    def fails(self, code: int, says: str, *arguments: object, progress: int = 0) -> str:
        """Run; check the code, one line of error that matches, and that no file has changed."""
        before = snapshot(self.folder)
        done = self(*arguments)
        lines = done.err.splitlines()
        assert done.code == code, done.err
        assert len(lines) == progress + 1, done.err
        assert lines[-1].startswith("sparsednn: error: ")
        assert re.search(says, lines[-1]), lines[-1]
        assert CRASH not in lines[-1]
        assert done.out == ""
        assert snapshot(self.folder) == before
        return lines[-1]


def snapshot(folder: Path) -> dict[str, str]:
    """All files and folders below, hidden ones too, with a digest of what is in them."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in folders:
            found[os.path.join(place, name)] = "folder"
        for name in files:
            path = os.path.join(place, name)
            content = b"" if os.path.islink(path) else Path(path).read_bytes()
            found[path] = hashlib.sha256(content).hexdigest()
    return found


Edit = Callable[[bytes], bytes]


def edit(path: Path, change: Edit) -> Path:
    path.write_bytes(change(path.read_bytes()))
    return path
