"""Straight-line PTX to Python functions over NumPy arrays.

A block of PTX becomes one Python function that runs the block for many threads (lanes) at once:
every register is an array with one element per running lane, or a NumPy scalar where all lanes have
the same value. Registers that nobody reads after the block are never stored.

The functions have the signature ``block(m, act, R, sel)``: the running machine, the activation
(which lanes), the registers by number (each a scalar or an array over *all* lanes), and the lanes'
indices, None for all. They return the number of the next block, or ``(condition, then, else)``,
or ``(index, table)``, and -1 for the end of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ptx.flow import Block, reads, straight_lines
from ptx.parser import (
    Address,
    Entry,
    Immediate,
    Instruction,
    Operand,
    Register,
    Symbol,
    Vector,
)

__all__ = ["HANDLERS", "TYPES", "Code", "Emitter", "instruction", "kind"]

#: NumPy's short names of PTX's types; half-precision types are held as bits.
TYPES = {
    **{f"{letter}{bits}": f"u{bits // 8}" for letter in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": f"i{bits // 8}" for bits in (8, 16, 32, 64)},
    "f16": "u2",
    "bf16": "u2",
    "f16x2": "u4",
    "bf16x2": "u4",
    "f32": "f4",
    "f64": "f8",
    "pred": "?",
}

#: What generated code may name.
NAMES: dict[str, Any] = {
    "np": np,
    **{f"{letter}{size}": np.dtype(f"{letter}{size}") for letter in "ui" for size in (1, 2, 4, 8)},
    **{f"f{size}": np.dtype(f"f{size}") for size in (2, 4, 8)},
}

Handler = Callable[["Emitter", Instruction], None]
HANDLERS: dict[str, Handler] = {}


def instruction(*names: str) -> Callable[[Handler], Handler]:
    """Register the handler of these instructions."""

    def register(handler: Handler) -> Handler:
        for name in names:
            HANDLERS[name] = handler
        return handler

    return register


def kind(ins: Instruction, which: int = -1) -> str:
    """Return the NumPy type of a modifier: the last one that is a type, unless told."""
    types = [modifier for modifier in ins.modifiers if modifier in TYPES]
    if not types:
        raise NotImplementedError(f"PTX line {ins.line}: {ins.text}")
    return TYPES[types[which]]


class Emitter:
    """Writes the function of one block."""

    def __init__(self, code: Code, block: Block, number: int) -> None:
        self.code, self.block, self.number = code, block, number
        self.lines: list[str] = []
        self.loads: dict[str, str] = {}  # register -> variable with its value at entry
        self.values: dict[str, dict[str, str]] = {}  # register -> type -> variable
        self.roots: dict[str, str] = {}  # variable -> the one whose memory it shares
        self.shared: set[str] = set()  # variables whose memory belongs to somebody else
        self.written: list[str] = []
        self.pc = block.first
        self._count = 0

    # -- text

    def line(self, text: str) -> None:
        """Append a statement."""
        self.lines.append(text)

    def temp(self, expression: str) -> str:
        """Give an expression a name."""
        self._count += 1
        name = f"t{self._count}"
        self.line(f"{name} = {expression}")
        return name

    def constant(self, value: Any) -> str:
        """Name a constant."""
        return self.code.constant(value)

    def refuse(self, ins: Instruction) -> NotImplementedError:
        """Make the error for an instruction that is not known."""
        return NotImplementedError(f"PTX line {ins.line}: {ins.text}")

    def literal(self, operand: Operand) -> int | float:
        """Return the value of an operand that must be a number."""
        if not isinstance(operand, Immediate):
            raise NotImplementedError(f"operand {operand}")
        return operand.value

    # -- values

    def native(self, register: str) -> str:
        """Return the type in which a register is stored between blocks."""
        try:
            return TYPES[self.code.entry.registers[register]]
        except KeyError:
            raise NotImplementedError(f"register {register}") from None

    def get(self, operand: Operand, dtype: str) -> str:
        """Return an expression: the operand's value as an array or scalar of `dtype`."""
        if isinstance(operand, Immediate):
            return self.constant(_immediate(operand, dtype))
        if isinstance(operand, Symbol):
            return self.constant(np.dtype(dtype).type(self.code.address(operand.name)))
        if not isinstance(operand, Register):
            raise NotImplementedError(f"operand {operand}")
        if operand.name.startswith("%") and operand.name not in self.code.entry.registers:
            return self._special(operand.name, dtype)
        views = self._views(operand.name)
        if dtype not in views:
            source, variable = next(iter(views.items()))
            if np.dtype(source).itemsize == np.dtype(dtype).itemsize:
                made = self.temp(f"{variable}.view({dtype})")
                self.roots[made] = self.roots.get(variable, variable)
            elif np.dtype(source).itemsize > np.dtype(dtype).itemsize and source[0] != "f":
                made = self.temp(f"{variable}.astype({dtype})")
            elif source[0] == "f":
                as_bits = self.get(operand, f"u{np.dtype(source).itemsize}")
                made = self.temp(f"{as_bits}.astype({dtype})")
            else:
                raise NotImplementedError(f"{operand.name}, a {source}, as {dtype}")
            views[dtype] = made
        value = views[dtype]
        return f"(~{value})" if operand.negated else value

    def _views(self, name: str) -> dict[str, str]:
        if name not in self.values:
            native = self.native(name)
            variable = f"r{self.code.number(name)}"
            self.loads[name] = variable
            self.shared.add(variable)
            self.values[name] = {native: variable}
        return self.values[name]

    def _special(self, name: str, dtype: str) -> str:
        variable = self.temp(f"act.special({name!r})")
        self.shared.add(variable)
        return variable if dtype in ("u4", "u8") else self.temp(f"{variable}.astype({dtype})")

    def set(self, operand: Operand, expression: str, dtype: str) -> None:
        """Let a register be a new value; extended by its sign if it is wider than `dtype`."""
        if isinstance(operand, Vector) and operand.pair:
            operand = operand.parts[0]
        if not isinstance(operand, Register):
            raise NotImplementedError(f"result {operand}")
        if operand.name == "_":
            self.line(expression)
            return
        native = self.native(operand.name)
        if np.dtype(native).itemsize > np.dtype(dtype).itemsize:
            wide = ("i" if dtype[0] == "i" else "u") + str(np.dtype(native).itemsize)
            expression, dtype = f"({expression}).astype({wide})", wide
        self.values[operand.name] = {dtype: self.temp(expression)}
        if operand.name not in self.written:
            self.written.append(operand.name)

    def move(self, target: Operand, source: str, dtype: str) -> None:
        """Let a register be the value of a variable, without copying it."""
        self.set(target, source, dtype)
        if isinstance(target, Register) and target.name != "_":
            variable = next(iter(self.values[target.name].values()))
            self.roots[variable] = self.roots.get(source, source)

    def address(self, operand: Operand, dtype: str = "u8") -> str:
        """Return an expression for ``[base + offset]``."""
        if not isinstance(operand, Address):
            raise NotImplementedError(f"address {operand}")
        if operand.base is None:
            return self.constant(np.dtype(dtype).type(operand.offset))
        if isinstance(operand.base, Symbol):
            value = self.code.address(operand.base.name) + operand.offset
            return self.constant(np.dtype(dtype).type(value))
        wide = self.native(operand.base.name)
        if np.dtype(wide).itemsize < np.dtype(dtype).itemsize:
            dtype = wide
        base = self.get(operand.base, dtype)
        if not operand.offset:
            return base
        offset = _immediate(Immediate(operand.offset), dtype)
        return f"({base} + {self.constant(offset)})"

    # -- the whole block

    def run(self) -> str:
        """Return the text of the block's function."""
        entry, block = self.code.entry, self.block
        code = entry.instructions
        ending = ""
        for pc in range(block.first, block.end):
            self.pc, ins = pc, code[pc]
            if ins.op in ("bra", "brx", "ret", "exit"):
                ending = self._ending(ins)
                break
            handler = HANDLERS.get(ins.op)
            if handler is None:
                raise self.refuse(ins)
            handler(self, ins)
        else:
            ending = f"return {self.number + 1}"
        stores = self._stores()
        head = [f"def block_{self.number}(m, act, R, sel):"]
        for name, variable in self.loads.items():
            head.append(f"    {variable} = R[{self.code.number(name)}]")
        if self.loads:
            head.append("    if sel is not None:")
            for variable in self.loads.values():
                head.append(f"        if {variable}.ndim: {variable} = {variable}.take(sel)")
        body = [*self.lines, *stores, ending]
        return "\n".join(head + ["    " + line for line in body]) + "\n"

    def _ending(self, ins: Instruction) -> str:
        if ins.op in ("ret", "exit"):
            return "return -1"
        if ins.op == "brx":
            if ins.guard is not None:
                raise self.refuse(ins)
            index = self.get(ins.operands[0], "u4")
            return f"return {index}, {self.constant(np.array(self.block.targets))}"
        if ins.guard is None:
            return f"return {self.block.targets[0]}"
        then, other = self.block.targets
        if ins.guard.negated:
            then, other = other, then
        condition = self.get(Register(ins.guard.name), "?")
        return f"return {condition}, {then}, {other}"

    def _stores(self) -> list[str]:
        """Store what is read after the block; copy what would share memory with another."""
        ends = [name for name in self.written if name in self.block.live_out]
        if not ends:
            return []
        dense, sparse, taken = [], [], set()
        for name in ends:
            value = self.get(Register(name), self.native(name))
            root = self.roots.get(value, value)
            number = self.code.number(name)
            copy = root in self.shared or root in taken or not root.startswith("t")
            taken.add(root)
            dense.append(f"    R[{number}] = {value}{'.copy()' if copy else ''}")
            sparse.append(f"    m.store(R, {number}, sel, {value})")
        return ["if sel is None:", *dense, "else:", *sparse]


