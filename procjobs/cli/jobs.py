"""defer and jobs: enqueue a job, find jobs, say all about one, cancel and retry."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any

import click

from procjobs.cli.database import call, database_options
from procjobs.cli.output import Column, json_option, moment, print_facts, print_json, print_table, text, when
from procjobs.logs import one_line

__all__ = ["defer", "jobs"]

_STATUSES = ("todo", "doing", "succeeded", "failed", "cancelled", "aborted")
_STATES = ("waiting", "scheduled", "blocked", "parked", "limited", "running")
_JOBS: tuple[Column, ...] = (
    ("id", "id", text),
    ("task", "task", text),
    ("queue", "queue", text),
    ("state", "state", text),
    ("attempts", "attempts", text),
    ("created", "created_at", when),
    ("due", "scheduled_at", when),
    ("finished", "finished_at", when),
    ("error", "error", lambda value: text(value)[:80]),
)
#: The lines of `jobs show`; job_report gives JSON, so its times are texts.
_REPORT: tuple[Column, ...] = (
    ("job", "id", text),
    ("task", "task", text),
    ("queue", "queue", text),
    ("state", "state", text),
    ("why", "why_not_running", text),
    ("arguments", "args", lambda value: "" if value is None else json.dumps(value, ensure_ascii=False)),
    ("runs", "attempts", text),
    ("runs allowed", "max_attempts", text),
    ("crashes", "crashes", text),
    ("priority", "priority", text),
    ("lock", "lock", text),
    ("queueing lock", "queueing_lock", text),
    ("unique key", "unique_key", text),
    ("tags", "tags", text),
    ("created", "created_at", moment),
    ("due", "scheduled_at", moment),
    ("started", "started_at", moment),
    ("finished", "finished_at", moment),
    ("worker", "worker", text),
    ("note", "note", text),
    ("error", "error", text),
)
_TIMELINE: tuple[Column, ...] = (("at", "at", moment), ("event", "event", text), ("detail", "detail", text))


class JsonObject(click.ParamType[str]):
    """A JSON object, passed on letter by letter: no number is rounded on its way to PostgreSQL."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        source = sys.stdin.read() if value == "-" else str(value)
        try:
            found = json.loads(source, parse_int=str, parse_float=str)
        except (ValueError, RecursionError) as error:
            self.fail(f"the arguments are not JSON: {error}", param, ctx)
        if not isinstance(found, dict):
            self.fail("the arguments must be a JSON object, e.g. '{\"user_id\": 1}'", param, ctx)
        return source


class Moment(click.ParamType[datetime]):
    """A time in ISO 8601; without a zone it is this machine's."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            found = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a time such as 2030-01-31T09:00 or 2030-01-31T09:00+01:00", param, ctx)
        return found.astimezone()


@click.command(short_help="Enqueue a job.")
@click.argument("task")
@click.argument("args", type=JsonObject(), default="{}", metavar="[JSON|-]")
@click.option("--queue", help="Queue.  [default: the task's]")
@click.option("--priority", type=int, help="Higher runs first.  [default: the task's]")
@click.option(
    "--at", "scheduled_at", type=Moment(), metavar="TIME", help="Not before this time, e.g. 2030-01-31T09:00."
)
@click.option("--lock", help="At most one job with this lock runs at a time.")
@click.option("--queueing-lock", help="Refuse the job if one with this lock waits already.")
@click.option("--unique-key", help="If a waiting or running job has this key, print its id instead.")
@click.option("--max-attempts", type=click.IntRange(1), help="Runs in all.  [default: the task's]")
@click.option("--tag", "tags", multiple=True, help="A word to find the job by; may be repeated.")
@json_option
@database_options
def defer(dsn: str | None, data: str | None, as_json: bool, tags: tuple[str, ...], **arguments: Any) -> None:
    """Enqueue a job of TASK with the arguments of a JSON object ('-' reads it from standard input).

    \b
    procjobs defer myapp.tasks.send_invoice '{"invoice_id": 12}' --queue mail
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    if tags:
        given["tags"] = list(tags)
    (row,) = call(dsn, data, "defer", **given)
    if as_json:
        print_json({"id": row["defer"]})
    else:
        click.echo(row["defer"])


