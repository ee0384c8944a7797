"""retention: how long jobs that ended are kept, and what was forgotten. The application's tables: `tables.py`."""

from __future__ import annotations

import json
from typing import Any

import click

from procjobs.cli import tables
from procjobs.cli.database import call, database_options
from procjobs.cli.output import Column, age, json_option, print_json, print_table, text, when
from procjobs.cli.setting_log import add_log, reason_option

__all__ = ["retention"]

_POLICIES: tuple[Column, ...] = (
    ("task", "task", lambda value: text(value) or "any"),
    ("queue", "queue", lambda value: text(value) or "any"),
    ("state", "state", text),
    ("kept for", "max_age", lambda value: age(value) or "ever"),
    ("at most", "keep_last", text),
    ("set by", "set_by", text),
    ("at", "set_at", when),
)
_PASSES: tuple[Column, ...] = (
    ("at", "at", when),
    ("what", "what", text),
    ("by", "actor", text),
    ("jobs", "jobs", text),
    ("days", "partitions", text),
    ("detail", "detail", lambda value: "" if not value else json.dumps(value, ensure_ascii=False)[:200]),
)
_STATES = ("all", "succeeded", "failed", "cancelled", "aborted")


def _scoped(command: Any) -> Any:
    for option in (
        click.option("--queue", help="For the jobs of this queue."),
        click.option("--task", help="For the jobs of this task; goes before its queue's."),
        click.option(
            "--state", type=click.Choice(_STATES), default="all", show_default=True, help="For this final state."
        ),
    ):
        command = option(command)
    return database_options(command)


@click.group(invoke_without_command=True)
@json_option
@database_options
@click.pass_context
def retention(context: click.Context, /, dsn: str | None, data: str | None, as_json: bool) -> None:
    """How long jobs that ended are kept."""
    if context.invoked_subcommand is None:
        _list(dsn, data, as_json)


@retention.command("list")
@json_option
@database_options
def list_policies(as_json: bool, dsn: str | None, data: str | None) -> None:
    """Which policy holds for what."""
    _list(dsn, data, as_json)


def _list(dsn: str | None, data: str | None, as_json: bool) -> None:
    found = call(dsn, data, "list_retention")
    if as_json:
        print_json(found)
    else:
        print_table(found, _POLICIES, empty="There is no policy.")


@retention.command("set")
@click.option("--max-age", metavar="INTERVAL", help="Kept for so long, e.g. '30 days'.")
@click.option("--keep-last", type=click.IntRange(0), metavar="N", help="Only the last N are kept.")
@reason_option
@_scoped
def set_policy(
    max_age: str | None,
    keep_last: int | None,
    queue: str | None,
    task: str | None,
    state: str,
    reason: str | None,
    dsn: str | None,
    data: str | None,
) -> None:
    """Keep jobs for a time, or the last N, or both limits; without either for ever."""
    (row,) = call(
        dsn,
        data,
        "set_retention",
        max_age=max_age,
        keep_last=keep_last,
        queue=queue,
        task=task,
        state=state,
        reason=reason,
    )
    click.echo(row["set_retention"])


@retention.command("drop")
@reason_option
@_scoped
def drop_policy(
    queue: str | None, task: str | None, state: str, reason: str | None, dsn: str | None, data: str | None
) -> None:
    """Take a policy back; the next one that fits holds again."""
    (row,) = call(dsn, data, "drop_retention", queue=queue, task=task, state=state, reason=reason)
    click.echo("done" if row["drop_retention"] else "there was no such policy")


@retention.command("run")
@click.argument("policy", required=False)
@click.option("--max", "max_rows", type=click.IntRange(1), default=5000, show_default=True, help="Jobs at most.")
@click.option("--dry-run", is_flag=True, help="Only say how many rows of the table would go.")
@database_options
def run_pass(policy: str | None, max_rows: int, dry_run: bool, dsn: str | None, data: str | None) -> None:
    """One pass over jobs that ended; with POLICY: all that is due by this policy of a table.

    Workers and schedules do both by themselves.
    """
    if policy is not None:
        tables.work(dsn, data, policy, dry_run=dry_run)
        return
    if dry_run:
        raise click.UsageError("--dry-run is for a table's policy: name it")
    (row,) = call(dsn, data, "run_retention", max_rows=max_rows)
    count = row["run_retention"]
    click.echo("another pass is under way" if count is None else f"{count} jobs were forgotten")


@retention.command("log")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many at most.")
@json_option
@database_options
def log(limit: int, as_json: bool, dsn: str | None, data: str | None) -> None:
    """What was forgotten, deleted or run again in bulk, newest first."""
    found = call(dsn, data, "list_retention_passes", p_max_rows=limit)
    if as_json:
        print_json(found)
    else:
        print_table(found, _PASSES, empty="Nothing was forgotten yet.")


add_log(retention, "retention", command="changes", noun="policy")

for _command in (tables.list_tables, tables.set_table, tables.drop_table, tables.list_runs):
    retention.add_command(_command)