def _immediate(operand: Immediate, dtype: str) -> Any:
    of = np.dtype(dtype)
    value = operand.value
    if dtype == "?":
        return np.bool_(bool(value))
    if of.kind == "f":
        with np.errstate(over="ignore"):
            return of.type(value)
    if isinstance(value, float):  # the bits of a float
        width = operand.bits // 8 if operand.bits else of.itemsize
        bits = np.array(value, f"f{width}").view(f"u{width}")[()]
        return bits.astype(of)
    return np.array(value % (1 << 8 * of.itemsize), f"u{of.itemsize}").view(of)[()]


class Code:
    """A kernel as Python functions.

    Attributes
    ----------
    blocks
        The straight-line blocks.
    functions
        One per block.
    masks
        For blocks that begin with a warp-wide instruction, a function that returns the member mask.
    """

    def __init__(self, entry: Entry, addresses: dict[str, int]) -> None:
        # The handlers register themselves; imported here because they need this module.
        from ptx import convert, floating, integer, memory_ops, warp_ops  # noqa: F401

        self.entry, self.addresses = entry, addresses
        self.blocks = straight_lines(entry)
        self.used = set().union(*(reads(ins) for ins in entry.instructions))
        self._numbers = {name: index for index, name in enumerate(entry.registers)}
        self._constants: dict[str, Any] = dict(NAMES)
        self._known: dict[tuple[Any, ...], str] = {}
        text, self.masks = [], {}
        from ptx.helpers import HELPERS

        self._constants.update(HELPERS)
        masks = []
        for number, block in enumerate(self.blocks):
            text.append(Emitter(self, block, number).run())
            if block.kind == "warp":
                text.append(self._mask(block, number))
                masks.append(number)
        self.text = "".join(text)
        space = self._constants
        exec(compile(self.text, f"<{entry.name}>", "exec"), space)
        self.functions = [space[f"block_{number}"] for number in range(len(self.blocks))]
        self.masks = {number: space[f"mask_{number}"] for number in masks}
        self.initial = [np.dtype(TYPES[kind]).type(0) for kind in entry.registers.values()]

    def _mask(self, block: Block, number: int) -> str:
        ins = self.entry.instructions[block.first]
        if ins.op in ("mma", "ldmatrix"):
            whole = self.constant(np.uint32(2**32 - 1))
            return f"def mask_{number}(act, R, sel):\n    return {whole}\n"
        emitter = Emitter(self, block, number)
        value = emitter.get(ins.operands[-1], "u4")
        loads = [
            f"    {variable} = R[{self.number(name)}]\n"
            f"    if sel is not None and {variable}.ndim: {variable} = {variable}.take(sel)\n"
            for name, variable in emitter.loads.items()
        ]
        lines = "".join(f"    {line}\n" for line in emitter.lines)
        return f"def mask_{number}(act, R, sel):\n{''.join(loads)}{lines}    return {value}\n"

    def number(self, register: str) -> int:
        """Return the number of a register."""
        return self._numbers[register]

    def address(self, symbol: str) -> int:
        """Return the address of a variable, in its own state space."""
        try:
            return self.addresses[symbol]
        except KeyError:
            raise NotImplementedError(f"symbol {symbol}") from None

    def constant(self, value: Any) -> str:
        """Name a constant of the generated code."""
        if isinstance(value, np.generic):
            key: tuple[Any, ...] = (value.dtype.str, value.tobytes())
        else:
            key = ("object", id(value))
        if key not in self._known:
            name = f"c{len(self._known)}"
            self._known[key] = name
            self._constants[name] = value
        return self._known[key]
