"""Every command of docs/tutorial.md is run, in order, in one folder, and shows what the page shows.

A block ``console`` has one command. Comments before it in the page:

``<!-- short: --epochs 1 -->``  options with other values, or more of them; a network in front
``<!-- exit: 5 -->``            the exit code, if not 0
``<!-- needs: mnist -->``       only where these files are; FOLDER is where
``<!-- made up: … -->``         `costmodel.made_up` for measurements; then the platform file of
                                benchmarks/results under the name that was asked for

Each line shown has to be among the lines printed, whatever its numbers, units and spaces are; ``…``
stands for anything.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli.cli_program import Outcome, Program
from costmodel.made_up import made_up

from mpi_runs import require_mpi, run_session

__all__ = ["made_up"]

REPOSITORY = Path(__file__).resolve().parents[2]
TUTORIAL = REPOSITORY / "docs" / "tutorial.md"
RESULTS = REPOSITORY / "benchmarks" / "results"
_BLOCK = re.compile(r"((?:<!-- .* -->\n)*)```console\n\$ (.*)\n((?:.*\n)*?)```\n")
_NUMBER = re.compile(
    r"[-+]?\d[\d,.]*(e[-+]?\d+)?( ?([kMGT]|[nµm]s|s|[KMG]i?B|[MG]B/s|[MG]flop/s)\b)?%?"
)


@dataclass(frozen=True)
class Step:
    """A command of the page, its notes and the lines that it shows."""

    words: list[str]
    notes: dict[str, str]
    shown: list[str]

    @property
    def on_ranks(self) -> bool:
        return "--ranks" in self.words and bool({"infer", "train"} & set(self.words[:3]))


def steps() -> Iterator[Step]:
    for comments, command, output in _BLOCK.findall(TUTORIAL.read_text(encoding="utf-8")):
        notes = dict(re.findall(r"<!-- ([\w ]+): (.*) -->", comments))
        short = notes.get("short", "").replace("RESULTS", str(RESULTS))
        words = shortened(shlex.split(command), shlex.split(short))
        yield Step(words, notes, [line for line in output.splitlines() if line not in ("", "…")])


def shortened(words: list[str], short: list[str]) -> list[str]:
    """The command with the options of the note in place of its own.

    >>> shortened(["infer", "big", "--threads", "9", "--json"], ["small", "--threads", "1", "--x"])
    ['infer', 'small', '--threads', '1', '--json', '--x']
    """
    words = list(words)
    if short and not short[0].startswith("-"):
        place = next(i for i, word in enumerate(words) if word.startswith("-")) - 1
        words[place], short = short[0], short[1:]
    for place, word in enumerate(short):
        if not word.startswith("-"):
            continue
        value = [one for one in short[place + 1 : place + 2] if not one.startswith("-")]
        if word in words:
            words[words.index(word) + 1 : words.index(word) + 1 + len(value)] = value
        else:
            words += [word, *value]
    return words


def loose(line: str) -> str:
    """A line without what differs from run to run."""
    return re.sub(r"\s*#\s*", " # ", " ".join(_NUMBER.sub("#", line).split())).strip()


def missing(shown: list[str], printed: str) -> list[str]:
    """The lines that were not printed."""
    found = [loose(line) for line in printed.splitlines()]
    patterns = {line: ".*".join(map(re.escape, loose(line).split("…"))) for line in shown}
    return [line for line, pattern in patterns.items()
            if not any(re.fullmatch(pattern, one) for one in found)]  # fmt: skip


def run(program: Program, step: Step) -> None:
    name, *arguments = step.words
    assert name == "sparsednn", step
    if step.on_ranks:
        environ = require_mpi("openmpi").environ()
        command = [sys.executable, "-m", "sparsednn", *arguments]
        ended = run_session(command, environ, 240, program.folder)
        done = Outcome(ended.returncode, ended.stdout, ended.stderr)
    else:
        done = program(*arguments)
    assert done.code == int(step.notes.get("exit", 0)), (step.words, done.err)
    if "made up" in step.notes:
        measured = (RESULTS / "platform-2-core-epyc-zen5.toml").read_text(encoding="utf-8")
        here = Path(step.words[-1])
        here.write_text(re.sub(r"(?m)^name = .*", f'name = "{here.stem}"', measured, count=1))
    assert missing(step.shown, f"{done.err}\n{done.out}") == [], (step.words, done.out, done.err)


@pytest.fixture
def without_gpu(program: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
    from sparsednn.gpu import usable

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    monkeypatch.delenv("SPARSEDNN_DEVICE", raising=False)
    usable.usable_device.cache_clear()
    return program


def test_the_page_has_all_commands_in_blocks() -> None:
    text = TUTORIAL.read_text(encoding="utf-8")
    assert len(list(steps())) == len(re.findall(r"^ *\$ ", text, re.MULTILINE)) > 20
    assert re.findall(r"^## (\d)", text, re.MULTILINE) == list("12345678")


@pytest.mark.usefixtures("made_up")
def test_every_command_gives_what_it_shows(without_gpu: Program) -> None:
    """Offline, on the digits."""
    for module in ("kahypar", "mtkahypar", "torch", "matplotlib", "cupy"):
        pytest.importorskip(module, reason=f"the tutorial shows it: {module}")
    for step in steps():
        if "needs" not in step.notes:
            run(without_gpu, step)


@pytest.mark.mnist
def test_with_mnist(program: Program, mnist_folder: Path, official_categories: Path) -> None:
    Path("FOLDER").symlink_to(mnist_folder)
    Path(official_categories.name).symlink_to(official_categories)
    for step in steps():
        if step.notes.get("needs") == "mnist":
            run(program, step)
