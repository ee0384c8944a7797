"""Health and readiness follow the database and the workers, and answer in time whatever happens."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest
from starlette.testclient import TestClient

from procjobs import watch
from procjobs.db import Database
from procjobs.embedded import EmbeddedPostgres
from procjobs.migrate import migrate
from procjobs.settings import Settings
from procjobs.web.app import create_app


def register(sql: Any) -> int:
    return int(
        sql.one(
            "select procjobs.register_worker('w1', 'host', 1, '0', null, '{a}', 10,"
            " make_interval(secs => 10), make_interval(secs => 30))"
        )
    )


async def test_with_a_live_worker_it_is_ok_and_counts_jobs(db: Database, sql: Any) -> None:
    register(sql)
    sql("select procjobs.register_tasks('[{\"name\": \"greet\"}]', 'test')")
    sql("select procjobs.defer('greet')")
    sql("select procjobs.defer('greet', scheduled_at => now() + interval '1 day')")

    found = await watch.health(db)
    assert (found.status, found.workers, found.waiting, found.scheduled, found.warnings) == ("ok", 1, 1, 1, [])


async def test_without_one_it_is_degraded_but_ready(db: Database, sql: Any) -> None:
    sql("select procjobs.stop_worker(%s)", register(sql))
    found = await watch.health(db)
    assert found.status == "degraded" and found.ready and "no worker is alive" in found.warnings[0]


async def test_a_silent_worker_is_not_alive(db: Database, sql: Any) -> None:
    worker = register(sql)
    sql("update procjobs.worker_state set last_heartbeat = now() - interval '1 hour' where id = %s", worker)
    assert (await watch.health(db)).workers == 0


async def test_a_paused_queue_is_a_warning(db: Database, sql: Any) -> None:
    register(sql)
    sql("select procjobs.pause_queue('mail')")
    assert (await watch.health(db)).warnings == ["queue mail is paused"]


async def test_a_database_without_procjobs_is_down_and_the_mend_is_told(empty_dsn: str) -> None:
    async with Database(empty_dsn) as database:
        found = await watch.health(database)
    assert found.status == "down" and "procjobs migrate" in found.warnings[0]


async def test_a_database_that_does_not_answer_is_told_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes connections and says nothing: a probe must not hang with it."""
    monkeypatch.setattr(watch, "DEADLINE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        database = Database(f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/d", timeout=60)
        await database.open(wait=False)
        began = time.monotonic()
        found = await asyncio.wait_for(watch.health(database), 30)
        assert found.status == "down" and "did not answer" in found.warnings[0]
        assert time.monotonic() - began < 10
    await database.close()


def test_the_web_process_lives_through_an_outage(
    server: EmbeddedPostgres, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "DEADLINE", 1.0)
    dsn = server.create_database("app")
    migrate(dsn)
    with TestClient(create_app(Settings(), dsn), base_url="http://localhost") as client:
        assert client.get("/ready").json() == {"ready": True}

        server.stop()
        for path, code in (("/health", 503), ("/ready", 503), ("/", 503)):
            assert client.get(path).status_code == code, path

        server.start()
        assert eventually(lambda: client.get("/ready").status_code == 200, timeout=30)


def test_it_starts_while_the_database_is_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    with TestClient(
        create_app(Settings(), f"postgresql://u@127.0.0.1:{port}/d"), base_url="http://localhost"
    ) as client:
        answer = client.get("/health")
        assert answer.status_code == 503 and answer.json()["status"] == "down"
