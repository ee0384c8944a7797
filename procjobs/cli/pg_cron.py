"""pg-cron: the server's own clock set up, looked at and taken away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from procjobs.cli.database import database_options, dsn_of, load_settings, run
from procjobs.cli.output import json_option, print_json

if TYPE_CHECKING:
    from procjobs.pg_cron import Finding

__all__ = ["pg_cron"]

cron_dsn_option = click.option(
    "--cron-dsn", metavar="DSN", help="Where pg_cron is, if the same login cannot reach it.  [default: as the database]"
)


@click.group("pg-cron", short_help="Let PostgreSQL keep time and run SQL jobs.", no_args_is_help=True)
def pg_cron() -> None:
    """Let PostgreSQL keep time and run SQL jobs by itself, with the extension pg_cron: beside workers, or alone."""


@pg_cron.command()
@click.option("--runners", type=click.IntRange(0, 100), default=1, help="SQL jobs at a time.  [default: 1]")
@cron_dsn_option
@database_options
def install(runners: int, cron_dsn: str | None, dsn: str | None, data: str | None) -> None:
    """Set up the jobs of pg_cron, or bring them up to date; what is missing is told with its mend."""
    from procjobs import pg_cron as clock

    _show(run(clock.install(dsn_of(load_settings(dsn=dsn, data=data)), cron_dsn, runners=runners)))


@pg_cron.command()
@json_option
@cron_dsn_option
@database_options
def status(cron_dsn: str | None, dsn: str | None, data: str | None, as_json: bool) -> None:
    """Say whether pg_cron does its work, and what is missing; exit code 1 if something is."""
    from procjobs import pg_cron as clock

    findings = run(clock.status(dsn_of(load_settings(dsn=dsn, data=data)), cron_dsn))
    if as_json:
        print_json(findings)
    else:
        _show(findings)
    if any(finding.severity == "warning" for finding in findings):
        click.get_current_context().exit(1)


@pg_cron.command()
@cron_dsn_option
@database_options
def remove(cron_dsn: str | None, dsn: str | None, data: str | None) -> None:
    """Take our jobs out of pg_cron. Workers go on as they are."""
    from procjobs import pg_cron as clock

    count = run(clock.remove(dsn_of(load_settings(dsn=dsn, data=data)), cron_dsn))
    click.echo(f"took {count} jobs out of pg_cron" if count else "pg_cron had no job of ours")


def _show(findings: list[Finding]) -> None:
    marks = {"ok": ("ok  ", "green"), "info": ("info", "blue"), "warning": ("warn", "yellow")}
    for found in findings:
        mark, color = marks[found.severity]
        mend = f"; {found.mend}" if found.mend else ""
        click.echo(f"{click.style(mark, fg=color)}  {found.subject:<10}  {found.finding}{mend}")
