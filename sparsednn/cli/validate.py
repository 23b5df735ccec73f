"""``validate``: real runs on this machine against the cost models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsednn.cli._common import JsonOption, note, print_json
from sparsednn.errors import AnswerMismatchError

_DEFAULT = "two-core-server"


def validate(
    *,
    platform: Annotated[
        str,
        typer.Option(
            "--platform",
            metavar="FILE",
            help="What 'sparsednn calibrate --out FILE' wrote on this machine, or the name of a "
            "documented platform.",
        ),
    ] = _DEFAULT,
    json: JsonOption = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Write the result as JSON here.", show_default=False
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A dozen cases, two tasks: less than a minute.")
    ] = False,
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds",
            metavar="N",
            help="How often each configuration is measured (default: 5, 3 with --quick).",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="OLD",
            help="Compare with what an earlier --out wrote.",
            show_default=False,
        ),
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option(
            "--measured",
            metavar="OLD",
            help="Run nothing: judge what an earlier --out measured by the predictions of now.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run some fifty configurations on 1, 2 and 4 ranks here; tell how well they are predicted.

    Takes about five minutes. Nothing else should run meanwhile.
    """
    from sparsednn.atomic import check_target
    from sparsednn.costmodel.platform import load_platform
    from sparsednn.costmodel.validation import report
    from sparsednn.costmodel.validation.run import judge_again
    from sparsednn.costmodel.validation.run import validate as run

    old = None if against is None else report.read_result(against)
    if out is not None:
        check_target(out)
    found = load_platform(platform)
    if platform == _DEFAULT:
        note(f"predictions are those of the documented {platform}: 'sparsednn calibrate' first")
    if measured is None:
        result = run(found, quick=quick, rounds=rounds, progress=note)
    else:
        result = judge_again(found, report.read_result(measured))
    if old is not None:
        result["against"] = report.changes(result, old)
    if out is not None:
        report.write_result(result, out)
    if json:
        print_json(result)
    else:
        for line in report.result_table(result):
            print(line)
        if old is not None:
            print()
            for line in report.changes_table(result["against"]):
                print(line)
    if result["failed"]:
        name, why = next(iter(result["failed"].items()))
        count = len(result["failed"])
        raise AnswerMismatchError(f"{count} cases failed, the first of them {name}: {why}")
