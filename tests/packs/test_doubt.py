"""Deliveries and effects in doubt: never silently twice where the receiver cannot tell."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from typing import Any
from uuid import UUID

import psycopg
import pytest

import procjobs
from procjobs import demo
from procjobs.db import Database
from procjobs.letters import Brand
from procjobs.mail import Mailer, Sent
from procjobs.packs.notifications import NothingToSend, Postponed, deliver
from tests.mail_server import DROP, HANG, MailServer
from tests.packs.test_delivery import Flaky
from tests.processes import environment, procjobs_command

HELD = "it may have arrived already, and is not sent twice: say what became of it with procjobs.resolve_delivery"


@pytest.fixture
async def notification(db: Database, sql: Any) -> UUID:
    """One by SMS, as far as the record goes."""
    facts = await demo.seed(db)
    sql("delete from public.procrastinate_jobs")
    sql("delete from procjobs.notification_jobs")
    found: UUID = sql.one(
        'select procjobs.enqueue_notification_job(%s, content => \'{"subject": "x", "body": "y"}\')', facts.recipient_id
    )
    sql("update procjobs.notification_jobs set delivery_method = 'sms'")
    return found


def begin(sql: Any, notification: UUID) -> tuple[str, str | None, int | None]:
    ((status, reason, delivery),) = sql(
        "select status, reason, delivery_id from procjobs.begin_delivery(%s, 'w', 'd.example')", notification
    )
    return status, reason, delivery


def finish(sql: Any, delivery: int | None, status: str) -> None:
    sql("select procjobs.finish_delivery(%s, %s, 5, 'p', null, null, 'lost contact')", delivery, status)


def state(sql: Any, notification: UUID) -> str:
    found: str = sql.one("select status from procjobs.notification_jobs where id = %s", notification)
    return found


def end_job(sql: Any, notification: UUID) -> int:
    """Its queue job ends as discarded, as the worker makes it."""
    job: int = sql.one("select job_id from procjobs.notification_jobs where id = %s", notification)
    sql("select procjobs.archive_job(%s, 'cancelled', %s)", job, HELD)
    return job


@pytest.mark.parametrize("end", ["unknown", None], ids=["contact lost", "worker killed"])
def test_what_the_receiver_cannot_tell_apart_is_held_until_somebody_says_what_became_of_it(
    sql: Any, notification: UUID, end: str | None
) -> None:
    _, _, delivery = begin(sql, notification)
    if end:
        finish(sql, delivery, end)
    assert begin(sql, notification) == ("failed", HELD, None)
    end_job(sql, notification)
    assert state(sql, notification) == "failed"
    assert sql("select notification_id, policy, attempt from procjobs.unresolved_deliveries") == [
        (notification, "hold", 1)
    ]

    assert sql.one("select procjobs.resolve_delivery(%s, 'sent')", notification) == "sent"
    assert state(sql, notification) == "sent"
    assert sql("select * from procjobs.unresolved_deliveries") == []
    with pytest.raises(psycopg.Error) as refused:
        sql("select procjobs.resolve_delivery(%s, 'lost')", notification)
    assert refused.value.sqlstate == "PJ008"


def mark(sql: Any, notification: UUID) -> tuple[int, bool]:
    """A try of a worker that says when the message leaves: its row, and whether it is to say so."""
    ((delivery, marked),) = sql(
        "select delivery_id, marked from procjobs.begin_delivery_v2(%s, 'w', 'd.example')", notification
    )
    return delivery, marked


def leave(sql: Any, delivery: int) -> bool:
    found: bool = sql.one("select procjobs.leave_delivery(%s, 'mail.example:25')", delivery)
    return found


def test_what_is_lost_before_it_left_is_in_no_doubt(sql: Any, notification: UUID) -> None:
    first, marked = mark(sql, notification)
    assert marked
    second, _ = mark(sql, notification)
    assert sql("select status, error from procjobs.notification_delivery_logs where id = %s", first) == [
        ("deferred", "the worker was lost before the message left")
    ]
    assert not leave(sql, first), "given up: whoever is late may not send it any more"
    assert leave(sql, second)
    assert begin(sql, notification) == ("failed", HELD, None)
    end_job(sql, notification)
    assert sql("select attempt, provider from procjobs.unresolved_deliveries") == [(2, "mail.example:25")]


def test_a_job_that_is_given_up_before_the_message_left_is_in_no_doubt_either(sql: Any, notification: UUID) -> None:
    mark(sql, notification)
    sql("select procjobs.archive_job(job_id, 'failed', 'crashed') from procjobs.notification_jobs")
    assert sql("select status from procjobs.notification_delivery_logs") == [("deferred",)]
    assert sql("select * from procjobs.unresolved_deliveries") == []


def test_where_it_may_be_sent_twice_nothing_need_be_said(sql: Any, notification: UUID) -> None:
    sql("select procjobs.set_delivery_policy('sms', 'retry')")
    delivery, marked = mark(sql, notification)
    assert not marked
    sql("select procjobs.set_delivery_policy('sms', 'hold')")
    mark(sql, notification)
    assert sql("select status from procjobs.notification_delivery_logs where id = %s", delivery) == [("unknown",)]


@pytest.mark.parametrize(
    ("stage", "reply", "held"),
    [
        ("CONNECT", HANG, False),
        ("CONNECT", "421 too busy", False),
        ("MAIL", HANG, False),
        ("RCPT", "451 later", False),
        ("RCPT", DROP, False),
        ("DATA", "451 later", False),
        ("DATA", HANG, True),
        ("DATA", DROP, True),
    ],
)
@pytest.mark.parametrize("end", ["by itself", "cancelled"])
async def test_a_mail_is_held_only_where_it_may_have_arrived(
    db: Database, sql: Any, notification: UUID, stage: str, reply: str, held: bool, end: str
) -> None:
    sql("update procjobs.notification_jobs set delivery_method = 'email'")
    sql("select procjobs.set_delivery_policy('email', 'hold')")
    async with MailServer(replies={stage: [reply]}) as server:
        timeout = 5.0 if end == "cancelled" else 0.2
        mailer = Mailer("127.0.0.1", server.port, sender="a@d.example", timeout=timeout)
        trying = asyncio.create_task(deliver(db, mailer, Brand(), notification, worker="w"))
        if end == "cancelled" and reply == HANG:
            await server.hanging.wait()
            trying.cancel()
        await asyncio.wait([trying])
        again = await deliver(db, mailer, Brand(), notification, worker="w")
        await mailer.close()
    assert isinstance(again, NothingToSend if held else Sent)
    assert state(sql, notification) == ("failed" if held else "sent")


async def test_without_a_word_on_record_that_it_leaves_it_does_not(db: Database, sql: Any, notification: UUID) -> None:
    sql("update procjobs.notification_jobs set delivery_method = 'email'")
    sql("select procjobs.set_delivery_policy('email', 'hold')")
    async with MailServer() as server:
        mailer = Mailer("127.0.0.1", server.port, sender="a@d.example")
        flaky = Flaky(db, "leave_delivery", times=1)
        assert isinstance(await deliver(flaky, mailer, Brand(), notification, worker="w"), Postponed)
        assert server.raw == []
        assert sql.one("select failed from procjobs.breakers where name = 'smtp'") == 0
        assert isinstance(await deliver(flaky, mailer, Brand(), notification, worker="w"), Sent)
        await mailer.close()


def test_a_lost_one_is_sent_again(sql: Any, notification: UUID) -> None:
    finish(sql, begin(sql, notification)[2], "unknown")
    begin(sql, notification)
    job = end_job(sql, notification)
    assert sql.one("select procjobs.resolve_delivery(%s, 'lost')", notification) == "pending"
    assert sql("select id, status::text from procrastinate_jobs") == [(job, "todo")]
    status, _, delivery = begin(sql, notification)
    assert status == "processing"
    finish(sql, delivery, "sent")
    assert state(sql, notification) == "sent"


def test_a_lost_one_whose_job_was_forgotten_gets_another(sql: Any, notification: UUID) -> None:
    finish(sql, begin(sql, notification)[2], "unknown")
    begin(sql, notification)
    end_job(sql, notification)
    sql("delete from procjobs.job_history")
    sql("select procjobs.resolve_delivery(%s, 'lost')", notification)
    assert sql.one("select n.job_id = j.id from procjobs.notification_jobs n, procrastinate_jobs j")
    assert state(sql, notification) == "pending"


def test_the_policy_is_a_setting_of_each_method(sql: Any, notification: UUID) -> None:
    assert sql("select delivery_method, after_unknown from procjobs.delivery_policies order by 1") == [
        ("email", "retry"), ("slack", "retry"), ("sms", "hold"), ("webhook", "retry"), ("whatsapp", "hold")
    ]  # fmt: skip
    assert sql.one("select procjobs.set_delivery_policy('sms', 'retry')")
    first = begin(sql, notification)[2]
    finish(sql, first, "unknown")
    assert begin(sql, notification)[0] == "processing"
    assert sql.one("select count(distinct message_id) from procjobs.notification_delivery_logs") == 1
    assert sql.one("select procjobs.after_unknown('pigeon')") == "hold"
    with pytest.raises(psycopg.Error, match="cannot be"):
        sql("select procjobs.set_delivery_policy('sms', 'forget')")
    with pytest.raises(psycopg.Error, match="there is no delivery method 'mail'"):  # it is email
        sql("select procjobs.set_delivery_policy('mail', 'hold')")


def test_the_command_line_lists_and_resolves_them(dsn: str, sql: Any, notification: UUID, tmp_path: Any) -> None:
    def run(*arguments: str) -> str:
        said = procjobs_command(*arguments, cwd=tmp_path, env={"DATABASE_URL": dsn})
        assert said.returncode == 0, said.stderr
        return said.stdout

    assert "No delivery is in doubt" in run("deliveries")
    begin(sql, notification)
    begin(sql, notification)
    end_job(sql, notification)
    (found,) = json.loads(run("deliveries", "--json"))
    assert found["notification_id"] == str(notification)
    assert "is sent" in run("deliveries", "resolve", str(notification), "sent")

    run("breakers", "set", "crm", "--task", "sync", "--task", "push", "--failures", "2", "--cool-down", "5s")
    assert "is open" in run("breakers", "open", "crm", "--for", "1h")
    first = json.loads(run("breakers", "--json"))[0]
    assert (first["name"], first["state"], first["tasks"]) == ("crm", "open", ["sync", "push"])
    assert "crm" in run("breakers", "list")
    assert "is closed" in run("breakers", "close", "crm")
    assert "is gone" in run("breakers", "drop", "crm")


# -- the ledger of effects of one's own ------------------------------------------------------------------------------

VICTIM = """
import asyncio, os, signal, procjobs

