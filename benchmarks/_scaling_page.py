"""The page docs/scaling.md and its figures, from the figures that `scaling.py` has made.

Every number and every sentence with a number is made here from them; what is written by hand says
only what was done and how to read it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from sparsednn.amounts import bytes_text
from sparsednn.atomic import atomic_file
from sparsednn.costmodel.planning.plots import Line, Panel, ideal, plot_panels
from sparsednn.costmodel.planning.report import digits, markdown, seconds_text, short_count
from sparsednn.costmodel.scaling import EQUAL

__all__ = ["PAGE", "compact", "write"]

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"

Record = dict[str, Any]


def compact(text: str) -> str:
    """Indented JSON with all that is deep inside on one line."""
    return re.sub(r"(?<=[\[{,\w\"\]}])\n {4,}", " ", text)


def write(figures: Record, page: Path) -> list[Path]:
    """Write the page and its figures; returns the files."""
    folder = page.parent / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = list(_pictures(figures, folder))
    with atomic_file(page) as file:
        file.write(("\n".join(_lines(figures)) + "\n").encode())
    return [page, *pictures]


# --- text ---------------------------------------------------------------------------------------


def _lines(figures: Record) -> Iterator[str]:
    platform = figures["platform"]
    sparse = _made(figures)
    cnn = [one for one in figures["cnn"].values() if "strong" in one and "weak" in one]
    yield from (
        "# Scaling to 1,024 ranks, as predicted",
        "",
        "    python benchmarks/scaling.py --cache FOLDER      # all of this page",
        "",
        f"Platform: `{platform['name']}` ({platform['source']}): {platform['nodes']:,} nodes of "
        f"{platform['ranks']} ranks, one thread each; ranks fill the nodes in order, so 1,024 "
        f"ranks are on {-(-1024 // platform['ranks'])} nodes. A network card gives "
        f"{platform.get('between_bandwidth', 0) / 1e9:g} GB/s to all ranks of its node. All "
        "figures are predictions: nothing has run there. How good predictions are on a machine "
        "that is at hand, `sparsednn validate` says. Every number and every sentence with numbers "
        "below is written by the program.",
        "",
        "**Bold**: the quickest; of times that are less than "
        f"{EQUAL - 1:.0%} apart, the plainest contender's (the first from the left). Below a table "
        "it says where the winner changes, and what both spend their time on there (flops, memory "
        "bandwidth, link bandwidth, latency, imbalance, overhead: the models' account; shares "
        "below 5% are left out). `–`: ranks would have no work, or it does not fit the memory.",
        "",
    )
    if sparse:
        yield from _sparse_lines(sparse)
    if cnn:
        yield from _cnn_lines(cnn)


def _sparse_lines(sparse: Sequence[Record]) -> Iterator[str]:
    names = ", ".join(f"`{one['model']}`" for one in sparse)
    yield from (
        "## Sparse networks",
        "",
        f"{names}: layers of so many neurons, 32 weights a row; every column alive in every layer. "
        "*random*: each neuron's owner drawn; *joint*: our partitions of all layers together "
        "(`--effort quick`). A partition's name alone stands for grids of 1 × K (all ranks share "
        "the neurons); *data* is K × 1 (every rank has the network, and its share of the images), "
        "*mixed* several groups × several parts, the parts by joint.",
        "",
        "Networks are sampled:",
        "",
        *(f"- {_neurons(one)} neurons: {one['note']}." for one in sparse if one["note"]),
        "",
        "### Words",
        "",
        "    python benchmarks/scaling.py --only spmv --cache FOLDER",
        "",
        "Words that all ranks send in a layer, mean of all layers, for one image; in brackets "
        "messages.",
        "",
    )
    head = ["parts", *(f"{_neurons(one)} {method}" for one in sparse for method in _methods(one))]
    parts = sorted({row["parts"] for one in sparse for row in one["partitions"]})
    cells = [head]
    for number in parts:
        line = [f"{number:,}"]
        for one in sparse:
            made = {each["parts"]: each for each in one["partitions"]}
            row: Record = made.get(number, {})
            line += [
                f"{short_count(row[m]['words'])} ({short_count(row[m]['messages'])})"
                if m in row else "–"
                for m in _methods(one)
            ]  # fmt: skip
        cells.append(line)
    yield from markdown(cells)
    yield ""
    yield from _spmv_lines(sparse)
    for name, title, what in (
        ("inference", "Inference of a batch", "a run of inference"),
        ("training", "A step of training", "a step of training (plain SGD)"),
    ):
        yield from _batch_lines(sparse, name, title, what)


def _spmv_lines(sparse: Sequence[Record]) -> Iterator[str]:
    yield from (
        "### One image: SpMV in each layer",
        "",
        "    python benchmarks/scaling.py --only spmv --cache FOLDER",
        f"    sparsednn simulate {sparse[0]['model']} --platform infiniband-128 --ranks 1..1024",
        "",
        "Simulated: every layer and every message of every rank; in brackets the speed-up. The "
        "closed form (`sparsednn.costmodel.sparse`) is dashed in the figure.",
        "",
        "![Speed-up for one image](figures/scaling-spmv.svg)",
        "",
    )
    head = ["ranks", *(f"{_neurons(one)} {method}" for one in sparse for method in _methods(one))]
    cells = [head]
    for number in sorted({row["ranks"] for one in sparse for row in one["spmv"]["rows"]}):
        line = [f"{number:,}"]
        for one in sparse:
            for method in _methods(one):
                row = _spmv_row(one, number, method)
                line.append(
                    "–" if row is None
                    else f"{seconds_text(row['seconds'])} ({digits(row['speedup'])})"
                )  # fmt: skip
        cells.append(line)
    yield from markdown(cells)
    yield ""
    for one in sparse:
        yield f"- {_neurons(one)} neurons: {'; '.join(_spmv_sentences(one))}."
    yield from ("", "**Weak scaling: neurons grow with the ranks.**", "")
    yield from _neurons_lines(sparse)


def _spmv_row(one: Record, ranks: int, method: str) -> Record | None:
    rows: list[Record] = one["spmv"]["rows"]
    wanted = (method, "alone") if ranks == 1 else (method,)
    return next((r for r in rows if r["ranks"] == ranks and r["method"] in wanted), None)


def _spmv_sentences(one: Record) -> Iterator[str]:
    best: dict[str, Record] = {}
    for method in _methods(one):
        rows = [row for row in one["spmv"]["rows"] if row["method"] in (method, "alone")]
        best[method] = row = min(rows, key=lambda each: each["seconds"])
        ranks = row["ranks"]
        at = "on one rank" if ranks == 1 else f"on {ranks:,} ranks"
        yield (
            f"{method} is quickest {at} ({seconds_text(row['seconds'])}, speed-up "
            f"{digits(row['speedup'])}, efficiency {row['efficiency']:.0%})"
        )
    last = max(row["ranks"] for row in one["spmv"]["rows"])
    slow, quick = (_spmv_row(one, last, method) for method in ("random", "joint"))
    if slow is not None and quick is not None:
        yield (
            f"on {last:,} ranks joint takes {quick['seconds'] / slow['seconds']:.0%} of random's "
            f"time and sends {quick['words'] / slow['words']:.0%} of its words in "
            f"{quick['messages'] / slow['messages']:.0%} of its messages"
        )
    off = [abs(row["formula_seconds"] / row["seconds"] - 1.0) for row in one["spmv"]["rows"]]
    yield f"the closed form is at most {max(off):.0%} off the simulation"


def _neurons_lines(sparse: Sequence[Record]) -> Iterator[str]:
    """Pairs of networks and ranks with the same neurons on each rank."""
    yield from ("Seconds for one image (simulated), a constant number of neurons on each rank:", "")
    yield from markdown(
        [
            ["neurons a rank", "neurons × ranks", "random", "joint", "joint / random"],
            *(
                [
                    f"{each:,}", f"{neurons:,} × {ranks:,}", seconds_text(r["seconds"]),
                    seconds_text(j["seconds"]), f"{j['seconds'] / r['seconds']:.0%}",
                ]
                for each, neurons, ranks, r, j in _neuron_rows(sparse)
            ),
        ]
    )  # fmt: skip
    yield ""


def _neuron_rows(
    sparse: Sequence[Record],
) -> Iterator[tuple[int, int, int, Record, Record]]:
    for each in (64, 256, 1024):
        for one in sparse:
            neurons = _width(one)
            ranks = neurons // each
            pair = [_spmv_row(one, ranks, method) for method in ("random", "joint")]
            if pair[0] is not None and pair[1] is not None:
                yield each, neurons, ranks, pair[0], pair[1]


def _batch_lines(sparse: Sequence[Record], name: str, title: str, what: str) -> Iterator[str]:
    strong = f"{name}_strong"
    have = [one for one in sparse if strong in one]
    if not have:
        return
    first = have[0]
    flag = " --training" if name == "training" else ""
    batch = _number(first[strong])
    yield from (
        f"### {title}",
        "",
        f"    python benchmarks/scaling.py --only {name} --cache FOLDER",
        f"    sparsednn plan {first['model']} --platform infiniband-128 --ranks 1..1024 \\",
        f"        --batch {batch} --threads 1 --partition random,joint{flag}",
        "",
        f"![{title}](figures/scaling-{name}.svg)",
        "",
    )
    for kind, said in (
        ("strong", "Strong scaling"),
        ("few", "Strong scaling, few images"),
        ("weak", "Weak scaling"),
    ):
        kind = f"{name}_{kind}"
        yield from (f"**{said}**: {what}, {first[kind]['images']}.", "")
        for one in have:
            yield from (f"{_neurons(one)} neurons:", "")
            yield from markdown(_cells(one[kind]["rows"]))
            yield ""
            yield from _said(one[kind])


def _said(section: Record) -> Iterator[str]:
    """Where the winner changes."""
    for line in section["text"]:
        yield f"- {line}."
    yield ""


def _cells(rows: Sequence[Record]) -> list[list[str]]:
    """Seconds of the contenders; the winner's in bold, with its configuration, memory and bound."""
    names = list(dict.fromkeys(name for row in rows for name in row["contenders"]))
    cells = [["ranks", *names, "its configuration", "words", "memory a rank", "limited by"]]
    for row in rows:
        have = row["contenders"]
        if not have:
            cells.append([f"{row['ranks']:,}", *("–" for _ in names), "does not fit", "", "", ""])
            continue
        winner = next(name for name in names if "bound" in have.get(name, {}))
        line = [f"{row['ranks']:,}"]
        for name in names:
            text = "–" if name not in have else seconds_text(have[name]["seconds"])
            line.append(f"**{text}**" if name == winner and row["ranks"] > 1 else text)
        won = have[winner]
        cells.append(
            [*line, won["configuration"], short_count(won["words"]),
             bytes_text(won["memory_bytes"]), won["bound"]]
        )  # fmt: skip
    return cells


