"""PTX text as data: entries with their parameters, registers, arrays and instructions.

Knows the syntax only; what an instruction does is said elsewhere. Registers and labels that inline
assembly declares in its own braces get names of their own here, so that nothing else needs scopes.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

__all__ = [
    "Address",
    "Entry",
    "Immediate",
    "Instruction",
    "Module",
    "Operand",
    "Parameter",
    "PtxSyntaxError",
    "Register",
    "Symbol",
    "Variable",
    "Vector",
    "parse",
]

#: Bytes of the fundamental types.
SIZES = {
    **{f"{kind}{bits}": bits // 8 for kind in "bsu" for bits in (8, 16, 32, 64)},
    "f16": 2,
    "f16x2": 4,
    "bf16": 2,
    "bf16x2": 4,
    "f32": 4,
    "f64": 8,
    "pred": 1,
    "b128": 16,
}


class PtxSyntaxError(Exception):
    """Text that this parser does not understand."""


@dataclass(frozen=True)
class Register:
    """A register (``%r1``) or a special one (``%tid.x``); `negated` for ``!%p1``."""

    name: str
    negated: bool = False


@dataclass(frozen=True)
class Immediate:
    """A number: an int, or a float of `bits` 32 or 64 (0 where the instruction decides)."""

    value: int | float
    bits: int = 0


@dataclass(frozen=True)
class Symbol:
    """The name of a variable or of a label."""

    name: str


@dataclass(frozen=True)
class Vector:
    """``{%f1, %f2}``; also ``%r1|%p1``, the two results of one instruction (`pair`)."""

    parts: tuple[Operand, ...]
    pair: bool = False


@dataclass(frozen=True)
class Address:
    """``[base + offset]``; without a base the offset is the address."""

    base: Register | Symbol | None
    offset: int = 0


Operand = Register | Immediate | Symbol | Vector | Address


@dataclass
class Instruction:
    """One instruction: ``@guard op.modifiers operands``."""

    op: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | None = None
    line: int = 0
    text: str = ""
    targets: tuple[str, ...] = ()  # labels that a branch can go to


@dataclass(frozen=True)
class Parameter:
    """A kernel parameter; `size` and `offset` in bytes."""

    name: str
    type: str
    size: int
    offset: int


@dataclass(frozen=True)
class Variable:
    """An array of a state space; `size` in bytes (0: dynamic), `data` its first contents."""

    name: str
    space: str
    size: int
    align: int
    data: bytes | None = None
    pointers: tuple[tuple[int, str], ...] = ()  # (byte offset, symbol) within the data


@dataclass
class Entry:
    """A kernel."""

    name: str
    parameters: list[Parameter]
    registers: dict[str, str] = field(default_factory=dict)  # name -> type
    variables: list[Variable] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # name -> index of an instruction
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)  # .branchtargets
    max_threads: int = 1024


@dataclass
class Module:
    """A compiled program."""

    entries: dict[str, Entry]
    variables: list[Variable]


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_LABEL = re.compile(r"\s*([\w$%]+)\s*:(?!:)")
_ENTRY = re.compile(r"(?:\.visible|\.weak|\.extern|\s)*\.(entry|func)\b")
_VARIABLE = re.compile(
    r"\.(global|const|shared|local)\s*((?:\.\w+\s+(?:\d+\s+)?)*)\.(\w+)\s+([\w$%]+)"
    r"\s*((?:\[\s*\d*\s*\])*)\s*(?:=\s*(.*))?$",
    re.S,
)


@lru_cache(maxsize=64)
def parse(text: str) -> Module:
    """Parse what NVRTC returns; kept, and not to be changed."""
    text = _COMMENT.sub(lambda found: re.sub(r"[^\n]", " ", found.group()), text)
    module = Module({}, [])
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
        elif _ENTRY.match(text, at):
            at = _function(text, at, module)
        elif text.startswith((".version", ".target", ".address_size"), at):
            at = (text + "\n").index("\n", at) + 1
        else:
            end = text.find(";", at)
            if end < 0:
                raise PtxSyntaxError(f"line {_line(text, at)}: {text[at : at + 80]!r}")
            statement = text[at:end].strip()
            if found := _VARIABLE.search(statement):
                module.variables.append(_variable(found))
            elif not statement.startswith((".file", ".extern .func", ".section", ".alias")):
                raise PtxSyntaxError(f"line {_line(text, at)}: {statement!r}")
            at = end + 1
    return module


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _variable(found: re.Match[str]) -> Variable:
    space, attributes, kind, name, extents, initial = found.groups()
    unit = SIZES[kind]
    align = int(m.group(1)) if (m := re.search(r"\.align\s+(\d+)", attributes)) else unit
    size = unit
    for extent in re.findall(r"\[\s*(\d*)\s*\]", extents):
        size *= int(extent or 0)
    if initial is None:
        return Variable(name, space, size, align)
    data, pointers = bytearray(), []
    for word in initial.strip(" \t\n{}").replace("{", "").replace("}", "").split(","):
        token = word.strip()
        if re.match(r"^[A-Za-z_$]|^generic", token):  # the address of another variable
            pointers.append((len(data), re.sub(r"^generic\((.*)\)$", r"\1", token)))
            data += bytes(unit)
        elif token:
            number = _number(token)
            if isinstance(number.value, float):
                data += struct.pack("<f" if unit == 4 else "<d", number.value)
            else:
                data += (number.value % (1 << 8 * unit)).to_bytes(unit, "little")
    return Variable(name, space, size, align, bytes(data.ljust(size, b"\0")), tuple(pointers))


def _function(text: str, at: int, module: Module) -> int:
    """Parse one ``.entry`` (or step over a ``.func``); return where it ends."""
    kind = _ENTRY.match(text, at)
    if kind is None:
        raise PtxSyntaxError(text[at : at + 80])
    start = text.find("{", at)
    semicolon = text.find(";", at)
    if start < 0 or 0 <= semicolon < start:  # a declaration only
        return semicolon + 1
    depth, end = 1, start + 1
    while depth:
        step = re.compile(r"[{}]").search(text, end)
        if step is None:
            raise PtxSyntaxError("a body without its end")
        depth += 1 if step.group() == "{" else -1
        end = step.end()
    if kind.group(1) == "func":
        return end
    head = text[kind.end() : start]
    name = re.match(r"\s*([\w$]+)", head)
    if name is None:
        raise PtxSyntaxError(head)
    inside = head[head.find("(") + 1 : head.rfind(")")] if "(" in head else ""
    entry = Entry(name.group(1), _parameters(inside))
    if limit := re.search(r"\.(?:max|req)ntid\s+([\d,\s]+)", head):
        threads = 1
        for extent in limit.group(1).split(","):
            threads *= int(extent) if extent.strip() else 1
        entry.max_threads = threads
    _body(text, start + 1, end - 1, entry)
    module.entries[entry.name] = entry
    return end


def _parameters(text: str) -> list[Parameter]:
    parameters, offset = [], 0
    for part in text.split(","):
        if not part.strip():
            continue
        found = re.search(r"\.param\s+(.*?)\.(\w+)\s+(?:\.ptr.*\s)?([\w$]+)\s*(\[\d+\])?\s*$", part)
        found = found or re.search(
            r"\.param\s+()\.(\w+)\s+\.ptr\b.*?([\w$]+)\s*(\[\d+\])?\s*$", part, re.S
        )
        if found is None:
            raise PtxSyntaxError(part.strip())
        attributes, kind, name, extent = found.groups()
        size = SIZES[kind] * (int(extent[1:-1]) if extent else 1)
        align = int(m.group(1)) if (m := re.search(r"\.align\s+(\d+)", attributes)) else SIZES[kind]
        offset = -(-offset // align) * align
        parameters.append(Parameter(name, kind, size, offset))
        offset += size
    return parameters


def _body(text: str, at: int, end: int, entry: Entry) -> None:
    """Fill in registers, arrays, labels and instructions."""
    scopes: list[dict[str, str]] = [{}]  # innermost last: declared name -> our name
    path: list[int] = []
    made = 0
    breaks = [found.start() for found in re.finditer("\n", text)]
    pending: list[tuple[Instruction, tuple[int, ...]]] = []
    labels: dict[tuple[int, ...], dict[str, str]] = {}
    while at < end:
        if text[at].isspace() or text[at] == ";":
            at += 1
            continue
        if text[at] == "{":
            made += 1
            path.append(made)
            scopes.append({})
            at += 1
            continue
        if text[at] == "}":
            path.pop()
            scopes.pop()
            at += 1
            continue
        if (label := _LABEL.match(text, at)) and label.end() <= end:
            name = label.group(1)
            unique = name if not path else f"{name}@{path[-1]}"
            labels.setdefault(tuple(path), {})[name] = unique
            entry.labels[unique] = len(entry.instructions)
            at = label.end()
            table = re.compile(r"\s*\.branchtargets\s+([^;]*);").match(text, at)
            if table:
                entry.tables[unique] = tuple(x.strip() for x in table.group(1).split(","))
                at = table.end()
            continue
        if text.startswith((".loc ", ".loc\t"), at):
            at = text.index("\n", at)
            continue
        stop = text.index(";", at)
        statement = " ".join(text[at:stop].split())
        if statement.startswith("."):
            _directive(statement, entry, scopes, path[-1] if path else 0)
        else:
            instruction = _instruction(statement, scopes)
            instruction.line = bisect_left(breaks, at) + 1
            entry.instructions.append(instruction)
            pending.append((instruction, tuple(path)))
        at = stop + 1
    for instruction, place in pending:
        _resolve(instruction, place, labels, entry)


def _resolve(
    instruction: Instruction,
    place: tuple[int, ...],
    labels: dict[tuple[int, ...], dict[str, str]],
    entry: Entry,
) -> None:
    """Find the labels that a branch means, innermost scope first."""
    if instruction.op not in ("bra", "brx"):
        return
    name = instruction.operands[-1]
    if not isinstance(name, Symbol):
        raise PtxSyntaxError(f"line {instruction.line}: {instruction.text}")

    def find(label: str) -> str:
        for depth in range(len(place), -1, -1):
            if unique := labels.get(place[:depth], {}).get(label):
                return unique
        raise PtxSyntaxError(f"line {instruction.line}: no label {label}")

    first = find(name.name)
    instruction.targets = tuple(find(one) for one in entry.tables.get(first, (name.name,)))


def _directive(statement: str, entry: Entry, scopes: list[dict[str, str]], scope: int) -> None:
    if statement.startswith(".reg"):
        found = re.match(r"\.reg\s+\.(\w+)\s+(.*)$", statement)
        if found is None:
            raise PtxSyntaxError(statement)
        kind, names = found.groups()
        for name in names.split(","):
            count = re.match(r"([\w$%]+)<(\d+)>$", name.strip())
            every = (
                [f"{count.group(1)}{k}" for k in range(int(count.group(2)))]
                if count
                else [name.strip()]
            )
            for one in every:
                unique = f"{one}@{scope}" if scope else one
                scopes[-1][one] = unique
                entry.registers[unique] = kind
    elif found := _VARIABLE.search(statement):
        entry.variables.append(_variable(found))
    elif not statement.startswith((".pragma", ".loc", ".maxntid", ".minnctapersm")):
        raise NotImplementedError(f"PTX directive {statement!r}")


def _instruction(statement: str, scopes: list[dict[str, str]]) -> Instruction:
    found = re.match(r"(?:@(!?)([\w$%]+)\s+)?([\w.:]+)\s*(.*)$", statement, re.S)
    if found is None:
        raise PtxSyntaxError(statement)
    negated, guard, name, rest = found.groups()
    op, *modifiers = name.replace("::", "__").split(".")
    return Instruction(
        op,
        tuple(modifiers),
        tuple(_operand(part, scopes) for part in _split(rest)),
        Register(_scoped(guard, scopes), bool(negated)) if guard else None,
        text=statement,
    )


def _split(text: str) -> Iterator[str]:
    """Split at the commas outside of braces and brackets."""
    depth, part = 0, ""
    for letter in text:
        if letter == "," and depth == 0:
            yield part.strip()
            part = ""
            continue
        depth += (letter in "{[(") - (letter in "}])")
        part += letter
    if part.strip():
        yield part.strip()


def _scoped(name: str, scopes: list[dict[str, str]]) -> str:
    for scope in reversed(scopes):
        if name in scope:
            return scope[name]
    return name


def _operand(text: str, scopes: list[dict[str, str]]) -> Operand:
    if text.startswith("{"):
        return Vector(tuple(_operand(part, scopes) for part in _split(text[1:-1])))
    if text.startswith("["):
        return _address(text[1:-1].strip(), scopes)
    if "|" in text:
        return Vector(tuple(_operand(part.strip(), scopes) for part in text.split("|")), pair=True)
    if text.startswith("!"):
        return Register(_scoped(text[1:].strip(), scopes), negated=True)
    if text[0].isdigit() or text[0] in "-+":
        return _number(text)
    if any(text in scope for scope in scopes) or text.startswith("%"):
        return Register(_scoped(text, scopes))
    if text == "_":
        return Register("_")
    return Symbol(text)


def _address(text: str, scopes: list[dict[str, str]]) -> Address:
    found = re.match(r"([\w$%.]+)\s*(?:([+-])\s*([+-]?\w+))?$", text)
    if found is None:
        raise PtxSyntaxError(f"address [{text}]")
    base, sign, offset = found.groups()
    shift = int(_number(offset).value) if offset else 0
    operand = _operand(base, scopes)
    if isinstance(operand, Immediate):
        return Address(None, int(operand.value) + shift)
    if not isinstance(operand, Register | Symbol):
        raise PtxSyntaxError(f"address [{text}]")
    return Address(operand, -shift if sign == "-" else shift)


def _number(text: str) -> Immediate:
    if text[:2] in ("0f", "0F"):
        return Immediate(struct.unpack(">f", bytes.fromhex(text[2:]))[0], 32)
    if text[:2] in ("0d", "0D"):
        return Immediate(struct.unpack(">d", bytes.fromhex(text[2:]))[0], 64)
    if re.match(r"^[-+]?(\d+\.\d*|\d*\.\d+|\d+)([eE][-+]?\d+)?$", text) and re.search(
        r"[.eE]", text
    ):
        return Immediate(float(text), 64)
    try:
        digits = text.rstrip("uU")
        octal = re.match(r"^[-+]?0\d+$", digits)
        return Immediate(int(digits, 8 if octal else 0))
    except ValueError:
        raise PtxSyntaxError(f"number {text!r}") from None
