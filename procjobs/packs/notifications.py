"""Notifications: the worker's half. SQL decides what goes to whom and keeps the record; here it is written and sent.

Mail goes through procjobs.mail, every other delivery method through procjobs.channels.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import Any, assert_never
from uuid import UUID

import jinja2
from procrastinate import Blueprint, JobContext

from procjobs.channels import Channels, Message
from procjobs.db import Calls
from procjobs.engine.retry import Discard, Retry, Snooze
from procjobs.errors import DatabaseError, DatabaseUnavailable, ProcjobsError, SettingsError
from procjobs.letters import Brand, Letter, local_time, one_line, paragraphs, render, sample, web_url
from procjobs.mail import Ambiguous, Deferred, Mail, Mailer, Outcome, Refused, Sent

__all__ = [
    "Delivery",
    "DeliveryDeferred",
    "DeliveryRefused",
    "NothingToSend",
    "Postponed",
    "blueprint",
    "deliver",
    "letter",
    "message",
    "preview",
]

logger = logging.getLogger("procjobs.notifications")
blueprint = Blueprint()

#: Seconds to wait for a provider that said "too much" and not for how long.
_LIMITED_WAIT = 60.0
#: Seconds to wait for a worker that has the settings: the first time, doubled each time, and the longest.
_UNPREPARED_WAIT, _LONGEST_UNPREPARED_WAIT = 60.0, 900.0


class DeliveryDeferred(ProcjobsError):
    """The message did not get through, or nobody knows; it is worth trying again.

    retry_after: seconds that the provider asked to wait: the next run is not before.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeliveryRefused(ProcjobsError):
    """The message will never get through: the server said so, or it cannot be written."""


