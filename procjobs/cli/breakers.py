"""breakers: what is outside and may fail, and deliveries that nobody saw the end of."""

from __future__ import annotations

from typing import Any

import click

from procjobs.cli.database import call, database_options
from procjobs.cli.output import Column, json_option, print_json, print_table, text, when
from procjobs.cli.setting_log import add_log, reason_option
from procjobs.cli.values import Span

__all__ = ["breakers", "deliveries"]

_BREAKERS: tuple[Column, ...] = (
    ("breaker", "name", text),
    ("state", "state", text),
    ("since", "since", when),
    ("until", "retry_at", lambda value: "it is closed" if value == "infinity" else when(value)),
    ("probe", "probe_job", text),
    ("waiting", "waiting", text),
    ("failed", "failed", text),
    ("succeeded", "succeeded", text),
    ("opens at", "failures", text),
    ("tasks", "tasks", lambda value: ", ".join(value or ()) or "any"),
    ("queue", "queue", lambda value: text(value) or "any"),
    ("tag", "tag", text),
)
_UNRESOLVED: tuple[Column, ...] = (
    ("notification", "notification_id", text),
    ("job", "job_id", text),
    ("method", "delivery_method", text),
    ("policy", "policy", text),
    ("try", "attempt", text),
    ("at", "started_at", when),
    ("address", "address", text),
    ("known", "error", text),
)


@click.group(invoke_without_command=True)
@json_option
@database_options
@click.pass_context
def breakers(context: click.Context, /, dsn: str | None, data: str | None, as_json: bool) -> None:
    """List circuit breakers; set, drop, open and close one."""
    if context.invoked_subcommand is None:
        _list_breakers(dsn, data, as_json)


@breakers.command("list")
@json_option
@database_options
def list_breakers(dsn: str | None, data: str | None, as_json: bool) -> None:
    """Every breaker, those that are not closed first."""
    _list_breakers(dsn, data, as_json)


def _list_breakers(dsn: str | None, data: str | None, as_json: bool) -> None:
    found = call(dsn, data, "list_breakers")
    if as_json:
        print_json(found)
    else:
        print_table(found, _BREAKERS, empty="No breaker is set; see: procjobs breakers set --help")


@breakers.command("set")
@click.argument("name")
@click.option("--task", "tasks", multiple=True, help="Whose jobs need it; may be given again.")
@click.option("--queue", help="Whose jobs need it; any queue without it.")
@click.option("--tag", help="Only jobs that carry this tag.")
@click.option("--failures", type=click.IntRange(1), help="It opens after so many.  [default: 5]")
@click.option("--rate", type=click.FloatRange(0, 1), help="If they are this share of all outcomes.  [default: 0.5]")
@click.option("--per", type=Span(), metavar="SPAN", help="How long failures count.  [default: 1m]")
@click.option("--cool-down", type=Span(), metavar="SPAN", help="How long it stays open first.  [default: 30s]")
@click.option("--longest", type=Span(), metavar="SPAN", help="And at most.  [default: 10m]")
@reason_option
@database_options
def set_(name: str, dsn: str | None, data: str | None, **options: Any) -> None:
    """Make the breaker NAME, or change it; its state stays."""
    given = {option: value for option, value in options.items() if value is not None and value != ()}
    given = {option: list(value) if option == "tasks" else value for option, value in given.items()}
    (row,) = call(dsn, data, "set_breaker", name=name, **given)
    click.echo(f"breaker {name} is set" if row["set_breaker"] else f"breaker {name} was set so already")


@breakers.command()
@click.argument("name")
@reason_option
@database_options
def drop(name: str, reason: str | None, dsn: str | None, data: str | None) -> None:
    """Remove the breaker NAME; what waits for it goes on."""
    (row,) = call(dsn, data, "drop_breaker", name=name, reason=reason)
    click.echo(f"breaker {name} is gone" if row["drop_breaker"] else f"there is no breaker {name}")


@breakers.command("open")
@click.argument("name")
@click.option("--for", "span", type=Span(), metavar="SPAN", help="Then one job tries; until it is closed without it.")
@database_options
def open_(name: str, dsn: str | None, data: str | None, span: Any) -> None:
    """Make jobs that need NAME wait."""
    call(dsn, data, "open_breaker", name=name, **({} if span is None else {"for": span}))
    click.echo(f"breaker {name} is open")


@breakers.command()
@click.argument("name")
@database_options
def close(name: str, dsn: str | None, data: str | None) -> None:
    """Let jobs that need NAME go on."""
    (row,) = call(dsn, data, "close_breaker", name=name)
    click.echo(f"breaker {name} is closed" if row["close_breaker"] else f"breaker {name} was closed")


add_log(breakers, "breaker")


@click.group(invoke_without_command=True, short_help="Notifications in doubt: whether they arrived.")
@json_option
@database_options
@click.pass_context
def deliveries(context: click.Context, /, dsn: str | None, data: str | None, as_json: bool) -> None:
    """List notifications that may have arrived, and nobody knows; resolve one."""
    if context.invoked_subcommand is None:
        found = call(dsn, data, "list_unresolved")
        if as_json:
            print_json(found)
        else:
            print_table(found, _UNRESOLVED, empty="No delivery is in doubt.")


@deliveries.command()
@click.argument("notification", type=click.UUID)
@click.argument("outcome", type=click.Choice(["sent", "lost"]))
@database_options
def resolve(notification: Any, outcome: str, dsn: str | None, data: str | None) -> None:
    """Say what became of NOTIFICATION: sent, it arrived; lost, it did not, and is sent again."""
    (row,) = call(dsn, data, "resolve_delivery", notification=notification, outcome=outcome)
    click.echo(f"notification {notification} is {row['resolve_delivery']}")
