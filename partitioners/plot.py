"""Pictures of partitions: words per layer, and who sends to whom. Needs matplotlib."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sparsednn.partitioners.report import best_of
from sparsednn.pictures import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sparsednn.partitioners.methods import Compared

__all__ = ["plot_comparison"]

# Okabe & Ito's colours, which the colour-blind can tell apart too; grey for the rules.
_COLOURS: Final = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
_JOINT: Final = "#D55E00"
_GREYS: Final = ("#333333", "#777777", "#AAAAAA")
_DASHES: Final = ("--", ":", "-.")

_LOG_RANGE: Final = 30.0
"""A scale is logarithmic where the largest value is so many times the smallest."""

_MARKED_LAYERS: Final = 30


def plot_comparison(results: Sequence[Compared], path: str | os.PathLike[str]) -> None:
    """Draw words per layer of all results, and the traffic of the best one; atomically.

    Parameters
    ----------
    results
        Of one network with the same number of parts; at least one.
    path
        The file; its suffix, one of `pictures.SUFFIXES`, is the format.

    Raises
    ------
    UsageError, MissingDependencyError
        As `pictures.check_picture`.
    FormatError
        If the file cannot be written.
    """
    best = best_of(results)
    with picture(path, (11.5, 4.8)) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1.0))
        _draw_words(left, results)
        _draw_traffic(figure, right, best)
        meta = best.partition.meta
        figure.suptitle(
            f"{meta.network}: {_count(len(best.stats.layers), 'layer')}, "
            f"{_count(best.partition.parts, 'part')}",
            fontsize=12,
        )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _draw_words(axes: Axes, results: Sequence[Compared]) -> None:
    """One line per result; the legend has their totals."""
    from matplotlib.ticker import MaxNLocator

    words_of_all = np.concatenate([result.stats.words_per_layer for result in results])
    zeros, largest = bool((words_of_all == 0).any()), int(words_of_all.max())
    least = int(words_of_all[words_of_all > 0].min()) if largest else 1
    native = rules = 0
    for result in results:
        words = np.array(result.stats.words_per_layer)
        style: dict[str, Any]
        if result.method == "joint":
            style = {"color": _JOINT, "linewidth": 2.2, "zorder": 3}
        elif result.method == "rule":
            style = {"color": _GREYS[rules % 3], "linestyle": _DASHES[rules % 3]}
            rules += 1
        else:
            style = {"color": _COLOURS[native % len(_COLOURS)], "linewidth": 1.6}
            native += 1
        name = "joint" if result.method == "joint" else result.partitioner
        axes.plot(
            np.arange(1, words.size + 1),
            words,
            label=f"{name}: {result.stats.words_total:,}",
            marker="o" if words.size <= _MARKED_LAYERS else None,
            markersize=4,
            **style,
        )
    axes.set_xlabel("layer")
    axes.set_ylabel("words per image")
    axes.set_title("Words that a forward pass sends in each layer")
    axes.grid(alpha=0.25)
    axes.set_xlim(0.5, len(results[0].stats.layers) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if largest > _LOG_RANGE * least:
        axes.set_ylabel("words per image (logarithmic)")
        if zeros:  # a layer that sends nothing has a place, too
            axes.set_yscale("symlog", linthresh=least, linscale=0.6)
            axes.set_ylim(bottom=-0.08 * least)
        else:
            axes.set_yscale("log")
    else:
        top = max(largest * 1.08, 1.0)
        axes.set_ylim(-0.02 * top if zeros else 0, top)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(
        title="words of all layers",
        loc="upper center",
        bbox_to_anchor=(0.5, -0.13),
        ncols=3,
        frameon=False,
    )


def _draw_traffic(figure: Figure, axes: Axes, result: Compared) -> None:
    """The matrix of words from each part (row) to each other (column)."""
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import MaxNLocator

    traffic = result.stats.traffic
    sent = traffic[traffic > 0]
    name = "joint" if result.method == "joint" else result.partitioner
    axes.set_title(f"Who sends to whom: {name}")
    axes.set_xlabel("receiving part")
    axes.set_ylabel("sending part")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    norm: Normalize = Normalize(0, max(int(traffic.max()), 1))
    if sent.size and sent.max() > _LOG_RANGE * sent.min():
        norm = LogNorm(int(sent.min()), int(sent.max()))
    image = axes.imshow(
        np.ma.masked_equal(traffic, 0), cmap="YlGnBu", norm=norm, interpolation="nearest"
    )
    axes.set_facecolor("#E0E0E0")
    if sent.size:
        bar = figure.colorbar(image, ax=axes, shrink=0.85)
        bar.set_label("words per image, all layers (grey: none)")
    else:
        axes.text(0.5, 0.5, "nobody sends anything", transform=axes.transAxes, ha="center")
