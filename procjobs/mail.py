"""Mail: compose a message and hand it to a mail server over pooled connections.

    await mailer.send(mail)  ->  Sent | Deferred | Refused | Ambiguous

What the server answers is a value, not an exception: 2xx is Sent; 4xx, no connection and a refused login are Deferred
(try again); any other 5xx is Refused (do not). Contact lost after DATA has begun is Ambiguous: the message may have
been taken (RFC 5321, 4.5.3.2), so it is tried again under the same Message-ID, by which receivers know a second copy.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.header import Header
from email.headerregistry import Address, HeaderRegistry
from email.message import EmailMessage
from email.policy import EmailPolicy
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from procjobs.errors import SettingsError
from procjobs.letters import CONTROL
from procjobs.settings import split_address

try:
    import aiosmtplib
except ImportError:  # the extra `email` is not installed: Mailer says so
    aiosmtplib = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from procjobs.settings import Settings

__all__ = ["Ambiguous", "Deferred", "Mail", "Mailer", "Outcome", "Refused", "Sent", "compose", "parse_sender"]

_NO_PACKAGE = "mail needs aiosmtplib: pip install 'procjobs[email]'"
_ADDRESS = re.compile(r"[^\s@<>\"(),:;\[\]\\\x00-\x1f\x7f]+@[^\s@<>\"(),:;\[\]\\\x00-\x1f\x7f]+")
#: Headers whose value is one long word; folding would break them (one-click unsubscribe, threading).
_UNFOLDED = frozenset({"list-unsubscribe", "message-id", "in-reply-to", "references"})


# Outcomes


@dataclass(frozen=True, slots=True)
class Sent:
    """The server took the message; `reply` are its words, often with its queue id.

    code:        the reply's, of SMTP or HTTP; None where there is none.
    provider_id: the provider's own id of the message.
    """

    code: int | None
    reply: str
    provider_id: str | None = None


@dataclass(frozen=True, slots=True)
class Deferred:
    """Not now: a 4xx reply, or (code None) no conversation at all. Worth trying again.

    provider_code: the provider's own name or number of the error.
    retry_after:   seconds that the provider asked to wait.
    limited:       it was too much at a time: nobody looked at the message.
    unprepared:    this worker lacks a setting or a package: nobody was asked, another worker may have it.
    """

    code: int | None
    reply: str
    provider_code: str | None = None
    retry_after: float | None = None
    limited: bool = False
    unprepared: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """Never: a 5xx reply, or (code None) a message that cannot be written at all. Not worth trying again.

    stage: the command that the server replied to: mail, rcpt or data.
    """

    code: int | None
    reply: str
    provider_code: str | None = None
    stage: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """The message may or may not have been taken: contact was lost after DATA had begun, or the answer says neither.

    code: HTTP status of such an answer.
    """

    reply: str
    code: int | None = None


#: The provider_code of a server that refuses us, whatever the message: its breaker counts that as a failure.
_NO_CONNECTION = "no_connection"

Outcome: TypeAlias = Sent | Deferred | Refused | Ambiguous
_Leaving: TypeAlias = Callable[[], Awaitable[None]] | None


# Composing


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """One message to one recipient."""

    to: str
    name: str
    subject: str
    text: str
    html: str
    message_id: str
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    headers: Mapping[str, str] = field(default_factory=dict)


class _Registry(HeaderRegistry):
    """The standard library's, which makes a class for each header of each mail: a fifth of the time of composing."""

    def __init__(self) -> None:
        super().__init__()
        self._classes: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        name = name.lower()
        if name not in self._classes:
            self._classes[name] = super().__getitem__(name)
        return self._classes[name]


class _Policy(EmailPolicy):
    """SMTP's policy, but for what the standard library spoils: long words, spaces between encoded words, quoted names.

    When it folds a long name that stands in quotes it leaves them out: a comma in the name then parts addresses.
    """

    def fold_binary(self, name: str, value: Any) -> bytes:
        if name.lower() in _UNFOLDED and self.max_line_length != 998:
            return self.clone(max_line_length=998).fold_binary(name, value)
        if isinstance(value, str):
            long = bool(getattr(value, "addresses", ())) and len(name) + len(value) > 75
            if long or not (value.isascii() or self.utf8):
                return _encoded(name, value)
        return super().fold_binary(name, value)