@dataclass(frozen=True, slots=True)
class NothingToSend:
    """There was no try: the notification was sent before (`sent`), or cannot be sent any more."""

    sent: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Postponed:
    """Too much at a time for the provider, or this worker lacks settings: the next try is in `wait` seconds.

    It spends no attempt.
    """

    wait: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One try, as `procjobs.begin_delivery_v2` returns it."""

    status: str | None
    reason: str | None
    at: datetime
    delivery_id: int
    attempt: int
    message_id: str
    delivery_method: str
    notification_type: str
    template: str
    urgency: str
    content: dict[str, Any]
    recipient_name: str | None
    address: str
    timezone: str
    group_name: str | None
    organization_name: str | None
    organization_logo_url: str | None
    about: dict[str, Any] | None
    unsubscribe_token: str | None = None
    request: dict[str, Any] = field(default_factory=dict)
    patient: bool = False
    marked: bool = False


class _NotLeft(ProcjobsError):
    """The message must not leave: that could not be put on record. Nothing was sent."""


@blueprint.task(
    name="procjobs.send_notification",
    queue="notifications",
    pass_context=True,
    retry=Retry(
        max_attempts=3,
        base=60,
        jitter=False,
        on=(DeliveryDeferred, DatabaseError, SettingsError, OSError),
    ),
)
async def send_notification(context: JobContext, notification_id: str) -> Discard | Snooze | None:
    """Delivers one row of procjobs.notification_jobs."""
    app: Any = context.app  # a procjobs.App, which stands above the packs
    mailer = await app.resource("mailer", lambda: Mailer.of(app.settings, app.concurrency))
    channels = await app.resource("channels", lambda: Channels(app.settings))
    outcome = await deliver(
        await app.database(),
        mailer,
        Brand.of(app.settings),
        notification_id,
        worker=_signature(context.worker_name),
        channels=channels,
        site=app.settings.url,
    )
    if isinstance(outcome, Postponed):
        return Snooze(outcome.wait)
    if isinstance(outcome, NothingToSend):
        return None if outcome.sent else Discard(outcome.reason)
    _raise_unless_sent(outcome)
    return None


def _signature(worker_name: str | None) -> str:
    """Who tries, for the delivery log."""
    return worker_name or f"{socket.gethostname()}:{os.getpid()}"


async def tell_metrics(app: Any, worker_name: str | None) -> None:
    """A line of figures in the log now and then, for as long as the worker lives: nothing of contents or addresses."""
    every, worker = app.settings.notification_metrics_interval, _signature(worker_name)
    while True:
        await asyncio.sleep(every)
        db = await app.database()
        found = await db.value("notification_metrics", p_span=timedelta(seconds=every), p_worker=worker)
        logger.info(
            "notifications: %(sent)s sent, %(deferred)s deferred, %(refused)s refused, %(unknown)s unknown, "
            "%(waiting)s waiting",
            found,
            extra={"action": "notification_metrics", "worker": worker, "seconds": every, **found},
        )


send_notification.beside = tell_metrics  # type: ignore[attr-defined]


async def deliver(
    db: Calls,
    mailer: Mailer,
    brand: Brand,
    notification_id: str | UUID,
    *,
    worker: str,
    channels: Channels | None = None,
    site: str = "",
) -> Outcome | NothingToSend | Postponed:
    """One try to deliver a notification, recorded before and after it; returns what became of it.

    worker: who tries, for the delivery log. channels: senders of other methods than email. site: address of the web
    pages, for links that open something.
    Raises DatabaseError when the try could not be begun.
    """
    row = await db.row("begin_delivery_v2", p_notification=notification_id, p_worker=worker, p_domain=mailer.domain)
    if row["status"] != "processing":
        return NothingToSend(sent=row["status"] == "sent", reason=row["reason"])
    delivery = Delivery(**row)
    started = time.perf_counter()
    if fault := await _add_secret(db, delivery, site):
        await _record(db, delivery, Refused(None, fault), provider=mailer.server, took=0.0)
        return NothingToSend(sent=False, reason=fault)
    method = delivery.delivery_method

    def server() -> str:
        return mailer.server if method == "email" else channels.provider(method) if channels is not None else "none"

    leaving = partial(_leave, db, delivery.delivery_id, server) if delivery.marked else None
    try:
        if method == "email":
            outcome = await _send_mail(delivery, mailer, brand, leaving)
        elif channels is not None:
            outcome = await channels.send(
                method, replace(message(delivery, brand, str(notification_id)), leaving=leaving)
            )
        else:
            outcome = Refused(None, f"this worker has no sender for {method}")
        provider = server()
    except _NotLeft as error:
        outcome, provider = Deferred(None, str(error), unprepared=True), "none"
    await _record(db, delivery, outcome, provider=provider, took=time.perf_counter() - started)
    wait = _wait(outcome, delivery.attempt)
    return Postponed(wait) if wait is not None and delivery.patient else outcome


def _wait(outcome: Outcome, attempt: int) -> float | None:
    """Seconds after which it is tried again without spending an attempt; None: it spends one, or is over."""
    if not isinstance(outcome, Deferred):
        return None
    if outcome.unprepared:
        return min(_UNPREPARED_WAIT * 2.0 ** min(attempt - 1, 10), _LONGEST_UNPREPARED_WAIT)
    if outcome.limited:
        return outcome.retry_after if outcome.retry_after is not None else _LIMITED_WAIT
    return None


async def _leave(db: Calls, delivery_id: int, server: Callable[[], str]) -> None:
    """Put on record that the message leaves, just before it does. Raises _NotLeft: it must not."""
    try:
        if await db.value("leave_delivery", p_delivery=delivery_id, p_provider=server()):
            return
    except DatabaseError as error:
        raise _NotLeft(f"it did not leave, since that could not be put on record: {error}") from error
    raise _NotLeft("it did not leave, since the try had been given up meanwhile")


async def _send_mail(
    delivery: Delivery, mailer: Mailer, brand: Brand, leaving: Callable[[], Awaitable[None]] | None
) -> Outcome:
    try:
        values = letter(delivery, brand)
        written = render(delivery.template, **values)
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        return Refused(None, f"the letter {delivery.template} cannot be written: {error}")
    except SettingsError as error:  # a package is missing
        return Deferred(None, str(error), provider_code="not_set_up", unprepared=True)
    headers = {"X-Notification-Id": delivery.message_id.strip("<>").partition("@")[0]}
    headers |= _ways_out(values["unsubscribe_url"])
    if delivery.urgency == "urgent":
        headers["Importance"] = "high"
    return await mailer.send(
        Mail(
            to=delivery.address,
            name=values["name"],
            subject=written.subject,
            text=written.text,
            html=written.html,
            message_id=delivery.message_id,
            at=delivery.at,
            headers=headers,
        ),
        leaving,
    )


def _ways_out(url: str | None) -> dict[str, str]:
    """How mail programs unsubscribe (RFC 2369); with one click where the pages have https (RFC 8058)."""
    if url is None:
        return {}
    once = {"List-Unsubscribe-Post": "List-Unsubscribe=One-Click"} if url.lower().startswith("https:") else {}
    return {"List-Unsubscribe": f"<{url}>"} | once


async def _add_secret(db: Calls, delivery: Delivery, site: str) -> str | None:
    """Fill in `secret_url` where the content asks for one by `secret_path`; why the letter is not wanted any more.

    The secret is in the mail and nowhere else. Each try has one of its own, and all of them work: nobody knows which
    copy arrives.
    """
    path = delivery.content.get("secret_path")
    if delivery.template == "notification" or not isinstance(path, str):
        return None
    secret = secrets.token_urlsafe(32)
    fault: str | None = await db.value(
        "keep_letter_secret", p_delivery=delivery.delivery_id, p_hash=sha256(secret.encode()).digest()
    )
    delivery.content["secret_url"] = f"{site}{path}{secret}"
    return fault


async def _record(db: Calls, delivery: Delivery, outcome: Outcome, *, provider: str, took: float) -> None:
    """Complete the log. While the database is away the result is kept: a message that left must not go unrecorded."""
    status, code, reply, error = _facts(outcome)
    known = {
        "p_provider_id": getattr(outcome, "provider_id", None),
        "p_provider_code": getattr(outcome, "provider_code", None),
        "p_retry_after": getattr(outcome, "retry_after", None),
    }
    for attempt in range(10_000):
        try:
            await db.value(
                "finish_delivery",
                p_delivery=delivery.delivery_id,
                p_status=status,
                p_took_ms=round(took * 1000),
                p_provider=provider,
                p_code=code,
                p_reply=reply,
                p_error=error,
                p_stage=outcome.stage if isinstance(outcome, Refused) else None,
                **known,
            )
            return
        except DatabaseUnavailable:
            await asyncio.sleep(random.uniform(0.05, min(10.0, 0.2 * 2 ** min(attempt, 6))))


def _facts(outcome: Outcome) -> tuple[str, int | None, str | None, str | None]:
    """The log's status, code, reply and error for an outcome."""
    match outcome:
        case Sent(code=code, reply=reply):
            return "sent", code, reply, None
        case Deferred(code=None, reply=reply):
            return "deferred", None, None, reply
        case Deferred(code=code, reply=reply):
            return "deferred", code, reply, f"{code} {reply}"
        case Refused(code=None, reply=reply):
            return "refused", None, None, reply
        case Refused(code=code, reply=reply):
            return "refused", code, reply, f"{code} {reply}"
        case Ambiguous(reply=reply, code=code):
            return "unknown", code, reply if code is not None else None, reply
        case _:
            assert_never(outcome)


