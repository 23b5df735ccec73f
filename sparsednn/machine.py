"""What this machine has: cores, caches, memory, processor. Read from Linux's /proc and /sys.

Used to choose tile sizes and thread counts, and by ``doctor``. Loads nothing but the standard
library; where a figure cannot be read, a small, safe one is assumed and `Machine.guessed` says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

__all__ = ["Machine", "available_cores", "give_back_memory", "machine", "quota_cores"]

_CACHE_DIR = Path("/sys/devices/system/cpu/cpu0/cache")
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_FALLBACK = {"l1d": 32 << 10, "l2": 512 << 10, "l3": 4 << 20}


@dataclass(frozen=True, slots=True)
class Machine:
    """Processor name, usable cores, cache sizes of one core's path and memory, all in bytes."""

    processor: str
    cores: int
    l1d: int
    l2: int
    l3: int
    l3_shared_by: int
    memory: int
    guessed: tuple[str, ...]

    @property
    def l3_per_core(self) -> int:
        """Bytes of the last-level cache that one of the sharing cores can count on."""
        return self.l3 // max(1, min(self.l3_shared_by, self.cores))


def available_cores() -> int:
    """Cores that this process may use: its affinity mask, cut by a cgroup's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    quota = quota_cores()
    return cores if quota is None else min(cores, quota)


def quota_cores() -> int | None:
    """Cores' worth of time that a cgroup's CPU quota allows, rounded up; None without a quota."""
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        return None if quota == "max" else max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        return None


def _size(text: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    text = text.strip()
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)


def _count(cpu_list: str) -> int:
    total = 0
    for part in cpu_list.strip().split(","):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total


def _caches() -> tuple[dict[str, int], int]:
    found: dict[str, int] = {}
    shared = 1
    for index in sorted(_CACHE_DIR.glob("index*")):
        try:
            level = (index / "level").read_text().strip()
            kind = (index / "type").read_text().strip()
            size = _size((index / "size").read_text())
            if kind == "Instruction":
                continue
            found["l1d" if level == "1" else f"l{level}"] = size
            if level == "3":
                shared = _count((index / "shared_cpu_list").read_text())
        except (OSError, ValueError, KeyError):
            continue
    return found, shared


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> int:
    """Bytes that this process may use: the machine's, cut by a cgroup's limit."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            total = min(total, int(limit))
    except (OSError, ValueError):
        pass
    return total


@lru_cache(maxsize=1)
def machine() -> Machine:
    """Return the figures of this machine (read once)."""
    caches, shared = _caches()
    guessed = tuple(name for name in _FALLBACK if name not in caches)
    sizes = _FALLBACK | caches
    return Machine(
        processor=_processor(),
        cores=available_cores(),
        l1d=sizes["l1d"],
        l2=sizes["l2"],
        l3=sizes["l3"],
        l3_shared_by=shared,
        memory=_memory(),
        guessed=guessed,
    )


def give_back_memory() -> None:
    """Return to the system what has been freed: the C library keeps blocks of up to 32 MiB.

    After loading, when much has been freed that will not be needed again. Does nothing where the
    library has no ``malloc_trim`` (it is glibc's).
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
