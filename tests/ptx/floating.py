"""Floating-point instructions, and those names that integers share with them.

``add``, ``sub``, ``mul``, ``div`` and ``fma`` of float32 round once, as PTX says. ``ex2``, ``lg2``,
``sin``, ``cos``, ``tanh``, ``rcp`` and ``rsqrt`` ``.approx`` are computed in float64 and rounded,
so they are better than a GPU's (which is off by up to 2 units in the last place, ``tanh`` by 2^-11,
``sin`` and ``cos`` by 2^-20 of absolute error); tests must leave that room. NaN has NumPy's bits,
not the GPU's 0x7fffffff. A multiplication and an addition that the compiler left apart stay apart.
"""

from __future__ import annotations

import numpy as np

from ptx import integer
from ptx.emit import Emitter, instruction, kind
from ptx.parser import Instruction

__all__: list[str] = []

_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_HALVES = frozenset(("f16", "f16x2", "bf16", "bf16x2"))
_DIRECTED = ("rm", "rp", "rz")


def _floating(ins: Instruction) -> bool:
    return bool(_HALVES.union(("f32", "f64")) & set(ins.modifiers))


def _finish(e: Emitter, ins: Instruction, value: str, dtype: str) -> None:
    if "ftz" in ins.modifiers:
        value = f"flush({value})"
    if "sat" in ins.modifiers:
        value = f"saturate({value})"
    e.set(ins.operands[0], value, dtype)


def _sources(e: Emitter, ins: Instruction, dtype: str) -> list[str]:
    flush = "ftz" in ins.modifiers
    values = [e.get(operand, dtype) for operand in ins.operands[1:]]
    return [e.temp(f"flush({value})") if flush else value for value in values]


def _half(e: Emitter, ins: Instruction) -> bool:
    """Emit an instruction on half-precision numbers: in float32, then rounded to half.

    One rounding more than the hardware's for ``fma`` only where the float64 sum is inexact.
    """
    types = _HALVES & set(ins.modifiers)
    if not types:
        return False
    which = next(iter(types))
    pair, bfloat = which.endswith("x2"), which.startswith("b")
    names = {"add": "+", "sub": "-", "mul": "*"}
    functions = {"min": "np.fmin", "max": "np.fmax"}
    known = {*names, *functions, "fma", "neg", "abs"}
    if ins.op not in known or {"sat", "ftz", "relu", "NaN", "xorsign"} & set(ins.modifiers):
        raise e.refuse(ins)
    words = [e.get(operand, "u4" if pair else "u2") for operand in ins.operands[1:]]
    results = []
    for place in range(2 if pair else 1):
        values = []
        for word in words:
            bits = word
            if pair:
                bits = f"({word} >> {e.constant(np.uint32(16 * place))}).astype(u2)"
            wide = f"from_bfloat({bits})" if bfloat else f"{bits}.view(f2)"
            values.append(e.temp(f"{wide}.astype(f8)"))
        if ins.op in names:
            result = f"{values[0]} {names[ins.op]} {values[1]}"
        elif ins.op == "fma":
            result = f"{values[0]} * {values[1]} + {values[2]}"
        elif ins.op in functions:
            result = f"{functions[ins.op]}({values[0]}, {values[1]})"
        else:
            result = f"np.{'negative' if ins.op == 'neg' else 'abs'}({values[0]})"
        narrow = "to_bfloat(({}).astype(f4))" if bfloat else "to_half({})"
        results.append(e.temp(narrow.format(result)))
    if pair:
        low, high = results
        sixteen = e.constant(np.uint32(16))
        e.set(ins.operands[0], f"{low}.astype(u4) | ({high}.astype(u4) << {sixteen})", "u4")
    else:
        e.set(ins.operands[0], results[0], "u2")
    return True


