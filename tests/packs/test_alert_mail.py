"""Alerts reach operators: once per opening, one message however many open, by mail, Slack and webhook."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from procjobs.app import default_app
from procjobs.settings import Settings
from tests.channel_server import ChannelServer
from tests.mail_server import MailServer

OPS = "ops@harbourlane.example"
MESSAGES = "select count(*) from procjobs.notification_jobs where template = 'alert'"


@pytest.fixture
def told(sql: Any) -> Any:
    """`told("12:05")` sets the clock and tells; gives what the new messages say: their subjects."""
    sql("select procjobs.register_tasks(%s::jsonb, '1.0')", '[{"name": "procjobs.send_notification"}]')

    def tell(at: str) -> list[str]:
        sql("select set_config('procjobs.now', %s, false)", f"2031-06-01 {at}Z")
        before = sql("select id from procjobs.notification_jobs")
        count = sql.one("select procjobs.tell_alerts()")
        found = sql(
            "select content ->> 'subject' from procjobs.notification_jobs where id <> all (%s::uuid[]) "
            "order by address",
            [row for (row,) in before],
        )
        assert len(found) == count
        return [subject for (subject,) in found]

    tell("12:00")
    return tell


def open_alert(sql: Any, subject: str = "mail", kind: str = "backlog") -> None:
    sql("select procjobs.raise_alert(%s, %s, %s)", kind, subject, f"too many wait in {subject}")


def close_alert(sql: Any, subject: str = "mail", kind: str = "backlog") -> None:
    sql("select procjobs.close_alerts(array[%s], array[%s], 'fewer wait')", kind, subject)


def test_an_opening_is_told_once_its_end_once_and_a_new_opening_anew(sql: Any, told: Any) -> None:
    sql("select procjobs.set_alert_recipient(%s)", OPS)
    assert told("12:01") == []
    open_alert(sql)
    assert told("12:02") == ["Alert: too many wait in mail"]
    for minute in range(3, 10):
        open_alert(sql)  # found again each minute
        assert told(f"12:0{minute}") == []
    close_alert(sql)
    assert told("12:10") == ["Over: too many wait in mail"]
    assert told("12:30") == []
    open_alert(sql)
    assert told("12:31") == ["Alert: too many wait in mail"]
    assert sql("select event, count(*) from procjobs.alert_letters group by 1 order by 1") == [
        ("closed", 1), ("opened", 2)
    ]  # fmt: skip


def test_many_at_once_are_one_message_and_those_within_the_pause_wait_for_the_next(sql: Any, told: Any) -> None:
    sql("select procjobs.set_alert_recipient(%s)", OPS)
    for number in range(120):
        open_alert(sql, f"queue{number}")
    assert told("12:01") == ["Alert: 120 alerts opened"]
    (content,) = sql("select content from procjobs.notification_jobs")[0]
    assert content["level"] == "warn" and len(content["alerts"]) == 50
    assert content["body"].count("Many jobs wait: ") == 50 and "And 70 more" in content["body"]
    open_alert(sql, "late")
    open_alert(sql, "smtp", "breaker_open")
    close_alert(sql, "queue1")
    open_alert(sql, "brief")
    close_alert(sql, "brief")
    assert told("12:05:59") == []
    assert told("12:06") == ["Alert: 3 alerts opened, 2 are over"]
    (content,) = sql("select content from procjobs.notification_jobs order by created_at desc limit 1")[0]
    lines = [re.sub(r" \(.*", "", line) for line in content["body"].splitlines()]
    assert content["level"] == "bad" and lines == [
        "A breaker is open: too many wait in smtp",
        "Many jobs wait: too many wait in late",
        "Over: too many wait in queue1",
        "Over: too many wait in brief",
    ]


def test_what_came_and_went_is_over_when_it_is_told(sql: Any, told: Any) -> None:
    sql("select procjobs.set_alert_recipient(%s)", OPS)
    open_alert(sql)
    close_alert(sql)
    assert told("12:01") == ["Over: too many wait in mail"]


def test_who_comes_later_is_told_of_what_is_open_and_not_of_what_is_over(sql: Any, told: Any) -> None:
    for subject in ("a", "b"):
        open_alert(sql, subject)
    close_alert(sql, "a")
    assert told("12:10") == []  # nobody to tell
    sql("select procjobs.set_alert_recipient(%s)", OPS)
    assert told("12:11") == ["Alert: too many wait in b"]


def test_each_is_told_of_the_kinds_that_were_asked_for(sql: Any, told: Any) -> None:
    assert sql.one("select procjobs.set_alert_recipient(%s, kinds => '{breaker_open}')", OPS) is True
    sql("select procjobs.set_alert_recipient('all@harbourlane.example', pause => '0')")
    open_alert(sql)
    assert told("12:01") == ["Alert: too many wait in mail"]
    open_alert(sql, "smtp", "breaker_open")
    assert told("12:02") == ["Alert: too many wait in smtp"] * 2
    assert sql.one("select procjobs.set_alert_recipient(upper(%s), pause => '1 hour')", OPS) is False
    view = "select address, kinds, pause::text, alerts, last_status from procjobs.alert_recipient_list order by 1 desc"
    assert sql(view)[0][1:] == (None, "00:00:00", 1, "pending")
    assert sql(view)[1] == (OPS.upper(), ["breaker_open"], "01:00:00", 1, "pending")
    sql("select procjobs.set_alert_recipient(%s, kinds => '{}')", OPS)
    assert told("13:02") == ["Alert: too many wait in mail"]
    assert sql.one("select procjobs.drop_alert_recipient(%s)", OPS) is True
    assert sql.one("select procjobs.drop_alert_recipient(%s)", OPS) is False


def test_of_two_that_tell_at_once_one_does(sql: Any, told: Any, dsn: str) -> None:
    for name in ("a", "b"):
        sql("select procjobs.set_alert_recipient(%s || '@harbourlane.example', pause => '0')", name)
    open_alert(sql)

    def other() -> int:
        with psycopg.connect(dsn, options="-c lock_timeout=10s") as connection:
            row = connection.execute("select procjobs.tell_alerts()").fetchone()
        return int(row[0]) if row else -1

    sql("reset procjobs.now")
    with ThreadPoolExecutor(4) as pool:
        sql("begin")
        mine = sql.one("select procjobs.tell_alerts()")
        beside = pool.submit(other).result(30)  # it waits for nobody
        sql("commit")
        after = list(pool.map(lambda _: other(), range(4)))
    assert (mine, beside, after) == (2, 0, [0, 0, 0, 0])
    assert sql.one(MESSAGES) == 2


def test_a_message_and_what_is_noted_of_it_are_one_transaction(sql: Any, told: Any) -> None:
    sql("select procjobs.set_alert_recipient(%s)", OPS)
    sql("begin")
    open_alert(sql)
    assert sql.one("select procjobs.tell_alerts()") == 1
    sql("rollback")
    assert sql.one(MESSAGES) == 0 and sql("select told_at from procjobs.alert_recipients") == [(None,)]
    open_alert(sql)
    assert told("12:01") == ["Alert: too many wait in mail"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("'nobody'", "is not an e-mail address"),
        ("null", "has no e-mail address"),
        ("' '", "has no e-mail address"),
        ("'+4670', 'sms'", "method 'sms' is not email, slack or webhook"),
        ("'ops@x.example', null", "method null is not"),
        ("'https://hooks.slack.com/services/x', 'slack'", "name it in the workers' slack_webhooks"),
        ("'ftp://x.example', 'webhook'", "not http or https"),
        ("'ops@x.example', kinds => '{nothing}'", "kind 'nothing' is not known"),
        ("'ops@x.example', kinds => array[null]", "kind null is not known"),
        ("'ops@x.example', pause => '-1 s'", "is negative"),
    ],
)
def test_what_cannot_be_told_is_refused(sql: Any, call: str, words: str) -> None:
    with pytest.raises(psycopg.Error, match=re.escape(words)) as caught:
        sql(f"select procjobs.set_alert_recipient({call})")
    assert caught.value.sqlstate == "PJ009" and caught.value.diag.message_hint
    assert sql("select * from procjobs.alert_recipients") == []


def test_every_kind_that_is_raised_has_a_level_and_words(sql: Any) -> None:
    source = "\n".join(
        row for (row,) in sql("select prosrc from pg_proc where pronamespace = 'procjobs'::regnamespace")
    )
    raised = set(re.findall(r"perform procjobs\.raise_alert\(\s*'(\w+)'", source))
    kinds = dict(sql("select kind, level from procjobs.alert_kinds()"))
    assert raised == set(kinds) and set(kinds.values()) == {"bad", "warn"}


async def test_from_a_queue_that_grows_to_the_operators_and_back(dsn: str, sql: Any, eventually: Any) -> None:
    """A worker does it all: its upkeep finds the backlog, tells, and sends what it told."""
    sql("select procjobs.set_backlog_alert(2, array['slow'])")
    async with MailServer() as mail, ChannelServer() as channels:
        environ = channels.environ() | {"PROCJOBS_SMTP_HOST": "127.0.0.1", "PROCJOBS_SMTP_PORT": str(mail.port)}
        sql("select procjobs.set_alert_recipient(%s, name => 'Night shift', pause => '0')", OPS)
        sql("select procjobs.set_alert_recipient('C024BE91L', 'slack', pause => '0')")
        sql("select procjobs.set_alert_recipient(%s, 'webhook', pause => '0')", f"{channels.url}/hook")
        app = default_app(Settings.load(environ={"DATABASE_URL": dsn, **environ}))

        @app.task(name="slow", queue="slow")
        async def slow() -> None: ...

        async with app.open_async():
            working = asyncio.create_task(app.run_worker_async(queues=["notifications"], install_signal_handlers=False))
            await eventually(lambda: sql.one("select count(*) from procjobs.tasks where name = 'slow'") == 1)
            sql("select procjobs.defer('slow') from generate_series(1, 3)")
            sql("delete from procjobs.upkeep_state where chore = 'watch_backlog'")
            await eventually(lambda: len(mail.messages) == 1 and len(channels.taken) == 2, timeout=30)
            sql("select procjobs.cancel(id) from procjobs.jobs where task = 'slow'")
            sql("delete from procjobs.upkeep_state where chore = 'watch_backlog'")
            await eventually(lambda: len(mail.messages) == 2 and len(channels.taken) == 4, timeout=30)
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
    opened, over = mail.messages
    assert [str(message["Subject"]) for message in (opened, over)] == [
        "Alert: more than 2 jobs wait in queue slow", "Over: more than 2 jobs wait in queue slow",
    ]  # fmt: skip
    assert str(opened["To"]) == f"Night shift <{OPS}>" and opened["Importance"] == "high"
    assert "List-Unsubscribe" not in opened
    body = opened.get_body(("plain",))
    assert body is not None and "Many jobs wait: more than 2 jobs wait in queue slow (since " in body.get_content()
    slack = [taken.content for taken in channels.taken if "chat.postMessage" in taken.path]
    assert [found["channel"] for found in slack] == ["C024BE91L"] * 2
    assert "Alert: more than 2 jobs wait in queue slow" in str(slack[0])
    hooks = [taken.content for taken in channels.taken if taken.path.startswith("/hook")]
    assert [hook["data"]["content"]["alerts"][0]["subject"] for hook in hooks] == ["slow", "slow"]
    assert sql("select alert_id, recipient_id from procjobs.alert_letters group by 1, 2 having count(*) <> 2") == []


def test_the_letter_is_written_from_what_sql_says(sql: Any, told: Any) -> None:
    sql("select procjobs.set_alert_recipient(%s)", OPS)
    for subject in ("<b>a</b>", "b"):
        open_alert(sql, subject)
    told("12:01")
    (content,) = sql("select content from procjobs.notification_jobs")[0]
    assert sql.one("select procjobs.letter_problems('alert', %s::jsonb, null, null, %s, 'urgent') = '{}'",
                   Jsonb(content), OPS)  # fmt: skip
