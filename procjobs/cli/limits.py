"""limits and batches: what holds jobs back over the whole fleet, and how far jobs that belong together have come."""

from __future__ import annotations

from typing import Any

import click

from procjobs.cli.database import call, database_options
from procjobs.cli.output import Column, json_option, print_json, print_table, text, when
from procjobs.cli.setting_log import add_log, reason_option
from procjobs.cli.values import Span

__all__ = ["batches", "limits"]

_LIMITS: tuple[Column, ...] = (
    ("limit", "name", text),
    ("task", "task", lambda value: text(value) or "any"),
    ("queue", "queue", lambda value: text(value) or "any"),
    ("key", "key", text),
    ("running", "running", text),
    ("of", "max_running", text),
    ("started", "started", text),
    ("of", "rate", text),
    ("per", "per", text),
    ("counts", "rate_counts", text),
    ("next at", "resets_at", when),
    ("waiting", "waiting", text),
    ("excess", "on_excess", text),
)
_BATCHES: tuple[Column, ...] = (
    ("id", "id", text),
    ("batch", "name", text),
    ("state", "state", text),
    ("done", "progress", lambda value: f"{100 * float(value):.0f} %"),
    ("jobs", "total", text),
    ("waiting", "waiting", text),
    ("running", "running", text),
    ("succeeded", "succeeded", text),
    ("failed", "failed", text),
    ("cancelled", "cancelled", text),
    ("created", "created_at", when),
    ("finished", "finished_at", when),
)


@click.group(invoke_without_command=True)
@json_option
@database_options
@click.pass_context
def limits(context: click.Context, /, dsn: str | None, data: str | None, as_json: bool) -> None:
    """List limits and their use; set, drop one; their log."""
    if context.invoked_subcommand is None:
        _list_limits(dsn, data, as_json)


@limits.command("list")
@json_option
@database_options
def list_limits(dsn: str | None, data: str | None, as_json: bool) -> None:
    """Every limit, one line for each key in use."""
    _list_limits(dsn, data, as_json)


def _list_limits(dsn: str | None, data: str | None, as_json: bool) -> None:
    found = call(dsn, data, "list_limits")
    if as_json:
        print_json(found)
    else:
        print_table(found, _LIMITS, empty="No limit is set; see: procjobs limits set --help")


@limits.command("set")
@click.argument("name")
@click.option("--task", help="Whose jobs; any task without it.")
@click.option("--queue", help="Whose jobs; any queue without it.")
@click.option("--key", help="What has a count of its own: tenant, lock, or a path such as args.user_id.")
@click.option("--max-running", type=click.IntRange(0), help="Jobs that may run at once.")
@click.option("--rate", type=click.IntRange(1), help="Starts within any --per.")
@click.option("--per", type=Span(), metavar="SPAN", help="The period of the rate, e.g. 1s, 5m.")
@click.option(
    "--rate-counts",
    type=click.Choice(["starts", "runs"]),
    help="What the rate counts: starts, or runs until --per after their end, so that whoever the jobs call sees no "
    "more than the rate, either.  [default: as it was, else starts]",
)
@click.option(
    "--on-excess",
    type=click.Choice(["wait", "drop", "cancel_oldest"]),
    default="wait",
    help="What becomes of excess.  [default: wait]",
)
@reason_option
@database_options
def set_(name: str, dsn: str | None, data: str | None, **options: Any) -> None:
    """Limit the jobs of a task or queue over the whole fleet, at once.

    The same NAME again sets the limit anew: an option that is left out then is none any more, but for --rate-counts.
    """
    given = {option: value for option, value in options.items() if value is not None}
    (row,) = call(dsn, data, "set_limit", name=name, **given)
    click.echo(f"limit {name} is set" if row["set_limit"] else f"limit {name} was set so already")


@limits.command()
@click.argument("name")
@reason_option
@database_options
def drop(name: str, reason: str | None, dsn: str | None, data: str | None) -> None:
    """Remove the limit NAME; what waits for it goes on."""
    (row,) = call(dsn, data, "drop_limit", name=name, reason=reason)
    click.echo(f"limit {name} is gone" if row["drop_limit"] else f"there is no limit {name}")


add_log(limits, "limit")


@click.group(invoke_without_command=True)
@json_option
@database_options
@click.option("--limit", "most", type=click.IntRange(1, 10000), default=50, help="At most that many.  [default: 50]")
@click.pass_context
def batches(context: click.Context, /, dsn: str | None, data: str | None, as_json: bool, most: int) -> None:
    """List batches; seal one."""
    if context.invoked_subcommand is None:
        _list_batches(dsn, data, as_json, most)


@batches.command("list")
@json_option
@database_options
@click.option("--limit", "most", type=click.IntRange(1, 10000), default=50, help="At most that many.  [default: 50]")
def list_batches(dsn: str | None, data: str | None, as_json: bool, most: int) -> None:
    """Batches, newest first, with how far they have come."""
    _list_batches(dsn, data, as_json, most)


def _list_batches(dsn: str | None, data: str | None, as_json: bool, most: int) -> None:
    found = call(dsn, data, "list_batches", p_max_rows=most)
    if as_json:
        print_json(found)
    else:
        print_table(found, _BATCHES, empty="There is no batch.")


@batches.command()
@click.argument("batch", type=int)
@database_options
def seal(batch: int, dsn: str | None, data: str | None) -> None:
    """Take no more jobs into BATCH: its callbacks follow when the last one has ended."""
    call(dsn, data, "seal_batch", batch_id=batch)
    click.echo(f"batch {batch} is sealed")