def _cnn_lines(cnn: Sequence[Record]) -> Iterator[str]:
    first = cnn[0]
    yield from (
        "## Dense networks",
        "",
        f"    python benchmarks/scaling.py --only cnn --networks {first['model']}",
        f"    sparsednn plan {first['model']} --platform infiniband-128 --ranks 1..1024 --batch "
        f"{_number(first['strong'])} --threads 1 --optimizer momentum",
        "",
        "A step of training with momentum, one thread a rank. Each algorithm on its cheapest grid "
        "of each layer (`docs/dense.md`); *auto*: for each layer the algorithm that sends least; "
        "*filter*: model parallelism. Words: of all ranks together.",
        "",
        "![Dense networks](figures/scaling-cnn.svg)",
        "",
    )
    for one in cnn:
        for kind, said in (("strong", "Strong"), ("weak", "Weak")):
            yield (
                f"**{one['model']}** ({one['parameters'] / 1e6:.1f} M parameters), "
                f"{said.lower()} scaling: {one[kind]['images']}."
            )
            yield ""
            yield from markdown(_cells(one[kind]["rows"]))
            yield ""
            yield from _said(one[kind])


def _number(section: Record) -> str:
    """Images of a section, as an option takes them."""
    return str(section["images"]).split()[0].replace(",", "")