@instruction("add", "sub", "mul", "div")
def _arithmetic(e: Emitter, ins: Instruction) -> None:
    if not _floating(ins):
        whole = {"mul": integer.multiply, "div": integer.divide}
        whole.get(ins.op, integer.add)(e, ins)
        return
    if _half(e, ins):
        return
    dtype = kind(ins)
    a, b = _sources(e, ins, dtype)
    mode = next((name for name in _DIRECTED if name in ins.modifiers), "")
    if mode:
        if dtype != "f4":
            raise e.refuse(ins)
        value = f"directed({a}.astype(f8) {_SIGNS[ins.op]} {b}.astype(f8), {mode!r})"
    else:
        value = f"{a} {_SIGNS[ins.op]} {b}"
    _finish(e, ins, value, dtype)


@instruction("fma", "mad")
def _fused(e: Emitter, ins: Instruction) -> None:
    if not _floating(ins):
        integer.multiply(e, ins)
        return
    if _half(e, ins):
        return
    dtype = kind(ins)
    a, b, c = _sources(e, ins, dtype)
    mode = next((name for name in _DIRECTED if name in ins.modifiers), "")
    if mode:
        if dtype != "f4":
            raise e.refuse(ins)
        value = f"directed({a}.astype(f8) * {b}.astype(f8) + {c}.astype(f8), {mode!r})"
    else:
        value = f"fused({a}, {b}, {c})"
    _finish(e, ins, value, dtype)


@instruction("min", "max")
def _extreme(e: Emitter, ins: Instruction) -> None:
    if not _floating(ins):
        integer.smaller(e, ins)
        return
    if _half(e, ins):
        return
    if "xorsign" in ins.modifiers:
        raise e.refuse(ins)
    dtype = kind(ins)
    values = _sources(e, ins, dtype)
    names = ("np.minimum", "np.maximum") if "NaN" in ins.modifiers else ("np.fmin", "np.fmax")
    function = names[ins.op == "max"]
    value = values[0]
    for other in values[1:]:
        value = f"{function}({value}, {other})"
    _finish(e, ins, value, dtype)


@instruction("neg", "abs")
def _sign(e: Emitter, ins: Instruction) -> None:
    if not _floating(ins):
        integer.negate(e, ins)
        return
    if _half(e, ins):
        return
    dtype = kind(ins)
    (a,) = _sources(e, ins, dtype)
    e.set(ins.operands[0], f"np.{'negative' if ins.op == 'neg' else 'abs'}({a})", dtype)


@instruction("copysign")
def _copysign(e: Emitter, ins: Instruction) -> None:
    dtype = kind(ins)
    a, b = _sources(e, ins, dtype)
    e.set(ins.operands[0], f"np.copysign({b}, {a})", dtype)


@instruction("rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh")
def _function(e: Emitter, ins: Instruction) -> None:
    if _HALVES & set(ins.modifiers) or any(mode in ins.modifiers for mode in _DIRECTED):
        raise e.refuse(ins)
    dtype = kind(ins)
    (a,) = _sources(e, ins, dtype)
    one = e.constant(np.dtype(dtype).type(1))
    values = {
        "rcp": f"{one} / {a}",
        "sqrt": f"np.sqrt({a})",
        "rsqrt": f"(1.0 / np.sqrt({a}.astype(f8))).astype({dtype})",
        "ex2": f"wide_call(np.exp2, {a})",
        "lg2": f"wide_call(np.log2, {a})",
        "sin": f"wide_call(np.sin, {a})",
        "cos": f"wide_call(np.cos, {a})",
        "tanh": f"wide_call(np.tanh, {a})",
    }
    _finish(e, ins, values[ins.op], dtype)


@instruction("testp")
def _test(e: Emitter, ins: Instruction) -> None:
    a = e.get(ins.operands[1], kind(ins))
    functions = {
        "finite": f"np.isfinite({a})",
        "infinite": f"np.isinf({a})",
        "number": f"~np.isnan({a})",
        "notanumber": f"np.isnan({a})",
    }
    if ins.modifiers[0] not in functions:
        raise e.refuse(ins)
    e.set(ins.operands[0], functions[ins.modifiers[0]], "?")
