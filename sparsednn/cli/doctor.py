"""``doctor``: what is installed, and what to install for the rest."""

from __future__ import annotations

from dataclasses import asdict

from sparsednn.cli._common import JsonOption, print_json
from sparsednn.errors import MissingDependencyError


def doctor(json: JsonOption = False) -> None:
    """Report versions, cores, caches, MPI and GPU; exit code 5 if a required part is missing."""
    from sparsednn.doctor import examine

    findings = examine()
    if json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        width = max(len(finding.part) for finding in findings)
        marks = {True: "ok", False: "BAD", None: "-"}
        for finding in findings:
            line = f"{marks[finding.ok]:<4} {finding.part:<{width}}  {finding.found}"
            print(line if not finding.advice else f"{line}  →  {finding.advice}")
    missing = [finding for finding in findings if finding.ok is False]
    if missing:
        names = ", ".join(finding.part for finding in missing)
        raise MissingDependencyError(f"missing or broken: {names}")
