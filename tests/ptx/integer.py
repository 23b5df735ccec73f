"""Integer and logical instructions, moves, comparisons and selections."""

from __future__ import annotations

import numpy as np

from ptx.emit import TYPES, Emitter, instruction, kind
from ptx.parser import Immediate, Instruction, Register, Symbol, Vector

__all__: list[str] = []

_BINARY = {"add": "+", "sub": "-", "and": "&", "or": "|", "xor": "^"}
_COMPARE = {
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "lo": "<",
    "ls": "<=",
    "hi": ">",
    "hs": ">=",
}
_UNORDERED = {"equ": "!=", "neu": "==", "ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}


def _wide(dtype: str) -> str:
    return f"{dtype[0]}{2 * int(dtype[1])}"


def _plain(e: Emitter, ins: Instruction) -> None:
    """Refuse carries and saturation."""
    if {"cc", "sat"} & set(ins.modifiers):
        raise e.refuse(ins)


@instruction("and", "or", "xor")
def _logic(e: Emitter, ins: Instruction) -> None:
    dtype = kind(ins)
    a, b = (e.get(operand, dtype) for operand in ins.operands[1:])
    e.set(ins.operands[0], f"{a} {_BINARY[ins.op]} {b}", dtype)


def add(e: Emitter, ins: Instruction) -> None:
    """Emit integer ``add`` and ``sub``."""
    _plain(e, ins)
    _logic(e, ins)


def negate(e: Emitter, ins: Instruction) -> None:
    """Emit integer ``neg`` and ``abs``."""
    dtype = kind(ins)
    function = "np.negative" if ins.op == "neg" else "np.abs"
    e.set(ins.operands[0], f"{function}({e.get(ins.operands[1], dtype)})", dtype)


def smaller(e: Emitter, ins: Instruction) -> None:
    """Emit integer ``min`` and ``max``."""
    dtype = kind(ins)
    function = "np.minimum" if ins.op == "min" else "np.maximum"
    a, b = (e.get(operand, dtype) for operand in ins.operands[1:3])
    e.set(ins.operands[0], f"{function}({a}, {b})", dtype)


def multiply(e: Emitter, ins: Instruction) -> None:
    """Emit integer ``mul`` and ``mad``, with .lo, .hi or .wide."""
    _plain(e, ins)
    dtype = kind(ins)
    a, b = (e.get(operand, dtype) for operand in ins.operands[1:3])
    result = dtype
    if "wide" in ins.modifiers:
        result = _wide(dtype)
        product = f"{a}.astype({result}) * {b}.astype({result})"
    elif "hi" in ins.modifiers:
        product = f"high({a}, {b})"
    else:
        product = f"{a} * {b}"
    if ins.op == "mad":
        product = f"{product} + {e.get(ins.operands[3], result)}"
    e.set(ins.operands[0], product, result)


@instruction("mul24", "mad24")
def _multiply24(e: Emitter, ins: Instruction) -> None:
    raise e.refuse(ins)


def divide(e: Emitter, ins: Instruction) -> None:
    """Emit integer ``div`` and ``rem``."""
    dtype = kind(ins)
    function = "divide" if ins.op == "div" else "remainder"
    a, b = (e.get(operand, dtype) for operand in ins.operands[1:])
    e.set(ins.operands[0], f"{function}({a}, {b}, {e.pc})", dtype)


@instruction("rem")
def _remainder(e: Emitter, ins: Instruction) -> None:
    divide(e, ins)


@instruction("sad")
def _absolute_difference(e: Emitter, ins: Instruction) -> None:
    dtype = kind(ins)
    a, b, c = (e.get(operand, dtype) for operand in ins.operands[1:])
    e.set(ins.operands[0], f"np.maximum({a}, {b}) - np.minimum({a}, {b}) + {c}", dtype)


@instruction("not")
def _not(e: Emitter, ins: Instruction) -> None:
    dtype = kind(ins)
    e.set(ins.operands[0], f"~{e.get(ins.operands[1], dtype)}", dtype)


@instruction("cnot")
def _logical_not(e: Emitter, ins: Instruction) -> None:
    dtype = kind(ins)
    e.set(ins.operands[0], f"({e.get(ins.operands[1], dtype)} == 0).astype({dtype})", dtype)


@instruction("lop3")
def _lop3(e: Emitter, ins: Instruction) -> None:
    table = ins.operands[4]
    if kind(ins) != "u4" or not isinstance(table, Immediate) or len(ins.operands) > 5:
        raise e.refuse(ins)
    a, b, c = (e.get(operand, "u4") for operand in ins.operands[1:4])
    e.set(ins.operands[0], f"lop3({a}, {b}, {c}, {table.value})", "u4")


@instruction("shl", "shr")
def _shift(e: Emitter, ins: Instruction) -> None:
    dtype = kind(ins)
    a, by = e.get(ins.operands[1], dtype), ins.operands[2]
    width = 8 * np.dtype(dtype).itemsize
    if isinstance(by, Immediate) and 0 <= by.value < width:
        amount = e.constant(np.dtype(dtype).type(by.value))
        value = f"{a} {'<<' if ins.op == 'shl' else '>>'} {amount}"
    else:
        value = f"{'shift_left' if ins.op == 'shl' else 'shift_right'}({a}, {e.get(by, 'u4')})"
    e.set(ins.operands[0], value, dtype)


@instruction("shf")
def _funnel(e: Emitter, ins: Instruction) -> None:
    a, b, by = (e.get(operand, "u4") for operand in ins.operands[1:])
    left, clamp = "l" in ins.modifiers, "clamp" in ins.modifiers
    e.set(ins.operands[0], f"funnel({a}, {b}, {by}, {left}, {clamp})", "u4")


@instruction("bfe")
def _extract(e: Emitter, ins: Instruction) -> None:
    dtype = kind(ins)
    a = e.get(ins.operands[1], dtype)
    start, length = (e.get(operand, "u4") for operand in ins.operands[2:])
    e.set(ins.operands[0], f"extract({a}, {start}, {length})", dtype)


@instruction("bfi")
def _insert(e: Emitter, ins: Instruction) -> None:
    dtype = kind(ins)
    a, b = (e.get(operand, dtype) for operand in ins.operands[1:3])
    start, length = (e.get(operand, "u4") for operand in ins.operands[3:])
    e.set(ins.operands[0], f"insert({a}, {b}, {start}, {length})", dtype)


@instruction("prmt")
def _permute(e: Emitter, ins: Instruction) -> None:
    if ins.modifiers != ("b32",):
        raise e.refuse(ins)
    a, b, selector = (e.get(operand, "u4") for operand in ins.operands[1:])
    e.set(ins.operands[0], f"permute({a}, {b}, {selector})", "u4")


@instruction("popc", "clz")
def _count(e: Emitter, ins: Instruction) -> None:
    function = "popcount" if ins.op == "popc" else "leading_zeros"
    e.set(ins.operands[0], f"{function}({e.get(ins.operands[1], kind(ins))})", "u4")


@instruction("brev")
def _reverse(e: Emitter, ins: Instruction) -> None:
    dtype = kind(ins)
    e.set(ins.operands[0], f"reverse_bits({e.get(ins.operands[1], dtype)})", dtype)


@instruction("bfind")
def _find(e: Emitter, ins: Instruction) -> None:
    value = e.get(ins.operands[1], kind(ins))
    e.set(ins.operands[0], f"find_bit({value}, {'shiftamt' in ins.modifiers})", "u4")


def _relation(e: Emitter, ins: Instruction, dtype: str) -> str:
    """Return the comparison of a ``setp`` or ``set`` instruction, its boolean part included."""
    if any(modifier in ("f16", "f16x2", "bf16", "bf16x2") for modifier in ins.modifiers):
        raise e.refuse(ins)
    a, b = (e.get(operand, dtype) for operand in ins.operands[1:3])
    name = ins.modifiers[0]
    if name in _COMPARE:
        value = f"({a} {_COMPARE[name]} {b})"
        if name == "ne" and dtype[0] == "f":  # PTX's ne is ordered
            value = f"(({a} < {b}) | ({a} > {b}))"
    elif name in _UNORDERED:
        ordered = _UNORDERED[name]
        value = f"~({a} {ordered} {b})"
        if name == "equ":
            value = f"~(({a} < {b}) | ({a} > {b}))"
        value = f"({value})"
    elif name in ("num", "nan"):
        value = f"(np.isnan({a}) | np.isnan({b}))"
        value = value if name == "nan" else f"(~{value})"
    else:
        raise e.refuse(ins)
    return value


def _combined(e: Emitter, ins: Instruction, value: str) -> str:
    for name in ("and", "or", "xor"):
        if name in ins.modifiers[1:]:
            return f"({value} {_BINARY[name]} {e.get(ins.operands[3], '?')})"
    return value


@instruction("setp")
def _set_predicate(e: Emitter, ins: Instruction) -> None:
    value = e.temp(_relation(e, ins, kind(ins)))
    target = ins.operands[0]
    both = target.parts if isinstance(target, Vector) else (target,)
    first = e.temp(_combined(e, ins, value))
    second = e.temp(_combined(e, ins, f"(~{value})")) if len(both) > 1 else ""
    e.set(both[0], first, "?")
    if second:
        e.set(both[1], second, "?")


@instruction("set")
def _set(e: Emitter, ins: Instruction) -> None:
    types = [modifier for modifier in ins.modifiers if modifier in TYPES]
    result, source = TYPES[types[0]], TYPES[types[1]]
    value = _combined(e, ins, _relation(e, ins, source))
    one = np.float32(1) if result == "f4" else np.dtype(result).type(-1 if result[0] == "i" else 0)
    one = ~one if result[0] == "u" else one
    zero = e.constant(np.dtype(result).type(0))
    e.set(ins.operands[0], f"np.where({value}, {e.constant(one)}, {zero})", result)


@instruction("selp")
def _select(e: Emitter, ins: Instruction) -> None:
    dtype = kind(ins)
    a, b = (e.get(operand, dtype) for operand in ins.operands[1:3])
    e.set(ins.operands[0], f"np.where({e.get(ins.operands[3], '?')}, {a}, {b})", dtype)


@instruction("slct")
def _select_by_sign(e: Emitter, ins: Instruction) -> None:
    dtype, by = kind(ins, 0), kind(ins, 1)
    a, b = (e.get(operand, dtype) for operand in ins.operands[1:3])
    e.set(ins.operands[0], f"np.where({e.get(ins.operands[3], by)} >= 0, {a}, {b})", dtype)


@instruction("mov")
def _move(e: Emitter, ins: Instruction) -> None:
    target, source = ins.operands
    dtype = kind(ins)
    if isinstance(target, Vector):  # unpack
        part = f"u{np.dtype(dtype).itemsize // len(target.parts)}"
        bits = 8 * np.dtype(part).itemsize
        value = e.get(source, dtype)
        for place, register in enumerate(target.parts):
            shift = e.constant(np.dtype(dtype).type(place * bits))
            e.set(register, f"({value} >> {shift}).astype({part})", part)
    elif isinstance(source, Vector):  # pack
        part = f"u{np.dtype(dtype).itemsize // len(source.parts)}"
        bits = 8 * np.dtype(part).itemsize
        terms = [
            f"({e.get(register, part)}.astype({dtype}) << "
            f"{e.constant(np.dtype(dtype).type(place * bits))})"
            for place, register in enumerate(source.parts)
        ]
        e.set(target, " | ".join(terms), dtype)
    elif isinstance(source, Register | Immediate | Symbol):
        e.move(target, e.get(source, dtype), dtype)
    else:
        raise e.refuse(ins)


@instruction("cvta")
def _convert_address(e: Emitter, ins: Instruction) -> None:
    space = next(name for name in ins.modifiers if name not in ("to", "u64", "u32"))
    space = space.split("__")[0]
    window = {"global": 0, "const": 0, "param": 0, "shared": 1, "local": 2}.get(space)
    if window is None:
        raise e.refuse(ins)
    value = e.get(ins.operands[1], "u8")
    if not window:
        e.move(ins.operands[0], value, "u8")
        return
    sign = "-" if "to" in ins.modifiers else "+"
    e.set(ins.operands[0], f"{value} {sign} {'SHARED' if window == 1 else 'LOCAL'}_WINDOW", "u8")


@instruction("isspacep")
def _is_space(e: Emitter, ins: Instruction) -> None:
    number = {"global": 0, "shared": 1, "local": 2}.get(ins.modifiers[0].split("__")[0])
    if number is None:
        raise e.refuse(ins)
    value = e.get(ins.operands[1], "u8")
    e.set(ins.operands[0], f"(address_space({value}) == {number})", "?")
