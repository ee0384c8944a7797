"""dead: dead letters by their error; run them again, or delete them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from procjobs.cli.database import call, database_options
from procjobs.cli.output import Column, json_option, print_json, print_table, text, when
from procjobs.cli.values import Moment

__all__ = ["dead"]

_LETTERS: tuple[Column, ...] = (
    ("id", "id", text),
    ("task", "task", text),
    ("queue", "queue", text),
    ("attempts", "attempts", text),
    ("crashes", "crashes", text),
    ("failed", "failed_at", when),
    ("fingerprint", "fingerprint", text),
    ("error", "error", lambda value: text(value)[:80]),
)
_GROUPS: tuple[Column, ...] = (
    ("fingerprint", "fingerprint", text),
    ("jobs", "jobs", text),
    ("task", "task", text),
    ("error", "error_class", text),
    ("e.g.", "sample", lambda value: text(value)[:80]),
    ("queues", "queues", text),
    ("first", "first_at", when),
    ("last", "last_at", when),
    ("last job", "last_id", text),
)


def _filtered(command: Any) -> Any:
    for option in (
        click.option("--queue", help="Only those of this queue."),
        click.option("--task", help="Only those of this task."),
        click.option("--error", "error_class", metavar="CLASS", help="Only those whose last error is of this class."),
        click.option("--before", type=Moment(), metavar="TIME", help="Only those that failed before this time."),
        click.option("--yes", is_flag=True, help="Do it; without it, only the number is shown."),
    ):
        command = option(command)
    return json_option(database_options(command))


@click.group(invoke_without_command=True)
@json_option
@database_options
@click.pass_context
def dead(context: click.Context, /, dsn: str | None, data: str | None, as_json: bool) -> None:
    """Dead letters by their error; run them again, or delete them."""
    if context.invoked_subcommand is None:
        _groups(dsn, data, as_json, 50)


@dead.command("list")
@click.argument("fingerprint", required=False)
@click.option("--queue", help="Only those of this queue.")
@click.option("--task", help="Only those of this task.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many at most.")
@click.option("--before", type=int, metavar="ID", help="Only those older than this one: the next page.")
@json_option
@database_options
def list_dead(
    fingerprint: str | None,
    queue: str | None,
    task: str | None,
    limit: int,
    before: int | None,
    as_json: bool,
    dsn: str | None,
    data: str | None,
) -> None:
    """Jobs that failed for good, newest first; of one error if a FINGERPRINT is given."""
    found = call(
        dsn,
        data,
        "list_dead_letters",
        p_fingerprint=fingerprint,
        p_queue=queue,
        p_task=task,
        p_max_rows=limit,
        p_before_id=before,
    )
    if as_json:
        print_json(found)
        return
    print_table(found, _LETTERS, empty="No job failed for good.")
    if len(found) == limit:
        click.echo(f"More: --before {found[-1]['id']}", err=True)


@dead.command()
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many at most.")
@json_option
@database_options
def groups(limit: int, as_json: bool, dsn: str | None, data: str | None) -> None:
    """Dead letters by task and error, the most frequent first."""
    _groups(dsn, data, as_json, limit)


def _groups(dsn: str | None, data: str | None, as_json: bool, limit: int) -> None:
    found = call(dsn, data, "list_dead_groups", p_max_rows=limit)
    if as_json:
        print_json(found)
    else:
        print_table(found, _GROUPS, empty="No job failed for good.")


@dead.command()
@click.argument("fingerprint", required=False)
@click.option(
    "--max", "max_jobs", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="How many at most."
)
@click.option("--per-second", type=float, help="So many a second.  [default: all at once]")
@_filtered
def redrive(
    fingerprint: str | None,
    max_jobs: int,
    per_second: float | None,
    yes: bool,
    as_json: bool,
    dsn: str | None,
    data: str | None,
    **chosen: Any,
) -> None:
    """Run dead letters again, the oldest first: of one error (FINGERPRINT), queue, task, or all."""
    (row,) = call(
        dsn,
        data,
        "redrive",
        fingerprint=fingerprint,
        max_jobs=max_jobs,
        per_second=per_second,
        dry_run=not yes,
        **chosen,
    )
    if as_json:
        print_json({**row, "done": yes})
    elif not yes:
        click.echo(f"{min(row['matching'], max_jobs)} of {row['matching']} would run again; --yes does it")
    else:
        click.echo(f"{row['redriven']} of {row['matching']} wait again" + _refused(row["refused"]))


def _refused(count: int) -> str:
    return f", {count} cannot: another job has their lock or key" if count else ""


@dead.command()
@click.argument("fingerprint", required=False)
@click.option(
    "--max", "max_jobs", type=click.IntRange(1, 100_000), default=10_000, show_default=True, help="How many at most."
)
@_filtered
def purge(
    fingerprint: str | None,
    max_jobs: int,
    queue: str | None,
    task: str | None,
    error_class: str | None,
    before: datetime | None,
    yes: bool,
    as_json: bool,
    dsn: str | None,
    data: str | None,
) -> None:
    """Delete dead letters for ever, the oldest first: of one error (FINGERPRINT), queue, task, or all."""
    (row,) = call(
        dsn,
        data,
        "purge_dead_letters",
        fingerprint=fingerprint,
        queue=queue,
        task=task,
        error_class=error_class,
        before=before,
        max_jobs=max_jobs,
        dry_run=not yes,
    )
    if as_json:
        print_json({**row, "done": yes})
    elif not yes:
        click.echo(f"{min(row['matching'], max_jobs)} of {row['matching']} would be deleted; --yes does it")
    else:
        click.echo(f"{row['purged']} of {row['matching']} are deleted")
