"""A real mail server for tests (aiosmtpd), in the test's own event loop, that answers as a test wants."""

from __future__ import annotations

import asyncio
import ssl
import time
import warnings
from dataclasses import dataclass, field
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from typing import Any, Self, cast

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

#: Instead of a reply: say nothing more, or cut the connection.
HANG = "hang"
DROP = "drop"
#: Before the usual reply: wait until the test releases it. What came with DATA is taken by then.
HOLD = "hold"


@dataclass
class MailServer:
    """`async with MailServer() as server`: listens on 127.0.0.1:server.port and keeps what it takes in `server.raw`.

    replies: for each of MAIL, RCPT, DATA the replies still to be given before the usual one; HANG, DROP and HOLD are
             allowed. Those for CONNECT are given in place of a greeting.
    login:   user and password that the server asks for.
    """

    replies: dict[str, list[str]] = field(default_factory=dict)
    login: tuple[str, str] | None = None
    tls_context: ssl.SSLContext | None = None
    implicit_tls: bool = False
    utf8: bool = False
    port: int = 0
    raw: list[bytes] = field(default_factory=list)
    recipients: list[list[str]] = field(default_factory=list)
    taken_at: list[float] = field(default_factory=list)
    connections: int = 0
    most_at_once: int = 0
    encrypted: list[bool] = field(default_factory=list)
    hanging: asyncio.Event = field(default_factory=asyncio.Event)
    held: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def messages(self) -> list[EmailMessage]:
        """What was taken, parsed."""
        parser = BytesParser(policy=policy.default)
        found = [parser.parsebytes(raw) for raw in self.raw]
        return [message for message in found if isinstance(message, EmailMessage)]

    async def __aenter__(self) -> Self:
        self._open: set[SMTP] = set()
        self._server = await asyncio.get_running_loop().create_server(
            self._protocol, "127.0.0.1", self.port, ssl=self.tls_context if self.implicit_tls else None
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        self.hang_up()
        await self._server.wait_closed()

    def hang_up(self) -> None:
        """Cut every connection there is."""
        for protocol in list(self._open):
            _cut(protocol)

    def _protocol(self) -> SMTP:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a login without TLS: it is a test
            return _Protocol(
                self,
                _Handler(self),
                hostname="mail.example",
                enable_SMTPUTF8=self.utf8,
                tls_context=None if self.implicit_tls else self.tls_context,
                auth_required=self.login is not None,
                auth_require_tls=False,
                authenticator=self._authenticate,
            )

    def _authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
    ) -> AuthResult:
        given = (data.login.decode(), data.password.decode()) if isinstance(data, LoginPassword) else None
        return AuthResult(success=given == self.login, handled=False)

    async def answer(self, stage: str, server: SMTP, usual: str) -> str:
        """The reply to give at a stage: the next of `replies`, or the usual one."""
        left = self.replies.get(stage)
        reply = left.pop(0) if left else usual
        if reply == HANG:
            self.hanging.set()
            await asyncio.Event().wait()
        if reply == DROP:
            _cut(server)
            await asyncio.Event().wait()
        if reply == HOLD:
            self.held += 1
            await self.released.wait()
            return usual
        return reply

    def holds(self, stage: str) -> bool:
        """Whether the next reply at this stage is held back."""
        return self.replies.get(stage, [])[:1] == [HOLD]


class _Handler:
    """What aiosmtpd calls. It looks at every attribute of its handler for each connection: the server itself would read
    all its mail then."""

    def __init__(self, owner: MailServer) -> None:
        self._owner = owner

    async def handle_MAIL(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        reply = await self._owner.answer("MAIL", server, "250 OK")
        if reply.startswith("25"):
            envelope.mail_from = address
        return reply

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        reply = await self._owner.answer("RCPT", server, "250 OK")
        if reply.startswith("25"):
            envelope.rcpt_tos.append(address)
        return reply

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        usual = f"250 queued as {len(self._owner.raw) + 1}"
        if self._owner.holds("DATA"):
            self._keep(server, envelope)
            reply = await self._owner.answer("DATA", server, usual)
        else:
            reply = await self._owner.answer("DATA", server, usual)
            if reply.startswith("250"):
                self._keep(server, envelope)
        if reply.startswith("250"):
            self._owner.taken_at.append(time.time())
        return reply

    def _keep(self, server: SMTP, envelope: Envelope) -> None:
        assert isinstance(envelope.content, bytes)
        self._owner.raw.append(envelope.content)
        self._owner.recipients.append(list(envelope.rcpt_tos))
        self._owner.encrypted.append(_transport(server).get_extra_info("ssl_object") is not None)


def _transport(protocol: SMTP) -> asyncio.WriteTransport:
    return cast(asyncio.WriteTransport, protocol.transport)


def _cut(protocol: SMTP) -> None:
    if protocol.transport is not None:
        _transport(protocol).abort()


class _Protocol(SMTP):
    """Counts the connections."""

    def __init__(self, owner: MailServer, *args: Any, **kwargs: Any) -> None:
        self._owner = owner
        self._counted = False
        super().__init__(*args, **kwargs)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if not self._counted:  # STARTTLS makes it twice
            self._counted = True
            self._owner.connections += 1
        self._owner._open.add(self)
        self._owner.most_at_once = max(self._owner.most_at_once, len(self._owner._open))

    async def _handle_client(self) -> None:
        if greeting := self._owner.replies.get("CONNECT"):
            said = greeting.pop(0)
            if said == HANG:
                self._owner.hanging.set()
                await asyncio.Event().wait()
            await self.push(said)
            _transport(self).close()
            return
        await super()._handle_client()

    def connection_lost(self, error: Exception | None) -> None:
        self._owner._open.discard(self)
        super().connection_lost(error)
