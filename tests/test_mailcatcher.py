"""The mail catcher: everything it accepts is in the maildir, whole and readable, and nothing leaves the machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Any

import aiosmtplib
import pytest

from procjobs.mailcatcher import Mailbox, MailCatcher, text_of


def letter(subject: str = "Hello", text: str = "Plain words.", html: str | None = "<p>Rich <b>words</b></p>") -> bytes:
    message = EmailMessage()
    message["From"] = "Ada <ada@example.org>"
    message["To"] = "Bob <bob@example.org>"
    message["Subject"] = subject
    message.set_content(text)
    if html is not None:
        message.add_alternative(html, subtype="html")
    return message.as_bytes(policy=SMTP)


@pytest.fixture
def box(tmp_path: Path) -> Mailbox:
    return Mailbox(tmp_path / "mail")


@pytest.fixture
async def catcher(box: Mailbox) -> AsyncIterator[MailCatcher]:
    server = MailCatcher(box)
    await server.start()
    yield server
    await server.stop()


async def send(catcher: MailCatcher, content: bytes, to: list[str], **login: Any) -> str:
    """Send a mail and return the server's reply."""
    host, port = catcher.address
    _, reply = await aiosmtplib.send(
        content, sender="bounce@example.org", recipients=to, hostname=host, port=port, start_tls=False, **login
    )
    return reply


def test_a_maildir_that_was_only_half_made_is_completed(box: Mailbox) -> None:
    box.path.mkdir()  # what a second mail finds while the first one makes the maildir
    mail_id = box.add(letter(subject="First"))
    assert [summary.id for summary in box.list()] == [mail_id]


async def test_a_mail_that_was_accepted_is_in_the_maildir_and_the_reply_names_it(
    catcher: MailCatcher, box: Mailbox
) -> None:
    reply = await send(catcher, letter(subject="Grüße"), ["bob@example.org", "eve@example.org"])

    (summary,) = box.list()
    assert summary.subject == "Grüße" and summary.sender == "Ada <ada@example.org>"
    assert summary.id in reply
    assert abs((datetime.now(UTC) - summary.at).total_seconds()) < 60
    assert os.listdir(box.path / "new") == [summary.id]


async def test_the_envelope_is_kept_before_the_mails_own_headers(catcher: MailCatcher, box: Mailbox) -> None:
    await send(catcher, letter(), ["hidden@example.org"])

    mail = box.read(box.list()[0].id)
    assert mail is not None
    assert mail.headers[0] == ("Return-Path", "<bounce@example.org>")
    assert ("Delivered-To", "hidden@example.org") in mail.headers


async def test_any_login_is_welcome_since_nothing_is_passed_on(catcher: MailCatcher, box: Mailbox) -> None:
    await send(catcher, letter(), ["bob@example.org"], username="whoever", password="whatever")
    assert box.count() == 1


async def test_a_folder_that_cannot_be_written_defers_the_mail(catcher: MailCatcher, box: Mailbox) -> None:
    shutil.rmtree(box.path)
    box.path.write_text("a file in the way")
    with pytest.raises(aiosmtplib.SMTPException) as refused:
        await send(catcher, letter(), ["bob@example.org"])
    assert "452" in str(refused.value) or getattr(refused.value, "code", None) == 452


async def test_a_mail_beyond_the_limit_is_refused(box: Mailbox) -> None:
    server = MailCatcher(box, max_bytes=2000)
    await server.start()
    await send(server, letter(), ["bob@example.org"])
    with pytest.raises(aiosmtplib.SMTPException):
        await send(server, letter(text="many words\n" * 1000), ["bob@example.org"])
    await server.stop()
    assert box.count() == 1


async def test_stopping_frees_the_port_and_can_be_repeated(box: Mailbox) -> None:
    server = MailCatcher(box)
    await server.start()
    _, port = server.address
    await server.stop()
    await server.stop()
    again = MailCatcher(box, port=port)
    await again.start()
    await again.stop()


def test_a_mail_is_read_with_both_its_parts_and_its_attachments(box: Mailbox) -> None:
    message = EmailMessage()
    message["Subject"] = "Report"
    message.set_content("See the file.\n")
    message.add_alternative("<p>See the file.</p>", subtype="html")
    message.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="report.pdf")

    mail = box.read(box.add(message.as_bytes()))
    assert mail is not None
    assert (mail.text, mail.html, mail.attachments) == ("See the file.\n", "<p>See the file.</p>\n", ["report.pdf"])


def test_newest_first_and_page_by_page(box: Mailbox) -> None:
    ids = [box.add(letter(subject=f"mail {number}")) for number in range(5)]

    assert [summary.id for summary in box.list(2)] == [ids[4], ids[3]]
    assert [summary.id for summary in box.list(2, 2)] == [ids[2], ids[1]]
    assert box.count() == 5


def test_a_mail_that_a_reader_moved_to_cur_is_still_found(box: Mailbox) -> None:
    content = letter()
    mail_id = box.add(content)
    (box.path / "new" / mail_id).rename(box.path / "cur" / f"{mail_id}:2,S")

    assert [summary.id for summary in box.list()] == [mail_id]
    assert box.raw(mail_id) == content


@pytest.mark.parametrize("mail_id", ["", "..", "../../etc/passwd", "1/../../x", "nonsense", "1" * 300, "1\x00"])
def test_an_id_is_never_a_path(box: Mailbox, mail_id: str) -> None:
    box.add(letter())
    (box.path / "secret").write_text("x")
    assert box.read(mail_id) is None and box.raw(mail_id) is None


def test_an_empty_or_missing_mailbox_has_no_mails(box: Mailbox) -> None:
    assert box.list() == [] and box.count() == 0


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\xff\xfe",
        b"Subject: =?utf-8?q?=ff?=\r\nFrom: <<<@@,\r\nDate: never\r\n\r\nx",
        b"Content-Type: text/plain; charset=no-such\r\n\r\n\xff words",
        b"Content-Type: multipart/mixed\r\n\r\nno boundary",
        b"To: a@b, ,,;:\r\nMessage-ID: <<>\r\nContent-Type: ;;;\r\n\r\nx",
    ],
)
def test_a_broken_mail_is_listed_and_shown_too(box: Mailbox, raw: bytes) -> None:
    mail_id = box.add(raw)
    assert [summary.id for summary in box.list()] == [mail_id]
    mail = box.read(mail_id)
    assert mail is not None
    text_of(mail)


def test_html_only_is_shown_as_words(box: Mailbox) -> None:
    message = EmailMessage()
    message.set_content("<style>p{}</style><p>Tom &amp; <b>Eve</b></p>", subtype="html")
    mail = box.read(box.add(message.as_bytes()))
    assert mail is not None
    assert " ".join(text_of(mail).split()) == "Tom & Eve"
