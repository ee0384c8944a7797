"""Many digests at once: every one in one call, by indexes, without a loop."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

#: By hand: PROCJOBS_TEST_DIGESTS=100000
MANY = int(os.environ.get("PROCJOBS_TEST_DIGESTS", "20000"))


@pytest.fixture
def many(sql: Any) -> int:
    """Recipients in groups of ten, thirty updates a group, three of them new, some read; a digest each, due now."""
    sql(
        "insert into procjobs_demo.people (name, email) select n, n || '@example.org' from generate_series(1, %s) n",
        MANY // 10,
    )
    sql(
        "insert into procjobs_demo.recipients (owner_id, name, email, timezone) select p.id, p.name, p.email, z "
        "from procjobs_demo.people p, "
        "unnest('{UTC,Asia/Kolkata,Europe/Berlin,Africa/Cairo,America/Havana,America/New_York,"
        "Pacific/Apia,Australia/Lord_Howe,Asia/Tokyo,Europe/London}'::text[]) z"
    )
    sql("insert into procjobs_demo.groups (id, name) select id, name from procjobs_demo.people")
    sql(
        "insert into procjobs_demo.group_recipients (group_id, recipient_id) select owner_id, id from "
        "procjobs_demo.recipients"
    )
    sql(
        "insert into procjobs_demo.updates (group_id, author_id, title, created_at) "
        "select g.id, g.id, k, now() - k * interval '7 hours 59 minutes' from procjobs_demo.groups g, "
        "generate_series(1, 30) k"
    )
    sql(
        "insert into procjobs_demo.update_reads select u.id, m.recipient_id from procjobs_demo.updates u "
        "join procjobs_demo.group_recipients m using (group_id) where u.created_at > now() - interval '5 days' "
        "and u.title in ('2', '7')"
    )
    sql(
        "insert into procjobs.digest_schedules (recipient_id, frequency, delivery_time, max_updates_per_digest, "
        "delivery_method, "
        "is_active, told_until, next_digest_scheduled, created_by, created_at, updated_at) "
        "select id, 'daily', (now() at time zone timezone)::time(0), 10, 'email', true, now() - interval '1 "
        "day', now(), 'x', now(), now() "
        "from procjobs_demo.recipients"
    )
    sql("vacuum analyze")
    return MANY


@pytest.mark.slow
def test_all_that_are_due_are_created_in_one_call(sql: Any, many: int) -> None:
    began = time.perf_counter()
    assert sql.one("select procjobs.create_digest_jobs()") == many
    took = time.perf_counter() - began
    print(f"{many} digests in {took:.1f} s")
    # Where nothing else runs 100,000 take less than five seconds; beside other tests longer.
    assert took < 20 * many / 100_000, "a loop, or a plan gone wrong, takes minutes"
    assert sql("select distinct outcome, updates from procjobs.digest_runs") == [("created", 2)]
    assert (
        sql.one(
            "select count(distinct j.id) from procjobs.notification_jobs n join procrastinate_jobs j on j.id = n.job_id"
        )
        == many
    )
    assert sql.one("select procjobs.create_digest_jobs()") == 0


@pytest.mark.slow
def test_what_groups_shared_before_is_not_read(sql: Any, many: int) -> None:
    said: list[str] = []
    sql.connection.add_notice_handler(lambda notice: said.append(notice.message_primary))
    sql("load 'auto_explain'")
    sql("set auto_explain.log_min_duration = 0")
    sql("set auto_explain.log_nested_statements = on")
    sql("set auto_explain.log_analyze = on")
    sql("set auto_explain.log_timing = off")
    sql("set client_min_messages = log")
    sql("set auto_explain.log_level = notice")
    sql("select procjobs.create_digest_jobs()")
    (plan,) = (text for text in said if "with due as materialized" in text)
    body = plan.partition("Hash")[2] or plan
    assert "Index Scan using updates_group on updates" in plan
    assert "update_reads_pkey" in plan
    assert "Seq Scan on updates" not in body and "Seq Scan on update_reads" not in body
    (due,) = (text for text in said if "for update skip locked" in text and "digest_schedules" in text)
    assert "Index Scan using digest_schedules_due" in due or "Bitmap Index Scan on digest_schedules_due" in due
