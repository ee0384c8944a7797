"""Running one worker or scheduler: which App, with which options, to which exit code."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from procjobs.errors import SettingsError
from procjobs.settings import Settings

if TYPE_CHECKING:
    from procjobs.app import App

__all__ = ["load_app", "run_scheduler", "run_worker"]

#: The settings that are options of App.run_worker_async, by their names there.
_OPTIONS = {
    "concurrency": "concurrency",
    "queues": "queues",
    "poll_interval": "fetch_job_polling_interval",
    "heartbeat_interval": "update_heartbeat_interval",
    "lease": "stalled_worker_timeout",
    "shutdown_timeout": "shutdown_graceful_timeout",
    "kill_timeout": "kill_timeout",
    "finished_jobs": "finished_jobs",
}


def run_worker(settings: Settings, *, builtin: bool, name: str, one_shot: bool) -> int:
    """Run a worker to its end and return 0. Raises ShutdownIncomplete, DatabaseError, SettingsError.

    builtin:  run procjobs' own tasks even where an application is configured.
    one_shot: end when nothing is left to do.
    """
    from procjobs.engine.supervision import run_to_its_end

    app = load_app(settings, builtin=builtin)
    run_to_its_end(_work(app, {**worker_options(settings, app), "name": name, "wait": not one_shot}))
    return 0


def run_scheduler(settings: Settings, *, builtin: bool) -> int:
    """Keep time until a signal and return 0. Raises DatabaseError, SettingsError.

    builtin: keep time for procjobs' own tasks even where an application is configured.
    """
    from procjobs.engine.supervision import run_to_its_end

    options = {"heartbeat_every": settings.heartbeat_interval, "lease": settings.lease}
    run_to_its_end(_keep_time(load_app(settings, builtin=builtin), options))
    return 0


async def _keep_time(app: App, options: dict[str, Any]) -> None:
    await _say_what_keeps_us_out(app)
    async with app.open_async():
        await app.run_scheduler_async(**options)


async def _work(app: App, options: dict[str, Any]) -> None:
    await _say_what_keeps_us_out(app)
    async with app.open_async():
        await app.run_worker_async(**options)


async def _say_what_keeps_us_out(app: App) -> None:
    """Raise at once when the database cannot be reached; the pool would try for long."""
    from procrastinate import PsycopgConnector

    from procjobs.db import Link

    if isinstance(app.connector, PsycopgConnector):
        link = Link(app.target, "procjobs start")
        await link.open()
        await link.close()


def worker_options(settings: Settings, app: App) -> dict[str, Any]:
    """The settings that were changed, over the App's own worker_defaults, over the settings' defaults."""
    unset = Settings()
    named = {option: (getattr(unset, field), getattr(settings, field)) for field, option in _OPTIONS.items()}
    changed = {option: value for option, (default, value) in named.items() if value != default}
    defaults = {option: default for option, (default, _) in named.items() if option != "finished_jobs"}  # App(...) says
    return {**defaults, **app.worker_defaults, **changed}


def load_app(settings: Settings, *, builtin: bool = False) -> App:
    """The configured App, else the one with procjobs' own tasks. Raises SettingsError when it cannot be imported."""
    import procrastinate
    from procrastinate.exceptions import LoadFromPathError

    from procjobs.app import App, default_app

    if builtin or settings.app is None:
        return default_app(settings)
    sys.path.insert(0, os.getcwd())
    if settings.dsn is not None:
        os.environ["PROCJOBS_DSN"] = settings.dsn  # for an App() that names no database of its own
    try:
        found = procrastinate.App.from_path(settings.app)
    except LoadFromPathError as error:
        raise SettingsError(
            f"the app {settings.app} cannot be loaded: {error.__cause__ or error}",
            hint="write the path of a procjobs.App, e.g. myapp.tasks.app, and start in the folder it is imported from",
        ) from error
    if not isinstance(found, App):
        raise SettingsError(
            f"the app {settings.app} is one of Procrastinate's own, not a procjobs.App",
            hint="import App from procjobs instead of procrastinate",
        )
    return found
