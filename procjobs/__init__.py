"""Background jobs that live in PostgreSQL.

The public names are loaded when they are first used, so that the command line starts at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from procjobs.app import App, Blueprint
    from procjobs.engine.progress import progress
    from procjobs.engine.results import Outcome
    from procjobs.engine.retry import Cancel, Discard, Retry, Snooze
    from procjobs.engine.unique import JobId, Unique
    from procjobs.engine.worker import ShutdownIncomplete, Worker
    from procjobs.errors import DependencyFailed, JobCancelled, JobFailed, JobNotOver, JobTimeout, QueueUnavailable
    from procjobs.packs.invitations import Invite, Invites
    from procjobs.packs.requests import InviteQueued, Queued

__version__ = "0.1.0"

__all__ = [
    "App",
    "Blueprint",
    "Cancel",
    "DependencyFailed",
    "Discard",
    "Invite",
    "InviteQueued",
    "Invites",
    "JobCancelled",
    "JobFailed",
    "JobId",
    "JobNotOver",
    "JobTimeout",
    "Outcome",
    "QueueUnavailable",
    "Queued",
    "Retry",
    "ShutdownIncomplete",
    "Snooze",
    "Unique",
    "Worker",
    "progress",
]

_HOMES = {
    "App": "procjobs.app",
    "Blueprint": "procjobs.app",
    "Cancel": "procjobs.engine.retry",
    "Discard": "procjobs.engine.retry",
    "Retry": "procjobs.engine.retry",
    "ShutdownIncomplete": "procjobs.engine.worker",
    "Snooze": "procjobs.engine.retry",
    "Worker": "procjobs.engine.worker",
    "Invite": "procjobs.packs.invitations",
    "Invites": "procjobs.packs.invitations",
    "InviteQueued": "procjobs.packs.requests",
    "Queued": "procjobs.packs.requests",
    "QueueUnavailable": "procjobs.errors",
    "JobCancelled": "procjobs.errors",
    "JobFailed": "procjobs.errors",
    "JobNotOver": "procjobs.errors",
    "DependencyFailed": "procjobs.errors",
    "JobTimeout": "procjobs.errors",
    "JobId": "procjobs.engine.unique",
    "Outcome": "procjobs.engine.results",
    "Unique": "procjobs.engine.unique",
    "progress": "procjobs.engine.progress",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