async def main():
    app = procjobs.App()
    async with app.open_async():
        async with app.effect("charge:7") as effect:
            print(effect.state, flush=True)
            if effect.state == "do":
                os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_killed_between_begin_and_end_it_is_unknown_never_silently_done_again(dsn: str, sql: Any) -> None:
    def run() -> tuple[int, str]:
        ended = subprocess.run(
            [sys.executable, "-c", VICTIM],
            env=environment(DATABASE_URL=dsn),
            capture_output=True,
            text=True,
            check=False,
        )
        return ended.returncode, ended.stdout.strip()

    assert run() == (-signal.SIGKILL, "do")
    assert run() == (0, "unknown")
    assert sql("select state from procjobs.effects") == [("unknown",)]
    assert sql.one("select procjobs.resolve_effect('charge:7', 'lost')")
    assert run() == (-signal.SIGKILL, "do")
    assert sql.one("select procjobs.resolve_effect('charge:7', 'done', 'ch_1')")
    assert run() == (0, "done")


async def test_an_effect_is_done_once_and_may_be_void(dsn: str, sql: Any) -> None:
    app = procjobs.App(dsn)
    async with app.open_async():
        async with app.effect("a") as effect:
            assert effect.state == "do"
            await effect.done("ch_9")
        async with app.effect("a") as effect:
            assert (effect.state, effect.provider_id) == ("done", "ch_9")
        async with app.effect("b") as effect:
            await effect.void()
        async with app.effect("b") as effect:
            assert effect.state == "do"
        with pytest.raises(OSError, match="cut"):
            async with app.effect("c"):
                raise OSError("cut")
        async with app.effect("c") as effect:
            assert effect.state == "unknown"
    sql("update procjobs.effects set ended_at = now() - interval '91 days' where key = 'a'")
    assert sql.one("select procjobs.forget_effects()") == 1
    assert sql("select key from procjobs.effects order by key") == [("b",), ("c",)]


