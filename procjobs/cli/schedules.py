"""schedules, run and alerts: what is enqueued again and again, one of them now, and what somebody should look at."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import click

from procjobs.cli.database import call, connected, database_options, dsn_of, load_settings
from procjobs.cli.database import run as run_coroutine
from procjobs.cli.output import Column, age, json_option, print_facts, print_json, print_table, text, when
from procjobs.cli.setting_log import add_log, reason_option
from procjobs.cli.values import JsonObject, Moment, Span

__all__ = ["alerts", "run", "schedules"]

F = TypeVar("F", bound=Callable[..., Any])

_LIST: tuple[Column, ...] = (
    ("schedule", "name", text),
    ("state", "state", text),
    ("times", "times", text),
    ("zone", "timezone", text),
    ("next", "next_slot", when),
    ("last run", "last_run", when),
    ("ended", "last_status", text),
    ("took", "last_took", age),
    ("rows", "last_rows", text),
    ("missed", "missed", lambda value: text(value or "")),
    ("group", "group", text),
    ("from", "source", text),
    ("fault", "fault", text),
)
_HISTORY: tuple[Column, ...] = (
    ("schedule", "schedule", text),
    ("kind", "kind", text),
    ("slot", "slot", when),
    ("outcome", "outcome", text),
    ("missed", "missed", lambda value: "missed" if value else ""),
    ("by", "by", text),
    ("job", "job_id", text),
    ("ended", "status", text),
    ("took", "took", age),
    ("rows", "rows", text),
    ("why", "reason", text),
    ("error", "error", text),
)
_PREVIEW: tuple[Column, ...] = (
    ("slot", "slot", when),
    ("there", "local", text),
    ("mark", "mark", text),
    ("job due", "job_at", when),
)
_ALERTS: tuple[Column, ...] = (
    ("id", "id", text),
    ("alert", "kind", text),
    ("about", "subject", text),
    ("since", "first_at", when),
    ("last", "last_at", when),
    ("times", "times", text),
    ("over", "closed_at", when),
    ("what", "message", text),
)
_FILE: tuple[Column, ...] = (
    ("schedule", "name", text),
    ("", "changed", lambda value: "changed" if value else "as it was"),
    ("fault", "fault", text),
)


@click.group(invoke_without_command=True)
@json_option
@database_options
@click.pass_context
def schedules(context: click.Context, /, dsn: str | None, data: str | None, as_json: bool) -> None:
    """List schedules; set, pause, preview and backfill one."""
    if context.invoked_subcommand is None:
        _list_schedules(dsn, data, as_json)


@schedules.command("list")
@json_option
@database_options
def list_schedules(dsn: str | None, data: str | None, as_json: bool) -> None:
    """Every schedule, those that fire next first."""
    _list_schedules(dsn, data, as_json)


def _list_schedules(dsn: str | None, data: str | None, as_json: bool) -> None:
    found = call(dsn, data, "list_schedules")
    if as_json:
        print_json(found)
    else:
        print_table(found, _LIST, empty="There is no schedule; see: procjobs schedules set --help")


@schedules.command()
@click.argument("name")
@json_option
@database_options
def show(name: str, dsn: str | None, data: str | None, as_json: bool) -> None:
    """Everything about the schedule NAME, its next slots and its last ones."""
    from procjobs.errors import ScheduleNotFound

    found = call(dsn, data, "list_schedules", p_name=name)
    if not found:
        raise ScheduleNotFound(f"there is no schedule {name!r}", hint="procjobs schedules lists those there are")
    held = found[0]["state"] == "faulty"
    coming = [] if held else call(dsn, data, "preview_schedule", name=name, n=5)
    history = call(dsn, data, "list_schedule_history", p_name=name, p_max_rows=10)
    if as_json:
        print_json({**found[0], "preview": coming, "history": history})
        return
    print_facts((key, when(value) if isinstance(value, datetime) else value) for key, value in found[0].items())
    click.echo("")
    print_table(coming, _PREVIEW, empty="No slot can be computed.")
    click.echo("")
    print_table(history, _HISTORY[1:], empty="It has not fired yet.")


def _options(command: F) -> F:
    for option in reversed((
        click.option("--task", help="What it enqueues; needed for a new one."),
        click.option("--cron", help="When: five fields, or six with the seconds first."),
        click.option("--every", type=Span(), metavar="SPAN", help="Or every so often, e.g. 90s, 5m."),
        click.option("--timezone", metavar="ZONE", help="Time zone of the cron, e.g. Europe/Paris."),
        click.option("--args", type=JsonObject(), metavar="JSON", help="Arguments of its jobs."),
        click.option("--queue", help="Queue of its jobs."),
        click.option("--priority", type=int, help="Priority of its jobs."),
        click.option("--tenant", help="Whom its jobs are for."),
        click.option("--tag", "tags", multiple=True, help="Tags of its jobs; may be repeated."),
        click.option("--max-attempts", type=click.IntRange(1), help="Runs in all of each job."),
        click.option("--timeout", type=Span(), metavar="SPAN", help="How long one run may take."),
        click.option("--lock", help="Lock of its jobs."),
        click.option("--queueing-lock", help="At most one job with it waits."),
        click.option("--anchor", type=Moment(), metavar="TIME", help="With --every: a time that is a slot."),
        click.option("--jitter", type=Span(), metavar="SPAN", help="Put each job off by a part of this."),
        click.option("--misfire", type=click.Choice(["skip", "latest", "all"]), help="What becomes of missed slots."),
        click.option("--misfire-window", type=Span(), metavar="SPAN", help="How old slots may be for that."),
        click.option("--catch-up", type=click.IntRange(1, 10000), help="How many at most, with --misfire all."),
        click.option("--grace", type=Span(), metavar="SPAN", help="A slot later than that was missed."),
        click.option("--overlap", type=click.Choice(["skip", "queue", "allow"]), help="If the last job still runs."),
        click.option("--group", help="Switched on and off with the others of this group."),
        click.option("--description", help="Words for people."),
        reason_option,
    )):  # fmt: skip
        command = option(command)
    return command


@schedules.command("set")
@click.argument("name")
@_options
@database_options
def set_(name: str, dsn: str | None, data: str | None, tags: tuple[str, ...], **options: Any) -> None:
    """Make the schedule NAME, or change what is given of it."""
    given = {option: value for option, value in options.items() if value is not None}
    if tags:
        given["tags"] = list(tags)
    (row,) = call(dsn, data, "schedule", name=name, **given)
    click.echo(f"{name} fires next at {when(row['schedule'])}")


@schedules.command("for")
@click.argument("name")
@click.argument("tenant")
@click.option("--cron", help="When: five fields, or six with the seconds first.")
@click.option("--every", type=Span(), metavar="SPAN", help="Or every so often, e.g. 90s, 5m.")
@click.option("--timezone", metavar="ZONE", help="Time zone of the cron, e.g. Asia/Tokyo.")
@click.option("--args", type=JsonObject(), metavar="JSON", help="Arguments of its own, over those of NAME.")
@reason_option
@database_options
def for_(name: str, tenant: str, dsn: str | None, data: str | None, **options: Any) -> None:
    """A time of its own for TENANT: the schedule NAME/TENANT, which follows NAME in everything else."""
    given = {option: value for option, value in options.items() if value is not None}
    (row,) = call(dsn, data, "schedule_for", name=name, tenant=tenant, **given)
    click.echo(f"{name}/{tenant} fires next at {when(row['schedule_for'])}")


@schedules.command()
@click.argument("name")
@reason_option
@database_options
def remove(name: str, reason: str | None, dsn: str | None, data: str | None) -> None:
    """Remove the schedule NAME; its history stays."""
    (row,) = call(dsn, data, "unschedule", name=name, reason=reason)
    click.echo(f"{name} is gone" if row["unschedule"] else f"there is no schedule {name}")


@schedules.command()
@click.argument("name")
@click.option("--reason", help="Kept with the schedule.")
@database_options
def pause(name: str, reason: str | None, dsn: str | None, data: str | None) -> None:
    """Hold NAME off until it is resumed; `procjobs run NAME` works all the same."""
    (row,) = call(dsn, data, "pause_schedule", name=name, reason=reason)
    click.echo(f"{name} is paused" if row["pause_schedule"] else f"{name} was paused already")


@schedules.command()
@click.argument("name")
@reason_option
@database_options
def resume(name: str, reason: str | None, dsn: str | None, data: str | None) -> None:
    """Let NAME go on; slots since the pause are treated by its misfire."""
    (row,) = call(dsn, data, "resume_schedule", name=name, reason=reason)
    click.echo(f"{name} goes on" if row["resume_schedule"] else f"{name} was not paused")


@schedules.command()
@click.argument("group")
@click.argument("switch", type=click.Choice(["on", "off"]))
@click.option("--reason", help="Kept with the group.")
@database_options
def group(group: str, switch: str, reason: str | None, dsn: str | None, data: str | None) -> None:
    """Switch all schedules of GROUP on or off."""
    (row,) = call(dsn, data, "set_schedule_group", group=group, enabled=switch == "on", reason=reason)
    click.echo(f"{group} is {switch}" if row["set_schedule_group"] else f"{group} was {switch} already")


@schedules.command()
@click.argument("name")
@click.option("-n", "n", type=click.IntRange(1, 1000), default=10, help="How many.  [default: 10]")
@json_option
@database_options
def preview(name: str, n: int, dsn: str | None, data: str | None, as_json: bool) -> None:
    """The next slots of NAME, with marks where clocks change: gap, repeat 1, repeat 2."""
    found = call(dsn, data, "preview_schedule", name=name, n=n)
    if as_json:
        print_json(found)
    else:
        print_table(found, _PREVIEW, empty="It never fires.")


@schedules.command()
@click.argument("name", required=False)
@click.option("--limit", "most", type=click.IntRange(1, 10000), default=50, help="At most that many.  [default: 50]")
@json_option
@database_options
def history(name: str | None, most: int, dsn: str | None, data: str | None, as_json: bool) -> None:
    """The last slots and runs, of NAME or of all, newest first."""
    found = call(dsn, data, "list_schedule_history", p_name=name, p_max_rows=most)
    if as_json:
        print_json(found)
    else:
        print_table(found, _HISTORY, empty="Nothing has fired yet.")


@schedules.command()
@click.argument("name")
@click.option("--from", "begin", type=Moment(), metavar="TIME", required=True, help="The first slot is not before.")
@click.option("--until", type=Moment(), metavar="TIME", help="The last slot is not after.  [default: now]")
@click.option("--at-most", type=click.IntRange(1, 10000), default=1000, help="Jobs at most.  [default: 1000]")
@database_options
def backfill(
    name: str, begin: datetime, until: datetime | None, at_most: int, dsn: str | None, data: str | None
) -> None:
    """Enqueue a job for every slot of NAME in a span of time that has not fired, the oldest first."""
    given = {"from": begin, "at_most": at_most, **({} if until is None else {"until": until})}
    (row,) = call(dsn, data, "backfill", name=name, **given)
    click.echo(f"{row['fired']} jobs" + (f", {row['remaining']} slots remain" if row["remaining"] else ""))


@schedules.command()
@click.option("--environment", metavar="NAME", help="Which [environments.NAME.schedules] hold.")
@json_option
@database_options
def apply(environment: str | None, dsn: str | None, data: str | None, as_json: bool) -> None:
    """Write the schedules of procjobs.toml, and take back what it said earlier; exit code 1 if one cannot be."""
    from procjobs.db import Link, Target
    from procjobs.engine.schedules import apply_settings

    settings = load_settings(dsn=dsn, data=data, environment=environment)

    async def write() -> list[dict[str, Any]]:
        link = Link(Target(dsn_of(settings)), "procjobs schedules")
        try:
            rows = await apply_settings(link, settings, complete=True)
        finally:
            await link.close()
        return [{"name": name, "changed": changed, "fault": fault} for name, changed, fault in rows]

    found = run_coroutine(write())
    if as_json:
        print_json(found)
    else:
        print_table(found, _FILE, empty="procjobs.toml has no schedules.")
    if any(row["fault"] for row in found):
        click.get_current_context().exit(1)


add_log(schedules, "schedule")


@click.command(short_help="Run a schedule's task now.")
@click.argument("name")
@click.option("--args", type=JsonObject(), metavar="JSON", help="Arguments over the schedule's own.")
@click.option("--key", help="The same key again is the same run.")
@click.option("--no-wait", is_flag=True, help="Only enqueue it, and print the job.")
@database_options
def run(name: str, args: str | None, key: str | None, no_wait: bool, dsn: str | None, data: str | None) -> int:
    """Run the task of schedule NAME now, paused or not, and follow it to its end.

    Exit code 0 if it succeeded, 1 if it failed or was cancelled. Ctrl-C stops looking, not the job.
    """
    from procjobs.cli.follow import follow

    async def begin() -> int:
        given = {"idempotency_key": key, "args": args}
        async with connected(dsn, data) as calls:
            job: int = await calls.value(
                "run_now", name=name, **{option: value for option, value in given.items() if value is not None}
            )
            if no_wait:
                click.echo(f"job {job}")
                return 0
            return await follow(calls, job)

    return run_coroutine(begin())


@click.group(invoke_without_command=True)
@click.option("--all", "closed_too", is_flag=True, help="Those that are over, too.")
@json_option
@database_options
@click.pass_context
def alerts(context: click.Context, /, closed_too: bool, dsn: str | None, data: str | None, as_json: bool) -> None:
    """What somebody should look at, e.g. missed slots."""
    if context.invoked_subcommand is not None:
        return
    found = call(dsn, data, "list_alerts", p_closed_too=closed_too)
    if as_json:
        print_json(found)
    else:
        print_table(found, _ALERTS, empty="All is well.")


@alerts.command()
@click.argument("alert", metavar="ID", type=int)
@database_options
def close(alert: int, dsn: str | None, data: str | None) -> None:
    """Close alert ID; it comes back if it is found again."""
    (row,) = call(dsn, data, "close_alert", alert=alert)
    click.echo(f"alert {alert} is closed" if row["close_alert"] else f"alert {alert} is not open")
