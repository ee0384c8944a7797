"""Commands of `retention` for the application's tables: their policies, and what came of them."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import click

from procjobs.cli.database import call, connected, database_options, run
from procjobs.cli.output import Column, age, json_option, print_json, print_table, text, when
from procjobs.cli.setting_log import reason_option
from procjobs.cli.values import JsonObject

__all__ = ["drop_table", "list_runs", "list_tables", "set_table", "work"]


def _action(value: Any) -> str:
    return "delete" if value is None else "set " + json.dumps(value, ensure_ascii=False)


def _kept(value: Any) -> str:
    return "until then" if value == timedelta(0) else age(value)


def _slowest(value: Any) -> str:
    return f"{value.total_seconds() * 1000:.0f} ms" if isinstance(value, timedelta) else ""


def _referenced(value: Any) -> str:
    return ", ".join(f"{one['rows']} by {one['table']} ({name})" for name, one in (value or {}).items())


_POLICIES: tuple[Column, ...] = (
    ("policy", "name", text),
    ("table", "table_name", text),
    ("kept after", "column_name", text),
    ("for", "keep", _kept),
    ("where", "condition", text),
    ("then", "assignments", _action),
    ("on", "enabled", lambda value: "yes" if value else "no"),
    ("as", "run_as", text),
    ("last run", "last_run_at", when),
    ("state", "last_run", text),
    ("rows", "last_rows", text),
    ("fault", "fault", text),
)
_RUNS: tuple[Column, ...] = (
    ("at", "began_at", when),
    ("policy", "policy", text),
    ("state", "state", text),
    ("by", "actor", text),
    ("rows", "rows", text),
    ("%", "percent", text),
    ("took", "took", age),
    ("slowest batch", "slowest", _slowest),
    ("passed over", "passed_over", text),
    ("referred to", "referenced", _referenced),
    ("error", "error", text),
)


@click.command("tables")
@json_option
@database_options
def list_tables(as_json: bool, dsn: str | None, data: str | None) -> None:
    """How long rows of the application's tables are kept."""
    found = call(dsn, data, "list_table_policies")
    if as_json:
        print_json(found)
    else:
        print_table(found, _POLICIES, empty="There is no policy for a table.")


@click.command("set-table")
@click.argument("name")
@click.argument("table")
@click.argument("column")
@click.option(
    "--keep", metavar="INTERVAL", required=True, help="Kept so long after it, e.g. '90 days'; 0 for an expiry."
)
@click.option("--where", "condition", metavar="SQL", help="What must be true of a row besides.")
@click.option(
    "--set", "assignments", type=JsonObject(), metavar="JSON", help="Give columns values instead of deleting."
)
@click.option("--batch", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="Most rows at a time.")
@click.option("--newest-first", is_flag=True, help="Begin with the newest due rows.")
@click.option("--off", is_flag=True, help="Keep the policy, and do not work it.")
@click.option("--run-as", metavar="ROLE", help="With whose rights.  [default: yours]")
@click.option("--description", help="What it is for.")
@reason_option
@database_options
def set_table(
    name: str,
    table: str,
    column: str,
    assignments: str | None,
    newest_first: bool,
    off: bool,
    dsn: str | None,
    data: str | None,
    **options: Any,
) -> None:
    """Keep rows of TABLE for a time after that in COLUMN; then they are deleted, or set."""
    (row,) = call(
        dsn,
        data,
        "set_table_policy",
        name=name,
        table_name=table,
        column_name=column,
        action="delete" if assignments is None else "set",
        assignments=assignments,
        oldest_first=not newest_first,
        enabled=not off,
        **options,
    )
    click.echo(row["set_table_policy"])


@click.command("drop-table")
@click.argument("name")
@reason_option
@database_options
def drop_table(name: str, reason: str | None, dsn: str | None, data: str | None) -> None:
    """Forget a table's policy; the table itself stays."""
    (row,) = call(dsn, data, "drop_table_policy", name=name, reason=reason)
    click.echo("done" if row["drop_table_policy"] else "there was no such policy")


@click.command("runs")
@click.argument("policy", required=False)
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many at most.")
@json_option
@database_options
def list_runs(policy: str | None, limit: int, as_json: bool, dsn: str | None, data: str | None) -> None:
    """What tables' policies did, newest first, and what runs now."""
    found = call(dsn, data, "list_table_runs", p_policy=policy, p_max_rows=limit)
    if as_json:
        print_json(found)
    else:
        print_table(found, _RUNS, empty="No policy of a table has run yet.")


def work(dsn: str | None, data: str | None, policy: str, *, dry_run: bool) -> None:
    """Work a table's policy until nothing is left, or say how many rows are due."""
    if dry_run:
        (row,) = call(dsn, data, "count_retention", policy=policy)
        click.echo(f"{row['count_retention']} rows are due")
        return

    async def ask() -> Any:
        async with connected(dsn, data) as calls:
            return await calls.call("work_retention", policy=policy, say=lambda said: click.echo(said, err=True))

    click.echo(f"{run(ask())} rows were done")