def _encoded(name: str, value: str) -> bytes:
    """A header beyond ASCII in encoded words of RFC 2047; of an address only the name is encoded."""
    words, rest = value, ""
    if addresses := getattr(value, "addresses", ()):
        words, rest = addresses[0].display_name, f" <{addresses[0].addr_spec}>"
    encoded = Header(words, "utf-8", header_name=name, maxlinelen=75).encode(linesep="\r\n")
    if rest and len(encoded.rpartition("\n")[2]) + len(name) + len(rest) > 75:
        rest = f"\r\n{rest}"
    return f"{name}: {encoded}{rest}\r\n".encode()  # beyond ASCII is only an address that is so, by SMTPUTF8


_SMTP = _Policy(linesep="\r\n", header_factory=_Registry())
_SMTPUTF8 = _SMTP.clone(utf8=True)


def _address(name: str, address: str) -> Address:
    """Raises ValueError for what is not one plain address. A domain beyond ASCII is written as the DNS has it."""
    if CONTROL.search(name):
        raise ValueError(f"the name {name!r} has a line break or another control character")
    if not _ADDRESS.fullmatch(address):
        raise ValueError(f"{address!r} is not an e-mail address")
    local, domain = address.rsplit("@", 1)
    try:
        domain = _in_dns(domain)
    except UnicodeError as error:
        raise ValueError(f"{address!r} has no domain that can be looked up") from error
    return Address(display_name=name, username=local, domain=domain)


def _in_dns(domain: str) -> str:
    """A domain as the DNS has it, by IDNA 2008 (RFC 5891). Python's codec is of 2003: another's domain for straße."""
    if domain.isascii():
        return domain.encode("idna").decode("ascii")  # no label is empty, or too long
    try:
        import idna
    except ImportError as error:
        raise SettingsError("mail needs idna: pip install 'procjobs[email]'") from error
    return idna.encode(domain, uts46=True).decode("ascii")


def parse_sender(value: str) -> Address:
    """The address of `Name <name@domain>` or `name@domain`. Raises SettingsError.

    As procjobs.settings reads it: a name may have commas without quotes.
    """
    try:
        name, address = split_address(value)
        return _address(name, address)
    except ValueError as error:
        raise SettingsError(f"mail_from or mail_reply_to is {value!r}: write Name <name@your.domain>") from error


def compose(mail: Mail, sender: Address, reply_to: Address | None = None) -> EmailMessage:
    """The message with HTML and text. Raises ValueError when a value cannot stand in a header (CR, LF, no address)."""
    for name, value in {"Subject": mail.subject, "Message-ID": mail.message_id, **mail.headers}.items():
        if CONTROL.search(value):
            raise ValueError(f"{name} has a line break or another control character")
    recipient = _address(mail.name, mail.to)
    message = EmailMessage(policy=_SMTP if recipient.username.isascii() else _SMTPUTF8)
    message["From"] = sender
    message["To"] = recipient
    if reply_to is not None:
        message["Reply-To"] = reply_to
    message["Subject"] = mail.subject
    message["Date"] = format_datetime(mail.at.astimezone(UTC))
    message["Message-ID"] = mail.message_id
    message["Auto-Submitted"] = "auto-generated"
    for name, value in mail.headers.items():
        message[name] = value
    message.set_content(mail.text, cte="quoted-printable")
    message.add_alternative(mail.html, subtype="html", cte="quoted-printable")
    return message


# Sending


@dataclass(slots=True)
class _Line:
    """One open connection and how much it was used. One that a message went over before may have been closed since."""

    smtp: aiosmtplib.SMTP
    used_at: float
    messages: int = 0


