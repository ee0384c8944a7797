"""defer and jobs: enqueue a job, find jobs, say all about one, edit, cancel, retry and discard."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import click

from procjobs.cli.bulk import act_on_many, filter_options
from procjobs.cli.database import call, database_options
from procjobs.cli.output import Column, json_option, moment, print_facts, print_json, print_table, text, when
from procjobs.cli.values import JsonObject, Moment, Span
from procjobs.logs import one_line

__all__ = ["defer", "jobs"]

_STATUSES = ("todo", "doing", "succeeded", "failed", "cancelled", "aborted")
_STATES = ("waiting", "scheduled", "blocked", "parked", "limited", "paused", "running")
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
_JOBS_AS_OF: tuple[Column, ...] = (
    ("id", "id", text),
    ("task", "task", text),
    ("queue", "queue", text),
    ("state", "state", text),
    ("since", "since", when),
    ("run", "run", text),
    ("priority", "priority", text),
    ("due", "scheduled_at", when),
    ("lock", "lock", text),
    ("tags", "tags", text),
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
    ("timeout", "timeout", text),
    ("progress", "progress", lambda value: "" if value is None else f"{value:g} %"),
    ("says", "progress_message", text),
    ("result", "result", lambda value: "" if value is None else json.dumps(value, ensure_ascii=False)),
    ("note", "note", text),
    ("error", "error", text),
)
_TIMELINE: tuple[Column, ...] = (("at", "at", moment), ("event", "event", text), ("detail", "detail", text))


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
        click.option(
            "--as-of", type=Moment(), metavar="TIME", help="As they were at this time, e.g. 2030-01-31T09:00+01:00."
        ),
    ):
        command = option(command)
    return json_option(database_options(command))


@click.group(invoke_without_command=True)
@_listing
@click.pass_context
def jobs(context: click.Context, /, **options: Any) -> None:
    """List jobs; show, edit, cancel, retry and discard them."""
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
    as_of: datetime | None,
) -> None:
    chosen = {"p_queue": queue, "p_task": task, "p_tag": tag, "p_max_rows": limit, "p_before_id": before}
    if as_of is None:
        found = call(dsn, data, "list_jobs", p_status=status, **chosen)
    else:
        found = call(dsn, data, "list_jobs_as_of", p_at=as_of, p_state=status, **chosen)
    if as_json:
        print_json(found)
        return
    print_table(found, _JOBS if as_of is None else _JOBS_AS_OF, empty="No such job.")
    if len(found) == limit:
        at = "" if as_of is None else f"--as-of {as_of.isoformat()} "
        click.echo(f"More: procjobs jobs list {at}--before {found[-1]['id']}", err=True)


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
    print_facts((title, show(report.get(key))) for title, key, show in _REPORT)
    click.echo("")
    print_table(report["timeline"], _TIMELINE, empty="Nothing has happened to it.")
    for attempt in report["runs"]:
        if attempt["traceback"]:
            click.echo(f"\nrun {attempt['attempt']}:")
            for line in attempt["traceback"].rstrip().splitlines():
                click.echo(f"  {one_line(line)}")


@jobs.command()
@click.argument("job_id", metavar="[ID]", type=int, required=False)
@click.option("--reason", help="Kept with the job.")
@filter_options
@json_option
@database_options
def cancel(
    job_id: int | None, reason: str | None, as_json: bool, dsn: str | None, data: str | None, **chosen: Any
) -> None:
    """Cancel job ID, or many: at once what waits; what runs is asked to stop.

    \b
    procjobs jobs cancel 42
    procjobs jobs cancel --queue mail --state waiting --reason "sent twice"
    """
    if job_id is None:
        act_on_many(dsn, data, "cancel_jobs", "cancel", reason=reason, as_json=as_json, **chosen)
        return
    _refuse_filter(chosen)
    (row,) = call(dsn, data, "cancel", job_id=job_id, reason=reason)
    click.echo(
        {
            "cancelled": f"job {job_id} is cancelled",
            "requested": f"job {job_id} runs and was asked to stop",
            "finished": f"job {job_id} has finished already",
        }.get(row["cancel"], row["cancel"])
    )


@jobs.command()
@click.argument("job_id", metavar="[ID]", type=int, required=False)
@filter_options
@json_option
@database_options
def retry(job_id: int | None, as_json: bool, dsn: str | None, data: str | None, **chosen: Any) -> None:
    """Run job ID again, now and with fresh attempts: a dead letter, a finished one, or one that waits for its retry.

    Many are dead letters, unless --state says otherwise:

    \b
    procjobs jobs retry --error TimeoutError
    """
    if job_id is None:
        act_on_many(dsn, data, "retry_jobs", "retry", as_json=as_json, **chosen)
        return
    _refuse_filter(chosen)
    (row,) = call(dsn, data, "retry", job_id=job_id)
    click.echo(f"job {job_id} is due now" if row["retry"] else f"job {job_id} was due already")


@jobs.command()
@click.option("--reason", help="Kept with the jobs.")
@filter_options
@json_option
@database_options
def discard(reason: str | None, as_json: bool, dsn: str | None, data: str | None, **chosen: Any) -> None:
    """Move dead letters and waiting jobs to the history: nobody needs to look at them any more."""
    act_on_many(dsn, data, "discard_jobs", "discard", reason=reason, as_json=as_json, **chosen)


def _refuse_filter(chosen: dict[str, Any]) -> None:
    if any(value is not None for name, value in chosen.items() if name not in ("dry_run", "yes")) or chosen["dry_run"]:
        raise click.UsageError("either a job by its ID, or many by options, not both")


@jobs.command()
@click.argument("job_id", metavar="ID", type=int)
@click.option("--args", type=JsonObject(), metavar="JSON", help="All arguments, in place of those it has; '-': stdin.")
@click.option("--queue", help="Queue.")
@click.option("--priority", type=int, help="Higher runs first.")
@click.option("--at", "scheduled_at", type=Moment(), metavar="TIME", help="Not before this time; 'now' makes it due.")
@click.option("--lock", help="At most one job with this lock runs at a time; '' takes it away.")
@click.option("--queueing-lock", help="At most one job with this one waits; '' takes it away.")
@click.option("--max-attempts", type=click.IntRange(1), help="Runs in all.")
@click.option("--timeout", type=Span(), metavar="SPAN", help="How long one run may take, e.g. 90s, 5m, 2h.")
@click.option("--tag", "tags", multiple=True, help="Tags in place of those it has; may be repeated.")
@database_options
def edit(job_id: int, dsn: str | None, data: str | None, tags: tuple[str, ...], **options: Any) -> None:
    """Change job ID while it waits; what was and what is are kept in procjobs.actions."""
    given = {name: value for name, value in options.items() if value is not None}
    if tags:
        given["tags"] = list(tags)
    if not given:
        raise click.UsageError("say what to change: --args, --queue, --priority, --at, ...")
    (row,) = call(dsn, data, "edit_job", job_id=job_id, **given)
    click.echo(f"job {job_id} is changed" if row["edit_job"] else f"job {job_id} was so already")
