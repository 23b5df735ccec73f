"""Amounts of memory as people read them."""

from __future__ import annotations

from math import ceil

__all__ = ["bytes_text"]


def bytes_text(count: float, *, up: bool = False) -> str:
    """An amount of memory in binary units; `up`: no less than it is, so that it will do as a limit.

    >>> bytes_text(1536), bytes_text(1025, up=True), bytes_text(3)
    ('1.5 KiB', '1.1 KiB', '3 B')
    """
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if count < 1024:
            break
        count, unit = count / 1024, larger
    if unit == "B":
        return f"{ceil(count) if up else count:.0f} B"
    return f"{(ceil(count * 10) / 10 if up else count):.1f} {unit}"