def _listing(command: Any) -> Any:
    for option in (
        click.option(
            "--status", type=click.Choice([*_STATUSES, *_STATES]), metavar="STATUS", help="Only jobs in this state."
        ),
        click.option("--queue", help="Only jobs of this queue."),
        click.option("--task", help="Only jobs of this task."),
        click.option("--tag", help="Only jobs with this tag."),
        click.option(
            "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many at most."
        ),
        click.option("--before", type=int, metavar="ID", help="Only jobs older than this one: the next page."),
    ):
        command = option(command)
    return json_option(database_options(command))


@click.group(invoke_without_command=True)
@_listing
@click.pass_context
def jobs(context: click.Context, /, **options: Any) -> None:
    """List jobs; show, cancel and retry one."""
    if context.invoked_subcommand is None:
        _list(**options)


@jobs.command("list")
@_listing
def list_jobs(**options: Any) -> None:
    """Jobs, newest first, finished ones included."""
    _list(**options)


def _list(
    dsn: str | None,
    data: str | None,
    as_json: bool,
    status: str | None,
    queue: str | None,
    task: str | None,
    tag: str | None,
    limit: int,
    before: int | None,
) -> None:
    found = call(
        dsn,
        data,
        "list_jobs",
        p_status=status,
        p_queue=queue,
        p_task=task,
        p_tag=tag,
        p_max_rows=limit,
        p_before_id=before,
    )
    if as_json:
        print_json(found)
        return
    print_table(found, _JOBS, empty="No such job.")
    if len(found) == limit:
        click.echo(f"More: procjobs jobs list --before {found[-1]['id']}", err=True)


@jobs.command()
@click.argument("job_id", metavar="ID", type=int)
@json_option
@database_options
def show(job_id: int, as_json: bool, dsn: str | None, data: str | None) -> None:
    """Everything about job ID: its values, each failed run, its life, and why it does not run."""
    (row,) = call(dsn, data, "job_report", p_job_id=job_id)
    report = row["job_report"]
    if as_json:
        print_json(report)
        return
    print_facts((title, show(report[key])) for title, key, show in _REPORT)
    click.echo("")
    print_table(report["timeline"], _TIMELINE, empty="Nothing has happened to it.")
    for attempt in report["runs"]:
        if attempt["traceback"]:
            click.echo(f"\nrun {attempt['attempt']}:")
            for line in attempt["traceback"].rstrip().splitlines():
                click.echo(f"  {one_line(line)}")


@jobs.command()
@click.argument("job_id", metavar="ID", type=int)
@click.option("--reason", help="Kept with the job.")
@database_options
def cancel(job_id: int, reason: str | None, dsn: str | None, data: str | None) -> None:
    """Cancel job ID: at once if it waits; a running one is asked to stop."""
    (row,) = call(dsn, data, "cancel", job_id=job_id, reason=reason)
    click.echo(
        {
            "cancelled": f"job {job_id} is cancelled",
            "requested": f"job {job_id} runs and was asked to stop",
            "finished": f"job {job_id} has finished already",
        }.get(row["cancel"], row["cancel"])
    )


@jobs.command()
@click.argument("job_id", metavar="ID", type=int)
@database_options
def retry(job_id: int, dsn: str | None, data: str | None) -> None:
    """Run job ID again, now and with fresh attempts: a dead letter, a finished one, or one that waits for its retry."""
    (row,) = call(dsn, data, "retry", job_id=job_id)
    click.echo(f"job {job_id} is due now" if row["retry"] else f"job {job_id} was due already")
