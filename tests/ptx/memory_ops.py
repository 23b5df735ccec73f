"""Loads, stores, atomics and fences: what the generated code asks of the machine's memory."""

from __future__ import annotations

import numpy as np

from ptx.emit import TYPES, Emitter, instruction, kind
from ptx.parser import Address, Instruction, Register, Symbol, Vector

__all__: list[str] = []

_SPACES = ("param", "global", "shared", "local", "const")
#: Qualifiers of loads and stores that are meant to meet other threads' writes.
_EXEMPT = frozenset(("volatile", "acquire", "release", "relaxed", "cg", "cv", "mmio"))


def _space(ins: Instruction) -> str:
    for modifier in ins.modifiers:
        name = modifier.split("__")[0]
        if name in _SPACES:
            return "global" if name == "const" else name
    return "generic"


def _exempt(ins: Instruction) -> bool:
    return bool(_EXEMPT & set(ins.modifiers))


@instruction("ld", "ldu")
def _load(e: Emitter, ins: Instruction) -> None:
    dtype, space = kind(ins), _space(ins)
    target, source = ins.operands
    size = np.dtype(dtype).itemsize
    parts = target.parts if isinstance(target, Vector) else (target,)
    if space == "param":
        _parameter(e, ins, parts, dtype)
        return
    value = e.temp(
        f"m.load({space!r}, {e.pc}, act, {e.address(source)}, {size}, {len(parts)}, {_exempt(ins)})"
    )
    for number, part in enumerate(parts):
        one = f"{value}[{number}]" if len(parts) > 1 else value
        e.set(part, one if dtype == f"u{size}" else f"{one}.view({dtype})", dtype)


def _parameter(e: Emitter, ins: Instruction, parts: tuple[object, ...], dtype: str) -> None:
    source = ins.operands[1]
    if not isinstance(source, Address) or not isinstance(source.base, Symbol):
        raise e.refuse(ins)
    start = e.code.address(source.base.name) + source.offset
    for number, part in enumerate(parts):
        at = start + number * np.dtype(dtype).itemsize
        if not isinstance(part, Register):
            raise e.refuse(ins)
        e.set(part, f"m.parameter({at}, {dtype})", dtype)


@instruction("st")
def _store(e: Emitter, ins: Instruction) -> None:
    size = np.dtype(kind(ins)).itemsize
    target, source = ins.operands
    parts = source.parts if isinstance(source, Vector) else (source,)
    values = "".join(f"{e.get(part, f'u{size}')}, " for part in parts)
    e.line(
        f"m.save({_space(ins)!r}, {e.pc}, act, {e.address(target)}, {size}, ({values}), "
        f"{_exempt(ins)})"
    )


@instruction("atom", "red")
def _atomic(e: Emitter, ins: Instruction) -> None:
    types = [modifier for modifier in ins.modifiers if modifier in TYPES]
    operations = ("add", "exch", "cas", "min", "max", "and", "or", "xor", "inc", "dec")
    found = [name for name in operations if name in ins.modifiers]
    if types[-1] in ("f16", "f16x2", "bf16", "bf16x2") or not found or "vec" in ins.modifiers:
        raise e.refuse(ins)
    dtype = TYPES[types[-1]]
    operands = list(ins.operands)
    target = operands.pop(0) if ins.op == "atom" else None
    wanted = isinstance(target, Register) and target.name in e.code.used
    values = ", ".join(e.get(operand, dtype) for operand in operands[1:])
    call = (
        f"m.atomic({_space(ins)!r}, {e.pc}, act, {e.address(operands[0])}, {dtype}, "
        f"{found[0]!r}, {wanted}, {values})"
    )
    if wanted and target is not None:
        e.set(target, call, dtype)
    else:
        e.line(call)


@instruction("membar", "fence", "griddepcontrol", "nanosleep", "prefetch", "prefetchu", "discard")
def _nothing(e: Emitter, ins: Instruction) -> None:
    """Order, hints and waits: the machine runs in order anyway."""


@instruction("trap", "brkpt")
def _trap(e: Emitter, ins: Instruction) -> None:
    e.line(f"m.trap({e.pc}, act)")


@instruction("cp")
def _copy(e: Emitter, ins: Instruction) -> None:
    """Emit ``cp.async``: copied at once, so a forgotten wait is not noticed."""
    if "async" not in ins.modifiers or "bulk" in ins.modifiers:
        raise e.refuse(ins)
    if {"commit_group", "wait_group", "wait_all"} & set(ins.modifiers):
        return
    target, source, size, *rest = ins.operands
    width = int(e.literal(size))
    wanted = e.get(rest[0], "u4") if rest else "None"
    e.line(f"m.copy({e.pc}, act, {e.address(target)}, {e.address(source)}, {width}, {wanted})")


@instruction("createpolicy", "applypriority")
def _policy(e: Emitter, ins: Instruction) -> None:
    raise e.refuse(ins)
