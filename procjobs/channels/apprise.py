"""Any other service, through apprise: targets by name, whose URLs come from the environment.

apprise says yes or no. What was behind a no is seen where its plug-ins make their requests, which nearly all do by the
library requests: a status, no connection, or silence. Of the others (mail, MQTT, SMPP, D-Bus) the no is all there is.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any

import apprise
from requests import PreparedRequest, Response
from requests.adapters import HTTPAdapter
from requests.exceptions import ConnectTimeout, InvalidURL
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError, ProxyError, SSLError

from procjobs.channels.answer import Answer, by_status
from procjobs.channels.hush import hushed
from procjobs.channels.message import Message
from procjobs.mail import Ambiguous, Deferred, Outcome, Sent

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
            return _unprepared(f"there is no target {message.to}: add it to apprise_targets")
        if message.leaving is not None:
            await message.leaving()  # what its plug-ins do cannot be waited for
        with hushed():  # the context goes along into the thread
            return await asyncio.to_thread(_notify, url, message)

    async def close(self) -> None:
        """Nothing is kept open."""


def _notify(url: str, message: Message) -> Outcome:
    exchanges: list[_Exchange] = []
    _watch.set(exchanges)  # in this thread's copy of the context
    taken = False
    try:
        service = apprise.Apprise()
        if not service.add(url):
            return _unprepared(f"apprise does not understand the URL of {message.to}: check apprise_targets")
        kind = apprise.NotifyType.WARNING if message.urgent else apprise.NotifyType.INFO
        taken = bool(
            service.notify(
                title=message.subject,
                body=message.text(_LIMIT, subject=False) or message.subject,
                notify_type=kind,
                body_format=apprise.NotifyFormat.TEXT,
            )
        )
    except Exception as error:  # a plug-in's; its words may hold the URL
        if not exchanges:
            return Deferred(None, f"apprise failed at {message.to}: {type(error).__name__}")
    return Sent(None, f"taken by {message.to}") if taken else _refusal(exchanges, message.to)


def _unprepared(words: str) -> Deferred:
    return Deferred(None, words, provider_code="no_target", unprepared=True)


# What was behind a no


@dataclass(slots=True)
class _Exchange:
    """One request of a plug-in: its answer, or that it never left. Neither: nobody knows what became of it."""

    answer: Answer | None = None
    never_left: bool = False

    @property
    def lost(self) -> bool:
        return self.answer is None and not self.never_left


_watch: ContextVar[list[_Exchange] | None] = ContextVar("procjobs_apprise_watch", default=None)
_send = HTTPAdapter.send


@wraps(_send)
def _watched(self: HTTPAdapter, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
    exchanges = _watch.get()
    if exchanges is None:  # somebody else's request
        return _send(self, request, *args, **kwargs)
    exchange = _Exchange()
    exchanges.append(exchange)
    try:
        response = _send(self, request, *args, **kwargs)
    except Exception as error:
        exchange.never_left = _never_left(error)
        raise
    exchange.answer = Answer(response.status_code, response.headers, b"")
    return response


# Plug-ins make a session for each request, and keep to themselves what it raised: this is where all of them pass.
HTTPAdapter.send = _watched  # type: ignore[method-assign]


def _never_left(error: Exception) -> bool:
    """Whether this can only be raised before the first byte of the request is sent."""
    if isinstance(error, ConnectTimeout | InvalidURL):
        return True
    reason = getattr(error.args[0], "reason", None) if error.args else None
    if isinstance(reason, SSLError):
        return bool(reason.args) and isinstance(reason.args[0], ssl.SSLCertVerificationError)
    return isinstance(reason, NewConnectionError | ConnectTimeoutError | ProxyError)


def _refusal(exchanges: list[_Exchange], to: str) -> Outcome:
    """What a no means. Of several requests (a login, several recipients) the last decides, unless one was lost."""
    if not exchanges:
        return Deferred(None, f"{to} did not take it; apprise's own log says why")
    if any(exchange.lost for exchange in exchanges):
        return Ambiguous(f"{to} did not answer to what was sent")
    answer = exchanges[-1].answer
    if answer is None:
        return Deferred(None, f"no connection to {to}")
    if answer.status in (401, 403):
        return Deferred(answer.status, f"{to} does not know our login: check apprise_targets")
    if answer.status < 300:  # an error that is told under an OK
        return Deferred(answer.status, f"{to} did not take it; apprise's own log says why")
    return by_status(answer, f"{to} did not take it")
