"""A kernel made ready to run: where its variables are, and its code as Python functions."""

from __future__ import annotations

from ptx.emit import Code
from ptx.memory import MAPPED, Space
from ptx.parser import Entry, Module

__all__ = ["Kernel", "block_spaces", "power_of_two"]


class Kernel:
    """An entry of a module, made ready to run; `addresses` are those of the module's variables."""

    def __init__(self, module: Module, entry: Entry, addresses: dict[str, int]) -> None:
        self.entry, self.name = entry, entry.name
        places = dict(addresses)
        places.update({p.name: p.offset for p in entry.parameters})
        self.parameter_bytes = max((p.offset + p.size for p in entry.parameters), default=0)
        used = {v.name for v in entry.variables}
        shared = [v for v in entry.variables if v.space == "shared"]
        shared += [v for v in module.variables if v.space == "shared" and v.name not in used]
        # The variables stand apart, so that running over the end of one is noticed.
        self.ranges: list[tuple[int, int]] = []
        at, self.static_bytes = 0, 0
        text = {ins.text for ins in entry.instructions}
        for variable in shared:
            if variable.size and any(variable.name in line for line in text):
                at = -(-at // max(variable.align, 16)) * max(variable.align, 16)
                places[variable.name] = at
                self.ranges.append((at, variable.size))
                self.static_bytes = -(-self.static_bytes // variable.align) * variable.align
                self.static_bytes += variable.size
                at += variable.size + 64
        self.dynamic = -(-at // 128) * 128
        places.update({v.name: self.dynamic for v in shared if not v.size})
        depot, self.local_bytes = 0, 0
        for variable in entry.variables:
            if variable.space == "local":
                depot = -(-depot // variable.align) * variable.align
                places[variable.name] = depot
                depot += variable.size
        self.local_bytes = depot
        self.code = Code(entry, places)


def power_of_two(size: int) -> int:
    """Return the smallest power of two, 16 at least, that is not smaller."""
    return 1 << max(4, (size - 1).bit_length())


def block_spaces(
    kernel: Kernel, blocks: int, threads: int, dynamic: int, races: bool
) -> dict[str, Space]:
    """Make the shared memory of blocks, and the local memory of their threads."""
    stride = power_of_two(kernel.dynamic + dynamic + 1)
    shared = Space("shared", blocks * stride, races)
    rows = shared.shadow.reshape(blocks, stride)
    for start, size in [*kernel.ranges, (kernel.dynamic, dynamic)]:
        rows[:, start : start + size] = MAPPED
    stride = power_of_two(kernel.local_bytes + 1)
    local = Space("local", blocks * threads * stride if kernel.local_bytes else 16, False)
    if kernel.local_bytes:
        local.shadow.reshape(-1, stride)[:, : kernel.local_bytes] = MAPPED
    return {"shared": shared, "local": local}
