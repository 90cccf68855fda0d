"""`medtrain doctor`: examine the machine and the installation."""

from __future__ import annotations

from typing import Annotated

import typer

from medtrain.cli._options import Debug
from medtrain.cli._run import handle_errors


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")] = False,
    debug: Debug = False,
) -> None:
    """Examine Python, packages, devices, memory, disk, W&B and plug-ins; exit code 1 when something will not work."""
    with handle_errors(debug):
        from medtrain.doctor import examine, healthy

        checks = examine()
        good = healthy(checks)
        if as_json:
            import dataclasses
            import json

            report = {"healthy": good, "checks": [dataclasses.asdict(check) for check in checks]}
            typer.echo(json.dumps(report, indent=2))
        else:
            width = max(len(check.topic) for check in checks)
            for check in checks:
                typer.echo(f"{check.status:<8} {check.topic:<{width}}  {check.message}")
                if check.hint:
                    typer.echo(f"{'':<8} {'':<{width}}  hint: {check.hint}")
            errors = sum(check.status == "error" for check in checks)
            verdict = "medtrain can train on this machine" if good else f"{errors} thing(s) will not work"
            typer.echo(f"\n{verdict}")
        if not good:
            raise typer.Exit(1)
