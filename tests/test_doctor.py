"""The doctor: what is right is said to be, what is wrong is found with its mend."""

from __future__ import annotations

import socket
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from procjobs import doctor
from procjobs.doctor import Finding, examine
from procjobs.mailcatcher import Mailbox, MailCatcher
from procjobs.migrate import migrate
from procjobs.settings import Settings
from tests.conftest import with_user


def about(findings: list[Finding], subject: str, verdict: str) -> list[str]:
    return [f"{found.text}; {found.mend}" for found in findings if (found.subject, found.verdict) == (subject, verdict)]


def register(sql: Any) -> None:
    sql(
        "select procjobs.register_worker('w1', 'host', 1, '0', null, '{a}', 10,"
        " make_interval(secs => 10), make_interval(secs => 30))"
    )


async def test_where_all_is_well_nothing_is_wrong(dsn: str, sql: Any, tmp_path: Path) -> None:
    register(sql)
    catcher = MailCatcher(Mailbox(tmp_path / "mail"))
    await catcher.start()
    host, port = catcher.address
    findings = await examine(Settings(smtp_host=host, smtp_port=port), dsn)
    await catcher.stop()

    # The server of the tests runs without autovacuum.
    assert [found.subject for found in findings if found.verdict != "ok"] == ["autovacuum"]
    looked = {"server", "schema", "clock", "host", "workers", "queues", "claim", "wake-up", "mail", "channels"}
    assert {found.subject for found in findings if found.verdict == "ok"} == looked


async def test_a_server_that_does_not_answer(dsn: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    (found,) = await examine(Settings(), f"postgresql://me:s3cret@127.0.0.1:{port}/x")
    assert found.verdict == "wrong" and str(port) in found.text and "DATABASE_URL" in str(found.mend)
    assert "s3cret" not in found.text


async def test_a_database_that_was_not_migrated(empty_dsn: str) -> None:
    findings = await examine(Settings(), empty_dsn)
    (said,) = about(findings, "schema", "wrong")
    assert "procjobs migrate" in said
    assert findings[-1].subject == "schema"  # what needs the schema is not looked at


async def test_a_login_role_named_like_our_schema_is_warned_of(dsn: str, sql: Any) -> None:
    sql("create role procjobs superuser login")
    try:
        (said,) = about(await examine(Settings(), with_user(dsn, "procjobs")), "login role", "warning")
        assert "$user" in said and "alter role procjobs set search_path" in said
        sql("alter role procjobs set search_path = public")
        assert about(await examine(Settings(), with_user(dsn, "procjobs")), "login role", "warning") == []
    finally:
        sql("drop role procjobs")


async def test_jobs_that_nobody_runs(dsn: str) -> None:
    (said,) = about(await examine(Settings(), dsn), "workers", "warning")
    assert "procjobs worker" in said


async def test_a_paused_queue_and_one_that_waits_long(dsn: str, sql: Any) -> None:
    sql('select procjobs.register_tasks(\'[{"name": "greet", "queue": "slow"}]\', \'test\')')
    sql("select procjobs.defer('greet')")
    sql("update public.procrastinate_jobs set pj_created_at = now() - interval '1 hour'")
    sql("select procjobs.pause_queue('shut')")

    sql("update procjobs.queue_settings set paused_at = now() - interval '2 days'")

    findings = await examine(Settings(), dsn)
    paused, waits = about(findings, "queues", "warning")
    waits, paused = sorted((paused, waits), key=lambda said: "paused" in said)
    assert "queue shut is paused" in paused and "resume_queue('shut')" in paused and "slow waits for" in waits
    (counted,) = about(findings, "queues", "ok")
    assert "1 jobs waiting, paused: shut" in counted


async def test_what_host_sql_does_not_bind_is_named_with_what_needs_it(empty_dsn: str, tmp_path: Path) -> None:
    (tmp_path / "host.sql").write_text("select 1;\n")
    migrate(empty_dsn, host_sql=tmp_path / "host.sql")
    (said,) = about(await examine(Settings(host_sql=tmp_path / "host.sql"), empty_dsn), "host", "ok")
    assert said.startswith("0 of ") and "host_groups (every mail" in said


async def test_a_binding_that_was_changed_by_hand_is_drift(dsn: str, sql: Any) -> None:
    sql("drop view procjobs.host_groups cascade")
    sql("create view procjobs.host_groups as select 1 as id")
    (said,) = about(await examine(Settings(), dsn), "schema", "wrong")
    assert "host_groups" in said and "procjobs migrate" in said


async def test_a_mail_server_that_is_not_there(dsn: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    (said,) = about(await examine(Settings(smtp_host="127.0.0.1", smtp_port=port), dsn), "mail", "wrong")
    assert f"127.0.0.1:{port}" in said


async def test_no_mail_server_is_only_worth_a_word(dsn: str) -> None:
    (said,) = about(await examine(Settings(), dsn), "mail", "warning")
    assert "PROCJOBS_SMTP_HOST" in said


async def test_a_clock_that_is_off(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SKEW", timedelta(seconds=-1))  # any difference, none included, is too much
    (said,) = about(await examine(Settings(), dsn), "clock", "warning")
    assert "NTP" in said


async def test_channels_are_told_apart_by_what_they_lack(dsn: str) -> None:
    settings = Settings.load(
        environ={
            "PROCJOBS_SLACK_TOKEN": "xoxb-canary-slack-token",
            "PROCJOBS_TWILIO_ACCOUNT_SID": "AC1",
            "PROCJOBS_WHATSAPP_PROVIDER": "meta",
        }
    )
    found = await examine(settings, dsn)
    assert [(said.text, said.mend) for said in found if said.subject == "channels" and said.verdict == "wrong"] == [
        ("sms is set up by halves", "set PROCJOBS_TWILIO_AUTH_TOKEN and PROCJOBS_TWILIO_FROM"),
        ("whatsapp is set up by halves", "set PROCJOBS_META_PHONE_NUMBER_ID and PROCJOBS_META_ACCESS_TOKEN"),
    ]
    assert about(found, "channels", "ok") == ["set up: slack; not: webhook, apprise; None"]
    assert "canary" not in repr(found)


async def test_a_package_that_a_channel_needs_is_named(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    for name in ("http", "slack"):
        monkeypatch.delitem(sys.modules, f"procjobs.channels.{name}", raising=False)
    (said, _) = (said for said in await examine(Settings(slack_token="xoxb-1"), dsn) if said.subject == "channels")
    assert (said.text, said.mend) == ("slack needs httpx2", "pip install 'procjobs[channels]'")
