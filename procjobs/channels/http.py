"""What all providers share: requests over pooled connections, and what went wrong as a value."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2

from procjobs.channels.answer import Answer
from procjobs.channels.hush import hushed
from procjobs.mail import Ambiguous, Deferred, Outcome, Refused
from procjobs.net import AddressRefused, no_cookies

__all__ = ["Http"]

#: Of an answer this many bytes are read: what it says is in there, whoever sends whatever comes after.
_LONGEST_ANSWER = 65_536


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

    async def post(
        self, url: str, *, leaving: Callable[[], Awaitable[None]] | None = None, **request: Any
    ) -> Answer | Outcome:
        """The answer, or what its absence means. Contact lost once the request began to leave is Ambiguous.

        leaving: awaited once, before that.
        """
        left = False
        answer: Answer | None = None

        async def trace(event: str, _: Any) -> None:
            nonlocal left
            if not left and event.endswith("send_request_headers.started"):
                if leaving is not None:
                    await leaving()
                left = True

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
            return Ambiguous(f"no answer to what was sent: {words}") if left else Deferred(None, _words(error))

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
