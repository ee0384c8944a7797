"""queues and workers: what waits where, and who works on it."""

from __future__ import annotations

from datetime import timedelta

import click

from procjobs.cli.database import call, database_options
from procjobs.cli.output import Column, age, json_option, print_json, print_table, text, when
from procjobs.cli.setting_log import add_log, reason_option
from procjobs.cli.values import Span

__all__ = ["queues", "workers"]

_QUEUES: tuple[Column, ...] = (
    ("queue", "name", text),
    ("waiting", "waiting", text),
    ("scheduled", "scheduled", text),
    ("blocked", "blocked", text),
    ("parked", "parked", text),
    ("running", "running", text),
    ("failed", "failed", text),
    ("workers", "workers", text),
    ("oldest wait", "oldest_wait", age),
    ("paused since", "paused_at", when),
    ("by", "paused_by", text),
    ("reason", "pause_reason", text),
)
_WORKERS: tuple[Column, ...] = (
    ("id", "id", text),
    ("worker", "name", text),
    ("state", "state", text),
    ("running", "running", text),
    ("slots", "concurrency", text),
    ("queues", "queues", lambda value: text(value) or "all"),
    ("host", "host", text),
    ("pid", "pid", text),
    ("since", "started_at", when),
    ("last heartbeat", "last_heartbeat", when),
)


@click.group(invoke_without_command=True)
@json_option
@database_options
@click.pass_context
def queues(context: click.Context, /, dsn: str | None, data: str | None, as_json: bool) -> None:
    """List queues; pause, resume and set one; their log."""
    if context.invoked_subcommand is None:
        _list_queues(dsn, data, as_json)


@queues.command("list")
@json_option
@database_options
def list_queues(dsn: str | None, data: str | None, as_json: bool) -> None:
    """Every queue with its waiting and running jobs."""
    _list_queues(dsn, data, as_json)


def _list_queues(dsn: str | None, data: str | None, as_json: bool) -> None:
    found = call(dsn, data, "list_queues")
    if as_json:
        print_json(found)
    else:
        print_table(found, _QUEUES, empty="No queue ever held a job.")


@queues.command()
@click.argument("queue")
@click.option("--reason", help="Shown to whoever asks why a job does not run.")
@database_options
def pause(queue: str, reason: str | None, dsn: str | None, data: str | None) -> None:
    """Let no worker claim from QUEUE; running jobs go on."""
    (row,) = call(dsn, data, "pause_queue", queue=queue, reason=reason)
    click.echo(f"{queue} is paused" if row["pause_queue"] else f"{queue} was paused already; its first reason is kept")


@queues.command()
@click.argument("queue")
@reason_option
@database_options
def resume(queue: str, reason: str | None, dsn: str | None, data: str | None) -> None:
    """Let workers claim from QUEUE again."""
    (row,) = call(dsn, data, "resume_queue", queue=queue, reason=reason)
    click.echo(f"{queue} goes on" if row["resume_queue"] else f"{queue} was not paused")


@queues.command("set")
@click.argument("queue")
@click.option("--fair", is_flag=True, help="Tenants take turns.")
@click.option(
    "--ageing", type=Span(), metavar="SPAN", help="A waiting job gains a point of priority each time, e.g. 10m."
)
@reason_option
@database_options
def set_(
    queue: str, fair: bool, ageing: timedelta | None, reason: str | None, dsn: str | None, data: str | None
) -> None:
    """Choose whose turn it is in QUEUE; with neither option by priority and age."""
    call(dsn, data, "set_queue", queue=queue, fair=fair, ageing=ageing, reason=reason)
    rule = "tenants take turns" if fair else f"priority rises every {ageing}" if ageing else "by priority and age"
    click.echo(f"{queue}: {rule}")


add_log(queues, "queue")


@click.command(short_help="List workers.")
@json_option
@database_options
@click.option("--all", "ended_too", is_flag=True, help="Those too that ended in the last seven days.")
def workers(dsn: str | None, data: str | None, as_json: bool, ended_too: bool) -> None:
    """List workers, with what they do and when they were last heard of."""
    found = [row for row in call(dsn, data, "list_workers") if ended_too or row["ended_at"] is None]
    if as_json:
        print_json(found)
    else:
        print_table(found, _WORKERS, empty="No worker is there; start one with: procjobs worker")