def _made(figures: Record) -> list[Record]:
    """Sparse networks, in ascending order of neurons."""
    return [
        figures["sparse"][name]
        for name in sorted(figures["sparse"], key=int)
        if "spmv" in figures["sparse"][name]
    ]


def _methods(one: Record) -> list[str]:
    return [name for name in ("random", "joint") if name in one["partitions"][0]]


def _width(one: Record) -> int:
    return int(re.split(r"[:-]", one["model"].rpartition(":")[2])[0])


def _neurons(one: Record) -> str:
    return str(_width(one))


# --- figures ------------------------------------------------------------------------------------


def _pictures(figures: Record, folder: Path) -> Iterator[Path]:
    sparse = _made(figures)
    cnn = [one for one in figures["cnn"].values() if "strong" in one and "weak" in one]
    if sparse:
        path = folder / "scaling-spmv.svg"
        plot_panels([_spmv_panel(one) for one in sparse], path, title="One image: speed-up")
        yield path
    for name, kind, title in (
        ("inference", "few", "Inference"),
        ("training", "strong", "A step of training"),
    ):
        key = f"{name}_{kind}"
        have = [one for one in sparse if key in one]
        if have:
            path = folder / f"scaling-{name}.svg"
            panels = [_time_panel(f"{_neurons(one)} neurons", one[key]) for one in have]
            plot_panels(panels, path, title=f"{title}: {have[0][key]['images']}")
            yield path
    if cnn:
        path = folder / "scaling-cnn.svg"
        panels = [
            _time_panel(f"{one['model']}, {kind}: {one[kind]['images']}", one[kind])
            for one in cnn
            for kind in ("strong", "weak")
        ]
        plot_panels(panels, path, title="A step of training")
        yield path


