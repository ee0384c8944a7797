"""What came of notifications is kept for ninety days, and longer where something hangs on it."""

from __future__ import annotations

from typing import Any

import pytest

from procjobs import demo
from procjobs.db import Database


@pytest.fixture
async def facts(db: Database, sql: Any) -> demo.DemoFacts:
    """The demo without its own notifications."""
    found = await demo.seed(db)
    sql("delete from public.procrastinate_jobs")
    sql("delete from procjobs.notification_jobs")
    return found


def ended(sql: Any, facts: demo.DemoFacts, kind: str, days: float, status: str = "sent", tried: str = "sent") -> None:
    """A notification of that type which ended so many days ago, with one try; its queue job is forgotten."""
    notification = sql.one(
        "select procjobs.enqueue_notification_job(%s, notification_type => %s, content => %s::jsonb)",
        facts.recipient_id, kind, '{"subject": "x", "body": "y"}',
    )  # fmt: skip
    sql(
        "update procjobs.notification_jobs set status = %s, processed_at = now() - make_interval(secs => %s * 86400), "
        "created_at = now() - make_interval(secs => %s * 86400 + 60) where id = %s",
        status, days, days, notification,
    )  # fmt: skip
    sql(
        "insert into procjobs.notification_delivery_logs "
        "(job_id, attempt, status, delivery_method, address, worker, started_at) "
        "values (%s, 1, %s, 'email', 'a@x.example', 'w', now())",
        notification, tried,
    )  # fmt: skip
    sql("delete from procrastinate_jobs where args ->> 'notification_id' = %s::text", notification)


def kinds(sql: Any) -> set[str]:
    return {kind for (kind,) in sql("select notification_type from procjobs.notification_jobs")}


def test_what_ended_goes_after_ninety_days_with_its_tries(sql: Any, facts: demo.DemoFacts) -> None:
    for kind, days in (("old", 91), ("older", 200), ("young", 89)):
        ended(sql, facts, kind, days)
    ended(sql, facts, "failed", 91, status="failed", tried="refused")
    assert sql.one("select procjobs.forget_notifications(2)") == 2, "it is bounded"
    assert sql.one("select procjobs.forget_notifications()") == 1
    assert kinds(sql) == {"young"}
    assert sql.one("select count(*) from procjobs.notification_delivery_logs") == 1


def test_upkeep_does_it(sql: Any, facts: demo.DemoFacts) -> None:
    ended(sql, facts, "old", 91)
    sql("select procjobs.upkeep()")
    assert kinds(sql) == set()


def test_what_waits_or_may_be_sent_again_or_is_in_doubt_or_opens_something_stays(
    sql: Any, facts: demo.DemoFacts
) -> None:
    ended(sql, facts, "doubt", 400, status="failed", tried="unknown")
    ended(sql, facts, "link", 400)
    sql(
        "insert into procjobs.letter_secrets select sha256('x'), id, gen_random_uuid(), now() "
        "from procjobs.notification_jobs where notification_type = 'link'"
    )
    for kind in ("dead", "waiting"):
        sql(
            "select procjobs.enqueue_notification_job(%s, notification_type => %s, content => %s::jsonb)",
            facts.recipient_id, kind, '{"subject": "x", "body": "y"}',
        )  # fmt: skip
    sql("update procjobs.notification_jobs set created_at = now() - interval '400 days'")
    job = sql.one("select job_id from procjobs.notification_jobs where notification_type = 'dead'")
    sql("update procrastinate_jobs set status = 'doing' where id = %s", job)
    sql("select procrastinate_finish_job_v1(%s, 'failed', false)", job)
    sql("update procjobs.notification_jobs set processed_at = now() - interval '400 days' where status = 'failed'")
    assert sql.one("select status from procjobs.notification_jobs where notification_type = 'dead'") == "failed"
    assert sql.one("select procjobs.forget_notifications()") == 0
    assert kinds(sql) == {"doubt", "link", "dead", "waiting"}
    sql("select procjobs.resolve_delivery(notification_id, 'sent') from procjobs.unresolved_deliveries")
    sql("update procjobs.notification_jobs set processed_at = now() - interval '400 days' where status = 'sent'")
    sql("delete from procjobs.letter_secrets")
    assert sql.one("select procjobs.forget_notifications()") == 2
    assert kinds(sql) == {"dead", "waiting"}
