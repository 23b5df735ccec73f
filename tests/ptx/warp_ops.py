"""Barriers and the instructions of whole warps: what the generated code asks of the machine."""

from __future__ import annotations

from ptx.emit import Emitter, instruction, kind
from ptx.parser import Instruction, Register, Vector

__all__: list[str] = []


@instruction("bar", "barrier")
def _barrier(e: Emitter, ins: Instruction) -> None:
    modifiers = set(ins.modifiers)
    if "warp" in modifiers:
        e.line(f"m.sync_warp(act, {e.get(ins.operands[0], 'u4')})")
    elif "red" in modifiers:
        operation = next(name for name in ("popc", "and", "or") if name in modifiers)
        value = e.get(ins.operands[-1], "?")
        if len(ins.operands) > 3:
            raise e.refuse(ins)
        result = e.temp(f"m.reduce_block(act, {value}, {operation!r})")
        e.line("m.sync_block(act)")
        e.set(ins.operands[0], result, "u4" if operation == "popc" else "?")
    elif "sync" in modifiers and len(ins.operands) == 1:
        e.line("m.sync_block(act)")
    else:
        raise e.refuse(ins)


@instruction("shfl")
def _shuffle(e: Emitter, ins: Instruction) -> None:
    mode = next(name for name in ("up", "down", "bfly", "idx") if name in ins.modifiers)
    target, source, by, clamp, mask = ins.operands
    values = ", ".join(e.get(operand, "u4") for operand in (source, by, clamp, mask))
    both = target.parts if isinstance(target, Vector) else (target,)
    result = e.temp(f"m.shuffle({e.pc}, act, {mode!r}, {values})")
    e.set(both[0], f"{result}[0]", "u4")
    if len(both) > 1:
        e.set(both[1], f"{result}[1]", "?")


@instruction("vote")
def _vote(e: Emitter, ins: Instruction) -> None:
    mode = next(name for name in ("ballot", "any", "all", "uni") if name in ins.modifiers)
    target, value, mask = ins.operands
    call = f"m.vote(act, {mode!r}, {e.get(value, '?')}, {e.get(mask, 'u4')})"
    e.set(target, call, "u4" if mode == "ballot" else "?")


@instruction("redux")
def _reduce(e: Emitter, ins: Instruction) -> None:
    dtype = kind(ins)
    operation = next(n for n in ("add", "min", "max", "and", "or", "xor") if n in ins.modifiers)
    target, value, mask = ins.operands
    if dtype[0] == "f":
        raise e.refuse(ins)
    call = f"m.reduce_warp(act, {operation!r}, {e.get(value, dtype)}, {e.get(mask, 'u4')})"
    e.set(target, call, dtype)


@instruction("match")
def _match(e: Emitter, ins: Instruction) -> None:
    dtype = kind(ins)
    target, value, mask = ins.operands
    if "any" not in ins.modifiers:
        raise e.refuse(ins)
    e.set(target, f"m.match(act, {e.get(value, dtype)}, {e.get(mask, 'u4')})", "u4")


@instruction("elect")
def _elect(e: Emitter, ins: Instruction) -> None:
    target, mask = ins.operands
    both = target.parts if isinstance(target, Vector) else (target,)
    result = e.temp(f"m.elect(act, {e.get(mask, 'u4')})")
    if not (isinstance(both[0], Register) and both[0].name == "_"):
        e.set(both[0], f"{result}[0]", "u4")
    if len(both) > 1:
        e.set(both[1], f"{result}[1]", "?")


@instruction("activemask")
def _active(e: Emitter, ins: Instruction) -> None:
    e.set(ins.operands[0], "m.active(act)", "u4")
