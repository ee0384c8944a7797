"""The providers of channels for tests: one HTTP server on 127.0.0.1 that answers like the real ones.

Each endpoint checks the request as the real one does and refuses what it would refuse, in its own words.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qsl

import uvicorn
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

#: Instead of an answer: take the request, and say nothing more.
HANG = "hang"
#: Before the usual answer: wait until the test releases it.
HOLD = "hold"

ACCOUNT, TWILIO_TOKEN = "AC00000000000000000000000000000001", "canary-twilio-token"
META_NUMBER, META_TOKEN = "106540352242922", "canary-meta-token"
SLACK_TOKEN, SLACK_HOOK = "xoxb-canary-slack-token", "T00000000/B00000000/canaryslackwebhook"
SIGNING_KEY = "whsec_" + base64.b64encode(b"canary-of-the-signing-key").decode()
CHANNELS = {"C024BE91L", "#general", "U024BE7LH"}

Answer = tuple[int, Any, dict[str, str]]


@dataclass(frozen=True, slots=True)
class Taken:
    """One request: where it went, its headers, and its form or JSON."""

    path: str
    headers: dict[str, str]
    content: Any
    body: bytes


@dataclass
class ChannelServer:
    """`async with ChannelServer() as server`: keeps every request in `taken`.

    answers: still to be given before the usual ones: (status, JSON, text or pieces of text, headers), HANG or HOLD.
    """

    answers: list[Answer | str] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    hanging: asyncio.Event = field(default_factory=asyncio.Event)
    held: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)
    connections: set[Any] = field(default_factory=set)
    url: str = ""
    port: int = 0

    async def __aenter__(self) -> Self:
        routes = {
            f"/2010-04-01/Accounts/{ACCOUNT}/Messages.json": self._twilio,
            f"/graph/{META_NUMBER}/messages": self._meta,
            "/slack/chat.postMessage": self._slack,
            f"/services/{SLACK_HOOK}": self._slack_hook,
            "/hook": self._hook,
            "/apprise": self._anything,
        }
        app = Starlette(routes=[Route(path, self._answered(usual), methods=["POST"]) for path, usual in routes.items()])
        config = uvicorn.Config(
            app, port=0, log_config=None, access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        config.load()
        self._server.lifespan = config.lifespan_class(config)
        await self._server.startup()
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stopped.set()
        await self._server.shutdown()

    def __post_init__(self) -> None:
        self._stopped = asyncio.Event()

    def environ(self, **changes: str) -> dict[str, str]:
        """The settings with which every channel is set up and goes here."""
        return {
            "PROCJOBS_TWILIO_ACCOUNT_SID": ACCOUNT,
            "PROCJOBS_TWILIO_AUTH_TOKEN": TWILIO_TOKEN,
            "PROCJOBS_TWILIO_FROM": "+15005550006",
            "PROCJOBS_TWILIO_URL": self.url,
            "PROCJOBS_WHATSAPP_PROVIDER": "meta",
            "PROCJOBS_WHATSAPP_FROM": "+14155238886",
            "PROCJOBS_META_PHONE_NUMBER_ID": META_NUMBER,
            "PROCJOBS_META_ACCESS_TOKEN": META_TOKEN,
            "PROCJOBS_META_URL": f"{self.url}/graph",
            "PROCJOBS_SLACK_TOKEN": SLACK_TOKEN,
            "PROCJOBS_SLACK_URL": f"{self.url}/slack",
            "PROCJOBS_SLACK_WEBHOOKS": f"#ops={self.url}/services/{SLACK_HOOK}",
            "PROCJOBS_WEBHOOK_SECRET": SIGNING_KEY,
            "PROCJOBS_OUTGOING_PORTS": f"80,443,{self.port}",
            "PROCJOBS_OUTGOING_ALLOW": "127.0.0.1",
            "PROCJOBS_APPRISE_TARGETS": f"oncall=json://canary-user:canary-apprise-password@127.0.0.1:{self.port}/apprise",
            "PROCJOBS_CHANNEL_TIMEOUT": "2",
            **changes,
        }

    def _answered(self, usual: Callable[[Taken], Answer]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            body = await request.body()
            if request.headers["content-type"].startswith("application/x-www-form-urlencoded"):
                content: Any = dict(parse_qsl(body.decode()))
            else:
                content = json.loads(body)
            taken = Taken(request.url.path, dict(request.headers), content, body)
            self.taken.append(taken)
            self.connections.add(request.client)
            given = self.answers.pop(0) if self.answers else usual(taken)
            if given == HOLD:
                self.held += 1
                await self.released.wait()
                given = usual(taken)
            if isinstance(given, str):
                self.hanging.set()
                await self._stopped.wait()
                return Response(status_code=500)
            status, said, headers = given
            if isinstance(said, AsyncIterator):
                return StreamingResponse(said, status, headers)
            if isinstance(said, str):
                return PlainTextResponse(said, status, headers)
            return JSONResponse(said, status, headers)

        return endpoint

    def _twilio(self, taken: Taken) -> Answer:
        login = base64.b64encode(f"{ACCOUNT}:{TWILIO_TOKEN}".encode()).decode()
        if taken.headers.get("authorization") != f"Basic {login}":
            return twilio_error(401, 20003, "Authenticate")
        form, to = taken.content, taken.content.get("To", "")
        whatsapp = to.startswith("whatsapp:")
        if whatsapp != form.get("From", "").startswith("whatsapp:") and "MessagingServiceSid" not in form:
            return twilio_error(400, 21212, f"The 'From' number {form.get('From')} is not a valid phone number")
        if to.removeprefix("whatsapp:") == "+15005550001":
            return twilio_error(400, 21211, f"The 'To' number {to} is not a valid phone number.")
        if "Body" not in form and "ContentSid" not in form:
            return twilio_error(400, 21602, "Message body is required.")
        if len(form.get("Body", "")) > 1600:
            return twilio_error(400, 21617, "The concatenated message body exceeds the 1600 character limit.")
        sid = f"SM{len(self.taken):032x}"
        return 201, {"sid": sid, "status": "queued", "to": to, "error_code": None, "error_message": None}, {}

    def _meta(self, taken: Taken) -> Answer:
        if taken.headers.get("authorization") != f"Bearer {META_TOKEN}":
            return meta_error(401, 190, "Error validating access token: Session has expired.")
        said = taken.content
        if said.get("messaging_product") != "whatsapp" or said.get("type") not in ("text", "template"):
            return meta_error(400, 100, "Invalid parameter")
        if len(said.get("text", {}).get("body", "")) > 4096:
            return meta_error(400, 100, "Param text['body'] must be at most 4096 characters long.")
        for part in said.get("template", {}).get("components", []):
            if any("\n" in parameter["text"] for parameter in part["parameters"]):
                return meta_error(400, 132018, "Param text cannot have new-line/tab characters")
        answer = {
            "messaging_product": "whatsapp",
            "contacts": [{"input": said["to"], "wa_id": said["to"].removeprefix("+")}],
            "messages": [{"id": f"wamid.{len(self.taken)}"}],
        }
        return 200, answer, {}

    def _slack(self, taken: Taken) -> Answer:
        if taken.headers.get("authorization") != f"Bearer {SLACK_TOKEN}":
            return 200, {"ok": False, "error": "invalid_auth"}, {}
        if taken.content.get("channel") not in CHANNELS:
            return 200, {"ok": False, "error": "channel_not_found"}, {}
        if not taken.content.get("text"):
            return 200, {"ok": False, "error": "no_text"}, {}
        return 200, {"ok": True, "channel": "C024BE91L", "ts": f"1503435956.{len(self.taken):06}"}, {}

    def _slack_hook(self, taken: Taken) -> Answer:
        return (200, "ok", {}) if taken.content.get("text") else (400, "no_text", {})

    def _hook(self, taken: Taken) -> Answer:
        try:
            Verifier(SIGNING_KEY).verify(taken.body, taken.headers)
        except WebhookVerificationError:
            return 401, "the signature is wrong", {}
        return 204, "", {}

    def _anything(self, taken: Taken) -> Answer:
        return 200, "", {}


def twilio_error(status: int, code: int, message: str, **headers: str) -> Answer:
    """As Twilio words it."""
    more = f"https://www.twilio.com/docs/errors/{code}"
    return status, {"code": code, "message": message, "more_info": more, "status": status}, headers


def meta_error(status: int, code: int, message: str, details: str = "") -> Answer:
    """As Meta words it."""
    error = {"message": f"(#{code}) {message}", "type": "OAuthException", "code": code, "fbtrace_id": "A1b2C3"}
    return status, {"error": error | ({"error_data": {"details": details}} if details else {})}, {}


async def endless(pause: float) -> AsyncIterator[bytes]:
    """A body without end: 64 KiB a piece as fast as it goes, or one byte after each pause."""
    while True:
        await asyncio.sleep(pause)
        yield b"x" if pause else b"x" * 65_536
