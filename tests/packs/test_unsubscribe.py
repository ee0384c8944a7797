"""Unsubscribing: who gets a link, what it can do, and that mail stops."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.types.json import Jsonb

from procjobs import demo
from procjobs.db import Database
from procjobs.letters import Brand, sample
from procjobs.mail import Mailer, Sent
from procjobs.packs.notifications import NothingToSend, deliver
from tests.mail_server import MailServer

CONTENT = '{"subject": "Test", "body": "Hello!"}'
BRAND = Brand(url="https://jobs.example.com/a/long/path/" + "x" * 60)


@pytest.fixture
async def server() -> AsyncIterator[MailServer]:
    async with MailServer() as running:
        yield running


@pytest.fixture
async def facts(db: Database, sql: Any) -> demo.DemoFacts:
    found = await demo.seed(db)
    sql("delete from public.procrastinate_jobs")
    sql("delete from procjobs.notification_jobs")
    return found


async def send(db: Database, server: MailServer, notification: Any, brand: Brand = BRAND) -> Any:
    mailer = Mailer("127.0.0.1", server.port, sender="Team <team@harbourlane.example>")
    try:
        return await deliver(db, mailer, brand, notification, worker="w1")
    finally:
        await mailer.close()


def notify(sql: Any, facts: demo.DemoFacts) -> UUID:
    found: UUID = sql.one(
        "select procjobs.enqueue_notification_job(%s, %s, content => %s::jsonb)",
        facts.recipient_id, facts.group_id, CONTENT,
    )  # fmt: skip
    return found


def write(sql: Any, template: str, person: UUID) -> UUID:
    found: UUID = sql.one(
        "select procjobs.enqueue_letter(%s, %s, person => %s)", template, Jsonb(sample(template)), person
    )
    return found


def token_of(server: MailServer) -> str:
    (found,) = re.findall(r"/unsubscribe/([\w-]+)>", str(server.messages[-1]["List-Unsubscribe"]))
    return str(found)


async def test_on_the_wire_the_header_is_one_line_and_says_one_click(
    db: Database, sql: Any, facts: demo.DemoFacts, server: MailServer
) -> None:
    await send(db, server, notify(sql, facts))
    (line,) = re.findall(rb"^List-Unsubscribe: (.*)\r\n(?![ \t])", server.raw[0], re.MULTILINE)
    assert line.startswith(b"<https://jobs.example.com/a/long/path/x") and line.endswith(b">")
    assert len(line) > 200 and b"=?" not in line
    assert b"\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n" in server.raw[0]
    body = server.messages[0].get_body(("plain",))
    assert body is not None and f"Unsubscribe: {line.decode().strip('<>')}" in body.get_content()


@pytest.mark.parametrize(
    ("url", "headers"),
    [(None, (False, False)), ("http://127.0.0.1:8080", (True, False)), ("https://a.example", (True, True))],
)
async def test_one_click_needs_https_and_a_link_an_address(
    db: Database, sql: Any, facts: demo.DemoFacts, server: MailServer, url: str | None, headers: Any
) -> None:
    await send(db, server, notify(sql, facts), Brand(url=url))
    found = server.messages[0]
    assert (found["List-Unsubscribe"] is not None, found["List-Unsubscribe-Post"] is not None) == headers


async def test_a_second_try_has_the_same_link(
    db: Database, sql: Any, facts: demo.DemoFacts, server: MailServer
) -> None:
    server.replies["DATA"] = ["451 later"]
    notification = notify(sql, facts)
    tokens = [
        (await db.row("begin_delivery", p_notification=notification, p_worker="w", p_domain="d.example"))[
            "unsubscribe_token"
        ]
        for _ in range(2)
    ]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize(
    ("name", "has"),
    [("tips", True), ("reengagement", True), ("daily_report", True), ("welcome", False), ("invoice", False),
     ("alert", False), ("report_ready", False)],
)  # fmt: skip
async def test_what_must_arrive_has_no_way_out(
    db: Database, sql: Any, facts: demo.DemoFacts, server: MailServer, name: str, has: bool
) -> None:
    await send(db, server, write(sql, name, facts.user_id))
    found = server.messages[0]
    assert (found["List-Unsubscribe"] is not None) == has
    assert (b"nsubscribe" in server.raw[0]) == has


async def test_a_notification_of_no_group_has_none(
    db: Database, sql: Any, facts: demo.DemoFacts, server: MailServer
) -> None:
    await send(
        db,
        server,
        sql.one("select procjobs.enqueue_letter('notification', %s, address => 'a@b.example')", CONTENT),
    )
    assert server.messages[0]["List-Unsubscribe"] is None


async def test_a_group_is_muted_and_what_waits_is_not_sent(
    db: Database, sql: Any, facts: demo.DemoFacts, server: MailServer
) -> None:
    waits = notify(sql, facts)
    await send(db, server, notify(sql, facts))
    token = token_of(server)
    for _ in range(2):
        assert sql("select what, subscribed, can_return, recipient_name from procjobs.unsubscribe(%s)", token) == [
            ("The Lindgrens", False, True, "Ingrid")
        ]
    assert sql.one(
        "select muted_until::text from procjobs.host_group_recipients where recipient_id = %s and group_id = %s",
        facts.recipient_id, facts.group_id,
    ) == "infinity"  # fmt: skip
    assert await send(db, server, waits) == NothingToSend(sent=False, reason="the recipient has unsubscribed")
    assert sql("select status, last_error from procjobs.notification_jobs where id = %s", waits) == [
        ("cancelled", "the recipient has unsubscribed")
    ]
    assert sql.one("select count(*) from procjobs.notification_delivery_logs where job_id = %s", waits) == 0
    assert len(server.raw) == 1

    assert sql("select subscribed from procjobs.resubscribe(%s)", token) == [(True,)]
    assert isinstance(await send(db, server, notify(sql, facts)), Sent)


async def test_a_kind_of_mail_stops_and_the_others_do_not(
    db: Database, sql: Any, facts: demo.DemoFacts, server: MailServer
) -> None:
    await send(db, server, write(sql, "tips", facts.user_id))
    token = token_of(server)
    assert sql("select scope, what, subscribed from procjobs.find_subscription(%s)", token) == [("kind", "tips", True)]
    for _ in range(2):
        assert sql("select subscribed from procjobs.unsubscribe(%s)", token) == [(False,)]
    assert sql("select addressee, kind from procjobs.unsubscriptions") == [(str(facts.user_id), "tips")]

    assert isinstance(await send(db, server, write(sql, "tips", facts.user_id)), NothingToSend)
    assert isinstance(await send(db, server, write(sql, "reengagement", facts.user_id)), Sent)
    assert isinstance(await send(db, server, write(sql, "tips", facts.admin_id)), Sent)
    sql("select procjobs.resubscribe(%s)", token)
    assert isinstance(await send(db, server, write(sql, "tips", facts.user_id)), Sent)


async def test_a_bare_address_unsubscribes_in_whatever_case(
    db: Database, sql: Any, facts: demo.DemoFacts, server: MailServer
) -> None:
    letter = "select procjobs.enqueue_letter('tips', %s, address => %s)"
    await send(db, server, sql.one(letter, Jsonb(sample("tips")), "Nina@Example.org"))
    sql("select procjobs.unsubscribe(%s)", token_of(server))
    again = sql.one(letter, Jsonb(sample("tips")), "nina@example.ORG")
    assert isinstance(await send(db, server, again), NothingToSend)


def test_finding_changes_nothing(sql: Any, facts: demo.DemoFacts) -> None:
    token = sql.one("select procjobs.sign_subscription('kind tips a@b.example')")
    sql("begin read only")
    assert sql("select subscribed from procjobs.find_subscription(%s)", token) == [(True,)]
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        sql("select procjobs.unsubscribe(%s)", token)
    sql("rollback")


def test_a_recipient_who_left_the_group_has_nothing_to_return_to(sql: Any, facts: demo.DemoFacts) -> None:
    token = sql.one("select procjobs.sign_subscription(%s)", f"group {facts.group_id} {facts.recipient_id}")
    sql("delete from procjobs_demo.group_recipients where recipient_id = %s", facts.recipient_id)
    assert sql("select subscribed, can_return from procjobs.unsubscribe(%s)", token) == [(False, False)]
    assert sql("select subscribed, can_return from procjobs.resubscribe(%s)", token) == [(False, False)]


# The token


def test_a_token_is_the_subscription_and_its_hmac(sql: Any) -> None:
    token = sql.one("select procjobs.sign_subscription('kind tips ä@b.example')")
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    secret = sql.one("select secret from procjobs.secrets where name = 'unsubscribe'")
    assert raw[:-32].decode() == "kind tips ä@b.example"
    assert hmac.compare_digest(raw[-32:], hmac.new(secret, raw[:-32], hashlib.sha256).digest())
    assert len(secret) == 32
    assert sql.one("select procjobs.read_subscription(%s)", token) == "kind tips ä@b.example"


@pytest.mark.parametrize("size", [0, 1, 20, 32, 63, 64, 65, 131])
def test_the_hmac_is_what_the_rfc_says_for_keys_of_every_length(sql: Any, size: int) -> None:
    key, message = bytes(range(size)), b"what do ya want for nothing?" * (size % 3)
    assert sql.one("select procjobs.hmac_sha256(%s, %s)", key, message) == hmac.digest(key, message, "sha256")


def test_no_changed_token_is_taken(sql: Any, facts: demo.DemoFacts) -> None:
    token = sql.one("select procjobs.sign_subscription('kind tips a@b.example')")
    changed = [token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :] for at in range(0, len(token) - 1, 5)]
    forged = base64.urlsafe_b64encode(b"kind tips x@b.example" + bytes(32)).decode().rstrip("=")
    wrong = [*changed, forged, token[:-2], "", "x" * 900, "é" * 70, None, token + "=", f" {token}", "A" * 61]
    assert sql("select t from unnest(%s::text[]) t where procjobs.read_subscription(t) is not null", wrong) == []
    for other in (forged, changed[0], None):
        assert sql("select * from procjobs.find_subscription(%s)", other) == []
        assert sql("select * from procjobs.unsubscribe(%s)", other) == []
    assert sql.one("select count(*) from procjobs.unsubscriptions") == 0


@pytest.mark.parametrize("role", ["producer", "worker", "reader", "admin"])
def test_no_role_reads_the_secret_or_signs(sql: Any, role: str) -> None:
    sql(f"set role procjobs_{role}")
    for query in (
        "select * from procjobs.secrets",
        "select procjobs.sign_subscription('kind tips a@b.example')",
        "select procjobs.read_subscription('x')",
        "insert into procjobs.unsubscriptions values ('a', 'b', now())",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            sql(query)
    sql("reset role")


def test_databases_have_different_secrets(sql: Any) -> None:
    """As the migration makes it, not the copies that tests are made of."""
    made = "select sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))"
    assert sql.one(made) != sql.one("select secret from procjobs.secrets")
