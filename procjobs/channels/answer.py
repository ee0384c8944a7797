"""What a server answered, and what its status stands for. Nothing is imported that may not be installed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from procjobs.mail import Ambiguous, Deferred, Outcome, Refused, Sent

__all__ = ["LONGEST_WAIT", "Answer", "by_status", "unlike"]

#: Seconds; a provider that asks for more patience is asked again after that.
LONGEST_WAIT = 86_400.0
#: 4xx that say "not now" rather than "never".
_NOT_NOW = frozenset({408, 409, 425, 429})


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered; `body` is at most the first 64 KiB."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace").replace("\x00", "").strip()

    @property
    def json(self) -> dict[str, Any]:
        """The JSON object of the body; empty for anything else."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def retry_after(self) -> float | None:
        """Seconds that the server asked to wait, by Retry-After: a number or a date (RFC 9110, 10.2.3)."""
        value = self.headers.get("retry-after", "").strip()
        if value.isascii() and value.isdigit():
            return min(float(value[:9]), LONGEST_WAIT)
        try:
            at = parsedate_to_datetime(value)
        except ValueError:
            return None
        if at.tzinfo is None:
            at = at.replace(tzinfo=UTC)
        return min(max(0.0, (at - datetime.now(UTC)).total_seconds()), LONGEST_WAIT)


def by_status(answer: Answer, words: str, *, code: str | None = None, provider_id: str | None = None) -> Outcome:
    """The outcome that an HTTP status stands for: 2xx Sent; 3xx, 5xx, 408, 409, 425, 429 Deferred; others Refused.

    A redirect is not followed: something stands between, or the provider's address is wrong, which is ours to mend.

    code: the provider's own error code, for the record.
    """
    status = answer.status
    if 200 <= status < 300:
        return Sent(status, words, provider_id=provider_id)
    if 300 <= status < 400:
        return Deferred(status, "it redirects, which is not followed: check the provider's address, and proxies")
    if status >= 500 or status in _NOT_NOW:
        return Deferred(status, words, provider_code=code, retry_after=answer.retry_after, limited=status == 429)
    return Refused(status, words, provider_code=code)


def unlike(answer: Answer, provider: str) -> Ambiguous:
    """A 2xx whose body the provider does not write, or of which the end is missing: nobody knows who took what."""
    words = f"HTTP {answer.status}, but not an answer of {provider}'s: something may stand between, such as a proxy"
    return Ambiguous(words, code=answer.status)
