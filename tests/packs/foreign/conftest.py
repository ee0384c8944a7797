"""A made-up application with tables of its own, bound by a host.sql of its own.

club.sql is the application, host.sql the binding: numbers for keys, other names, times without a zone, rows that are
marked instead of deleted, roles as an enum.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from procjobs.app import App, default_app
from procjobs.migrate import migrate
from procjobs.settings import Settings
from tests.mail_server import MailServer

FOREIGN = Path(__file__).parent
SITE = "https://jobs.club.example"


@pytest.fixture
def club(dsn: str, sql: Any) -> None:
    """The application as it was, then `procjobs migrate` with its host.sql. No schedule comes between."""
    sql((FOREIGN / "club.sql").read_text(encoding="utf-8"))
    sql((FOREIGN / "rows.sql").read_text(encoding="utf-8"))
    migrate(dsn, host_sql=FOREIGN / "host.sql")
    sql("select procjobs.pause_schedule(name) from procjobs.schedules")


@pytest.fixture
async def server() -> AsyncIterator[MailServer]:
    async with MailServer() as running:
        yield running


@pytest.fixture
def app(dsn: str, server: MailServer) -> App:
    return default_app(
        Settings(
            dsn=dsn,
            smtp_host="127.0.0.1",
            smtp_port=server.port,
            mail_from="The club <post@club.example>",
            base_url=SITE,
        )
    )


async def work(app: App, sql: Any) -> None:
    """Workers until no job is left; one that is tried again later fails the test."""
    async with app.open_async():
        while sql.one("select count(*) from public.procrastinate_jobs where status = 'todo'"):
            await app.run_worker_async(wait=False, install_signal_handlers=False)
            assert sql("select outcome, error_message from procjobs.attempts") == []


def words(message: EmailMessage) -> str:
    found = message.get_body(("plain",))
    assert found is not None
    return str(found.get_content())
