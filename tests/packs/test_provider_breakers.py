"""The breakers of delivery methods: opened by what providers say, closed again by one probe."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from hashlib import md5
from typing import Any

import aiosmtplib
import psycopg
import pytest

from procjobs import demo, letters
from procjobs.app import App
from procjobs.channels import METHODS
from procjobs.db import Database
from tests.channel_server import HANG, HOLD, Answer, ChannelServer, meta_error, twilio_error
from tests.engine.conftest import FAST
from tests.mail_server import MailServer
from tests.packs.test_channels import app_of, due, enqueue

#: A plug-in of apprise's imports a module that Python has announced to go.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
MINUTE, COOL_DOWN, LONGEST = timedelta(minutes=1), timedelta(seconds=30), timedelta(minutes=10)
#: name: failures, rate.
OUT_OF_THE_BOX = {
    "smtp": (5, 0.5), "sms": (5, 0.5), "whatsapp": (5, 0.5), "slack": (5, 0.5), "webhook": (20, 0.9)
}  # fmt: skip


@pytest.fixture
async def server() -> AsyncIterator[ChannelServer]:
    async with ChannelServer() as running:
        yield running


@pytest.fixture
async def facts(db: Database, sql: Any, server: ChannelServer) -> demo.DemoFacts:
    """The demo without its own notifications, and Ingrid with an address of every kind."""
    found = await demo.seed(db)
    sql("delete from public.procrastinate_jobs")
    sql("delete from procjobs.notification_jobs")
    sql(
        "update procjobs_demo.recipients set slack = 'C024BE91L', webhook_url = %s where id = %s",
        f"{server.url}/hook", found.recipient_id,
    )  # fmt: skip
    return found


def test_the_breakers_out_of_the_box(sql: Any) -> None:
    found = sql(
        "select name, queue, tag, tasks, state, failures, rate, per, cool_down, longest, openings, opened_by "
        "from procjobs.breaker_list order by name"
    )
    assert found == [
        (
            name, "notifications", "email" if name == "smtp" else name, None, "closed", failures, rate, MINUTE,
            COOL_DOWN, LONGEST, 0, None,
        )
        for name, (failures, rate) in sorted(OUT_OF_THE_BOX.items())
    ]  # fmt: skip


#: apprise's targets have one each, made when it is needed first.
TARGET = (5, 0.5)
DOWN: Answer = (503, "down", {})
PROVIDERS = {
    "sms by twilio": ("sms", {}, "C024BE91L", twilio_error(503, 20503, "Service unavailable")),
    "whatsapp by twilio": (
        "whatsapp", {"PROCJOBS_WHATSAPP_PROVIDER": "twilio"}, "C024BE91L", twilio_error(500, 20500, "Internal error"),
    ),
    "whatsapp by meta": ("whatsapp", {}, "C024BE91L", meta_error(503, 131016, "Service unavailable")),
    "slack": ("slack", {}, "C024BE91L", (200, {"ok": False, "error": "internal_error"}, {})),
    "slack by an incoming webhook": ("slack", {}, "#ops", DOWN),
    "webhook": ("webhook", {}, "C024BE91L", DOWN),
    "apprise": ("apprise", {}, "C024BE91L", DOWN),
}  # fmt: skip


def state(sql: Any, name: str) -> str:
    found: str = sql.one("select state from procjobs.breaker_list where name = %s", name)
    return found


def waiting(sql: Any, name: str) -> list[tuple[Any, ...]]:
    """Attempts spent by, and number of, the jobs that wait for the breaker."""
    found: list[tuple[Any, ...]] = sql(
        "select attempts, count(*)::int from public.procrastinate_jobs where pj_held_by = %s group by 1",
        f"breaker:{name}",
    )
    return found


def cool_down(sql: Any, name: str) -> None:
    """The cool-down is over, and upkeep finds it so."""
    sql("update procjobs.breakers set retry_at = procjobs.clock() where name = %s and state = 'open'", name)
    sql("update public.procrastinate_jobs set scheduled_at = null where status = 'todo' and attempts = 0")
    sql("select procjobs.upkeep()")
    assert state(sql, name) == "half_open"


async def work(app: App, concurrency: int) -> None:
    """A worker that stops when nothing is left that may run."""
    async with app.open_async():
        await app.run_worker_async(wait=False, install_signal_handlers=False, concurrency=concurrency)


@pytest.mark.parametrize(("method", "settings", "slack", "down"), PROVIDERS.values(), ids=PROVIDERS)
async def test_it_opens_at_its_threshold_and_one_probe_closes_it(
    dsn: str, sql: Any, facts: demo.DemoFacts, server: ChannelServer, eventually: Any,
    method: str, settings: dict[str, str], slack: str, down: Answer,
) -> None:  # fmt: skip
    sql("update procjobs_demo.recipients set slack = %s", slack)
    name = {"apprise": "apprise oncall", "webhook": f"webhook 127.0.0.1 {server.port}"}.get(method, method)
    failures, _ = OUT_OF_THE_BOX.get(name, TARGET)
    notifications = [enqueue(sql, facts, method) for _ in range(failures + 7)]
    app = app_of(dsn, server, **settings)

    server.answers = [down] * 100
    await work(app, 1)
    tried = len(server.taken)
    others = len(notifications) - tried
    # What the worker held ahead when it opened, some milliseconds of work, is tried too.
    assert state(sql, name) == "open" and failures <= tried < failures + 7
    assert waiting(sql, name) == [(0, others)]
    assert sql("select kind, subject from procjobs.alerts where closed_at is null") == [("breaker_open", name)]

    cool_down(sql, name)
    await work(app, 10)
    assert (state(sql, name), len(server.taken)) == ("open", tried + 1), "one tried, and failed"
    assert sql.one("select openings from procjobs.breakers where name = %s", name) == 2
    assert sql("select attempts, count(*)::int from public.procrastinate_jobs group by 1 order by 1") == [
        (0, others), (1, tried)
    ]  # fmt: skip

    cool_down(sql, name)
    server.answers = [HOLD]
    async with app.open_async():
        worker = asyncio.create_task(app.run_worker_async(**{**FAST, "concurrency": 10}))
        await eventually(lambda: server.held == 1)
        assert waiting(sql, name) == [(0, others - 1)], "while it tries the others wait"
        server.released.set()
        await eventually(lambda: len(server.taken) == tried + 1 + others)
        assert state(sql, name) == "closed"
        due(sql)
        sent = "select count(*) from procjobs.notification_jobs where status = 'sent'"
        await eventually(lambda: sql.one(sent) == len(notifications))
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
    assert len(server.taken) == 2 * tried + 1 + others
    assert sql("select kind from procjobs.alerts where closed_at is null") == []


# -- webhooks: each receiver is a server of its own --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://Hooks.Example/a?b", "webhook hooks.example"),
        ("https://hooks.example:443/a", "webhook hooks.example"),
        ("http://hooks.example:80", "webhook hooks.example"),
        ("http://hooks.example:443", "webhook hooks.example 443"),
        ("https://hooks.example:8443#x", "webhook hooks.example 8443"),
        ("https://[2001:db8::1]:8443/", "webhook [2001 db8  1] 8443"),
        (f"https://{'a' * 100}.example/", f"webhook {md5(('a' * 100 + '.example').encode()).hexdigest()}"),
        (None, "webhook"),
    ],
)
def test_a_receiver_is_known_by_host_and_port(sql: Any, address: str | None, name: str) -> None:
    assert sql.one("select procjobs.method_breaker('webhook', %s)", address) == name
    shown = "select procjobs.method_breaker('webhook', procjobs.shown_address('webhook', %s))"
    assert sql.one(shown, address) == name, "as the delivery log has it"


async def test_a_receiver_that_fails_holds_up_no_other(
    dsn: str, sql: Any, facts: demo.DemoFacts, server: ChannelServer
) -> None:
    async with ChannelServer() as well:
        app = app_of(dsn, server, PROCJOBS_OUTGOING_PORTS=f"{server.port},{well.port}")
        other = sql.one("select id from procjobs_demo.recipients where name = 'Chidi'")
        sql("update procjobs_demo.recipients set webhook_url = %s where id = %s", f"{well.url}/hook", other)
        server.answers = [DOWN] * 5
        for _ in range(6):
            enqueue(sql, facts, "webhook")
        await work(app, 1)
        down = f"webhook 127.0.0.1 {server.port}"
        states = "select name, state from procjobs.breaker_list where name like 'webhook%%' order by name"
        assert sql(states) == [("webhook", "closed"), (down, "open")]
        assert waiting(sql, down) == [(0, 1)]
        sql(
            "select procjobs.enqueue_notification_job(%s, delivery_method => 'webhook', content => %s::jsonb)",
            other, '{"subject": "x", "body": "y"}',
        )  # fmt: skip
        await work(app, 1)
        assert len(well.taken) == 1 and sql(states) == [("webhook", "closed"), (down, "open")]
    assert sql("select * from procjobs.setting_log where kind = 'breaker' and name = %s", down) == [], "nobody set it"
    assert sql.one("select procjobs.forget_breakers()") == 0
    sql("select procjobs.close_breaker(%s)", down)
    sql("update procjobs.breakers set last_failure_at = now() - interval '8 days', since = now() - interval '8 days'")
    sql("select procjobs.set_breaker('webhook of ours', queue => 'notifications', tag => 'webhook of ours')")
    sql("update procjobs.breakers set since = now() - interval '8 days'")
    assert sql.one("select procjobs.forget_breakers()") == 1
    assert sql(states) == [("webhook", "closed"), ("webhook of ours", "closed")]


def test_when_nearly_no_receiver_answers_all_are_held(sql: Any, facts: demo.DemoFacts) -> None:
    for number in range(20):
        sql("update procjobs_demo.recipients set webhook_url = %s", f"https://host-{number}.example/hook")
        notification = sql.one(
            "select procjobs.enqueue_notification_job(%s, delivery_method => 'webhook', content => %s::jsonb)",
            facts.recipient_id, '{"subject": "x", "body": "y"}',
        )  # fmt: skip
        delivery = sql.one("select delivery_id from procjobs.begin_delivery_v2(%s, 'w', 'team.example')", notification)
        assert sql.one("select state from procjobs.breaker_list where name = 'webhook'") == "closed"
        sql(
            "select procjobs.finish_delivery(%s, 'deferred', 1, 'webhook', null, null, 'no connection')",
            delivery,
        )  # fmt: skip
    states = sql("select state, count(*) from procjobs.breaker_list where name like 'webhook%%' group by 1 order by 1")
    assert states == [("closed", 20), ("open", 1)]
    assert sql.one("select state from procjobs.breaker_list where name = 'webhook'") == "open"


# -- apprise: each target is a service of its own ----------------------------------------------------------------------


def two(server: ChannelServer) -> dict[str, str]:
    """Two targets, oncall and news, and how long apprise waits for an answer of theirs."""
    url = f"json://canary-user:canary-apprise-password@127.0.0.1:{server.port}/apprise?rto=0.5"
    return {"PROCJOBS_APPRISE_TARGETS": f"oncall={url} news={url}"}


def to(target: str) -> str:
    return f'{{"subject": "Dinner", "body": "At seven.", "target": "{target}"}}'


def breakers(sql: Any) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = sql(
        "select name, queue, tag, state, failures, rate, per, cool_down, longest from procjobs.breaker_list "
        "where name like 'apprise%%' order by name"
    )
    return found


async def test_a_target_that_fails_has_a_breaker_and_holds_up_no_other(
    dsn: str, sql: Any, facts: demo.DemoFacts, server: ChannelServer
) -> None:
    app = app_of(dsn, server, **two(server))
    enqueue(sql, facts, "apprise", to("news"))
    await work(app, 1)
    assert breakers(sql) == [], "what is well needs none"
    server.answers = [DOWN] * 5
    for _ in range(6):
        enqueue(sql, facts, "apprise", to("oncall"))
    await work(app, 1)
    assert breakers(sql) == [
        ("apprise oncall", "notifications", "apprise oncall", "open", *TARGET, MINUTE, COOL_DOWN, LONGEST)
    ]
    assert waiting(sql, "apprise oncall") == [(0, 1)]
    assert sql.one("select procjobs.notification_metrics('1 hour') -> 'breakers' ->> 'apprise oncall'") == "open"
    enqueue(sql, facts, "apprise", to("news"))
    await work(app, 1)
    assert len(server.taken) == 7
    assert "canary" not in sql.one("select last_error from procjobs.breakers where name = 'apprise oncall'")


async def test_what_no_worker_was_told_of_makes_no_breaker(
    dsn: str, sql: Any, facts: demo.DemoFacts, server: ChannelServer
) -> None:
    enqueue(sql, facts, "apprise", to("made_up"))
    await work(app_of(dsn, server), 1)
    assert sql("select status, provider_code from procjobs.notification_delivery_logs") == [("deferred", "no_target")]
    enqueue(sql, facts, "apprise", to("oncall"))
    await work(app_of(dsn, server, PROCJOBS_APPRISE_TARGETS=""), 1)
    assert sql("select status, provider from procjobs.notification_delivery_logs order by id")[1:] == [
        ("deferred", "none")
    ]
    assert breakers(sql) == []


async def test_silence_after_the_request_is_in_doubt_and_not_sent_again(
    dsn: str, sql: Any, facts: demo.DemoFacts, server: ChannelServer
) -> None:
    server.answers = [HANG]
    notification = enqueue(sql, facts, "apprise", to("oncall"))
    app = app_of(dsn, server, **two(server))
    await work(app, 1)
    due(sql)
    await work(app, 1)
    assert len(server.taken) == 1
    assert sql("select status, error from procjobs.notification_delivery_logs") == [
        ("unknown", "oncall did not answer to what was sent")
    ]
    assert sql("select notification_id, policy from procjobs.unresolved_deliveries") == [(notification, "hold")]
    assert sql.one("select procjobs.resolve_delivery(%s, 'lost')", notification) == "pending"
    await work(app, 1)
    assert sql.one("select status from procjobs.notification_jobs") == "sent"


def test_a_type_that_is_named_like_a_targets_breaker_cannot_be(sql: Any, facts: demo.DemoFacts) -> None:
    with pytest.raises(psycopg.Error, match="notification_type 'apprise oncall' is not a lowercase word"):
        sql(
            "select procjobs.enqueue_notification_job(%s, notification_type => 'apprise oncall', content => %s::jsonb)",
            facts.recipient_id, to("oncall"),
        )  # fmt: skip


# -- a worker that lacks settings: not the provider's failure ----------------------------------------------------------

SECRETS = (
    "TWILIO_AUTH_TOKEN",
    "META_ACCESS_TOKEN",
    "SLACK_TOKEN",
    "SLACK_WEBHOOKS",
    "WEBHOOK_SECRET",
    "APPRISE_TARGETS",
)


def bare_app(dsn: str, server: ChannelServer) -> App:
    """A worker of the same fleet whose environment lacks what is secret."""
    return app_of(dsn, server, **{f"PROCJOBS_{name}": "" for name in SECRETS})


@pytest.mark.parametrize("method", ["email", *METHODS])
async def test_a_worker_without_settings_opens_no_breaker_and_spends_nobodys_attempts(
    dsn: str, sql: Any, facts: demo.DemoFacts, server: ChannelServer, method: str
) -> None:
    content = '{"subject": "Dinner", "body": "At seven.", "target": "oncall"}'
    for _ in range(25):
        enqueue(sql, facts, method, content)
    await work(bare_app(dsn, server), 5)
    assert sql("select distinct status, provider_code from procjobs.notification_delivery_logs") == [
        ("deferred", "not_set_up")
    ]
    assert (
        sql("select name from procjobs.breakers where state <> 'closed' or failed > 0 or last_error is not null") == []
    )
    assert sql("select attempts, count(*)::int from public.procrastinate_jobs group by 1") == [(0, 25)]
    ((severity, finding),) = sql("select severity, finding from procjobs.doctor() where subject = 'channels'")
    assert severity == "warning" and f"25 notifications by {method} wait" in finding and "PROCJOBS_" in finding

    async with MailServer() as post:
        due(sql)
        await work(app_of(dsn, server, PROCJOBS_SMTP_HOST="127.0.0.1", PROCJOBS_SMTP_PORT=str(post.port)), 5)
    assert sql("select distinct status from procjobs.notification_jobs") == [("sent",)]
    assert sql("select * from procjobs.doctor() where subject = 'channels'") == []


@pytest.mark.parametrize("package", ["aiosmtplib", "css_inline"])
async def test_a_worker_without_the_packages_of_mail_sends_other_messages_and_leaves_mails_to_others(
    dsn: str, sql: Any, facts: demo.DemoFacts, server: ChannelServer, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    async with MailServer() as post:
        app = app_of(dsn, server, PROCJOBS_SMTP_HOST="127.0.0.1", PROCJOBS_SMTP_PORT=str(post.port))
        enqueue(sql, facts, "slack")
        enqueue(sql, facts, "email")
        with monkeypatch.context() as lacking:
            lacking.setattr("procjobs.mail.aiosmtplib", None if package == "aiosmtplib" else aiosmtplib)
            lacking.setitem(sys.modules, package, None)
            letters._inliner.cache_clear()
            await work(app, 1)
        assert sql("select delivery_method, status from procjobs.notification_jobs order by 1") == [
            ("email", "pending"), ("slack", "sent")
        ]  # fmt: skip
        assert sql.one("select attempts from public.procrastinate_jobs") == 0
        finding = sql.one("select finding from procjobs.doctor() where subject = 'channels'")
        assert "pip install 'procjobs[email]'" in finding
        due(sql)
        await work(app, 1)
        assert len(post.messages) == 1


async def test_it_waits_longer_each_time_and_comes_to_an_end_after_a_day(
    dsn: str, sql: Any, facts: demo.DemoFacts, server: ChannelServer
) -> None:
    enqueue(sql, facts, "sms")
    app, waits = bare_app(dsn, server), []
    for _ in range(8):
        await work(app, 1)
        waits += sql(
            "select round(extract(epoch from scheduled_at - procjobs.clock()) / 60)::int from procrastinate_jobs"
        )
        due(sql)
    assert [wait for (wait,) in waits] == [1, 2, 4, 8, 15, 15, 15, 15]
    sql("update procjobs.notification_jobs set scheduled_for = now() - interval '25 hours'")
    for _ in range(3):
        await work(app, 1)
        due(sql)
    assert sql.one("select status from procjobs.notification_jobs") == "failed"
    assert "PROCJOBS_TWILIO_AUTH_TOKEN" in sql.one("select last_error from procjobs.notification_jobs")


async def test_one_that_lacks_settings_is_no_probe(
    dsn: str, sql: Any, facts: demo.DemoFacts, server: ChannelServer
) -> None:
    server.answers = [twilio_error(503, 20503, "Service unavailable")] * 5
    for _ in range(8):
        enqueue(sql, facts, "sms")
    full = app_of(dsn, server)
    await work(full, 1)
    assert state(sql, "sms") == "open"
    cool_down(sql, "sms")
    await work(bare_app(dsn, server), 1)
    assert state(sql, "sms") == "half_open"
    due(sql)
    await work(full, 1)
    assert state(sql, "sms") == "closed"
