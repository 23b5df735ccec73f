"""Control flow of a kernel: straight-line blocks, and which registers live across them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ptx.parser import Address, Entry, Instruction, Operand, Register, Symbol, Vector

__all__ = ["Block", "collective", "reads", "straight_lines", "writes"]

_BRANCHES = ("bra", "brx", "ret", "exit", "trap", "brkpt", "call")
_HINTS = ("membar", "fence", "prefetch", "prefetchu", "griddepcontrol", "nanosleep", "discard")
#: Instructions whose first operand is no result.
_NO_RESULT = frozenset((*_BRANCHES, *_HINTS, "st", "red", "bar", "barrier", "cp"))


@dataclass
class Block:
    """Instructions `first` to `end` (exclusive), entered only at the first.

    `kind` is ``"block"`` or ``"warp"`` where the first instruction waits for other threads, and
    empty elsewhere. `targets` are the blocks that may come next.
    """

    first: int
    end: int
    kind: str = ""
    targets: list[int] = field(default_factory=list)
    live_in: set[str] = field(default_factory=set)
    live_out: set[str] = field(default_factory=set)


def collective(ins: Instruction) -> str:
    """Return who waits at this instruction: ``"block"``, ``"warp"`` or nobody."""
    if ins.op in ("bar", "barrier"):
        return "warp" if "warp" in ins.modifiers else "block"
    if ins.op in ("shfl", "vote", "redux", "match", "elect", "mma", "ldmatrix"):
        return "warp"
    return ""


def _registers(operand: Operand) -> Iterator[str]:
    if isinstance(operand, Register):
        yield operand.name
    elif isinstance(operand, Vector):
        for part in operand.parts:
            yield from _registers(part)
    elif isinstance(operand, Address) and isinstance(operand.base, Register):
        yield operand.base.name


def _has_result(ins: Instruction) -> bool:
    if ins.op in ("bar", "barrier"):
        return "red" in ins.modifiers
    return ins.op not in _NO_RESULT


def writes(ins: Instruction) -> set[str]:
    """Return the registers that an instruction sets."""
    if not _has_result(ins) or not ins.operands:
        return set()
    return {name for name in _registers(ins.operands[0]) if name != "_"}


def reads(ins: Instruction) -> set[str]:
    """Return the registers that an instruction uses, special ones too."""
    operands = ins.operands[1:] if _has_result(ins) else ins.operands
    found = {name for operand in operands for name in _registers(operand)}
    return found | ({ins.guard.name} if ins.guard else set())


def without_guards(entry: Entry) -> None:
    """Turn ``@p op`` into a branch around ``op``, so that only branches are conditional.

    Doing it twice changes nothing more.
    """
    instructions: list[Instruction] = []
    moved: dict[int, int] = {}
    for number, ins in enumerate(entry.instructions):
        moved[number] = len(instructions)
        if ins.guard is None or ins.op == "bra":
            instructions.append(ins)
            continue
        label = f"after {number}"
        guard = replace(ins.guard, negated=not ins.guard.negated)
        around = Instruction("bra", (), (Symbol(label),), guard, ins.line, ins.text, (label,))
        instructions += [around, replace(ins, guard=None)]
        entry.labels[label] = number + 1
    moved[len(entry.instructions)] = len(instructions)
    entry.labels = {name: moved[index] for name, index in entry.labels.items()}
    entry.instructions = instructions


def straight_lines(entry: Entry) -> list[Block]:
    """Cut a kernel into blocks, in the order of the text, with liveness."""
    without_guards(entry)
    code = entry.instructions
    if not code or code[-1].op not in ("ret", "exit", "bra", "trap"):
        code.append(Instruction("ret", (), (), line=code[-1].line if code else 0, text="ret"))
    starts = {0}
    for number, ins in enumerate(code):
        if ins.op in ("bra", "brx", "ret", "exit", "trap"):
            starts.add(number + 1)
            starts.update(entry.labels[name] for name in ins.targets)
        elif collective(ins):
            starts.add(number)
    ordered = sorted(start for start in starts if start < len(code))
    at = {start: index for index, start in enumerate(ordered)}
    blocks = [
        Block(first, end, collective(code[first]))
        for first, end in zip(ordered, [*ordered[1:], len(code)], strict=True)
    ]
    for index, block in enumerate(blocks):
        last = code[block.end - 1]
        block.targets = [at[entry.labels[name]] for name in last.targets]
        if last.op not in ("ret", "exit", "trap", "brx") and (last.op != "bra" or last.guard):
            block.targets.append(index + 1)
    _liveness(blocks, code)
    return blocks


def _liveness(blocks: list[Block], code: list[Instruction]) -> None:
    uses: list[set[str]] = []
    sets: list[set[str]] = []
    for block in blocks:
        used: set[str] = set()
        made: set[str] = set()
        for ins in code[block.first : block.end]:
            used |= reads(ins) - made
            made |= writes(ins)
        uses.append(used)
        sets.append(made)
    changed = True
    while changed:
        changed = False
        for index in range(len(blocks) - 1, -1, -1):
            block = blocks[index]
            block.live_out = set().union(*(blocks[to].live_in for to in block.targets))
            alive = uses[index] | (block.live_out - sets[index])
            if alive != block.live_in:
                block.live_in, changed = alive, True
