"""The five types of jobs of an application: each is a task that takes its job from SQL to its effect."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from psycopg.types.json import Jsonb

from procjobs import demo
from procjobs.app import default_app
from procjobs.db import Database
from procjobs.settings import Settings
from tests.mail_server import MailServer

EXPIRED = "select count(*) from procjobs_demo.sessions where expires_at < now()"


async def test_each_job_type_has_its_effect(db: Database, dsn: str, sql: Any) -> None:
    facts = await demo.seed(db)
    for pack in ("retention", "notifications", "invitations", "reminders", "reports"):
        sql(f"select procjobs.declare_{pack}()")
    sql("select procjobs.unschedule(name) from procjobs.schedules")
    sql("delete from procjobs_demo.events")
    event = sql.one(
        "insert into procjobs_demo.events (organization_id, title, starts_at, timezone) "
        "values (%s, 'Screening', %s, 'UTC') returning id",
        facts.organization_id, datetime.now(UTC) + timedelta(minutes=30),
    )  # fmt: skip
    sql("insert into procjobs_demo.event_attendees values (%s, %s, '1 hour')", event, facts.user_id)
    invite = sql.one(
        "select procjobs.create_invite(%s, 'new@x.example', 'member', %s)", facts.organization_id, facts.admin_id
    )
    sql("delete from public.procrastinate_jobs")
    sql("delete from procjobs.notification_jobs")
    sql("update procjobs.pending_invites set status = 'PENDING', attempts = 0")  # as if its mail had been lost
    assert sql.one(EXPIRED) > 0
    jobs = {
        "SEND_INVITE_EMAIL": {"invite": str(invite)},
        "SEND_NOTIFICATION": {
            "recipient": str(facts.recipient_id), "content": {"subject": "Ready now", "body": "It is."},
        },
        "SEND_EVENT_REMINDER": {},
        "GENERATE_REPORT": {"address": "ops@x.example"},
        "CLEANUP_DATA": {"policy": "cleanup_expired_sessions"},
    }  # fmt: skip
    async with MailServer() as mail:
        app = default_app(Settings(dsn=dsn, smtp_host="127.0.0.1", smtp_port=mail.port, base_url="https://x.example"))
        async with app.open_async():
            await app.run_worker_async(wait=False, install_signal_handlers=False)
            for task, arguments in jobs.items():
                sql("select procjobs.defer(%s, %s)", task, Jsonb(arguments))
            for _ in range(2):  # what they are for, then the mails that they asked for
                await app.run_worker_async(wait=False, install_signal_handlers=False)
    assert sql("select task, error from procjobs.dead_letters") == []
    subjects = " / ".join(sorted(str(message["Subject"]) for message in mail.messages))
    assert len(mail.messages) == 4, subjects
    for words in ("invite", "Ready now", "Screening", "The day in figures"):
        assert words in subjects
    assert sql.one(EXPIRED) == 0


def test_their_statuses_are_those_of_a_queue_table(sql: Any) -> None:
    sql("select procjobs.declare_retention()")
    for state in ("todo", "later", "doing", "succeeded", "failed", "cancelled"):
        sql("select procjobs.defer('CLEANUP_DATA', %s, queue => %s)", Jsonb({"policy": state}), state)
    sql("update procrastinate_jobs set status = 'doing' where queue_name = 'doing'")
    for state in ("succeeded", "failed"):
        sql("update procrastinate_jobs set status = 'doing' where queue_name = %s", state)
        sql(
            "select procrastinate_finish_job_v1(id, %s::procrastinate_job_status, false) from procrastinate_jobs "
            "where queue_name = %s",
            state, state,
        )  # fmt: skip
    sql("select procjobs.cancel(id) from procrastinate_jobs where queue_name = 'cancelled'")
    sql("update procrastinate_jobs set scheduled_at = '2099-01-01' where queue_name = 'later'")
    found = sql(
        "select type, payload ->> 'policy', status, processed_at is not null from procjobs.job_queue order by id"
    )
    assert found == [
        ("CLEANUP_DATA", "todo", "PENDING", False),
        ("CLEANUP_DATA", "later", "PENDING", False),
        ("CLEANUP_DATA", "doing", "PROCESSING", False),
        ("CLEANUP_DATA", "succeeded", "COMPLETED", True),
        ("CLEANUP_DATA", "failed", "FAILED", True),
        ("CLEANUP_DATA", "cancelled", "CANCELLED", True),
    ]
    times = (
        "select scheduled_at >= created_at, updated_at >= created_at, max_attempts, attempts from procjobs.job_queue"
    )
    assert {(row[0], row[1]) for row in sql(times)} == {(True, True)}


def test_what_requests_mails_takes_no_place_from_their_sending(sql: Any) -> None:
    for declare in ("notifications", "digests", "reminders", "reports", "invitations"):
        sql(f"select procjobs.declare_{declare}()")
    assert sql("select name from procjobs.tasks where queue = 'notifications'") == [("procjobs.send_notification",)]
    page = (Path(__file__).parents[2] / "docs/settings.md").read_text(encoding="utf-8")
    told = set(re.findall(r" \| `(\w+)` \|$", page.partition("### Queues of procjobs' own")[2], re.MULTILINE))
    assert {queue for (queue,) in sql("select distinct queue from procjobs.tasks")} <= told


def test_an_upgrade_moves_such_tasks_but_not_those_that_somebody_moved(sql: Any) -> None:
    sql("select procjobs.declare_digests(), procjobs.declare_reminders()")
    sql("update procjobs.tasks set queue = 'notifications' where routine like 'procjobs.create%reminders%'")
    sql("update procjobs.tasks set queue = 'notifications' where name = 'procjobs.create_digest_jobs'")
    sql("select procjobs.set_task('procjobs.create_event_reminders', queue => 'mine')")
    sql("select procjobs.declare_digests(), procjobs.declare_reminders()")
    for task, queue in {
        "procjobs.create_digest_jobs": "digests",
        "procjobs.create_payment_reminders": "reminders",
        "procjobs.create_event_reminders": "mine",
    }.items():
        job = sql.one("select procjobs.defer(%s)", task)
        assert sql.one("select queue_name from public.procrastinate_jobs where id = %s", job) == queue