def _spmv_panel(one: Record) -> Panel:
    rows = one["spmv"]["rows"]
    alone = next(row for row in rows if row["method"] == "alone")
    lines = []
    colours = {"random": "#D55E00", "joint": "#0072B2"}
    for method in _methods(one):
        own = [row for row in rows if row["method"] in (method, "alone")]
        ranks = [row["ranks"] for row in own]
        colour = {"color": colours[method]}
        lines.append(Line(method, ranks, [row["speedup"] for row in own], colour))
        formula = [alone["formula_seconds"] / row["formula_seconds"] for row in own]
        lines.append(
            Line(f"{method}, formula", ranks, formula, colour | {"linestyle": "--", "marker": ""})
        )
    ranks = sorted({row["ranks"] for row in rows})
    lines.append(ideal(ranks, 1.0, falls=False))
    return Panel(f"{_neurons(one)} neurons", "ranks", "against one rank", lines)


def _time_panel(title: str, section: Record) -> Panel:
    rows = section["rows"]
    names = list(dict.fromkeys(name for row in rows for name in row["contenders"]))
    lines = []
    for name in names:
        own = [row for row in rows if name in row["contenders"]]
        lines.append(
            Line(
                name,
                [row["ranks"] for row in own],
                [row["contenders"][name]["seconds"] for row in own],
            )
        )
    return Panel(title, "ranks", "seconds", lines)
