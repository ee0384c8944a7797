"""tasks: what tasks there are, how their jobs are treated, and settings over what their code says."""

from __future__ import annotations

import json
from typing import Any

import click

from procjobs.cli.database import call, database_options
from procjobs.cli.output import Column, json_option, print_json, print_table, text, when
from procjobs.cli.setting_log import add_log, reason_option
from procjobs.cli.values import Span

__all__ = ["tasks"]

_TASKS: tuple[Column, ...] = (
    ("task", "task", text),
    ("queue", "queue", text),
    ("priority", "priority", text),
    ("runs", "max_attempts", text),
    ("timeout", "timeout", text),
    ("routine", "routine", text),
    ("set", "settings", lambda value: ", ".join(f"{key}={json.dumps(found)}" for key, found in value.items())),
    ("by", "set_by", text),
    ("paused since", "paused_at", when),
    ("by", "paused_by", text),
    ("reason", "pause_reason", text),
)


@click.group(invoke_without_command=True)
@json_option
@database_options
@click.pass_context
def tasks(context: click.Context, /, dsn: str | None, data: str | None, as_json: bool) -> None:
    """List tasks; pause, resume, set, add, drop one; their log."""
    if context.invoked_subcommand is None:
        _list_tasks(dsn, data, as_json)


@tasks.command("list")
@json_option
@database_options
def list_tasks(dsn: str | None, data: str | None, as_json: bool) -> None:
    """Every registered task, what was set for it, and whether it is paused."""
    _list_tasks(dsn, data, as_json)


def _list_tasks(dsn: str | None, data: str | None, as_json: bool) -> None:
    found = call(dsn, data, "list_tasks")
    if as_json:
        print_json(found)
    else:
        print_table(found, _TASKS, empty="No task is registered: start a worker of the application.")


@tasks.command()
@click.argument("task")
@click.option("--reason", help="Shown to whoever asks why a job does not run.")
@database_options
def pause(task: str, reason: str | None, dsn: str | None, data: str | None) -> None:
    """Let no worker claim jobs of TASK; running ones go on."""
    (row,) = call(dsn, data, "pause_task", task=task, reason=reason)
    click.echo(f"{task} is paused" if row["pause_task"] else f"{task} was paused already; its first reason is kept")


@tasks.command()
@click.argument("task")
@reason_option
@database_options
def resume(task: str, reason: str | None, dsn: str | None, data: str | None) -> None:
    """Let workers claim jobs of TASK again."""
    (row,) = call(dsn, data, "resume_task", task=task, reason=reason)
    click.echo(f"{task} goes on" if row["resume_task"] else f"{task} was not paused")


@tasks.command("set")
@click.argument("task")
@click.option("--queue", help="Queue of new jobs that name none.")
@click.option("--priority", type=int, help="Priority of new jobs that name none.")
@click.option("--max-attempts", type=click.IntRange(1), help="Runs in all.")
@click.option("--backoff-base", type=Span(), metavar="SPAN", help="Wait before the second run, e.g. 30s; it doubles.")
@click.option("--backoff-cap", type=Span(), metavar="SPAN", help="The longest wait.")
@click.option("--backoff-jitter/--no-backoff-jitter", default=None, help="Draw each wait at random.")
@click.option("--timeout", type=Span(), metavar="SPAN", help="How long one run may take, e.g. 90s, 5m, 2h.")
@reason_option
@database_options
def set_(task: str, reason: str | None, dsn: str | None, data: str | None, **options: Any) -> None:
    """Set how jobs of TASK are treated, over what its code says: at once, without a restart."""
    given = {name: value for name, value in options.items() if value is not None}
    if not given:
        raise click.UsageError("say what to set: --queue, --priority, --max-attempts, --timeout, ...")
    (row,) = call(dsn, data, "set_task", task=task, reason=reason, **given)
    click.echo(f"{task} is set" if row["set_task"] else f"{task} was set so already")


@tasks.command()
@click.argument("task")
@reason_option
@database_options
def reset(task: str, reason: str | None, dsn: str | None, data: str | None) -> None:
    """Take back what was set for TASK: its code decides again. A pause stays."""
    (row,) = call(dsn, data, "reset_task", task=task, reason=reason)
    click.echo(f"{task} is as its code says" if row["reset_task"] else f"nothing was set for {task}")


@tasks.command()
@click.argument("task")
@click.argument("routine")
@click.option("--queue", help="Queue of jobs that name none.  [default: default]")
@click.option("--priority", type=int, help="Priority of jobs that name none.  [default: 0]")
@click.option("--max-attempts", type=click.IntRange(1), help="Runs in all.  [default: 1]")
@click.option("--backoff-base", type=Span(), metavar="SPAN", help="Wait before the second run, e.g. 30s; it doubles.")
@click.option("--backoff-cap", type=Span(), metavar="SPAN", help="The longest wait.")
@click.option("--backoff-jitter/--no-backoff-jitter", default=None, help="Draw each wait at random.")
@click.option("--timeout", type=Span(), metavar="SPAN", help="How long one run may take, e.g. 90s, 5m, 2h.")
@click.option("--run-as", metavar="ROLE", help="With whose rights it runs.  [default: the worker's]")
@click.option("--description", help="What it does.  [default: the first line of the routine's comment]")
@database_options
def add(task: str, routine: str, dsn: str | None, data: str | None, **options: Any) -> None:
    """Make ROUTINE, a function or procedure of the database, the task TASK: procjobs tasks add clean app.clean

    Its jobs take the arguments of the routine, by name.
    """
    given = {name: value for name, value in options.items() if value is not None}
    (row,) = call(dsn, data, "register_sql_task", name=task, routine=routine, **given)
    click.echo(f"{task} is a task" if row["register_sql_task"] else f"{task} was so already")


@tasks.command()
@click.argument("task")
@database_options
def drop(task: str, dsn: str | None, data: str | None) -> None:
    """Forget the SQL task TASK. The routine stays, and jobs that are left wait."""
    (row,) = call(dsn, data, "drop_sql_task", name=task)
    click.echo(f"{task} is no task any more" if row["drop_sql_task"] else f"there is no SQL task {task}")


add_log(tasks, "task")
