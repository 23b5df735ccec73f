"""Every CUDA program compiles to machine code for three generations of GPUs, without a warning.

NVRTC needs no GPU for it. What ptxas tells of each kernel is looked at, too: nothing spilled to
memory, and registers for all threads of a block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import product
from multiprocessing import get_context

import pytest

from ptx.nvrtc import Program, compile_program, why_not
from sparsednn.gpu import programs
from sparsednn.gpu.cascade import RESIDENT_THREADS
from sparsednn.gpu.launcher import THREADS
from sparsednn.training.device_stepper import MANY_THREADS

REGISTERS = 1 << 16  # of a multiprocessor; a block that wants more does not start
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")

Defines = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Case:
    program: str
    arch: str
    defines: Defines

    def __str__(self) -> str:
        return "-".join(
            [self.program, self.arch, *(f"{name}{value}" for name, value in self.defines)]
        )


@cache
def own_text(program: str) -> str:
    """A program without what all of them include."""
    shared = (programs.SOURCES / "storage.cuh").read_text(encoding="utf-8")
    return programs.source(program).replace(shared, "")


def macros(program: str) -> list[dict[str, int]]:
    """All sets of macros that make a difference, the most usual first."""
    text = own_text(program)
    bits = (16, 32) if re.search(r"\b(index_t|INDEX_BITS)\b", text) else (16,)
    fixed = "#undef STORE" in text or not re.search(r"\b(stored|STORE)\b", text)
    sizes = [{"THREADS": THREADS}]
    if program == "losses":  # of many outputs
        sizes.append({"THREADS": MANY_THREADS})
    if "RESIDENT_WIDTH" in text:
        sizes += [{"THREADS": RESIDENT_THREADS, "RESIDENT_WIDTH": width} for width in (16, 8)]
    return [
        {"INDEX_BITS": index, "STORE": store, **size}
        for size, index, store in product(sizes, bits, (0,) if fixed else (0, 1, 2))
    ]


def cases() -> Iterator[Case]:
    """All for one architecture, or what is most used, and the last; compiling takes seconds."""
    for arch, program in product(ARCHITECTURES, programs.PROGRAMS):
        every = macros(program)
        for defines in every:
            usual = (defines["INDEX_BITS"], defines["STORE"]) == (16, 0)
            all_of_them = arch == "sm_90" and defines.get("RESIDENT_WIDTH") != 8
            if all_of_them or usual or defines is every[-1]:
                yield Case(program, arch, tuple(defines.items()))


CASES = list(cases())


def build(case: Case, pool: Executor) -> Future[Program]:
    options = (*programs.options(dict(case.defines)), "--ptxas-options=-v")
    text = programs.source(case.program)
    return pool.submit(compile_program, text, f"{case.program}.cu", options, arch=case.arch)


@pytest.fixture(scope="module")
def compiled() -> Iterator[dict[Case, Future[Program]]]:
    """Two processes compile ahead of the tests; within one, NVRTC does one after another."""
    if missing := why_not():
        pytest.skip(missing)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield {case: build(case, pool) for case in CASES}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_program_compiles(case: Case, compiled: dict[Case, Future[Program]]) -> None:
    found = compiled[case].result()
    assert found.cubin.startswith(b"\x7fELF")
    assert "warning" not in found.log, found.log
    kernels = read_log(found.log)
    assert set(kernels) == set(re.findall(r"\.entry (\w+)\(", found.ptx)) != set()
    threads = dict(case.defines)["THREADS"]
    for name, (stack, stores, _, registers) in kernels.items():
        assert max(stack, stores) == 0, f"{name} spills:\n{found.log}"
        # Registers are given to warps in pieces of 8 for each thread.
        assert -(-registers // 8) * 8 * threads <= REGISTERS, f"{name}: {registers} registers"


def read_log(log: str) -> dict[str, tuple[int, ...]]:
    """Bytes of the stack, of spill stores and spill loads, and registers, by kernel."""
    pattern = (
        r"Function properties for (\w+)\s+ptxas\s+\.\s+(\d+) bytes stack frame, (\d+) bytes spill "
        r"stores, (\d+) bytes spill loads\s+ptxas info\s+: Used (\d+) registers"
    )
    return {name: tuple(map(int, rest)) for name, *rest in re.findall(pattern, log)}


@pytest.mark.parametrize("program", programs.PROGRAMS)
def test_every_kernel_has_a_twin(program: str, compiled: dict[Case, Future[Program]]) -> None:
    """With as many arguments, behind the macros."""
    twins = import_module(f"sparsednn.gpu.twins.{program}")
    case = max((one for one in CASES if one.program == program), key=lambda one: len(one.defines))
    entries = re.findall(r"\.entry (\w+)\((.*?)\)", compiled[case].result().ptx, re.DOTALL)
    wanted = {name: text.count(".param") for name, text in entries}
    found = {name: getattr(twins, name).__code__.co_argcount - 1 for name in wanted}
    assert found == wanted
