"""Daily reports: what they count, whose day it is, once for each subscriber and local day, from SQL to the mailbox."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from procjobs.app import default_app
from procjobs.settings import Settings
from tests.mail_server import MailServer

OPS = "ops@harbourlane.example"
DAY = datetime(2031, 6, 10, tzinfo=UTC)


@pytest.fixture
def at(sql: Any) -> Callable[[datetime | str], None]:
    def set_clock(now: datetime | str) -> None:
        sql("select set_config('procjobs.now', %s, false)", str(now))

    sql("select procjobs.register_tasks(%s::jsonb, '1.0')", '[{"name": "procjobs.send_notification"}]')
    set_clock(DAY)
    return set_clock


def ended(sql: Any, status: str, finished: datetime, task: str = "t", took: float = 1.0) -> None:
    sql(
        "insert into procjobs.job_history "
        "(id, queue_name, task_name, priority, args, status, attempts, crashes, lease, started_at, finished_at) "
        "values (1, 'q', %s, 0, '{}', %s, 1, 0, 1, %s, %s)",
        task, status, finished - timedelta(seconds=took), finished,
    )  # fmt: skip


def dead(sql: Any, finished: datetime, task: str = "t", error: str = "boom 1") -> None:
    sql(
        "with j as (insert into procrastinate_jobs (queue_name, task_name, status, pj_finished_at, pj_fingerprint) "
        "values ('q', %s, 'failed', %s, procjobs.error_fingerprint('ValueError', %s)) returning id) "
        "insert into procjobs.job_attempts (job_id, attempt, lease, outcome, error_class, error_message, finished_at) "
        "select id, 1, 1, 'failed', 'ValueError', %s, now() from j",
        task, finished, error, error,
    )  # fmt: skip


def figures(content: Any) -> dict[str, Any]:
    return {figure["label"]: (figure["value"], figure.get("change")) for figure in content["figures"]}


def test_it_counts_what_ended_that_day_and_how_that_changed(sql: Any, at: Any) -> None:
    last, noon = DAY - timedelta(microseconds=1), DAY - timedelta(hours=12)
    for moment in (DAY - timedelta(days=1), noon, last):
        ended(sql, "succeeded", moment, "fast", 0.2)
    ended(sql, "succeeded", noon, "slow", 90)
    ended(sql, "cancelled", noon)
    ended(sql, "aborted", noon)
    for moment in (DAY, DAY - timedelta(days=2)):  # today, and the day before
        ended(sql, "succeeded", moment, "other")
    dead(sql, DAY - timedelta(days=1, seconds=1))
    for number in range(3):
        dead(sql, noon, error=f"boom {number}")
    dead(sql, noon, "u", "else")
    ann = sql.one("insert into procjobs_demo.people (name, email) values ('Ann', 'ann@x.example') returning id")
    sql(
        "insert into procjobs.pending_invites (organization_id, email, role, invited_by, status, accepted_at, "
        "accepted_by) select gen_random_uuid(), 'x@x.example', 'member', %s, 'ACCEPTED', %s, %s "
        "from generate_series(1, 2)",
        ann, noon, ann,
    )  # fmt: skip
    for template, sent in (("invitation", noon), ("digest", noon), ("digest", last), ("welcome", DAY)):
        sql(
            "with n as (insert into procjobs.notification_jobs (id, address, template, notification_type, urgency, "
            "delivery_method, content, status, processed_at, scheduled_for, created_at, created_by) select "
            "gen_random_uuid(), 'x@x.example', %s, 'x', 'normal', 'email', '{}', 'sent', now(), now(), now(), 'x' "
            "returning id) insert into procjobs.notification_delivery_logs (job_id, attempt, status, delivery_method, "
            "address, worker, started_at, finished_at, message_id) "
            "select id, 1, 'sent', 'email', 'x', 'w', %s, %s, 'm' from n",
            template, sent, sent,
        )  # fmt: skip
    content = sql.one("select procjobs.preview_report()")
    assert content["for_day"] == "2031-06-09"
    assert figures(content) == {
        "Jobs that succeeded": (4, "+3"), "Jobs that failed": (4, "+3"),
        "Success rate": ("50.0 %", "as the day before"),
        "Jobs cancelled": (1, "+1"), "Jobs aborted": (1, "+1"), "Notifications sent": (3, "+3"),
        "Notifications failed": (0, "as the day before"), "Digests sent": (2, "+2"), "Invitations sent": (1, "+1"),
        "Invitations accepted": (2, "+2"),
    }  # fmt: skip
    failures, slow = content["tables"]
    assert [row[:2] + row[3:] for row in failures["rows"]] == [["t", "ValueError", 3], ["u", "ValueError", 1]]
    assert slow["rows"] == [["slow", 1, "90.0 s", "90.0 s"], ["fast", 3, "200 ms", "200 ms"]]
    assert "boom" not in str(content)
    good = {figure["label"]: figure.get("good") for figure in content["figures"]}
    assert (good["Jobs that failed"], good["Invitations accepted"], good["Jobs that succeeded"]) == (False, True, None)


def test_a_day_without_jobs_has_no_rate(sql: Any, at: Any) -> None:
    content = sql.one("select procjobs.preview_report('2031-01-01', 'Asia/Kolkata')")
    assert figures(content)["Success rate"] == ("no jobs", None) and "tables" not in content


ZONES = ["Africa/Cairo", "America/Havana", "America/Santiago", "Australia/Lord_Howe", "Europe/Berlin", "Asia/Kolkata"]


def first(day: date, at: time, zone: ZoneInfo) -> datetime:
    """When clocks of the zone first show this time or a later one on that day, by looking at every minute."""
    found = datetime.combine(day, time(), UTC) - timedelta(hours=15)
    while (shown := found.astimezone(zone).replace(tzinfo=None)) < datetime.combine(day, at) or shown.date() != day:
        found += timedelta(minutes=1)
    return found


@pytest.mark.parametrize("zone", ZONES)
def test_days_begin_when_clocks_say_so(sql: Any, zone: str) -> None:
    days = [date(2026, 1, 1) + timedelta(days=number) for number in range(365)]
    near = [day for day in days if any(
        ZoneInfo(zone).utcoffset(datetime.combine(day, time(12)) + timedelta(days=n))
        != ZoneInfo(zone).utcoffset(datetime.combine(day, time(12))) for n in (-1, 1))]  # fmt: skip
    for day in near or days[:3]:
        assert sql.one("select procjobs.day_begin(%s, %s)", day, zone) == first(day, time(), ZoneInfo(zone)), day


@pytest.mark.parametrize(
    ("zone", "day", "at_time"),
    [
        ("Europe/Berlin", date(2031, 3, 30), time(2, 30)),  # skipped
        ("Europe/Berlin", date(2031, 10, 26), time(2, 30)),  # twice
        ("America/Havana", date(2031, 3, 9), time(0, 0)),
        ("America/New_York", date(2031, 6, 1), time(7, 0)),
    ],
)
def test_each_subscriber_gets_one_a_local_day_at_the_local_time(
    sql: Any, at: Any, zone: str, day: date, at_time: time
) -> None:
    begin = datetime.combine(day, time(), UTC) - timedelta(days=1, hours=20)
    at(begin)
    sql("select procjobs.subscribe_report(address => %s, timezone => %s, delivery_time => %s)", OPS, zone, at_time)
    wanted, found = [], []
    for number in range(-3, 5):
        due = first(day + timedelta(days=number), at_time, ZoneInfo(zone))
        wanted += [(due, day + timedelta(days=number - 1))] if due > begin else []
    now = begin
    while now < begin + timedelta(days=4):
        at(now)
        if sql.one("select procjobs.create_daily_reports()"):
            found += [(now, sql.one("select local_day from procjobs.daily_reports order by id desc limit 1"))]
        now += timedelta(minutes=15)
    assert found == [pair for pair in wanted if pair[0] < now] and len(found) >= 3


def test_a_person_has_the_days_of_where_the_person_lives(sql: Any, at: Any) -> None:
    ann = sql.one(
        "insert into procjobs_demo.people (name, email, timezone) "
        "values ('Ann', 'ann@x.example', 'Asia/Tokyo') returning id"
    )
    assert sql.one("select procjobs.subscribe_report(%s) = '2031-06-10 22:00Z'", ann)
    at("2031-06-10 21:59Z")
    assert sql.one("select procjobs.create_daily_reports()") == 0
    at("2031-06-10 22:00Z")
    assert [sql.one("select procjobs.create_daily_reports()") for _ in range(2)] == [1, 0]
    assert sql("select local_day::text, timezone from procjobs.daily_reports") == [("2031-06-10", "Asia/Tokyo")]
    sql("update procjobs_demo.people set email = null")
    at("2031-06-13 22:00Z")  # nobody was there for two days: one report
    assert sql.one("select procjobs.create_daily_reports()") == 0
    assert sql("select last_day::text, last_status, last_error from procjobs.report_subscription_list") == [
        ("2031-06-13", "unreachable", "the person has no e-mail address")
    ]


def test_of_two_that_look_at_once_one_sends(sql: Any, at: Any, dsn: str) -> None:
    for number in range(5):
        sql("select procjobs.subscribe_report(address => %s)", f"ops{number}@x.example")
    now = DAY + timedelta(hours=7)

    def other() -> int:
        with psycopg.connect(dsn, options="-c lock_timeout=20s") as connection:
            connection.execute("select set_config('procjobs.now', %s, false)", (str(now),))
            row = connection.execute("select procjobs.create_daily_reports()").fetchone()
        return int(row[0]) if row else -1

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: other(), range(4)))
    assert sum(found) == 5 and sql.one("select count(*) from procjobs.notification_jobs") == 5


def test_subscribing_and_unsubscribing(sql: Any, at: Any) -> None:
    sql("select procjobs.subscribe_report(address => %s, address_name => 'Night', delivery_time => '06:00')", OPS)
    sql("select procjobs.subscribe_report(address => upper(%s), timezone => 'Europe/Oslo')", OPS)
    view = "select address, address_name, timezone, delivery_time, unsubscribed from procjobs.report_subscription_list"
    assert sql(view) == [(OPS, "Night", "Europe/Oslo", time(6), False)]
    sql("select procjobs.unsubscribe(procjobs.sign_subscription('kind daily_report ' || %s))", OPS)
    assert sql(view)[0][-1] is True
    at("2031-06-11 12:00Z")
    assert sql.one("select procjobs.create_daily_reports()") == 0
    sql("select procjobs.subscribe_report(address => %s)", OPS)
    assert sql(view)[0][-1] is False and sql.one("select procjobs.create_daily_reports()") == 1
    found = [sql.one("select procjobs.unsubscribe_report(address => upper(%s))", OPS) for _ in range(2)]
    assert found == [True, False] and sql(view) == []


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("", "PJ023"),
        ("address => 'nobody'", "PJ023"),
        ("gen_random_uuid()", "PJ020"),
        ("address => 'a@x.example', timezone => 'Nowhere/Land'", "PJ014"),
    ],
)
def test_what_cannot_be_is_refused(sql: Any, call: str, code: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        sql(f"select procjobs.subscribe_report({call})")
    assert caught.value.sqlstate == code and sql("select * from procjobs.report_subscriptions") == []


async def test_from_the_schedule_to_the_mailbox(dsn: str, sql: Any) -> None:
    """A worker runs the schedule's job, and the task GENERATE_REPORT, and sends what they request."""
    assert sql.one("select procjobs.declare_reports()") == 1
    sql("select procjobs.unschedule(name) from procjobs.schedules where name <> 'create_daily_reports'")
    yesterday = (datetime.now(UTC) - timedelta(days=1)).replace(hour=12)
    sql("select procjobs.subscribe_report(address => %s, address_name => 'Night', delivery_time => '00:00')", OPS)
    sql("update procjobs.report_subscriptions set created_at = now() - interval '2 days'")
    for number in range(3):
        ended(sql, "succeeded", yesterday, f"task {number}", 10**number)
    dead(sql, yesterday, "broken")
    async with MailServer() as mail:
        app = default_app(Settings(dsn=dsn, smtp_host="127.0.0.1", smtp_port=mail.port, base_url="https://x.example"))
        async with app.open_async():
            await app.run_worker_async(wait=False, install_signal_handlers=False)
            sql("select procjobs.run_now('create_daily_reports')")
            await app.run_worker_async(wait=False, install_signal_handlers=False)
            await app.run_worker_async(wait=False, install_signal_handlers=False)
            sql("""select procjobs.defer('GENERATE_REPORT', '{"address": "boss@x.example"}')""")
            await app.run_worker_async(wait=False, install_signal_handlers=False)
            await app.run_worker_async(wait=False, install_signal_handlers=False)
    assert sql("select task, error from procjobs.dead_letters where task <> 'broken'") == []
    assert [str(message["To"]) for message in mail.messages] == [f"Night <{OPS}>", "boss@x.example"]
    report = mail.messages[0]
    assert str(report["Subject"]).startswith("The day in figures: ") and "List-Unsubscribe" in report
    for kind in ("plain", "html"):
        part = report.get_body((kind,))
        assert part is not None
        said = part.get_content()
        for words in ("Jobs that succeeded", "75.0 %", "task 2", "100.0 s", "broken", "ValueError", "Failures"):
            assert words in said, (kind, words)