class Mailer:
    """Sends mail over at most `size` connections, which stay open between messages for up to `idle` seconds.

    host None stands for "not configured": every mail is Deferred with the mend, also without aiosmtplib.
    tls: none, starttls (required, not opportunistic) or tls (from the first byte).
    timeout: seconds for each step of the conversation.
    """

    def __init__(
        self,
        host: str | None,
        port: int = 25,
        *,
        sender: str,
        reply_to: str | None = None,
        user: str | None = None,
        password: str | None = None,
        tls: Literal["none", "starttls", "tls"] = "none",
        tls_context: ssl.SSLContext | None = None,
        timeout: float = 30.0,
        size: int = 5,
        idle: float = 30.0,
        messages: int = 100,
    ) -> None:
        self._host = host
        self._port = port
        self._sender = parse_sender(sender)
        self._reply_to = parse_sender(reply_to) if reply_to else None
        self._user = user
        self._password = password
        self._tls = tls
        self._tls_context = tls_context
        self._timeout = timeout
        self._idle_for = idle
        self._messages = messages
        self._slots = asyncio.Semaphore(size)
        self._idle: list[_Line] = []

    @classmethod
    def of(cls, settings: Settings, concurrency: int = 1) -> Mailer:
        """The mailer of these settings (smtp_*, mail_from, mail_reply_to).

        concurrency: mails that may be on their way at a time, where smtp_connections does not say.
        """
        return cls(
            settings.smtp_host,
            settings.smtp_port,
            sender=settings.mail_from,
            reply_to=settings.mail_reply_to,
            user=settings.smtp_user,
            password=settings.smtp_password,
            tls=settings.smtp_tls,
            timeout=settings.smtp_timeout,
            size=settings.smtp_connections or concurrency,
        )

    @property
    def domain(self) -> str:
        """The sender's domain: the right-hand side of Message-IDs."""
        return self._sender.domain

    @property
    def server(self) -> str:
        """host:port, for the record."""
        return f"{self._host}:{self._port}" if self._host else "none"

    async def send(self, mail: Mail, leaving: _Leaving = None) -> Outcome:
        """Send one message and say what became of it. Raises nothing but programming errors and cancellation.

        leaving: awaited just before DATA; until then nothing can have arrived. What it raises goes through.
        """
        if aiosmtplib is None:
            return Deferred(None, _NO_PACKAGE, provider_code="not_set_up", unprepared=True)
        if not self._host:
            words = "no mail server is configured: set smtp_host (PROCJOBS_SMTP_HOST)"
            return Deferred(None, words, provider_code="not_set_up", unprepared=True)
        try:
            message = compose(mail, self._sender, self._reply_to)
        except ValueError as error:
            return Refused(None, f"the message cannot be written: {error}")

        async with self._slots:
            # An idle connection may have been closed by the server; nothing was said on it, so a fresh one is safe.
            while (line := self._take()) is not None:
                outcome = await self._use(line, message, leaving)
                if outcome is not None:
                    return outcome
            try:
                line = _Line(await self._connect(), time.monotonic())
            except aiosmtplib.SMTPResponseException as error:
                # Whatever the code: a refused login or greeting is ours to mend, not the recipient's fault.
                return Deferred(_code(error), f"{self.server} refused the connection: {_words(error)}", _NO_CONNECTION)
            except (
                aiosmtplib.SMTPException,
                OSError,
                UnicodeError,
            ) as error:  # the last: no name that can be looked up
                return Deferred(None, f"no connection to {self.server}: {_words(error)}")
            outcome = await self._use(line, message, leaving)
            return outcome or Deferred(None, f"{self.server} closed the connection before the message")

    async def greet(self) -> str | None:
        """Connect, log in and part: None if the server let us, else its words. For `procjobs doctor`."""
        if aiosmtplib is None:
            return _NO_PACKAGE
        try:
            smtp = await self._connect()
        except (aiosmtplib.SMTPException, OSError, UnicodeError) as error:
            return _words(error)
        await self._part(_Line(smtp, time.monotonic()))
        return None

    async def close(self) -> None:
        """Say goodbye on every open connection; safe to call twice, and the mailer may be used again."""
        lines, self._idle = self._idle, []
        await asyncio.gather(*(self._part(line) for line in lines))

    def _take(self) -> _Line | None:
        while self._idle:
            line = self._idle.pop()
            if line.smtp.is_connected and time.monotonic() - line.used_at < self._idle_for:
                return line
            line.smtp.close()
        return None

    async def _connect(self) -> aiosmtplib.SMTP:
        smtp = aiosmtplib.SMTP(
            hostname=self._host,
            port=self._port,
            use_tls=self._tls == "tls",
            start_tls=self._tls == "starttls",
            tls_context=self._tls_context,
            timeout=self._timeout,
            username=self._user,
            password=self._password,
        )
        try:
            await smtp.connect()
        except BaseException:
            smtp.close()
            raise
        return smtp

    async def _use(self, line: _Line, message: EmailMessage, leaving: _Leaving) -> Outcome | None:
        """One message on an open connection; None if the server had closed it before anything was said."""
        reusable = False
        try:
            outcome = await self._converse(line, message, leaving)
            # After 421 the server hangs up; after silence nobody knows what the next answer would answer.
            reusable = isinstance(outcome, Sent | Refused) or (
                isinstance(outcome, Deferred) and outcome.code not in (None, 421)
            )
            if reusable and not isinstance(outcome, Sent):
                reusable = await self._reset(line)
            return outcome
        finally:
            line.messages += 1
            line.used_at = time.monotonic()
            if reusable and line.messages < self._messages:
                self._idle.append(line)
            else:
                line.smtp.close()

    async def _converse(self, line: _Line, message: EmailMessage, leaving: _Leaving) -> Outcome | None:
        smtp = line.smtp
        recipient: Address = message["To"].addresses[0]
        options = ["SMTPUTF8"] if message.policy.utf8 else []  # type: ignore[attr-defined]
        encoding = "utf-8" if options else "ascii"
        try:
            if smtp.is_ehlo_or_helo_needed:
                await smtp.ehlo()
            if options and not smtp.supports_extension("smtputf8"):
                return Refused(None, f"{self.server} takes no addresses beyond ASCII (SMTPUTF8): {recipient.addr_spec}")
            await _taken(smtp.mail(self._sender.addr_spec, options=options, encoding=encoding))
        except aiosmtplib.SMTPHeloError as error:
            # As with its greeting: it refuses us, whatever the message.
            return Deferred(_code(error), f"{self.server} refused the connection: {_words(error)}", _NO_CONNECTION)
        except aiosmtplib.SMTPResponseException as error:
            return None if line.messages and error.code == 421 else _judge(error, "mail")
        except (aiosmtplib.SMTPException, OSError) as error:
            return None if line.messages else Deferred(None, _words(error))
        try:
            await _taken(smtp.rcpt(recipient.addr_spec, encoding=encoding))
        except aiosmtplib.SMTPResponseException as error:
            return _judge(error, "rcpt")
        except (aiosmtplib.SMTPException, OSError) as error:
            return Deferred(None, _words(error))
        if leaving is not None:
            await leaving()
        try:
            reply = await smtp.data(message.as_bytes())
        except aiosmtplib.SMTPResponseException as error:
            return _judge(error, "data")
        except (aiosmtplib.SMTPException, OSError) as error:
            return Ambiguous(f"{self.server} did not say whether it took the message: {_words(error)}")
        return Sent(reply.code, _printable(reply.message))

    async def _reset(self, line: _Line) -> bool:
        try:
            await line.smtp.rset()
        except (aiosmtplib.SMTPException, OSError):
            return False
        return True

    async def _part(self, line: _Line) -> None:
        try:
            await line.smtp.quit(timeout=2)
        except (aiosmtplib.SMTPException, OSError):
            line.smtp.close()


