"""POST /api/notifications and /api/invitations by a real client: queued at once, whatever the mail server does."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import uvicorn

from procjobs import demo
from procjobs.app import default_app
from procjobs.db import Database
from procjobs.embedded import EmbeddedPostgres
from procjobs.migrate import migrate
from procjobs.settings import Settings
from procjobs.web.app import create_app
from procjobs.web.server import address_of, listen
from tests.conftest import Sql
from tests.mail_server import HANG, MailServer

USER, ADMIN = "u" * 43, "a" * 43
NEW, MEMBER = "nina@new.example", "maya@harbourlane.example"
SETTINGS = Settings(host="0.0.0.0", user_token=USER, admin_token=ADMIN)
CONTENT = {"subject": "Dinner", "body": "At seven."}
NOTIFICATIONS, INVITATIONS = "/api/notifications", "/api/invitations"


@asynccontextmanager
async def client_of(dsn: str, settings: Settings = SETTINGS, token: str | None = ADMIN) -> AsyncIterator[Any]:
    """A client of a web server over the database, which it talks to over TCP."""
    listener = listen("127.0.0.1", 0)
    app = create_app(settings, dsn)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, ws="none"))
    running = asyncio.create_task(server.serve(sockets=[listener]))
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        async with httpx2.AsyncClient(base_url=address_of(listener), headers=headers, timeout=20) as client:
            yield client
    finally:
        server.should_exit = True
        await running


@pytest.fixture
async def facts(db: Database, sql: Sql) -> demo.DemoFacts:
    """The demo without its own mail and invitations."""
    found = await demo.seed(db)
    sql("delete from public.procrastinate_jobs")
    sql("delete from procjobs.pending_invites")
    sql("delete from procjobs.notification_jobs")
    return found


@pytest.fixture
async def client(dsn: str, facts: demo.DemoFacts) -> AsyncIterator[Any]:
    async with client_of(dsn) as found:
        yield found


@pytest.fixture
def notification(facts: demo.DemoFacts) -> dict[str, Any]:
    return {"recipient_id": str(facts.recipient_id), "content": CONTENT}


@pytest.fixture
def invitation(facts: demo.DemoFacts) -> dict[str, Any]:
    return {
        "organization_id": str(facts.organization_id), "email": NEW, "role": "member", "invited_by": str(facts.user_id)
    }  # fmt: skip


async def test_a_notification_is_accepted(client: Any, sql: Sql, notification: dict[str, Any]) -> None:
    more = {"urgency": "urgent", "notification_type": "dinner", "delay_minutes": 3, "group_id": None}
    answer = await client.post(NOTIFICATIONS, json=notification | more)
    assert (answer.status_code, answer.headers["content-type"]) == (202, "application/json")
    ((found, status),) = sql("select id::text, status from procjobs.notification_jobs")
    assert answer.json() == {
        "success": True,
        "messageId": found,
        "jobId": found,
        "status": "queued",
        "statusCode": 202,
        "message": "The notification is queued and will be sent in the background.",
    }
    assert status == "pending"
    assert sql("select urgency, notification_type from procjobs.notification_jobs") == [("urgent", "dinner")]


async def test_an_invitation_is_accepted(client: Any, sql: Sql, invitation: dict[str, Any]) -> None:
    answer = await client.post(INVITATIONS, json={**invitation, "expires_in": "2 days"})
    assert answer.status_code == 202
    ((invite, letter, span),) = sql(
        "select id::text, notification_id::text, expires_at - created_at = '2 days' from procjobs.pending_invites"
    )
    said = answer.json()
    assert (said["inviteId"], said["jobId"], said["messageId"], said["created"]) == (invite, letter, letter, True)
    assert (said["success"], said["status"], said["statusCode"], span) == (True, "queued", 202, True)
    again = (await client.post(INVITATIONS, json=invitation)).json()
    assert (again["inviteId"], again["created"]) == (invite, False) and "open already" in again["message"]


async def test_it_answers_at_once_while_the_mail_server_hangs(
    dsn: str, client: Any, sql: Sql, facts: demo.DemoFacts, notification: dict[str, Any], invitation: dict[str, Any],
    eventually: Callable[..., Any],
) -> None:  # fmt: skip
    async with MailServer(replies={"DATA": [HANG] * 100}) as mail:
        settings = Settings(dsn=dsn, smtp_host="127.0.0.1", smtp_port=mail.port, smtp_timeout=60)
        app = default_app(settings)
        async with app.open_async():
            await app.notify_async(facts.recipient_id, CONTENT)
            worker = asyncio.create_task(
                app.run_worker_async(install_signal_handlers=False, shutdown_graceful_timeout=0)
            )
            await mail.hanging.wait()  # the worker stands at the mail server
            took = []
            for number in range(20):
                began = time.perf_counter()
                first = await client.post(NOTIFICATIONS, json=notification)
                middle = time.perf_counter()
                second = await client.post(INVITATIONS, json={**invitation, "email": f"n{number}@new.example"})
                took += [middle - began, time.perf_counter() - middle]
                assert (first.status_code, second.status_code) == (202, 202)
            assert max(took) < 0.2
            assert mail.raw == []
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
    assert sql.one("select count(*) from procjobs.notification_jobs where status <> 'sent'") == 41


@pytest.mark.parametrize("path", [NOTIFICATIONS, INVITATIONS])
async def test_without_a_database_it_says_so_and_sends_nothing(
    server: EmbeddedPostgres, path: str, eventually: Callable[..., Any]
) -> None:
    dsn = server.create_database("shop")
    migrate(dsn)
    async with Database(dsn) as db:
        facts = await demo.seed(db)
    body = {
        NOTIFICATIONS: {"recipient_id": str(facts.recipient_id), "content": CONTENT},
        INVITATIONS: {
            "organization_id": str(facts.organization_id), "email": NEW, "role": "member",
            "invited_by": str(facts.user_id),
        },
    }[path]  # fmt: skip
    async with MailServer() as mail:
        settings = Settings(admin_token=ADMIN, smtp_host="127.0.0.1", smtp_port=mail.port)
        async with client_of(dsn, settings) as client:
            assert (await client.post(path, json=body)).status_code == 202
            server.stop()
            answer = await client.post(path, json=body)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
            said = answer.json()
            assert said == {
                "success": False,
                "statusCode": 503,
                "error": "the queue cannot take it now, since PostgreSQL is away, and nothing was sent",
                "hint": said["hint"],
            } | ({"sqlstate": said["sqlstate"]} if "sqlstate" in said else {})
            assert "try again" in said["hint"]
            server.start()

            async def taken() -> bool:
                return bool((await client.post(path, json=body)).status_code == 202)

            await eventually(taken, 30)  # the pool tries again at growing intervals
        assert mail.connections == 0


async def test_a_database_that_does_not_answer_is_one_that_is_away(
    client: Any, sql: Sql, notification: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("procjobs.watch.DEADLINE", 0.3)
    with sql.connection.transaction():
        sql("lock table procjobs.notification_jobs in access exclusive mode")
        answer = await client.post(NOTIFICATIONS, json=notification)
    assert answer.status_code == 503 and answer.json()["error"].startswith("the queue cannot take it now")
    assert sql("select 1 from procjobs.notification_jobs") == []


PROBLEMS: list[tuple[str, dict[str, Any], int, str | None, str]] = [
    (NOTIFICATIONS, {"recipient_id": None}, 400, None, "recipient_id is missing"),
    (NOTIFICATIONS, {"recipient_id": "x"}, 400, None, "recipient_id: write a UUID"),
    (NOTIFICATIONS, {"recipient": "x"}, 400, None, "recipient is not expected"),
    (NOTIFICATIONS, {"content": "x"}, 400, None, "content: write an object"),
    (NOTIFICATIONS, {"content": {"subject": "\0", "body": "x"}}, 400, None, "content: write an object without NUL"),
    (NOTIFICATIONS, {"delay_minutes": True}, 400, None, "delay_minutes: write a whole number"),
    (NOTIFICATIONS, {"content": {}}, 400, "PJ023", "content.subject is missing"),
    (NOTIFICATIONS, {"delivery_method": "fax"}, 400, "PJ023", "no sender"),
    (NOTIFICATIONS, {"recipient_id": str(uuid4())}, 400, "PJ020", "unknown recipient"),
    (NOTIFICATIONS, {"requested_by": str(uuid4())}, 403, "PJ024", "may not send anything"),
    (INVITATIONS, {"email": 3}, 400, None, "email: write a text"),
    (INVITATIONS, {"email": "nina"}, 400, "PJ050", "nobody can be invited"),
    (INVITATIONS, {"expires_in": "2 years"}, 400, "PJ050", "cannot be open for"),
    (INVITATIONS, {"expires_in": "soon"}, 400, "22007", "invalid input syntax"),
    (INVITATIONS, {"invited_by": str(uuid4())}, 403, "PJ051", "may not invite"),
    (INVITATIONS, {"email": MEMBER}, 409, "PJ054", "is a member already"),
]


@pytest.mark.parametrize(("path", "change", "code", "state", "words"), PROBLEMS)
async def test_what_cannot_be_is_refused_with_the_mend(
    client: Any, sql: Sql, notification: dict[str, Any], invitation: dict[str, Any],
    path: str, change: dict[str, Any], code: int, state: str | None, words: str,
) -> None:  # fmt: skip
    usual = notification if path == NOTIFICATIONS else invitation
    answer = await client.post(path, json={**usual, **change})
    said = answer.json()
    assert answer.status_code == said["statusCode"] == code and said["success"] is False
    assert words in said["error"] and said.get("sqlstate") == state
    assert state is None or said["hint"]
    assert sql("select 1 from procjobs.notification_jobs") == []


async def test_an_invitation_that_is_open_with_another_role(client: Any, invitation: dict[str, Any]) -> None:
    assert (await client.post(INVITATIONS, json=invitation)).status_code == 202
    answer = await client.post(INVITATIONS, json={**invitation, "role": "admin"})
    assert answer.status_code == 409 and "revoke_invite" in answer.json()["hint"]


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b'{"recipient_id": "' + b"x" * 1024 * 1024 + b'"}', {}, 413),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b"{}", {"origin": "https://evil.example"}, 403),
        (b"{}", {"sec-fetch-site": "cross-site"}, 403),
    ],
)
async def test_what_no_program_of_ours_sends(client: Any, body: bytes, headers: dict[str, str], code: int) -> None:
    for path in (NOTIFICATIONS, INVITATIONS):
        answer = await client.post(path, content=body, headers={"content-type": "application/json", **headers})
        assert answer.status_code == answer.json()["statusCode"] == code and answer.json()["error"]


async def test_who_may_ask(dsn: str, sql: Sql, facts: demo.DemoFacts, notification: dict[str, Any]) -> None:
    async with client_of(dsn, token=None) as client:
        for path in (NOTIFICATIONS, INVITATIONS):
            for headers in ({}, {"authorization": "Bearer x"}):
                answer = await client.post(path, json=notification, headers=headers)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
                assert answer.json()["statusCode"] == 401
    assert sql("select 1 from procjobs.notification_jobs") == []

    async with client_of(dsn, token=USER) as client:
        answer = await client.post(NOTIFICATIONS, json=notification)
        assert (answer.status_code, answer.json()["error"]) == (400, "requested_by is missing")
        answer = await client.post(NOTIFICATIONS, json={**notification, "requested_by": str(facts.admin_id)})
        assert answer.status_code == 403
        answer = await client.post(NOTIFICATIONS, json={**notification, "requested_by": str(facts.user_id)})
        assert answer.status_code == 202

    async with client_of(dsn, Settings(user_token=USER), token=None) as client:  # this machine, by its own name
        assert (await client.post(NOTIFICATIONS, json=notification)).status_code == 202
        headers = {"authorization": f"Bearer {USER}"}
        assert (await client.post(NOTIFICATIONS, json=notification, headers=headers)).status_code == 400
        rebound = await client.post(NOTIFICATIONS, json=notification, headers={"host": "evil.example"})
        assert rebound.status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "code", "allow"),
    [
        ("GET", NOTIFICATIONS, 405, "POST"),
        ("PUT", INVITATIONS, 405, "POST"),
        ("POST", "/api/nothing", 404, None),
        ("GET", "/api/", 404, None),
        ("GET", "/api", 404, None),
    ],
)
@pytest.mark.parametrize("accept", ["*/*", "text/html"])
async def test_what_is_not_there_is_told_as_json(
    client: Any, method: str, path: str, code: int, allow: str | None, accept: str
) -> None:
    answer = await client.request(method, path, headers={"accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (code, "application/json")
    assert answer.headers.get("allow") == allow
    said = answer.json()
    assert (said["success"], said["statusCode"]) == (False, code)
    assert (f"{method} is not taken here, POST is" if allow else path) in said["error"]


async def test_what_nobody_foresaw_is_told_as_json_too(client: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(json, "loads", lambda _: 1 / 0)
    answer = await client.post(NOTIFICATIONS, content=b"{}", headers={"content-type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/json")
    assert answer.headers["cache-control"] == "no-store" and b'"statusCode":500' in answer.content


@pytest.mark.parametrize("field", ["email", "role", "expires_in"])
async def test_half_a_character_is_refused(client: Any, sql: Sql, invitation: dict[str, Any], field: str) -> None:
    body = json.dumps({**invitation, field: "n\ud800@new.example"}).encode()
    answer = await client.post(INVITATIONS, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"].startswith(f"{field}: write a text")
