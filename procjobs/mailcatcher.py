"""A mailbox on this machine: an SMTP server that keeps every mail in a maildir, and a reader of that maildir.

`procjobs up` sends all mail here, so that a demonstration never reaches a stranger. Nothing is relayed.
"""

from __future__ import annotations

import asyncio
import html
import logging
import mailbox
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from email.utils import format_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from aiosmtpd.smtp import SMTP, Envelope, Session

__all__ = ["Mail", "MailCatcher", "Mailbox", "Summary"]

logger = logging.getLogger(__name__)

_ID = re.compile(r"[0-9][A-Za-z0-9._=-]{0,199}")
_ARRIVED = re.compile(r"(\d+)\.M(\d+)")
_HEAD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Summary:
    """One line of the list of mails."""

    id: str
    at: datetime
    sender: str
    recipients: str
    subject: str
    size: int


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail, opened. `text` and `html` are None where the mail has no such part."""

    summary: Summary
    headers: list[tuple[str, str]]
    text: str | None
    html: str | None
    attachments: list[str]


class Mailbox:
    """The mails of one maildir, newest first. Safe beside a server that writes to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self) -> None:
        """Make the maildir's folders, unless they are there."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in ("tmp", "new", "cur"):  # the standard library makes them only together with the maildir itself
            (self.path / folder).mkdir(mode=0o700, exist_ok=True)

    def add(self, content: bytes) -> str:
        """Write a mail, durably, and return its id."""
        self.make()
        return mailbox.Maildir(self.path).add(content)

    def count(self) -> int:
        """How many mails there are."""
        return sum(1 for _ in self._files())

    def list(self, limit: int = 50, offset: int = 0) -> list[Summary]:
        """Up to `limit` mails, newest first, after the first `offset`; reads only their heads."""
        newest = sorted(self._files(), key=lambda entry: (_arrived(entry.name), entry.name), reverse=True)
        found = (self._summary(Path(entry.path)) for entry in newest[offset : offset + limit])
        return [summary for summary in found if summary is not None]

    def read(self, mail_id: str) -> Mail | None:
        """The mail with that id, or None."""
        raw = self.raw(mail_id)
        if raw is None:
            return None
        message = _parse(raw)
        return Mail(
            summary=_summarize(mail_id, message, len(raw)),
            headers=[(name, _header(message, name, position)) for name, position in _positions(message)],
            text=_body(message, "plain"),
            html=_body(message, "html"),
            attachments=[part.get_filename() or part.get_content_type() for part in _attachments(message)],
        )

    def raw(self, mail_id: str) -> bytes | None:
        """The mail as it came, or None if there is none with that id."""
        if not _ID.fullmatch(mail_id):
            return None
        for entry in self._files():
            if _id(entry.name) == mail_id:
                return Path(entry.path).read_bytes()
        return None

    def _files(self) -> Iterator[os.DirEntry[str]]:
        for folder in ("new", "cur"):
            try:
                with os.scandir(self.path / folder) as entries:
                    yield from (entry for entry in entries if _ID.fullmatch(_id(entry.name)))
            except FileNotFoundError:
                continue

    def _summary(self, path: Path) -> Summary | None:
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                head = file.read(_HEAD_BYTES)
        except FileNotFoundError:  # deleted, or moved from new to cur, since the folder was read
            return None
        return _summarize(_id(path.name), _parse(head, headers_only=True), size)


class MailCatcher:
    """The SMTP server. `start()` listens, `stop()` closes; `address` says where."""

    def __init__(
        self, box: Mailbox, host: str = "127.0.0.1", port: int = 0, *, max_bytes: int = 25 * 1024 * 1024
    ) -> None:
        self._box = box
        self._where = (host, port)
        self._max_bytes = max_bytes
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port; the port is the real one also when 0 (any free) was asked for."""
        if self._server is None:
            return self._where
        host, port = self._server.sockets[0].getsockname()[:2]
        return str(host), int(port)

    async def start(self) -> None:
        """Listen, over a maildir that is there from now on. Raises OSError when the port is taken."""
        from aiosmtpd.smtp import SMTP

        def session() -> SMTP:
            return SMTP(
                self,
                data_size_limit=self._max_bytes,
                enable_SMTPUTF8=True,
                hostname=socket.gethostname(),
                ident="procjobs mail catcher",
                authenticator=_welcome,
                auth_require_tls=False,
            )

        self._box.make()
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(session, *self._where)

    async def stop(self) -> None:
        """Stop listening and drop open connections; safe to call twice."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Keep one mail; the reply names it. aiosmtpd calls this by its name."""
        content = _received(session, envelope) + cast(bytes, envelope.content)
        try:
            mail_id = await asyncio.to_thread(self._box.add, content)
        except OSError as error:
            logger.error("a mail could not be kept: %s", error)
            return "452 4.3.1 the mailbox cannot be written, try again later"
        logger.info("mail kept as %s", mail_id)
        return f"250 2.0.0 kept as {mail_id}"


