"""Following one job to its end, with a progress bar on a terminal."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import click

from procjobs.db import Calls

__all__ = ["follow"]

#: Seconds between two looks.
_PACE = 0.2


async def follow(calls: Calls, job: int) -> int:
    """Show how far a job is until it has ended, and how it ended; the exit code."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"), TimeElapsedColumn())
    click.echo(f"job {job}")
    with Progress(*columns, console=console, disable=not sys.stderr.isatty(), transient=True) as bar:
        shown = bar.add_task("waiting", total=100, said="")
        while not (outcome := await calls.row("job_outcome", job_id=job))["ended"]:
            bar.update(shown, **_state(await calls.value("job_report", p_job_id=job)))
            await asyncio.sleep(_PACE)
    return _say(job, outcome)


def _state(report: dict[str, Any]) -> dict[str, Any]:
    """What the bar shows."""
    percent = report["progress"]
    why = "" if report["state"] == "running" else (report["why_not_running"] or [""])
    said = report["progress_message"] or (why if isinstance(why, str) else why[0])
    return {
        "description": report["state"],
        "completed": float(percent or 0),
        "total": 100 if percent is not None or report["state"] != "running" else None,
        "said": said or "",
    }


def _say(job: int, outcome: dict[str, Any]) -> int:
    """Tell the end; the exit code."""
    if outcome["status"] == "succeeded":
        result = outcome["result"]
        click.echo(f"job {job} succeeded" + ("" if result is None else f": {result}"))
        return 0
    error = ": ".join(part for part in (outcome["error_class"], outcome["error_message"]) if part)
    click.echo(f"job {job} {outcome['status']}" + (f": {error or outcome['note']}" if error or outcome["note"] else ""))
    return 1
