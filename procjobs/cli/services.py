"""up, worker, scheduler and web: what keeps running."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from procjobs.cli.database import database_options, dsn_of, load_settings

__all__ = ["scheduler", "up", "web", "worker"]

if TYPE_CHECKING:
    from procjobs.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

host_option = click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
port_option = click.option(
    "--port", type=click.IntRange(0, 65535), help="Port of the web pages; 0 is any free one.  [default: 8080]"
)
app_option = click.option(
    "--app", metavar="MODULE.APP", help="Your procjobs.App, e.g. myapp.tasks.app.  [default: procjobs' own]"
)
builtin_option = click.option(
    "--builtin", is_flag=True, help="Take procjobs' own tasks even where an app is configured."
)


def _log_options(command: F) -> F:
    level = click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        help="Least level that is written.  [default: info]",
    )
    form = click.option("--log-format", type=click.Choice(["text", "json"]), help="Form of the log.  [default: text]")
    return level(form(command))


@click.command(short_help="Start everything on this machine.")
@click.option("--data", metavar="DIR", help="Folder for everything that is kept.  [default: .procjobs]")
@host_option
@port_option
@click.option("--dsn", metavar="DSN", help="Use this server instead of an embedded one.  [default: DATABASE_URL]")
@click.option("--demo/--no-demo", default=True, help="Seed a small lively organization.  [default: --demo]")
@_log_options
def up(demo: bool, **flags: Any) -> int:
    """Start everything on this machine: PostgreSQL, worker, scheduler, mail catcher and web pages.

    Without DATABASE_URL an embedded PostgreSQL keeps its data in DIR. All mail goes to a mailbox in DIR and nowhere
    else. What one needs to connect is printed and written to DIR/up.json. Ctrl-C stops everything.
    """
    from procjobs import logs
    from procjobs import up as everything

    settings = load_settings(**flags)
    logs.configure("up", level=settings.log_level, log_format=settings.log_format)
    return everything.run(settings, demo=demo)


@click.command(short_help="Run jobs.")
@app_option
@builtin_option
@click.option("--queues", metavar="A,B", help="Queues to claim from.  [default: all]")
@click.option("--concurrency", type=click.IntRange(1), help="Jobs at a time.  [default: 10]")
@click.option("--name", help="Name in logs and in `procjobs workers`.  [default: host and process id]")
@click.option("--one-shot", is_flag=True, help="End when no job is waiting.")
@database_options
@_log_options
def worker(builtin: bool, name: str | None, one_shot: bool, **flags: Any) -> int:
    """Run jobs until SIGTERM or Ctrl-C, then finish those in hand; a second signal gives them back at once.

    Exit code 0 after a clean stop, 1 when jobs had to be abandoned or the worker failed.
    """
    from procjobs.cli.work import run_worker

    settings = _settings_of("worker", builtin=builtin, **flags)
    return run_worker(
        settings, builtin=builtin, name=name or f"{socket.gethostname()}-{os.getpid()}", one_shot=one_shot
    )


@click.command(short_help="Keep time without running jobs.")
@app_option
@builtin_option
@database_options
@_log_options
def scheduler(builtin: bool, **flags: Any) -> int:
    """Make due jobs ready, rescue the jobs of dead workers, defer periodic tasks; until SIGTERM or Ctrl-C.

    Every worker does this too. A scheduler is for fleets that scale to zero or whose workers are all busy; any number
    may run, and each slot fires once.
    """
    from procjobs.cli.work import run_scheduler

    return run_scheduler(_settings_of("scheduler", builtin=builtin, **flags), builtin=builtin)


def _settings_of(service: str, *, builtin: bool, **flags: Any) -> Settings:
    from procjobs import logs
    from procjobs.errors import SettingsError

    settings = load_settings(**flags)
    try:
        settings = settings.but(dsn=dsn_of(settings))
    except SettingsError:
        if builtin or settings.app is None:  # an App of one's own may name its database itself
            raise
    logs.configure(service, level=settings.log_level, log_format=settings.log_format)
    return settings


@click.command(short_help="Serve the web pages.")
@host_option
@port_option
@click.option("--listener", type=int, hidden=True, help="A listening socket that the parent handed down.")
@click.option("--mailbox", type=click.Path(file_okay=False), hidden=True, help="The maildir to show.")
@database_options
@_log_options
def web(listener: int | None, mailbox: str | None, **flags: Any) -> int:
    """Serve the web pages, /health and /ready."""
    from procjobs import logs
    from procjobs.web.app import create_app
    from procjobs.web.server import address_of, adopt, listen, serve

    settings = load_settings(**flags)
    logs.configure("web", level=settings.log_level, log_format=settings.log_format)
    dsn = dsn_of(settings)
    opened = listen(settings.host, settings.port) if listener is None else adopt(listener)
    app = create_app(settings, dsn, mailbox=mailbox)
    if listener is None:
        click.echo(f"procjobs web listens on {address_of(opened)}", err=True)
    serve(app, opened)
    return 0
