"""Actions on many jobs: the options that choose them, the count before, the question, and the progress."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import click

from procjobs.cli.database import connected, run
from procjobs.cli.output import print_json
from procjobs.cli.values import Moment

__all__ = ["act_on_many", "filter_options"]

F = TypeVar("F", bound=Callable[..., Any])

_STATES = (
    "waiting", "scheduled", "blocked", "parked", "limited", "paused", "todo", "running",
    "succeeded", "failed", "cancelled", "aborted",
)  # fmt: skip
_BATCH = 1000


def filter_options(command: F) -> F:
    """Add the options that choose many jobs, --dry-run and --yes."""
    for option in (
        click.option("--yes", is_flag=True, help="Do it without asking."),
        click.option("--dry-run", is_flag=True, help="Only say how many jobs are chosen."),
        click.option("--created-after", type=Moment(), metavar="TIME", help="Jobs enqueued then or later."),
        click.option("--created-before", type=Moment(), metavar="TIME", help="Jobs enqueued before."),
        click.option("--error", metavar="CLASS", help="Jobs whose last error is of this class."),
        click.option("--state", type=click.Choice(_STATES), metavar="STATE", help="Jobs in this state."),
        click.option("--tag", help="Jobs with this tag."),
        click.option("--task", help="Jobs of this task."),
        click.option("--queue", help="Jobs of this queue."),
    ):
        command = option(command)
    return command


def act_on_many(
    dsn: str | None,
    data: str | None,
    function: str,
    verb: str,
    *,
    reason: str | None = None,
    dry_run: bool,
    yes: bool,
    as_json: bool = False,
    **chosen: Any,
) -> None:
    """Count what the options choose, ask, and do it batch by batch. Raises UsageError when nothing was chosen by."""
    given = {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in chosen.items()
        if value is not None
    }
    if not given:
        raise click.UsageError("name a job by its ID, or choose many by --queue, --task, --tag, --state, ...")
    run(
        _act(
            dsn,
            data,
            function,
            verb,
            {"filter": given, **({"reason": reason} if reason else {})},
            dry_run,
            yes,
            as_json,
        )
    )


async def _act(
    dsn: str | None,
    data: str | None,
    function: str,
    verb: str,
    arguments: dict[str, Any],
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    async with connected(dsn, data) as calls:
        found = await calls.row(function, **arguments)
        total, sample = found["jobs"], ", ".join(str(job_id) for job_id in found["sample"])
        if dry_run or not total:
            if as_json:
                print_json({"jobs": total, "sample": found["sample"]})
            else:
                click.echo(f"{_jobs(total)} chosen{f': {sample}' if sample else ''}{', ...' if total > 10 else ''}")
            return
        if not yes:
            click.echo(f"{_jobs(total)} chosen: {sample}{', ...' if total > 10 else ''}", err=True)
            click.confirm(f"{verb.capitalize()} them?", abort=True, err=True)
        done, after = 0, 0
        while after is not None:
            row = await calls.row(function, dry_run=False, max_jobs=_BATCH, after_id=after, **arguments)
            done, after = done + row["jobs"], row["last_id"]
            if sys.stderr.isatty():
                click.echo(f"\r{done} of {total}", nl=False, err=True)
        if sys.stderr.isatty():
            click.echo("", err=True)
    if as_json:
        print_json({"jobs": done})
    else:
        click.echo(f"{_jobs(done)}: done")


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
