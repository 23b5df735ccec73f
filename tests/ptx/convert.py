"""``cvt``: between integers, floats and half precision."""

from __future__ import annotations

import numpy as np

from ptx.emit import TYPES, Emitter, instruction
from ptx.parser import Instruction

__all__: list[str] = []

_WHOLE = ("rni", "rzi", "rmi", "rpi")
_ROUND = {"rni": "np.rint", "rzi": "np.trunc", "rmi": "np.floor", "rpi": "np.ceil"}


@instruction("cvt")
def _convert(e: Emitter, ins: Instruction) -> None:
    types = [modifier for modifier in ins.modifiers if modifier in TYPES]
    if len(types) != 2 or "relu" in ins.modifiers:
        raise e.refuse(ins)
    target, source = types
    mode = next((m for m in ins.modifiers if m in (*_WHOLE, "rn", "rz", "rm", "rp")), "")
    if target.endswith("x2"):
        _pack(e, ins, target, mode)
        return
    to, of = TYPES[target], TYPES[source]
    value = e.get(ins.operands[1], of)
    # Half precision in: exact in float32.
    if source == "f16":
        value, of = f"{value}.view(f2).astype(f4)", "f4"
    elif source == "bf16":
        value, of = f"from_bfloat({value})", "f4"
    if "ftz" in ins.modifiers and of == "f4":
        value = f"flush({value})"
    whole = target[0] in "us"
    if of[0] == "f" and whole:
        if mode not in _WHOLE:
            raise e.refuse(ins)
        value = f"float_to_int({value}, {to!r}, {mode!r})"
    elif of[0] == "f":
        value = _float(e, ins, value, of, target, mode)
    elif whole:
        value = f"clamp_int({value}, {to!r})" if "sat" in ins.modifiers else f"{value}.astype({to})"
    else:
        value = _from_int(e, ins, value, target, mode)
    e.set(ins.operands[0], value, to)


def _float(e: Emitter, ins: Instruction, value: str, of: str, target: str, mode: str) -> str:
    """Return a float as another float type, perhaps rounded to a whole number."""
    if mode in _WHOLE:
        value = f"{_ROUND[mode]}({value})"
        mode = "rn"
    if "sat" in ins.modifiers:
        value = f"saturate({value})"
    if target in ("f16", "bf16"):
        if mode not in ("rn", "rz", ""):
            raise e.refuse(ins)
        if target == "f16":
            return f"to_half({value}, {mode or 'rn'!r})"
        if of != "f4":
            raise e.refuse(ins)
        return f"to_bfloat({value}, {mode or 'rn'!r})"
    to = TYPES[target]
    if (of, to) == ("f8", "f4") and mode in ("rz", "rm", "rp"):
        return f"directed({value}, {mode!r})"
    value = f"({value}).astype({to})"
    return f"flush({value})" if "ftz" in ins.modifiers and to == "f4" else value


def _from_int(e: Emitter, ins: Instruction, value: str, target: str, mode: str) -> str:
    """Return an integer as a float."""
    if target in ("f32", "f64"):
        if mode in ("rn", ""):
            return f"{value}.astype({TYPES[target]})"
        small = TYPES[ins.modifiers[-1]] in ("u1", "u2", "u4", "i1", "i2", "i4")
        if target == "f32" and small:  # exact in float64
            return f"directed({value}.astype(f8), {mode!r})"
    elif target == "f16" and mode == "rn":
        return f"to_half({value}.astype(f8))"
    raise e.refuse(ins)


def _pack(e: Emitter, ins: Instruction, target: str, mode: str) -> None:
    """Emit ``cvt.rn.f16x2.f32 d, a, b``: `a` goes into the upper half."""
    if mode not in ("rn", "rz") or "f32" not in ins.modifiers:
        raise e.refuse(ins)
    function = "to_half" if target == "f16x2" else "to_bfloat"
    high, low = (
        e.temp(f"{function}({e.get(operand, 'f4')}, {mode!r}).astype(u4)")
        for operand in ins.operands[1:]
    )
    e.set(ins.operands[0], f"({high} << {e.constant(np.uint32(16))}) | {low}", "u4")
