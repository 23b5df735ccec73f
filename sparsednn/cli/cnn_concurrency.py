"""``cnn concurrency``: what independent operations side by side gain, and what limits it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsednn.amounts import bytes_text
from sparsednn.cli._common import JsonOption, note, print_json
from sparsednn.cli._targets import check_targets
from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.dense.concurrency.scheduling.planner import Effort
    from sparsednn.dense.runs.concurrency import ConcurrencyStudy

__all__ = [
    "CONCURRENCY_PANEL", "WorkspaceOption", "concurrency", "plan_progress", "workspace_bytes",
]  # fmt: skip

CONCURRENCY_PANEL = "Independent operations side by side"

WorkspaceOption = Annotated[
    str | None,
    typer.Option(
        "--workspace-limit",
        metavar="BYTES",
        help="Working space of all operations that run at one time, such as 64M (default: no "
        "limit).",
        show_default=False,
        rich_help_panel=CONCURRENCY_PANEL,
    ),
]


def workspace_bytes(text: str | None) -> int | None:
    """Read a limit; UsageError if it is none."""
    from sparsednn.dense.planning.request import memory_bytes

    try:
        return None if text is None else memory_bytes(text)
    except UsageError as error:
        raise UsageError(str(error).replace("--memory-per-rank", "--workspace-limit")) from error


def concurrency(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK",
            help="A name, as of the other commands; an ONNX file; a checkpoint; or a graph of "
            "operations (.json).",
            show_default=False,
        ),
    ],
    *,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images of a pass.")] = 1,
    training: Annotated[
        bool, typer.Option("--training", help="Forward and backward, not forward alone.")
    ] = False,
    device: Annotated[
        str, typer.Option("--device", help="cpu: lanes are threads; cuda: they are streams.")
    ] = "cpu",
    lanes: Annotated[
        int | None,
        typer.Option(
            "--threads",
            "--lanes",
            metavar="N",
            help="Lanes (default: the cores of this machine; 4 streams on a GPU).",
            show_default=False,
        ),
    ] = None,
    workspace_limit: WorkspaceOption = None,
    image: Annotated[
        str | None,
        typer.Option(
            "--image",
            metavar="CxHxW",
            help="Channels, height and width of an image (default: what is usual for NETWORK).",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(
            "--classes",
            help="How many classes there are (default: what is usual for NETWORK).",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or float64.")] = "float32",
    seed: Annotated[int, typer.Option("--seed", help="Of the search for plans.")] = 0,
    effort: Annotated[
        str,
        typer.Option("--effort", help="How long to search: quick (1 s), normal (10), thorough."),
    ] = "normal",
    bounds_only: Annotated[
        bool,
        typer.Option(
            "--bounds",
            help="Only the bounds, with flops (words where these are more) in the place of "
            "measured times: nothing is run.",
        ),
    ] = False,
    platform: Annotated[
        str | None,
        typer.Option(
            "--platform",
            metavar="NAME|FILE",
            help="Predict the times on this platform (see 'calibrate') by its rooflines: nothing "
            "is run.",
            show_default=False,
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            metavar="FILE",
            help="Write the plan (.json), for --concurrent-plan of train and infer.",
            show_default=False,
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            metavar="FILE",
            help="Write a measured pass and the predicted one in Chrome's format (.json), for "
            "ui.perfetto.dev.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw the serial and the concurrent pass (.svg, .png or .pdf).",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Bounds, serial and concurrent time of a network, and what limits each level of it.

    Each operation is measured in every way there is to do it; plans are searched, tried in turns,
    and the quickest is kept: the serial one where nothing is gained.
    """
    from sparsednn.cli._cnn import network_named

    limit = workspace_bytes(workspace_limit)
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device is cpu or cuda, found '{device}'")
    if batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, found {batch_size}")
    search = _effort(effort)
    check_targets(network, {"--plan": plan, "--trace": trace, "--plot": plot})
    if plot is not None:
        from sparsednn.pictures import check_picture

        check_picture(plot)
    graph = network_named(network, image, classes)
    if bounds_only:
        found = _bounds(graph, batch_size)
        if json:
            print_json(found)
        else:
            _print_bounds(found)
        return
    if platform is not None:
        if not (plan is trace is plot is None):
            raise UsageError(
                "--plan, --trace and --plot are of a pass that has run, not --platform"
            )
        found = _predicted(
            graph, batch_size, training, platform, lanes, limit, seed, search
        )  # fmt: skip
        if json:
            print_json(found)
        else:
            _print_predicted(found)
        return
    from sparsednn.costmodel.dense.concurrent import predict_pass
    from sparsednn.dense.runs.concurrency import study_concurrency, study_on_gpu
    from sparsednn.machine import available_cores

    if device == "cuda":
        study = study_on_gpu(
            graph, images=batch_size, training=training, lanes=4 if lanes is None else lanes,
            workspace_limit=limit, dtype=dtype, seed=seed, effort=search,
        )  # fmt: skip
    else:
        study = study_concurrency(
            graph, images=batch_size, training=training,
            lanes=available_cores() if lanes is None else lanes,
            workspace_limit=limit, dtype=dtype, seed=seed, effort=search,
            progress=None if json else plan_progress,
        )  # fmt: skip
    title = f"{graph.name}, {batch_size} image{'s' * (batch_size != 1)}"
    _write(study, plan, trace, plot, title)
    summary = {"network": graph.name, **study.as_json(), "workspace_limit": limit}
    for row, schedule in zip(summary["schedules"], study.trial.schedules, strict=True):
        row["predicted"] = predict_pass(study.tasks, schedule, study.profile).as_json()
    if json:
        print_json(summary)
    else:
        _print_study(summary)


