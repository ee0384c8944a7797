"""Any other service, through apprise: targets by name, whose URLs come from the environment.

apprise says yes or no: there is no status, no id and no Retry-After, and a timeout cannot be told from a refusal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import apprise

from procjobs.channels.hush import hushed
from procjobs.channels.message import Message
from procjobs.mail import Deferred, Outcome, Sent

__all__ = ["Apprise"]

#: Characters; services that take less cut further.
_LIMIT = 30_000


class Apprise:
    """targets: apprise's URLs by name."""

    def __init__(self, *, targets: Mapping[str, str]) -> None:
        self.name = "apprise"
        self._targets = dict(targets)

    async def send(self, message: Message) -> Outcome:
        url = self._targets.get(message.to)
        if url is None:
            return Deferred(None, f"there is no target {message.to}: add it to apprise_targets")
        with hushed():  # the context goes along into the thread
            return await asyncio.to_thread(_notify, url, message)

    async def close(self) -> None:
        """Nothing is kept open."""


def _notify(url: str, message: Message) -> Outcome:
    service = apprise.Apprise()
    try:
        if not service.add(url):
            return Deferred(None, f"apprise does not understand the URL of {message.to}: check apprise_targets")
        kind = apprise.NotifyType.WARNING if message.urgent else apprise.NotifyType.INFO
        taken = service.notify(
            title=message.subject,
            body=message.text(_LIMIT, subject=False) or message.subject,
            notify_type=kind,
            body_format=apprise.NotifyFormat.TEXT,
        )
    except Exception as error:  # a plug-in's; its words may hold the URL
        return Deferred(None, f"apprise failed at {message.to}: {type(error).__name__}")
    if taken:
        return Sent(None, f"taken by {message.to}")
    return Deferred(None, f"{message.to} did not take it; apprise's own log says why")
