"""reminders: of payments and events, what was due and what came of it, by which steps, and those that are due now."""

from __future__ import annotations

import click

from procjobs.cli.database import call, database_options
from procjobs.cli.output import Column, age, json_option, print_json, print_table, text, when

__all__ = ["reminders"]

_LIST: tuple[Column, ...] = (
    ("at", "created_at", when),
    ("kind", "kind", text),
    ("about", "about", text),
    ("person", "person_name", text),
    ("step", "step", text),
    ("begins", "starts_at", when),
    ("amount", "amount", text),
    ("currency", "currency", text),
    ("mail", "mail_status", text),
    ("why", "reason", text),
    ("error", "mail_error", text),
)
_STEPS: tuple[Column, ...] = (
    ("kind", "kind", text),
    ("step", "name", text),
    ("after", "after", age),
    ("before", "before", age),
    ("every", "every", age),
    ("urgency", "urgency", text),
    ("heading", "heading", text),
    ("on", "enabled", lambda value: "yes" if value else "no"),
)
kinds = click.Choice(["payment", "event"])


@click.group(invoke_without_command=True, short_help="Reminders of payments and events, and their steps.")
@json_option
@database_options
@click.pass_context
def reminders(context: click.Context, /, dsn: str | None, data: str | None, as_json: bool) -> None:
    """List reminders of payments and events and their steps; send those that are due."""
    if context.invoked_subcommand is None:
        _list(dsn, data, as_json)


@reminders.command("list")
@click.option("--kind", type=kinds, help="Of payments, or of events.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many at most.")
@json_option
@database_options
def list_reminders(kind: str | None, limit: int, dsn: str | None, data: str | None, as_json: bool) -> None:
    """What was due, newest first: its mail, or why there was none."""
    _list(dsn, data, as_json, kind, limit)


def _list(dsn: str | None, data: str | None, as_json: bool, kind: str | None = None, limit: int = 50) -> None:
    found = call(dsn, data, "list_reminders", p_kind=kind, p_limit=limit)
    if as_json:
        print_json(found)
    else:
        print_table(found, _LIST, empty="No reminder has been due.")


@reminders.command()
@click.option("--kind", type=kinds, help="Of payments, or of events.")
@json_option
@database_options
def steps(kind: str | None, dsn: str | None, data: str | None, as_json: bool) -> None:
    """When people are reminded."""
    found = call(dsn, data, "list_reminder_steps", p_kind=kind)
    if as_json:
        print_json(found)
    else:
        print_table(found, _STEPS, empty="There is no step: nobody is reminded. See procjobs.set_reminder_step.")


@reminders.command()
@click.argument("kind", type=kinds, required=False)
@json_option
@database_options
def run(kind: str | None, dsn: str | None, data: str | None, as_json: bool) -> None:
    """Create the reminders that are due, now; of one KIND or both. Safe at any time."""
    created = {}
    for each in [kind] if kind else ["payment", "event"]:
        (row,) = call(dsn, data, f"create_{each}_reminders")
        created[each] = row[f"create_{each}_reminders"]
    if as_json:
        print_json(created)
        return
    for each, count in created.items():
        click.echo(f"{count} {each} reminder{'' if count == 1 else 's'} created")