@pytest.mark.parametrize("key", [None, "", "k" * 501])
def test_an_effect_without_a_key_of_its_own_is_refused(sql: Any, key: str | None) -> None:
    with pytest.raises(psycopg.Error, match="an effect needs a key of 1 to 500 characters") as refused:
        sql("select * from procjobs.begin_effect(%s)", key)
    assert refused.value.sqlstate == "PJ009" and refused.value.diag.message_detail and refused.value.diag.message_hint


def test_those_in_doubt_are_found_without_all_that_failed(explain: Any, sql: Any) -> None:
    sql(
        """
        with n as (
          insert into procjobs.notification_jobs (
            recipient_id, notification_type, urgency, delivery_method, content, status, scheduled_for, created_at,
            created_by, processed_at)
          select gen_random_uuid(), 'immediate', 'normal', 'sms', '{}', 'failed', now(), now(), 'test', now()
          from generate_series(1, 20000)
          returning id
        )
        insert into procjobs.notification_delivery_logs (
          job_id, attempt, status, delivery_method, address, worker, started_at, finished_at)
        select id, 1, case when row_number() over () % 1000 = 0 then 'unknown' else 'refused' end, 'sms', '+46', 'w',
          now(), now() from n
        """
    )
    sql("analyze procjobs.notification_jobs, procjobs.notification_delivery_logs")
    for query in (
        "select * from procjobs.unresolved_deliveries",
        "select * from procjobs.unresolved_deliveries where notification_id = '7a0b9f6e-58c1-4d7f-9a58-0d5fb0a3f5f1'",
    ):
        plan = str(explain(query))
        assert "notification_delivery_logs_doubtful" in plan and "notification_jobs_pkey" in plan, plan
        assert "Seq Scan" not in plan
