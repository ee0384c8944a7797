"""What is sent over a channel, and the protocol that every provider keeps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from procjobs.mail import Outcome

__all__ = ["Message", "Provider"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message to one address, as plain text and as data.

    id:   the notification's, the same at every try: what idempotency keys are made of.
    to:   a phone number as +4670..., a Slack channel or member, a URL, the name of a target.
    at:   when this try began, by the database's clock.
    data: the whole notification, for those who read JSON.
    leaving: awaited just before the message may arrive; until then it surely did not. What it raises goes through.
    """

    id: str
    to: str
    subject: str
    body: str = ""
    link: str | None = None
    at: datetime
    urgent: bool = False
    type: str = "notification"
    data: Mapping[str, Any] = field(default_factory=dict)
    leaving: Callable[[], Awaitable[None]] | None = field(default=None, compare=False)

    def text(self, limit: int, *, subject: bool = True) -> str:
        """Subject, body and link, at most `limit` characters: the body is cut, never the link."""
        tail = f"\n\n{self.link}" if self.link else ""
        head = "\n\n".join(part for part in (self.subject if subject else "", self.body) if part)
        return _cut(head, limit - len(tail)) + tail if len(tail) < limit else _cut(head, limit)

    def line(self, limit: int) -> str:
        """The same on one line, for places that take no other."""
        return " ".join(self.text(limit).split())


def _cut(text: str, limit: int) -> str:
    """At most `limit` characters, ended at a word where that costs little."""
    if len(text) <= limit:
        return text
    kept = text[: limit - 1]
    space = max(kept.rfind(" "), kept.rfind("\n"))
    return (kept[:space] if space > limit // 2 else kept).rstrip() + "…"


class Provider(Protocol):
    """Sends messages over one channel. `send` raises nothing but programming errors and cancellation.

    It awaits `message.leaving` just before the message may arrive; Http.post does so when it is given it.
    """

    #: For the delivery log.
    name: str

    async def send(self, message: Message) -> Outcome: ...

    async def close(self) -> None: ...
