"""Background jobs that live in PostgreSQL.

The public names are loaded when they are first used, so that the command line starts at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from procjobs.app import App, Blueprint
    from procjobs.engine.retry import Cancel, Discard, Retry, Snooze
    from procjobs.engine.worker import ShutdownIncomplete, Worker

__version__ = "0.1.0"

__all__ = ["App", "Blueprint", "Cancel", "Discard", "Retry", "ShutdownIncomplete", "Snooze", "Worker"]

_HOMES = {
    "App": "procjobs.app",
    "Blueprint": "procjobs.app",
    "Cancel": "procjobs.engine.retry",
    "Discard": "procjobs.engine.retry",
    "Retry": "procjobs.engine.retry",
    "ShutdownIncomplete": "procjobs.engine.worker",
    "Snooze": "procjobs.engine.retry",
    "Worker": "procjobs.engine.worker",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