async def _taken(command: Awaitable[object]) -> None:
    """Every 2xx says yes (RFC 5321, 4.3.2), also one that the library does not know, such as 252 to RCPT."""
    try:
        await command
    except aiosmtplib.SMTPResponseException as error:
        if not 200 <= error.code < 300:
            raise


def _judge(error: aiosmtplib.SMTPResponseException, stage: str) -> Outcome:
    """The outcome that a reply stands for; 530 and 535 ask for a login, which is ours to mend."""
    reply = _printable(error.message)
    if error.code == 250:  # the library takes it for the end of a message: this one answered DATA itself
        return Deferred(error.code, f"it did not ask for the message: {reply}")
    if 200 <= error.code < 300:
        return Sent(error.code, reply)
    if 500 <= error.code < 600 and error.code not in (530, 535):
        return Refused(error.code, reply, stage=stage)
    if stage == "data" and not 400 <= error.code < 600:
        return Ambiguous(f"it did not say whether it took the message: {reply}")
    return Deferred(_code(error), reply)


def _code(error: aiosmtplib.SMTPResponseException) -> int | None:
    """The reply's code; None for an answer that is not of SMTP."""
    return error.code if 200 <= error.code < 600 else None


def _printable(reply: str) -> str:
    """A server's words as the database can keep them: no NUL, no half characters."""
    return reply.encode("utf-8", "replace").decode("utf-8").replace("\x00", "")


def _words(error: BaseException) -> str:
    return _printable(str(error)) or type(error).__name__