def _bounds(graph: Any, images: int) -> dict[str, Any]:
    from sparsednn.dense.concurrency.bounds import bounds_of, flops_and_words
    from sparsednn.dense.concurrency.tasks import TaskGraph

    tasks = TaskGraph(graph, images, training=True, fuse=False)
    costs = flops_and_words(tasks)
    parts = ("forward", "backward", "all")
    found = {part: bounds_of(tasks, costs, part=part).as_json() for part in parts}
    return {"network": graph.name, "images": images, "cost": "flops or words", "bounds": found}


def _effort(text: str) -> Effort:
    from sparsednn.dense.concurrency.scheduling.planner import EFFORTS

    for known in EFFORTS:
        if text == known:
            return known
    raise UsageError(f"--effort is quick, normal or thorough, found '{text}'")


def _predicted(
    graph: Any,
    images: int,
    training: bool,
    platform: str,
    lanes: int | None,
    limit: int | None,
    seed: int,
    search: Effort,
) -> dict[str, Any]:
    from sparsednn.costmodel.dense.concurrent import platform_profile, predict_pass
    from sparsednn.costmodel.platform import load_platform
    from sparsednn.dense.concurrency.bounds import bounds_of
    from sparsednn.dense.concurrency.scheduling.planner import plan
    from sparsednn.dense.concurrency.tasks import TaskGraph

    machine = load_platform(platform)
    tasks = TaskGraph(graph, images, training=training)
    if lanes is None:
        lanes = machine.threads_per_rank * machine.node.ranks
    profile = platform_profile(tasks, machine, lanes)
    bounds = bounds_of(tasks, {name: some[0].seconds for name, some in profile.choices.items()})
    schedules = plan(tasks, profile, workspace_limit=limit, seed=seed, effort=search)
    serial = min(one.seconds for one in schedules if one.name.startswith("serial"))
    return {
        "network": graph.name,
        "platform": machine.name,
        "lanes": lanes,
        "images": images,
        "training": training,
        "work_seconds": bounds.work,
        "critical_path_seconds": bounds.critical_path,
        "bound": bounds.bound,
        "serial_seconds": serial,
        "concurrent_seconds": schedules[0].seconds,
        "speed_up": serial / schedules[0].seconds,
        "workspace_bytes": schedules[0].workspace_bytes,
        "schedules": [
            {"name": one.name, **predict_pass(tasks, one, profile).as_json()} for one in schedules
        ],
    }


