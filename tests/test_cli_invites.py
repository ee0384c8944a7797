"""`procjobs invites`: what is created, seen and changed from the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from procjobs import demo
from procjobs.cli import run
from procjobs.db import Database
from tests.conftest import Sql


@pytest.fixture
async def facts(db: Database, sql: Sql) -> demo.DemoFacts:
    found = await demo.seed(db)
    sql("delete from procjobs.pending_invites")
    return found


def test_invitations_are_created_listed_shown_sent_again_and_revoked(
    dsn: str, sql: Sql, facts: demo.DemoFacts, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(*words: str, code: int = 0) -> str:
        assert run(["invites", *words, "--dsn", dsn]) == code
        out, err = capsys.readouterr()
        return out + err

    def listed(*words: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(say("list", "--json", *words))
        return found

    where, by = str(facts.organization_id), str(facts.user_id)
    assert "There is no invitation." in say()
    said = say("create", where, "a@new.example", "nobody", "--role", "member", "--by", by, "--expires-in", "2d", code=1)
    assert "created" in said and "is not an e-mail address" in said
    assert "may not invite anybody as owner" in say(
        "create", where, "b@x.example", "--role", "owner", "--by", by, code=1
    )

    (invite,) = listed("--organization", where, "--status", "pending")
    assert invite["email"] == "a@new.example" and listed("--status", "SENT") == []
    shown = json.loads(say("show", invite["id"], "--json"))
    assert shown == invite
    assert "a@new.example" in say("show", invite["id"])
    assert "is sent again, open until" in say("resend", invite["id"], "--by", by)
    assert "is revoked" in say("revoke", invite["id"]) and "was revoked already" in say("revoke", invite["id"])
    assert "cannot be sent again" in say("resend", invite["id"], code=1)
    assert "there is no invitation" in say("show", by, code=1)
