"""``calibrate``: measure this machine for the cost models."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsednn.amounts import bytes_text
from sparsednn.cli._common import JsonOption, note, print_json, print_table

if TYPE_CHECKING:
    from sparsednn.costmodel.platform import Platform


def calibrate(
    *,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Platform file to write (TOML).",
            show_default=False,
        ),
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="Half a minute, with figures that are less sure.")
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="Of the platform (default: the file's, without its suffix).",
            show_default=False,
        ),
    ] = None,
    no_ranks: Annotated[
        bool,
        typer.Option(
            "--no-ranks",
            help="Start no ranks: links are those of the documented two-core-server.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:  # fmt: skip
    """Measure cores, memory, kernels, messages and collectives here; write a platform file.

    Takes some two minutes. Nothing else should run meanwhile.
    """
    from sparsednn.costmodel.calibration import calibrate as measure

    platform = measure(
        out, quick=quick, with_ranks=not no_ranks, name=name, progress=_with_seconds()
    )
    residuals = list(platform.measured["residuals"])
    if json:
        print_json(
            {
                "platform": str(out),
                "name": platform.name,
                "source": platform.source,
                "figures": dict(_figures(platform)),
                "residuals": residuals,
            }
        )
        return
    print_table([(figure, _shown(figure, value)) for figure, value in _figures(platform)])
    print()
    width = max(len(one["model"]) for one in residuals)
    print(f"{'errors of the fits':<{width}}  median   worst  points")
    for one in residuals:
        print(
            f"{one['model']:<{width}}  {one['median']:>6.1%}  {one['worst']:>6.1%}  "
            f"{one['points']:>6}"
        )
    print(f"\nwrote {out}: {platform.source}")


def _with_seconds() -> Callable[[str], None]:
    """Progress lines that say when each stage began."""
    begin = time.perf_counter()
    return lambda what: note(f"{time.perf_counter() - begin:6.1f} s  {what}")


def _figures(platform: Platform) -> list[tuple[str, Any]]:
    """What was found, by the names of the file."""
    import dataclasses

    parts: dict[str, Any] = {
        "processor": platform.processor,
        "node": platform.node,
        "links.within": platform.within,
    }
    return [
        (f"{part} {figure}", value)
        for part, one in parts.items()
        for figure, value in dataclasses.asdict(one).items()
    ]


def _shown(name: str, value: Any) -> str:
    """A figure with its unit.

    >>> _shown("processor flops", 2.4e11), _shown("link latency_seconds", 1.2e-6)
    ('240 Gflop/s', '1.2 µs')
    """
    if isinstance(value, str):
        return value
    if name.endswith("flops"):
        return f"{value / 1e9:.3g} Gflop/s"
    if name.endswith("bandwidth"):
        return f"{value / 1e9:.3g} GB/s"
    if name.endswith("_seconds"):
        return f"{value * 1e6:.3g} µs"
    if name.endswith("_bytes"):
        return bytes_text(value)
    return f"{value:.3g}"
