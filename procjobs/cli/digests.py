"""digests: who gets one of what and when, what came of it, and why not."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import click

from procjobs.cli.database import call, database_options
from procjobs.cli.output import Column, json_option, print_facts, print_json, print_table, text, when

__all__ = ["digests"]

_LIST: tuple[Column, ...] = (
    ("digest", "id", text),
    ("recipient", "recipient_name", text),
    ("group", "group_name", lambda value: text(value) or "all"),
    ("frequency", "frequency", text),
    ("at", "delivery_time", text),
    ("day", "delivery_day", text),
    ("zone", "zone", text),
    ("on", "is_active", lambda value: "yes" if value else "no"),
    ("next", "next_digest_scheduled", when),
    ("last", "last_outcome", text),
    ("why", "last_reason", text),
)
_RUNS: tuple[Column, ...] = (
    ("due", "slot", when),
    ("at", "ran_at", when),
    ("outcome", "outcome", text),
    ("updates", "updates", text),
    ("mail", "mail_status", text),
    ("why", "reason", text),
    ("error", "mail_error", text),
)
_WHY: tuple[Column, ...] = (
    ("frequency", "frequency", text),
    ("group", "group_name", lambda value: text(value) or "all"),
    ("at", "at", when),
    ("answer", "answer", text),
)


@click.group(invoke_without_command=True, short_help="List digests; say why one did not come.")
@json_option
@database_options
@click.pass_context
def digests(context: click.Context, /, dsn: str | None, data: str | None, as_json: bool) -> None:
    """List digests; show one, why one did not come, and create those that are due."""
    if context.invoked_subcommand is None:
        _list(dsn, data, as_json)


@digests.command("list")
@click.option("--recipient", type=click.UUID, help="Of this recipient.")
@click.option("--group", type=click.UUID, help="Of this group.")
@click.option("--frequency", type=click.Choice(["daily", "weekly", "monthly"]), help="Of this frequency.")
@click.option("--active/--inactive", default=None, help="Only those that are on, or off.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="How many at most.")
@json_option
@database_options
def list_digests(
    recipient: UUID | None,
    group: UUID | None,
    frequency: str | None,
    active: bool | None,
    limit: int,
    dsn: str | None,
    data: str | None,
    as_json: bool,
) -> None:
    """Who gets a digest of what, and when; the newest first."""
    chosen = {"p_recipient": recipient, "p_group": group, "p_frequency": frequency, "p_active": active}
    _list(dsn, data, as_json, p_limit=limit, **{name: value for name, value in chosen.items() if value is not None})


def _list(dsn: str | None, data: str | None, as_json: bool, **chosen: object) -> None:
    found = call(dsn, data, "list_digest_schedules", **chosen)
    if as_json:
        print_json(found)
    else:
        print_table(found, _LIST, empty="There is no digest; see procjobs.create_digest_schedule.")


@digests.command()
@click.argument("digest", metavar="ID", type=click.UUID)
@json_option
@database_options
def show(digest: UUID, dsn: str | None, data: str | None, as_json: bool) -> None:
    """Everything about one digest, and what came of its last ones."""
    from procjobs.errors import DigestNotFound

    found = call(dsn, data, "list_digest_schedules", p_id=digest)
    if not found:
        raise DigestNotFound(f"there is no digest schedule {digest}", hint="procjobs digests lists them")
    runs = call(dsn, data, "list_digest_runs", p_schedule=digest, p_limit=10)
    if as_json:
        print_json({**found[0], "runs": runs})
        return
    print_facts((key, when(value) if isinstance(value, datetime) else value) for key, value in found[0].items())
    click.echo("")
    print_table(runs, _RUNS, empty="None has been due yet.")


@digests.command()
@click.argument("recipient", type=click.UUID)
@json_option
@database_options
def why(recipient: UUID, dsn: str | None, data: str | None, as_json: bool) -> None:
    """Why RECIPIENT did not get a digest."""
    found = call(dsn, data, "why_no_digest", recipient=recipient)
    if as_json:
        print_json(found)
    else:
        print_table(found, _WHY, empty="")


@digests.command()
@json_option
@database_options
def run(dsn: str | None, data: str | None, as_json: bool) -> None:
    """Create the digests that are due, now; safe at any time."""
    (row,) = call(dsn, data, "create_digest_jobs")
    created = row["create_digest_jobs"]
    if as_json:
        print_json({"created": created})
    else:
        click.echo("1 digest was created" if created == 1 else f"{created} digests were created")
