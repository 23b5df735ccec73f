"""Numbers as a person types them: ``1..1024``, ``1,2,4``, ``8``.

Must not know: networks, predictions.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.costmodel.platform import Platform

__all__ = ["parse_ranks", "parse_values", "ranks_up_to"]

_ITEM: Final = re.compile(r"([0-9]{1,9})(?:\.\.([0-9]{1,9}))?")
_MOST_VALUES: Final = 64


def parse_ranks(text: str, option: str = "--ranks") -> tuple[int, ...]:
    """Read numbers of ranks: numbers and ranges with commas between them.

    A range ``a..b`` stands for the powers of two from a to b, and for a and b themselves.

    Parameters
    ----------
    text
        As typed.
    option
        For messages.

    Returns
    -------
    Different numbers of at least 1, ascending.

    Raises
    ------
    UsageError
        If the text is something else, or a range has nothing in it.

    Examples
    --------
    >>> parse_ranks("3..20"), parse_ranks("8, 1,2")
    ((3, 4, 8, 16, 20), (1, 2, 8))
    """
    found: set[int] = set()
    for item in text.split(","):
        match = _ITEM.fullmatch(item.strip())
        if match is None:
            raise UsageError(
                f"{option} '{text}': '{item.strip()}' is neither a number nor a range such as "
                "1..1024 (numbers and ranges may be put together: 1..64,96)"
            )
        low = int(match[1])
        high = low if match[2] is None else int(match[2])
        if low < 1:
            raise UsageError(f"{option} '{text}': there is at least 1, found {low}")
        if low > high:
            raise UsageError(f"{option} '{text}': the range {low}..{high} is empty")
        found |= {low, high}
        power = 1 << (low - 1).bit_length()
        while power < high:
            found.add(power)
            power *= 2
    return tuple(sorted(found))


def parse_values(text: str, option: str = "--values", *, whole: bool = False) -> tuple[float, ...]:
    """Read positive numbers with commas between them, in the order in which they are typed.

    Parameters
    ----------
    whole
        Whether they are whole numbers; ranges are allowed then, see `parse_ranks`.

    Raises
    ------
    UsageError
        If one is no positive number, or they are more than a table can show.

    Examples
    --------
    >>> parse_values("0.5, 1,4"), parse_values("1..4", whole=True)
    ((0.5, 1.0, 4.0), (1.0, 2.0, 4.0))
    """
    if whole:
        return tuple(map(float, parse_ranks(text, option)))
    found: list[float] = []
    for item in text.split(","):
        try:
            value = float(item)
        except ValueError:
            value = math.nan
        if not 0.0 < value < math.inf:
            raise UsageError(
                f"{option} '{text}': positive numbers such as 0.5,1,2 are needed, found "
                f"'{item.strip()}'"
            )
        if value not in found:
            found.append(value)
    if len(found) > _MOST_VALUES:
        raise UsageError(f"{option}: at most {_MOST_VALUES} values, found {len(found)}")
    return tuple(found)


def ranks_up_to(most: int, platform: Platform) -> tuple[int, ...]:
    """Return the powers of two up to `most`, or up to what the platform has, that included."""
    return parse_ranks(f"1..{min(most, platform.max_ranks)}")
