"""Webhooks: the whole notification as JSON, signed by the Standard Webhooks specification, to addresses of users.

The addresses are in rows that users write, so the requests go through the guard of procjobs.net.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC

from standardwebhooks import Webhook as Signer

from procjobs.channels.answer import Answer, by_status
from procjobs.channels.http import Http
from procjobs.channels.message import Message
from procjobs.mail import Outcome, Refused

__all__ = ["Webhook"]


class Webhook:
    """secrets: each signs, the newest first, so that receivers can change over from an old one."""

    def __init__(self, http: Http, *, secrets: Sequence[str]) -> None:
        self.name = "webhook"
        self._http = http
        self._signers = [Signer(secret) for secret in secrets]

    async def send(self, message: Message) -> Outcome:
        content = {"type": f"notification.{message.type}", "timestamp": _time(message), "data": message.data}
        body = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        key = f"msg_{message.id}"
        at = message.at.astimezone(UTC)  # what is signed is its wall clock, taken for UTC
        headers = {
            "Content-Type": "application/json",
            "webhook-id": key,  # the same at every try: receivers know a second copy by it
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": " ".join(signer.sign(key, at, body) for signer in self._signers),
        }
        answer = await self._http.post(message.to, content=body.encode(), headers=headers, leaving=message.leaving)
        return _judge(answer) if isinstance(answer, Answer) else answer

    async def close(self) -> None:
        await self._http.close()


def _time(message: Message) -> str:
    """When the notification was requested: the same at every try."""
    return str(message.data.get("created_at") or message.at.isoformat())


def _judge(answer: Answer) -> Outcome:
    if 300 <= answer.status < 400:
        return Refused(answer.status, "it redirects, which is not followed: set the address that it leads to")
    if answer.status == 410:
        return Refused(answer.status, "the receiver wants no more of these (410 Gone)")
    return by_status(answer, f"HTTP {answer.status}")
