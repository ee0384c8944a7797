"""init, migrate and check: the files of an application, its schema, and whether both are right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from procjobs.cli.database import database_options, dsn_of, load_settings, run
from procjobs.cli.output import json_option, print_json

if TYPE_CHECKING:
    from procjobs.settings import Settings

__all__ = ["check", "init", "migrate"]

_TEMPLATES = ("procjobs.toml", "host.sql")


@click.command(short_help="Write procjobs.toml and host.sql.")
@click.argument("folder", type=click.Path(file_okay=False), default=".")
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
def init(folder: str, force: bool) -> None:
    """Write procjobs.toml and host.sql, both commented, into FOLDER."""
    from procjobs.errors import ProcjobsError

    target = Path(folder)
    there = [name for name in _TEMPLATES if (target / name).exists()]
    if there and not force:
        raise ProcjobsError(
            f"{' and '.join(there)} exist in {target} already", hint="--force overwrites, another FOLDER keeps"
        )
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in _TEMPLATES:
            (target / name).write_text(_template(name), encoding="utf-8")
            click.echo(f"wrote {target / name}")
    except OSError as error:
        raise ProcjobsError(f"{target} cannot be written: {error.strerror}", hint="choose another FOLDER") from error
    click.echo("Next: bind the views in host.sql to your tables, set dsn in procjobs.toml, then run: procjobs migrate")


def _template(name: str) -> str:
    from importlib.resources import files

    return (files("procjobs") / "templates" / "init" / name).read_text(encoding="utf-8")


@click.command(short_help="Bring the database to this version.")
@database_options
def migrate(dsn: str | None, data: str | None) -> None:
    """Bring the database to this version: tables, functions, then your host.sql. Safe to run twice or at once."""
    from procjobs import migrate as migrations

    settings = load_settings(dsn=dsn, data=data)
    report = migrations.migrate(dsn_of(settings), host_sql=settings.host_sql, log=click.echo)
    if report.adopted is not None:
        click.echo(f"adopted the Procrastinate in schema {report.upstream_schema}; every job was kept")
    for note in report.notes:
        click.echo(f"note: {note}")
    _tell_schedules(settings)
    click.echo(f"{'migrated to' if report.changed else 'nothing to do, the database is at'} revision {report.revision}")


def _tell_schedules(settings: Settings) -> None:
    """What the environment and procjobs.toml say of schedules."""
    from procjobs.db import Link, Target
    from procjobs.engine.schedules import apply_settings

    async def tell() -> None:
        link = Link(Target(dsn_of(settings)), "procjobs migrate")
        try:
            for name, _, fault in await apply_settings(link, settings):
                if fault is not None:
                    click.echo(f"note: schedule {name} is left out: {fault}")
        finally:
            await link.close()

    run(tell())


@click.command(short_help="Compare the database with this version.")
@json_option
@database_options
def check(dsn: str | None, data: str | None, as_json: bool) -> None:
    """Say whether the database is as this version left it, and no channel is set up by halves; exit code 1 if not."""
    from procjobs import migrate as migrations
    from procjobs.channels import METHODS, channel_state

    settings = load_settings(dsn=dsn, data=data)
    halves = [state for method in METHODS if (state := channel_state(settings, method)).state == "half"]
    problems = migrations.check(dsn_of(settings), host_sql=settings.host_sql)
    unready = [f"{state.method} is set up by halves: {state.mend}" for state in halves]
    if as_json:
        print_json([*(str(problem) for problem in problems), *unready])
    else:
        for problem in (*problems, *unready):
            click.echo(f"- {problem}")
        click.echo(
            "procjobs migrate mends what is its own."
            if problems
            else "The database is as this version of procjobs left it."
        )
    if problems or unready:
        click.get_current_context().exit(1)
