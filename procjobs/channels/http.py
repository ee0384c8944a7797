"""What all providers share: requests over pooled connections, and what went wrong as a value."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from procjobs.channels.hush import hushed
from procjobs.mail import Ambiguous, Deferred, Outcome, Refused, Sent
from procjobs.net import AddressRefused, no_cookies

__all__ = ["LONGEST_WAIT", "Answer", "Http", "by_status"]

#: Of an answer this many bytes are read: what it says is in there, whoever sends whatever comes after.
_LONGEST_ANSWER = 65_536
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


class Http:
    """Posts to one provider. timeout: seconds for each step; an exchange takes three times that at most."""

    def __init__(self, client: httpx2.AsyncClient, timeout: float) -> None:
        self._client = client
        self._timeout = timeout

    @classmethod
    def pooled(cls, timeout: float) -> Http:
        """For a provider whose address the operator set; proxies of the environment are used."""
        limits = httpx2.Limits(max_connections=20, max_keepalive_connections=10, keepalive_expiry=15)
        client = httpx2.AsyncClient(timeout=timeout, limits=limits, cookies=no_cookies(), follow_redirects=False)
        return cls(client, timeout)

    async def post(self, url: str, **request: Any) -> Answer | Outcome:
        """The answer, or what its absence means. Contact lost once the request began to leave is Ambiguous."""
        leaving = False
        answer: Answer | None = None

        async def trace(event: str, _: Any) -> None:
            nonlocal leaving
            leaving = leaving or event.endswith("send_request_headers.started")

        headers = {"User-Agent": "procjobs", "Accept-Encoding": "identity", **request.pop("headers", {})}
        try:
            with hushed():
                async with asyncio.timeout(3 * self._timeout):
                    async with self._client.stream(
                        "POST", url, headers=headers, extensions={"trace": trace}, **request
                    ) as response:
                        answer = Answer(response.status_code, response.headers, b"")
                        body = await _beginning(response)
                        return Answer(response.status_code, response.headers, body)
        except AddressRefused as error:
            return Refused(None, str(error))
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError, UnicodeError) as error:
            return Refused(None, f"the request cannot be made: {type(error).__name__}")
        except (httpx2.RequestError, TimeoutError, OSError) as error:
            if answer is not None:
                return answer  # the rest of it says nothing that its status does not
            words = type(error).__name__
            return Ambiguous(f"no answer to what was sent: {words}") if leaving else Deferred(None, _words(error))

    async def close(self) -> None:
        await self._client.aclose()


async def _beginning(response: httpx2.Response) -> bytes:
    found = bytearray()
    async for chunk in response.aiter_raw():
        found += chunk
        if len(found) >= _LONGEST_ANSWER:
            break
    return bytes(found[:_LONGEST_ANSWER])


def _words(error: Exception) -> str:
    return f"no connection: {error}" if str(error) else f"no connection: {type(error).__name__}"


def by_status(answer: Answer, words: str, *, code: str | None = None, provider_id: str | None = None) -> Outcome:
    """The outcome that an HTTP status stands for: 2xx Sent; 5xx, 408, 409, 425, 429 Deferred; others Refused.

    code: the provider's own error code, for the record.
    """
    status = answer.status
    if 200 <= status < 300:
        return Sent(status, words, provider_id=provider_id)
    if status >= 500 or status in _NOT_NOW:
        return Deferred(status, words, provider_code=code, retry_after=answer.retry_after, limited=status == 429)
    return Refused(status, words, provider_code=code)
