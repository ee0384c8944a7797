"""Who may see a page, and what a browser may do with it.

Pages that tell something are open on this machine only: the server listens on a loopback address and is asked for by
a loopback name (so that a hostile page cannot reach it by rebinding a name of its own). Everybody else needs a bearer
token. /health and /ready are open and tell counts only; /unsubscribe is open to whoever has a link. Requests of e-mails
(/api) are let in as pages are, and nothing that a page of another site can send.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = [
    "CONTENT_SECURITY_POLICY",
    "HEADERS",
    "MAIL_POLICY",
    "Guard",
    "SecurityHeaders",
    "is_loopback",
    "is_own",
]

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; frame-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
#: A mail is a stranger's document: no scripts, no requests, its own style attributes, and shown in our frame only.
MAIL_POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'"
)
#: On every answer that does not bring its own.
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine."""
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Guard:
    """Decides who may see what.

    bound_to:   the address the server listens on.
    tokens:     bearer tokens that open the pages from anywhere.
    user_token: which of them is an ordinary user's.
    """

    def __init__(self, bound_to: str, tokens: Iterable[str] = (), *, user_token: str | None = None) -> None:
        self._local = is_loopback(bound_to)
        self._tokens = [token.encode() for token in tokens if token]
        self._user = [user_token.encode()] if user_token else []

    def opens(self, request: HTTPConnection) -> bool:
        """Whether this request may see the pages."""
        if self._local and is_loopback(_host(request)):
            return True
        return _bears(request, self._tokens)

    def is_user(self, request: HTTPConnection) -> bool:
        """Whether this request brings the ordinary user's token, on this machine too."""
        return _bears(request, self._user)


def _bears(request: HTTPConnection, tokens: Iterable[bytes]) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and any(hmac.compare_digest(given.strip().encode(), token) for token in tokens)


def is_own(request: HTTPConnection, base_url: str | None = None) -> bool:
    """Whether a form was sent from a page of ours: what every browser says, and what programs, which say nothing, may.

    base_url: under which name we are known, where a proxy stands before us. An origin of `null` is that of a page that
    sends no referrer, as ours do; then Sec-Fetch-Site decides.
    """
    if (site := request.headers.get("sec-fetch-site")) is not None:
        return site == "same-origin"
    origin = request.headers.get("origin", "null")
    own = {request.headers.get("host", ""), urlsplit(base_url or "").netloc} - {""}
    return origin == "null" or urlsplit(origin).netloc in own


def _host(request: HTTPConnection) -> str:
    host = request.headers.get("host", "")
    if host.startswith("["):
        return host.partition("]")[0]
    return host.partition(":")[0]


class SecurityHeaders:
    """Puts the protective headers on every answer that does not bring its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, guarded if scope["type"] == "http" else send)
