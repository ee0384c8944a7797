"""Notifications and reminders reach the club's members."""

from __future__ import annotations

from typing import Any

from procjobs.app import App
from tests.mail_server import MailServer
from tests.packs.foreign.conftest import words, work


async def test_a_notification_a_payment_reminder_and_an_event_reminder_reach_the_members(
    club: None, sql: Any, app: App, server: MailServer
) -> None:
    sql("select procjobs.declare_reminders()")
    sql(
        "select procjobs.enqueue_notification_job(m.public_id, md5('board:1')::uuid, md5('note:1')::uuid) "
        "from club.member m where surname = 'Diallo'"
    )
    sql("select procjobs.defer('procjobs.create_payment_reminders'), procjobs.defer('procjobs.create_event_reminders')")
    await work(app, sql)
    sql("select procjobs.defer('procjobs.create_payment_reminders'), procjobs.defer('procjobs.create_event_reminders')")
    await work(app, sql)  # once each

    mails = sorted(server.messages, key=lambda message: str(message["Subject"]))
    assert [(str(mail["To"]), str(mail["Subject"]).partition(",")[0]) for mail in mails] == [
        ("Vreni Amsler <vreni@club.example>", "Reminder: 12"),
        ("Awa Diallo <awa@club.example>", "Reminder: Long Distance Cup"),
        ("Awa Diallo <awa@club.example>", "Vreni Amsler: Mist on the lake"),
    ]
    payment, event, notification = (words(mail) for mail in mails)
    assert 'Eight "Föhn"' in payment and "12,345.50\u00a0CHF" in payment and "paid 4 days ago" in payment
    assert "Organization: Lake eight" in payment and "Pay it the way you paid the advance" in payment
    assert "(Africa/Dakar)" in event and "(America/Los Angeles)" in event and "Where: Lake Natoma" in event
    assert "https://club.example/regatta/7" in event
    assert "Six in the morning." in notification and "https://club.example/note/1" in notification
    assert sql("select about, reason from procjobs.list_reminders() where outcome = 'unreachable'") == [
        ("Buyer has no mail", "the contact has no e-mail address")
    ]