def _raise_unless_sent(outcome: Outcome) -> None:
    status, _, _, error = _facts(outcome)
    if status == "refused":
        raise DeliveryRefused(error or status)
    if status != "sent":
        raise DeliveryDeferred(error or status, retry_after=getattr(outcome, "retry_after", None))


# What a channel gets


def message(delivery: Delivery, brand: Brand, notification_id: str) -> Message:
    """The notification as plain text, and as the data that a webhook carries."""
    values = _notification(delivery)
    action, about = values["action"], delivery.about or {}
    body = str(delivery.content.get("body") or about.get("body") or "")
    return Message(
        id=notification_id,
        to=delivery.address,
        subject=values["title"],
        body="\n\n".join("\n".join(lines) for lines in paragraphs(body)),
        link=action["url"] if action else None,
        at=delivery.at,
        urgent=delivery.urgency == "urgent",
        type=delivery.notification_type,
        data={
            "id": notification_id,
            "notification_type": delivery.notification_type,
            "urgency": delivery.urgency,
            **delivery.request,
            "recipient_name": delivery.recipient_name,
            "group_name": delivery.group_name,
            "organization_name": delivery.organization_name or brand.name,
            "content": delivery.content,
            "update": delivery.about,
        },
    )


# What the letter says

_SHARED = {"photos": "new photos", "milestones": "a milestone", "text": "an update"}
_OPEN = {"photos": "See the photos", "milestones": "See the milestone"}