def _welcome(*_: object) -> Any:
    """Any login will do: a mail server that was configured with one must work here unchanged."""
    from aiosmtpd.smtp import AuthResult

    return AuthResult(success=True)


def _received(session: Any, envelope: Any) -> bytes:
    """The headers that a mail server puts before a mail: whom it was really from and for."""
    peer = session.peer[0] if isinstance(session.peer, tuple) else "local"
    lines = [f"Return-Path: <{envelope.mail_from}>"]
    lines += [f"Delivered-To: {recipient}" for recipient in envelope.rcpt_tos]
    now = format_datetime(datetime.now(UTC))
    lines += [f"Received: from {session.host_name or 'unknown'} ([{peer}]) by procjobs mail catcher; {now}"]
    return "".join(f"{line}\r\n" for line in lines).encode("utf-8", "replace")


def _id(name: str) -> str:
    return name.split(":", 1)[0]


def _arrived(name: str) -> tuple[int, int]:
    found = _ARRIVED.match(name)
    return (int(found[1]), int(found[2])) if found else (int(re.match(r"\d+", name)[0]), 0)  # type: ignore[index]


def _parse(raw: bytes, *, headers_only: bool = False) -> EmailMessage:
    return BytesParser(policy=policy.default).parsebytes(raw, headersonly=headers_only)


def _header(message: EmailMessage, name: str, position: int = 0) -> str:
    """A header decoded for reading; what cannot be parsed is shown as it came."""
    try:
        return str((message.get_all(name) or [""])[position])
    except Exception:
        raw = [value for header, value in message.raw_items() if header.lower() == name.lower()]
        return str(raw[position]) if position < len(raw) else ""


def _positions(message: EmailMessage) -> Iterator[tuple[str, int]]:
    seen: dict[str, int] = {}
    for name, _ in message.raw_items():
        position = seen.get(name.lower(), 0)
        seen[name.lower()] = position + 1
        yield name, position


def _summarize(mail_id: str, message: EmailMessage, size: int) -> Summary:
    seconds, microseconds = _arrived(mail_id)
    return Summary(
        id=mail_id,
        at=datetime.fromtimestamp(seconds + microseconds / 1e6, UTC),
        sender=_header(message, "From"),
        recipients=_header(message, "To") or _header(message, "Delivered-To"),
        subject=_header(message, "Subject"),
        size=size,
    )


def _body(message: EmailMessage, kind: str) -> str | None:
    part = message.get_body(preferencelist=(kind,))
    if part is None:
        return None
    try:
        return cast(str, part.get_content())
    except (LookupError, UnicodeError):  # a charset Python does not know
        return cast(bytes, part.get_payload(decode=True) or b"").decode("utf-8", "replace")


def _attachments(message: EmailMessage) -> Iterator[EmailMessage]:
    if message.is_multipart():
        yield from message.iter_attachments()


def text_of(mail: Mail) -> str:
    """The mail for a terminal: its text, else its HTML without tags."""
    if mail.text is not None:
        return mail.text
    bare = re.sub(r"(?is)<(script|style).*?</\1>|<[^>]+>", " ", mail.html or "")
    return re.sub(r"\s+\n", "\n", html.unescape(bare))