def _print_predicted(found: dict[str, Any]) -> None:
    way = "training" if found["training"] else "inference"
    print(
        f"{found['network']}, {way}, {found['images']} images, {found['lanes']} cores of "
        f"{found['platform']}, predicted"
    )
    print("                    time    tasks  slow-down  waiting  bound by")
    for row in found["schedules"]:
        parts = row["parts"]
        print(
            f"{row['name']:<12}  {_ms(row['seconds']):>10}  "
            f"{parts['tasks'] / row['seconds']:>6.0%}  {parts['slow-down'] / row['seconds']:>9.0%}"
            f"  {parts['waiting'] / row['seconds']:>7.0%}  {row['bound']}"
        )
    print(f"work / critical path {found['bound']:.2f}, serial / concurrent {found['speed_up']:.2f}")


def _print_bounds(found: dict[str, Any]) -> None:
    print(f"{found['network']}, {found['images']} images; costs are flops, or words")
    print("           operations  levels  widest  work / critical path")
    for name, row in found["bounds"].items():
        print(
            f"{name:<9}  {row['tasks']:>10}  {row['levels']:>6}  {row['width']:>6}  "
            f"{row['bound']:>20.2f}"
        )


def plan_progress(done: int, total: int) -> None:
    """Tell how far measuring is; on stderr."""
    if done == total or done % 100 == 0:
        note(f"measured {done} of {total} ways to do an operation")


def _write(
    study: ConcurrencyStudy, plan: Path | None, trace: Path | None, plot: Path | None, title: str
) -> None:
    from json import dumps

    from sparsednn.atomic import atomic_file
    from sparsednn.dense.concurrency.schedule_file import save_schedule
    from sparsednn.dense.concurrency.timeline import plot_gantt, predicted, trace_of

    schedule = study.concurrent[0]
    if plan is not None:
        save_schedule(schedule, plan)
    if trace is not None:
        rows = [("measured", study.measured(schedule)), ("predicted", predicted(schedule))]
        content = trace_of(study.tasks, schedule, rows)
        with atomic_file(trace) as file:
            file.write(dumps(content).encode())
    if plot is not None:
        serial = study.serial[0]
        shown = [("serial", serial, study.measured(serial))]
        if schedule is not serial:
            shown.append(("concurrent", schedule, study.measured(schedule)))
        plot_gantt(study.tasks, shown, plot, title=title)
    for path in (plan, trace, plot):
        if path is not None:
            note(f"{path}: written")


def _print_study(found: dict[str, Any]) -> None:
    way = "training" if found["training"] else "inference"
    print(
        f"{found['network']}, {way}, {found['images']} images, {found['lanes']} lanes of "
        f"{found['device']}"
    )
    print("level  tasks     work  longest  gain  what limits it")
    for row in found["levels"]:
        if row["work_seconds"] > 0.01 * found["work_seconds"]:
            print(
                f"{row['level']:>5}  {row['tasks']:>5}  {_ms(row['work_seconds']):>7}  "
                f"{_ms(row['longest_seconds']):>7}  {row['gain']:>4.2f}  {row['limit']}"
            )
    print(f"(levels with less than 1% of the work are left out; there are {len(found['levels'])})")
    for row in found["schedules"]:
        print(
            f"{row['name']:<16}  {_ms(row['seconds']):>9} measured  "
            f"{_ms(row['predicted_seconds']):>9} predicted  arena "
            f"{bytes_text(row['arena_bytes']):>10}  workspace "
            f"{bytes_text(row['workspace_bytes'])}"
        )
    rows = [
        ("work", _ms(found["work_seconds"])),
        ("critical path", _ms(found["critical_path_seconds"])),
        ("bound", f"{found['bound']:.2f} (work / critical path)"),
        ("serial", _ms(found["serial_seconds"])),
        ("concurrent", f"{_ms(found['concurrent_seconds'])} ({found['chosen']})"),
        ("speed-up", f"{found['speed_up']:.2f}"),
        ("images per second", f"{found['images_per_second']:,.1f}"),
    ]
    from sparsednn.cli._common import print_table

    print_table(rows)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"