def letter(delivery: Delivery, brand: Brand) -> dict[str, Any]:
    """What the letter of the delivery's template is filled with: the frame's values, and the content."""
    frame = _frame(delivery, brand)
    if delivery.template == "notification":
        return frame | _notification(delivery)
    return {**delivery.content, **frame}


def _frame(delivery: Delivery, brand: Brand) -> dict[str, Any]:
    name, group = one_line(delivery.recipient_name or ""), delivery.group_name
    return {
        "name": name,
        "greeting": f"Hello {name}," if name else "Hello,",
        "address": delivery.address,
        "timezone": delivery.timezone,
        "sender_name": one_line(delivery.organization_name or brand.name),
        "logo_url": web_url(delivery.organization_logo_url if delivery.organization_name else brand.logo_url),
        "reason": f"You receive this because you are part of {group}."
        if group
        else f"This message was sent to {delivery.address}.",
        "when": local_time(delivery.at, delivery.timezone),
        "unsubscribe_url": f"{brand.url}/unsubscribe/{delivery.unsubscribe_token}"
        if brand.url and delivery.unsubscribe_token
        else None,
        "brand": brand,
    }


def _notification(delivery: Delivery) -> dict[str, Any]:
    """The content's own words, else those of the update it is about."""
    content, about = delivery.content, delivery.about or {}
    author, kind = one_line(about.get("author_name") or "Somebody"), about.get("content_type") or "text"
    subject = one_line(content.get("subject") or f"{author}: {about.get('title') or 'an update'}")[:255]
    body = content.get("body") or ""
    return {
        "subject": subject,
        "preview": one_line(content.get("preview") or body or about.get("body") or about.get("title") or "")[:140],
        "eyebrow": delivery.group_name,
        "title": subject if content.get("subject") else f"{author} shared {_SHARED.get(kind, 'an update')}",
        "paragraphs": paragraphs(body),
        "about": _card(about, author) if about else None,
        "action": _action(content, about, kind),
    }


def _card(about: dict[str, Any], author: str) -> dict[str, Any]:
    return {
        "title": one_line(about.get("title") or "An update"),
        "eyebrow": author,
        "paragraphs": paragraphs(about.get("body") or ""),
        "image_url": web_url(about.get("image_url")),
    }


def _action(content: dict[str, Any], about: dict[str, Any], kind: str) -> dict[str, str] | None:
    if url := web_url(content.get("action_url")):
        return {"label": content.get("action_label") or "Open", "url": url}
    if url := web_url(about.get("url")):
        return {"label": _OPEN.get(kind, "Read the update"), "url": url}
    return None


#: As procjobs.subscription_templates() has them: previews are made without a database.
_SUBSCRIBED = frozenset({"daily_report", "digest", "event_reminder", "notices", "notification", "reengagement", "tips"})


def preview(template: str, brand: Brand) -> Letter:
    """The letter as somebody made up would get it, filled with its sample. No row, no mail server."""
    delivery = Delivery(
        status="processing",
        reason=None,
        at=datetime.now(UTC),
        delivery_id=0,
        attempt=1,
        message_id="<preview@localhost>",
        delivery_method="email",
        notification_type=template,
        template=template,
        urgency="normal",
        content=sample(template),
        recipient_name="Ingrid Lindgren",
        address="ingrid@example.com",
        timezone="Europe/Stockholm",
        group_name="The Lindgrens" if template in ("notification", "digest") else None,
        organization_name=brand.name,
        organization_logo_url=brand.logo_url,
        about=None,
        unsubscribe_token="preview" if template in _SUBSCRIBED else None,
    )
    return render(template, **letter(delivery, replace(brand, url=brand.url or "https://jobs.example.com")))
