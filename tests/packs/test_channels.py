"""Notifications by other methods than mail, from SQL to the provider and the delivery log."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from procjobs import demo
from procjobs.app import App, default_app
from procjobs.channels import METHODS
from procjobs.db import Database
from procjobs.settings import Settings
from tests.channel_server import HANG, SIGNING_KEY, ChannelServer, twilio_error
from tests.processes import ROOT

#: A plug-in of apprise's imports a module that Python has announced to go.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
CONTENT = '{"subject": "Dinner", "body": "At seven.", "action_url": "https://family.example/7", "target": "oncall"}'


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
        f"{server.url}/hook?token=canary-in-the-address",
        found.recipient_id,
    )
    return found


def app_of(dsn: str, server: ChannelServer, **changes: str) -> App:
    return default_app(Settings.load(environ={"DATABASE_URL": dsn, **server.environ(**changes)}))


@pytest.fixture
def app(dsn: str, server: ChannelServer) -> App:
    return app_of(dsn, server)


async def work(app: App) -> None:
    """A worker that stops when nothing is left to do."""
    async with app.open_async():
        await app.run_worker_async(wait=False, install_signal_handlers=False)


def enqueue(sql: Any, facts: demo.DemoFacts, method: str, content: str = CONTENT) -> UUID:
    found: UUID = sql.one(
        "select procjobs.enqueue_notification_job(%s, delivery_method => %s, content => %s::jsonb)",
        facts.recipient_id,
        method,
        content,
    )
    return found


def state(sql: Any, notification: UUID) -> str:
    found: str = sql.one("select status from procjobs.notification_jobs where id = %s", notification)
    return found


def log(sql: Any, notification: UUID, columns: str) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = sql(
        f"select {columns} from procjobs.notification_delivery_logs where job_id = %s order by attempt", notification
    )
    return found


def due(sql: Any) -> None:
    """What waits for its next try waits no longer."""
    sql("update public.procrastinate_jobs set scheduled_at = now() - interval '1 second' where status = 'todo'")


SHOWN = {
    "sms": ("twilio", "+46...633", 201, f"SM{1:032x}"),
    "whatsapp": ("meta", "+46...633", 200, "wamid.1"),
    "slack": ("slack", "C024BE91L", 200, "C024BE91L/1503435956.000001"),
    "webhook": ("webhook", None, 204, None),
    "apprise": ("apprise", "oncall", None, None),
}


@pytest.mark.parametrize("method", METHODS)
async def test_from_sql_to_the_provider(
    app: App, sql: Any, facts: demo.DemoFacts, server: ChannelServer, method: str
) -> None:
    notification = enqueue(sql, facts, method)
    await work(app)
    assert state(sql, notification) == "sent"
    provider, address, status, provider_id = SHOWN[method]
    assert log(
        sql,
        notification,
        "status, delivery_method, provider, address, http_status, provider_id, provider_code, smtp_code, error, "
        "message_id, took_ms is not null",
    ) == [
        (
            "sent",
            method,
            provider,
            address or server.url,
            status,
            provider_id,
            None,
            None,
            None,
            str(notification),
            True,
        )
    ]
    assert b"Dinner" in server.taken[0].body and b"At seven" in server.taken[0].body.replace(b"+", b" ")


async def test_a_webhook_carries_the_whole_notification(
    app: App, sql: Any, facts: demo.DemoFacts, server: ChannelServer
) -> None:
    update = sql.one("select procjobs.demo_id('lake')")
    group = sql.one("select group_id from procjobs.host_updates where id = %s", update)
    notification = sql.one(
        "select procjobs.enqueue_notification_job(%s, %s, %s, 'immediate', 'urgent', 'webhook', '{\"extra\": 1}')",
        facts.recipient_id, group, update,
    )  # fmt: skip
    await work(app)
    said = server.taken[0].content
    assert said["type"] == "notification.immediate"
    data = said["data"]
    assert (data["id"], data["recipient_id"], data["group_id"], data["update_id"], data["urgency"]) == (
        str(notification), str(facts.recipient_id), str(group), str(update), "urgent",
    )  # fmt: skip
    assert data["content"] == {"extra": 1} and data["update"]["title"] and data["recipient_name"] == "Ingrid"
    assert said["timestamp"] == data["created_at"]


async def test_an_update_is_told_in_a_text_message(
    app: App, sql: Any, facts: demo.DemoFacts, server: ChannelServer
) -> None:
    update = sql.one("select procjobs.demo_id('lake')")
    title, body, url = sql("select title, body, url from procjobs.host_updates where id = %s", update)[0]
    sql(
        "select procjobs.enqueue_notification_job(%s, update => %s, delivery_method => 'sms')",
        facts.recipient_id,
        update,
    )
    await work(app)
    text = server.taken[0].content["Body"]
    assert "shared" in text and (body or title).split("\n")[0][:20] in text
    assert url is None or text.endswith(url)


# -- errors --------------------------------------------------------------------------------------------------------


async def test_a_refused_one_is_a_dead_letter_with_the_providers_code(
    app: App, sql: Any, facts: demo.DemoFacts, server: ChannelServer
) -> None:
    server.answers = [twilio_error(400, 21610, "Attempt to send to unsubscribed recipient")]
    notification = enqueue(sql, facts, "sms")
    await work(app)
    assert state(sql, notification) == "failed"
    assert log(sql, notification, "status, http_status, provider_code, error") == [
        ("refused", 400, "21610", "400 21610: Attempt to send to unsubscribed recipient")
    ]
    assert sql("select status::text, attempts from public.procrastinate_jobs") == [("failed", 1)]


async def test_a_rate_limit_spends_no_attempt_and_is_waited_out(
    app: App, sql: Any, facts: demo.DemoFacts, server: ChannelServer
) -> None:
    server.answers = [(429, {}, {"retry-after": "300"})] * 5
    notification = enqueue(sql, facts, "slack")
    for _ in range(5):
        await work(app)
        ((attempts, waits),) = sql(
            "select attempts, scheduled_at - procjobs.clock() > interval '290 s' from public.procrastinate_jobs"
        )
        assert (attempts, waits, state(sql, notification)) == (0, True, "pending")
        due(sql)
    await work(app)
    assert state(sql, notification) == "sent"
    tries = log(sql, notification, "status, http_status, round(extract(epoch from retry_after - finished_at))::int")
    assert tries == [("deferred", 429, 300)] * 5 + [("sent", 200, None)]


async def test_after_a_day_a_rate_limit_spends_attempts(
    app: App, sql: Any, facts: demo.DemoFacts, server: ChannelServer
) -> None:
    server.answers = [(429, {}, {"retry-after": "300"})] * 9
    notification = enqueue(sql, facts, "slack")
    sql("update procjobs.notification_jobs set scheduled_for = now() - interval '25 hours'")
    for _ in range(3):
        await work(app)
        due(sql)
    assert (state(sql, notification), len(server.taken)) == ("failed", 3)


async def test_retry_after_is_waited_out_where_an_attempt_is_spent(
    app: App, sql: Any, facts: demo.DemoFacts, server: ChannelServer
) -> None:
    server.answers = [(503, "", {"retry-after": "1800"}), (503, "", {"retry-after": "1"})]
    enqueue(sql, facts, "webhook")
    waits = []
    for _ in range(2):
        await work(app)
        waits += sql(
            "select attempts, round(extract(epoch from scheduled_at - procjobs.clock()) / 60)::int "
            "from public.procrastinate_jobs"
        )
        due(sql)
    assert waits == [(1, 30), (2, 2)]  # the second wait is our own, which is longer


async def test_an_unknown_one_is_tried_again_under_the_same_key(
    dsn: str, sql: Any, facts: demo.DemoFacts, server: ChannelServer
) -> None:
    server.answers = [HANG]
    notification = enqueue(sql, facts, "webhook")
    app = app_of(dsn, server, PROCJOBS_CHANNEL_TIMEOUT="0.3")
    await work(app)
    assert log(sql, notification, "status, http_status") == [("unknown", None)]
    due(sql)
    await work(app)
    assert [row[0] for row in log(sql, notification, "status")] == ["unknown", "sent"]
    assert [taken.headers["webhook-id"] for taken in server.taken] == [f"msg_{notification}"] * 2


@pytest.mark.parametrize("method", METHODS)
async def test_a_worker_without_settings_says_what_to_set(
    dsn: str, sql: Any, facts: demo.DemoFacts, method: str
) -> None:
    notification = enqueue(sql, facts, method)
    await work(default_app(Settings.load(environ={"DATABASE_URL": dsn})))
    assert state(sql, notification) == "pending"
    ((status, error),) = log(sql, notification, "status, error")
    assert status == "deferred" and "set PROCJOBS_" in error


async def test_a_private_address_is_not_called(
    dsn: str, sql: Any, facts: demo.DemoFacts, server: ChannelServer
) -> None:
    notification = enqueue(sql, facts, "webhook")
    await work(app_of(dsn, server, PROCJOBS_OUTGOING_ALLOW="intranet.example"))
    assert (state(sql, notification), server.taken) == ("failed", [])
    ((error,),) = log(sql, notification, "error")
    assert error == "127.0.0.1 is not on the public internet, nor in outgoing_allow"


# -- addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "column", "value", "problem"),
    [
        ("sms", "phone", None, "has no phone number"),
        ("sms", "phone", "070-174 06 33", "has a phone number without its country code, or of another form"),
        ("whatsapp", "phone", "  ", "has no phone number"),
        ("slack", "slack", None, "has no Slack address"),
        ("slack", "slack", "https://hooks.slack.com/services/T/B/x", "has an incoming webhook's URL for Slack address"),
        ("slack", "slack", "two words", "has no usable Slack address"),
        ("webhook", "webhook_url", None, "has no webhook address"),
        ("webhook", "webhook_url", "ftp://a.example/", "has a webhook address that is not http or https"),
        ("webhook", "webhook_url", "https://user:secret@a.example/", "has a webhook address that is not http or https"),
    ],
)
def test_a_recipient_without_such_an_address_is_refused(
    sql: Any, facts: demo.DemoFacts, method: str, column: str, value: str | None, problem: str
) -> None:
    sql(f"update procjobs_demo.recipients set {column} = %s where id = %s", value, facts.recipient_id)
    with pytest.raises(psycopg.Error) as refused:
        enqueue(sql, facts, method)
    assert refused.value.sqlstate == "PJ023"
    assert f"recipient {facts.recipient_id} {problem}" in str(refused.value.diag.message_primary)
    assert value is None or not value.strip() or value not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"subject": "a", "body": "b"}', "content.target is missing"),
        ('{"subject": "a", "body": "b", "target": "json://host/"}', "content.target is not a name"),
    ],
)
def test_apprise_needs_a_targets_name(sql: Any, facts: demo.DemoFacts, content: str, problem: str) -> None:
    with pytest.raises(psycopg.Error, match=problem):
        enqueue(sql, facts, "apprise", content)


@pytest.mark.parametrize("written", ["+46 70-174 06 33", "0046701740633", "+46 (70) 1740633"])
async def test_a_number_may_be_written_for_people(
    app: App, sql: Any, facts: demo.DemoFacts, server: ChannelServer, written: str
) -> None:
    sql("update procjobs_demo.recipients set phone = %s where id = %s", written, facts.recipient_id)
    enqueue(sql, facts, "sms")
    await work(app)
    assert server.taken[0].content["To"] == "+46701740633"


async def test_an_address_that_was_taken_away_ends_it(app: App, sql: Any, facts: demo.DemoFacts) -> None:
    notification = enqueue(sql, facts, "slack")
    sql("update procjobs_demo.recipients set slack = null where id = %s", facts.recipient_id)
    await work(app)
    assert sql("select status, last_error from procjobs.notification_jobs where id = %s", notification) == [
        ("failed", "the recipient is gone or has no Slack address any more")
    ]


# -- secrets -------------------------------------------------------------------------------------------------------


def dump(sql: Any) -> str:
    """Every row of every table of procjobs and Procrastinate, as text."""
    tables = sql(
        "select oid::regclass::text from pg_class where relkind in ('r', 'p') and not relispartition "
        "and relnamespace in ('procjobs'::regnamespace, 'public'::regnamespace)"
    )
    return "\n".join(row for (table,) in tables for (row,) in sql(f"select t::text from {table} t"))


async def test_no_secret_is_in_any_row_or_log(
    dsn: str, sql: Any, facts: demo.DemoFacts, server: ChannelServer, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    echo = "no: canary-twilio-token canary-meta-token xoxb-canary-slack-token " + SIGNING_KEY + " 46701740633"
    app = app_of(dsn, server)
    found = [(method, enqueue(sql, facts, method)) for method in METHODS]
    await work(app)
    assert {state(sql, notification) for _, notification in found} == {"sent"}
    sql("update procjobs_demo.recipients set slack = '#ops'")
    found = [(method, enqueue(sql, facts, method)) for method in METHODS]
    server.answers = [(400, {"code": 21211, "message": echo, "error": echo}, {})] * len(METHODS)
    await work(app)
    assert {state(sql, notification) for method, notification in found if method != "apprise"} == {"failed"}
    for method in METHODS:
        enqueue(sql, facts, method)
    broken = {
        "PROCJOBS_TWILIO_URL": "http://127.0.0.1:9",
        "PROCJOBS_SLACK_WEBHOOKS": "#ops=http://127.0.0.1:9/services/T00000000/B00000000/canaryslackwebhook",
        "PROCJOBS_META_URL": "http://127.0.0.1:9",
        "PROCJOBS_APPRISE_TARGETS": "oncall=json://canary-user:canary-apprise-password@127.0.0.1:9/",
        "PROCJOBS_OUTGOING_PORTS": "443",
    }
    await work(app_of(dsn, server, **broken))

    ours = [record for record in caplog.records if not record.name.startswith("uvicorn")]  # that is the provider's
    rows, logged = dump(sql), "\n".join(f"{record.getMessage()} {record.exc_text}" for record in ours)
    assert "sms" in rows and len(server.taken) == 2 * len(METHODS)
    for where, text in {"rows": rows, "logs": logged}.items():
        for secret in ("canary", SIGNING_KEY.removeprefix("whsec_"), "46701740633", "701740633"):
            assert secret not in text, f"{secret} is in the {where}: {text[max(0, text.find(secret) - 300) :][:400]}"


async def test_the_examples_of_the_page_work(app: App, sql: Any, facts: demo.DemoFacts) -> None:
    page = (ROOT / "docs" / "channels.md").read_text(encoding="utf-8")
    for query in re.findall(r"^```sql\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL):
        sql(query)
    await work(app)
    assert sql("select delivery_method, status from procjobs.notification_jobs order by 1") == [
        ("apprise", "sent"),
        ("sms", "sent"),
    ]


def test_every_method_has_a_provider_and_a_row_on_the_page(sql: Any) -> None:
    page = (ROOT / "docs" / "channels.md").read_text(encoding="utf-8")
    assert sql.one("select procjobs.delivery_methods()") == ["email", *METHODS]
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)[1 : 1 + len(METHODS)] == list(METHODS)
