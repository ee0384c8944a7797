"""What a mail server answers becomes one of four outcomes, and nothing that a mail says makes it another mail."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email import message_from_bytes, message_from_string
from email.header import decode_header, make_header
from email.headerregistry import Address
from email.utils import getaddresses, parseaddr
from pathlib import Path
from typing import Any

import pytest

from procjobs.errors import SettingsError
from procjobs.mail import Ambiguous, Deferred, Mail, Mailer, Refused, Sent, compose, parse_sender
from procjobs.settings import Settings
from tests.mail_server import DROP, HANG, MailServer

SENDER = parse_sender("Harbour Lane <post@harbourlane.example>")


def mail(**changes: Any) -> Mail:
    values = {
        "to": "ingrid@family.example",
        "name": "Ingrid",
        "subject": "First steps!",
        "text": "Four steps.\n",
        "html": "<p>Four steps.</p>",
        "message_id": "<6f1c@harbourlane.example>",
        "at": datetime(2026, 11, 24, 8, 31, tzinfo=UTC),
    }
    return Mail(**{**values, **changes})


def mailer(server: MailServer, **changes: Any) -> Mailer:
    values = {"sender": "Harbour Lane <post@harbourlane.example>", "timeout": 5.0}
    return Mailer("127.0.0.1", server.port, **{**values, **changes})


# Composing


def test_a_mail_has_text_html_and_the_headers_of_an_automatic_message() -> None:
    message = compose(mail(headers={"Importance": "high"}), SENDER, parse_sender("help@harbourlane.example"))
    assert {name: str(message[name]) for name in message if not name.startswith(("Content", "MIME"))} == {
        "From": "Harbour Lane <post@harbourlane.example>",
        "To": "Ingrid <ingrid@family.example>",
        "Reply-To": "help@harbourlane.example",
        "Subject": "First steps!",
        "Date": "Tue, 24 Nov 2026 08:31:00 +0000",
        "Message-ID": "<6f1c@harbourlane.example>",
        "Auto-Submitted": "auto-generated",
        "Importance": "high",
    }
    parts = {part.get_content_type(): part.get_content().strip() for part in message.iter_parts()}
    assert message.get_content_type() == "multipart/alternative"
    assert parts == {"text/plain": "Four steps.", "text/html": "<p>Four steps.</p>"}


@pytest.mark.parametrize("smuggled", ["\r\nBcc: all@evil.example", "\nBcc: all@evil.example", "\r", "\x00", "\u2028"])
@pytest.mark.parametrize("where", ["to", "name", "subject", "message_id", "headers"])
async def test_no_value_can_smuggle_in_a_header_of_its_own(where: str, smuggled: str) -> None:
    value: Any = {"X-Notification-Id": f"x{smuggled}"} if where == "headers" else f"x@family.example{smuggled}"
    async with MailServer() as server, Closing(mailer(server)) as post:
        outcome = await post.send(mail(**{where: value}))
    assert isinstance(outcome, Refused)
    assert "cannot be written" in outcome.reply
    assert server.connections == 0


@pytest.mark.parametrize(
    "address",
    [
        "",
        "ingrid",
        "a@b@c",
        "a@b.example, c@d.example",
        "a@b.example;c@d.example",
        "<a@b.example>",
        "a b@c.example",
        '"a"@b',
    ],
)
async def test_a_message_goes_to_one_address_or_to_none(address: str) -> None:
    async with MailServer() as server, Closing(mailer(server)) as post:
        assert isinstance(await post.send(mail(to=address)), Refused)
    assert server.raw == []


def test_a_long_subject_beyond_ascii_is_folded_and_comes_out_as_it_was() -> None:
    subject = "Förstå – " + "Ängelholm 日本語 " * 16
    raw = compose(mail(subject=subject.strip()), SENDER).as_bytes()
    assert max(len(line) for line in raw.split(b"\r\n")) <= 78
    assert raw.isascii()
    assert MailServer(raw=[raw]).messages[0]["Subject"] == subject.strip()


@pytest.mark.parametrize(
    "name", ["Åsa", "日本 語 " * 12 + "Åsa", 'Åsa "the" O\'Connor, (Ms.)', "x" * 120, "a, b <c@d.example>"]
)
def test_a_name_comes_out_as_it_was_and_takes_no_part_of_the_address(name: str) -> None:
    raw = compose(mail(name=name), SENDER).as_bytes()
    words, address = parseaddr(message_from_bytes(raw)["To"])
    assert (str(make_header(decode_header(words))), address) == (name, "ingrid@family.example")
    assert max(len(line) for line in raw.split(b"\r\n") if b"x" * 120 not in line) <= 78


def test_an_unsubscribe_header_stays_in_one_piece() -> None:
    link = "<https://jobs.example.com/unsubscribe?token=" + "a1B2" * 60 + ">"
    raw = compose(mail(headers={"List-Unsubscribe": link}), SENDER).as_bytes()
    assert b"List-Unsubscribe: " + link.encode() + b"\r\n" in raw


@pytest.mark.parametrize("to", ["nina@e.example", "ñina@e.example"])
@pytest.mark.parametrize(
    "name",
    [
        "Northern Lights Film Productions GmbH, Department of Long Names (Berlin Office)",
        f"{'A long name' * 6}, victim@elsewhere.example, <thief@elsewhere.example>; group: x",
        'Nina "the great" ' + "Lindgren " * 10 + "\\",
        "Åsa, " + "Lindgren " * 10 + "(Malmö)",
    ],
)
def test_a_long_name_with_commas_is_one_name_of_one_address(name: str, to: str) -> None:
    """Python leaves the quotes out when it folds: what stood between commas became addresses."""
    sender = Address(name.strip(), "team", "harbourlane.example")
    raw = compose(mail(to=to, name=name.strip()), sender).as_bytes().decode()
    assert all(len(line) <= 78 for line in raw.partition("\r\n\r\n")[0].split("\r\n"))
    headers = message_from_string(raw)
    for header, address in (("To", to), ("From", "team@harbourlane.example")):
        ((written, found),) = getaddresses([str(headers[header])])
        assert (str(make_header(decode_header(written))), found) == (name.strip(), address)


@pytest.mark.parametrize(
    ("domain", "found"),
    [
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.Example", "xn--bcher-kva.example"),
        ("straße.example", "xn--strae-oqa.example"),  # strasse.example is somebody else's
        ("βόλος.example", "xn--nxasmm1c.example"),
        ("Example.ORG", "Example.ORG"),
    ],
)
def test_a_domain_beyond_ascii_is_written_as_the_dns_has_it(domain: str, found: str) -> None:
    assert compose(mail(to=f"ingrid@{domain}"), SENDER)["To"].addresses[0].domain == found


@pytest.mark.parametrize(
    "domain", ["ex..example", ".example", "b" * 64 + ".example", "ü" * 63 + ".example", "ü..example"]
)
def test_a_domain_that_cannot_be_looked_up_is_refused(domain: str) -> None:
    with pytest.raises(ValueError, match="no domain that can be looked up"):
        compose(mail(to=f"ingrid@{domain}"), SENDER)


@pytest.mark.parametrize(
    ("value", "name", "address"),
    [
        ("team@club.example", "", "team@club.example"),
        (" Team  <team@club.example> ", "Team", "team@club.example"),
        ("<team@club.example>", "", "team@club.example"),
        ("Club, Inc. <team@club.example>", "Club, Inc.", "team@club.example"),
        ('"Club, \\"Inc.\\"" <team@club.example>', 'Club, "Inc."', "team@club.example"),
        ("Bücher (Team) <team@bücher.example>", "Bücher (Team)", "team@xn--bcher-kva.example"),
    ],
)
def test_what_the_settings_take_as_a_sender_is_one(value: str, name: str, address: str) -> None:
    sender = parse_sender(Settings.load(environ={}, mail_from=value).mail_from)
    assert (sender.display_name, sender.addr_spec) == (name, address)
    written = message_from_string(compose(mail(), sender).as_bytes().decode())["From"]
    ((shown, found),) = getaddresses([str(written)])
    assert (str(make_header(decode_header(shown))), found) == (name, address)


@pytest.mark.parametrize("value", ["nobody", "", "a@b@c", "X <x@>", "a@b..c", "jörg@b.example", "a@b.c, d@e.f"])
def test_a_sender_that_is_no_address_is_a_wrong_setting(value: str) -> None:
    with pytest.raises(SettingsError, match="mail_from"):
        parse_sender(value)


# Sending


class Closing:
    """A mailer that is closed at the end, whatever happens."""

    def __init__(self, post: Mailer) -> None:
        self._post = post

    async def __aenter__(self) -> Mailer:
        return self._post

    async def __aexit__(self, *exc: object) -> None:
        await self._post.close()


@pytest.fixture
async def server() -> AsyncIterator[MailServer]:
    async with MailServer() as running:
        yield running


@pytest.fixture
async def post(server: MailServer) -> AsyncIterator[Mailer]:
    async with Closing(mailer(server)) as running:
        yield running


async def test_the_servers_words_are_kept(server: MailServer, post: Mailer) -> None:
    assert await post.send(mail()) == Sent(250, "queued as 1")
    assert server.recipients == [["ingrid@family.example"]]


async def test_what_was_written_is_what_arrives(server: MailServer, post: Mailer) -> None:
    text = "Grüße!\n.\n. a line that begins with a dot\n\nFrom here on: " + "long " * 300 + "\n"
    assert isinstance(await post.send(mail(text=text, html=f"<p>{text}</p>")), Sent)
    plain, html = (part.get_content().replace("\r\n", "\n") for part in server.messages[0].iter_parts())
    assert (plain, html) == (text, f"<p>{text}</p>\n")
    assert max(len(line) for line in server.raw[0].split(b"\r\n")) <= 78


async def test_one_connection_serves_many_mails(server: MailServer, post: Mailer) -> None:
    for _ in range(5):
        assert isinstance(await post.send(mail()), Sent)
    assert (server.connections, len(server.raw)) == (1, 5)


async def test_there_are_never_more_connections_than_the_pool_has(server: MailServer) -> None:
    async with Closing(mailer(server, size=3)) as post:
        outcomes = await asyncio.gather(*(post.send(mail()) for _ in range(30)))
    assert {type(outcome) for outcome in outcomes} == {Sent}
    assert len(server.raw) == 30
    assert server.most_at_once == server.connections == 3


async def test_a_connection_is_given_up_after_its_share_of_mails(server: MailServer) -> None:
    async with Closing(mailer(server, messages=2)) as post:
        for _ in range(5):
            assert isinstance(await post.send(mail()), Sent)
    assert server.connections == 3


async def test_a_connection_that_idled_too_long_is_not_used_again(server: MailServer) -> None:
    async with Closing(mailer(server, idle=0.0)) as post:
        for _ in range(2):
            assert isinstance(await post.send(mail()), Sent)
    assert server.connections == 2


async def test_a_connection_the_server_closed_meanwhile_is_replaced_unseen(server: MailServer, post: Mailer) -> None:
    assert isinstance(await post.send(mail()), Sent)
    server.hang_up()
    assert isinstance(await post.send(mail()), Sent)
    assert server.connections == 2


async def test_a_server_that_says_421_on_an_old_connection_is_asked_anew(server: MailServer, post: Mailer) -> None:
    assert isinstance(await post.send(mail()), Sent)
    server.replies["MAIL"] = ["421 idle too long"]
    assert isinstance(await post.send(mail()), Sent)
    assert server.connections == 2


@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        ("421 4.3.2 shutting down", Deferred(421, "4.3.2 shutting down")),
        ("450 4.2.1 try later", Deferred(450, "4.2.1 try later")),
        ("451 4.7.1 greylisted", Deferred(451, "4.7.1 greylisted")),
        ("452 4.3.1 disk full", Deferred(452, "4.3.1 disk full")),
        ("550 5.1.1 no such user", Refused(550, "5.1.1 no such user")),
        ("552 5.3.4 too big", Refused(552, "5.3.4 too big")),
        ("554 5.7.1 spam", Refused(554, "5.7.1 spam")),
        ("530 5.7.0 log in first", Deferred(530, "5.7.0 log in first")),
    ],
)
async def test_a_reply_code_decides_and_the_next_mail_is_none_the_worse(
    stage: str, reply: str, outcome: Deferred | Refused
) -> None:
    async with MailServer(replies={stage: [reply]}) as server, Closing(mailer(server)) as post:
        assert await post.send(mail()) == outcome
        assert server.raw == []
        assert await post.send(mail()) == Sent(250, "queued as 1")


async def test_any_2xx_takes_sender_and_recipient(server: MailServer, post: Mailer) -> None:
    server.replies.update({"MAIL": ["251 fine"], "RCPT": ["252 cannot verify, but try"]})
    assert await post.send(mail()) == Sent(250, "queued as 1")
    assert len(server.raw) == 1


@pytest.mark.parametrize("reply", ["354 go on", "what?", "699 odd"])
async def test_an_answer_to_the_message_that_is_neither_yes_nor_no_is_ambiguous(
    server: MailServer, post: Mailer, reply: str
) -> None:
    server.replies["DATA"] = [reply]
    assert isinstance(await post.send(mail()), Ambiguous)


@asynccontextmanager
async def _scripted(*replies: bytes) -> AsyncIterator[int]:
    """The port of a server that greets one client and then gives one reply a line, the last one again and again."""
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = list(replies)
        writer.write(b"220 mail.example\r\n")
        while await reader.readline():
            writer.write(left.pop(0) if len(left) > 1 else left[0])
        writer.close()
        gone.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname()[1]
        await gone.wait()


@pytest.mark.parametrize(
    ("replies", "code"),
    [
        ([b"550 5.7.1 your network is not welcome\r\n"], 550),
        ([b"250 mail.example\r\n", b"250 ok\r\n"], 250),  # to DATA as well: the message was not asked for
    ],
)
async def test_a_server_that_refuses_our_name_or_never_asks_for_the_message_is_worth_another_try(
    replies: list[bytes], code: int
) -> None:
    async with _scripted(*replies) as port, Closing(Mailer("127.0.0.1", port, sender="a@b.example", timeout=1)) as post:
        outcome = await post.send(mail())
    assert isinstance(outcome, Deferred)
    assert outcome.code == code


@pytest.mark.parametrize("end", [HANG, DROP])
@pytest.mark.parametrize(("stage", "expected"), [("MAIL", Deferred), ("RCPT", Deferred), ("DATA", Ambiguous)])
async def test_silence_is_ambiguous_only_once_the_message_was_handed_over(
    stage: str, end: str, expected: type[object]
) -> None:
    async with MailServer(replies={stage: [end]}) as server, Closing(mailer(server, timeout=0.3)) as post:
        outcome = await post.send(mail())
        assert type(outcome) is expected
        assert isinstance(await post.send(mail()), Sent)
        assert server.connections == 2


async def test_a_server_whose_name_cannot_be_looked_up_is_worth_another_try() -> None:
    post = Mailer("mail..example", sender="a@b.example")
    assert isinstance(await post.send(mail()), Deferred)
    assert await post.greet() is not None


async def test_nobody_listening_is_worth_another_try() -> None:
    async with MailServer() as gone:
        pass
    async with Closing(mailer(gone)) as post:
        outcome = await post.send(mail())
    assert isinstance(outcome, Deferred)
    assert outcome.code is None
    assert f"127.0.0.1:{gone.port}" in outcome.reply


@pytest.mark.parametrize(
    ("greeting", "code"),
    [
        (b"554 5.7.1 your network is not welcome\r\n", 554),
        (b"421 too busy\r\n", 421),
        (b"", None),
        (b"what?\r\n", None),
    ],
)
async def test_a_server_that_does_not_welcome_us_is_worth_another_try(greeting: bytes, code: int | None) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await writer.drain()
        if greeting:
            writer.close()
        else:
            held.append(writer)  # a server that accepts and says nothing

    held: list[asyncio.StreamWriter] = []
    listening = await asyncio.start_server(greet, "127.0.0.1", 0)
    post = Mailer("127.0.0.1", listening.sockets[0].getsockname()[1], sender="a@b.example", timeout=0.3)
    outcome = await post.send(mail())
    listening.close()
    for writer in held:
        writer.close()
    assert isinstance(outcome, Deferred)
    assert outcome.code == code


async def test_without_a_mail_server_the_mail_waits_and_says_what_to_set() -> None:
    outcome = await Mailer(None, sender="a@b.example").send(mail())
    assert isinstance(outcome, Deferred)
    assert "PROCJOBS_SMTP_HOST" in outcome.reply


async def test_a_cancelled_send_gives_its_place_back_but_not_its_connection() -> None:
    async with MailServer(replies={"DATA": [HANG]}) as server, Closing(mailer(server, size=1)) as post:
        sending = asyncio.create_task(post.send(mail()))
        await server.hanging.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert isinstance(await post.send(mail()), Sent)
        assert server.connections == 2


async def test_closing_twice_is_closing_once_and_it_may_send_again(server: MailServer, post: Mailer) -> None:
    assert isinstance(await post.send(mail()), Sent)
    await post.close()
    await post.close()
    assert isinstance(await post.send(mail()), Sent)
    assert server.connections == 2


async def test_an_address_beyond_ascii_needs_a_server_that_takes_it() -> None:
    async with MailServer() as server, Closing(mailer(server)) as post:
        assert isinstance(await post.send(mail(to="åsa@family.example")), Refused)
        assert isinstance(await post.send(mail()), Sent)
    async with MailServer(utf8=True) as server, Closing(mailer(server)) as post:
        assert isinstance(await post.send(mail(to="åsa@family.example")), Sent)
    assert server.recipients == [["åsa@family.example"]]


# Login and encryption


async def test_a_login_that_is_right_and_one_that_is_wrong() -> None:
    async with MailServer(login=("post", "s3cret")) as server:
        async with Closing(mailer(server, user="post", password="s3cret")) as post:
            assert isinstance(await post.send(mail()), Sent)
        async with Closing(mailer(server, user="post", password="guess")) as post:
            outcome = await post.send(mail())
        async with Closing(mailer(server)) as post:
            nameless = await post.send(mail())
    assert isinstance(outcome, Deferred)  # ours to mend, so the recipients' mail is not given up
    assert (outcome.code, "guess" in outcome.reply) == (535, False)
    assert nameless == Deferred(530, "5.7.0 Authentication required")
    assert len(server.raw) == 1


@pytest.mark.parametrize("tls", ["tls", "starttls"])
async def test_encryption_from_the_first_byte_or_by_starttls(tls: str, certificate: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=f"{certificate}.crt")
    async with MailServer(tls_context=context, implicit_tls=tls == "tls") as server:
        async with Closing(mailer(server, tls=tls, tls_context=trusting)) as post:
            assert isinstance(await post.send(mail()), Sent)
        async with Closing(mailer(server, tls=tls)) as wary:
            outcome = await wary.send(mail())
    assert server.encrypted == [True]
    assert isinstance(outcome, Deferred)
    assert "certificate" in outcome.reply.lower()


async def test_starttls_is_required_not_hoped_for(server: MailServer) -> None:
    async with Closing(mailer(server, tls="starttls")) as post:
        outcome = await post.send(mail())
    assert isinstance(outcome, Deferred)
    assert server.raw == []


async def test_the_settings_make_the_mailer(server: MailServer) -> None:
    settings = Settings.load(
        environ={
            "PROCJOBS_SMTP_HOST": "127.0.0.1",
            "PROCJOBS_SMTP_PORT": str(server.port),
            "PROCJOBS_MAIL_FROM": "Team <team@example.com>",
            "PROCJOBS_MAIL_REPLY_TO": "help@example.com",
        }
    )
    async with Closing(Mailer.of(settings)) as post:
        assert isinstance(await post.send(mail()), Sent)
    assert (post.domain, post.server) == ("example.com", f"127.0.0.1:{server.port}")
    assert (server.messages[0]["From"], server.messages[0]["Reply-To"]) == (
        "Team <team@example.com>",
        "help@example.com",
    )
