"""procjobs digests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from procjobs import demo
from procjobs.db import Database
from tests.processes import procjobs_command, sentence


@pytest.fixture
def run(dsn: str, tmp_path: Path) -> Any:
    def call(*arguments: str) -> Any:
        return procjobs_command(*arguments, cwd=tmp_path, env={"DATABASE_URL": dsn})

    return call


def said(answer: Any) -> str:
    assert answer.returncode == 0, answer.stderr
    text: str = answer.stdout
    return text


def test_without_any_it_says_how_to_make_one(run: Any) -> None:
    assert "create_digest_schedule" in said(run("digests"))
    assert "no digest schedule" in sentence(run("digests", "show", str(uuid4())))


async def test_digests_are_listed_shown_explained_and_created(run: Any, sql: Any, db: Database) -> None:
    facts = await demo.seed(db)
    ingrid = str(facts.recipient_id)
    (found,) = json.loads(said(run("digests", "list", "--recipient", ingrid, "--json")))
    assert (found["recipient_name"], found["frequency"], found["last_outcome"]) == ("Ingrid", "daily", None)
    assert "The Lindgrens" in said(run("digests"))
    assert json.loads(said(run("digests", "list", "--inactive", "--frequency", "daily", "--json"))) == []
    assert "the first one is due" in said(run("digests", "why", ingrid))

    sql("update procjobs.digest_schedules set next_digest_scheduled = procjobs.clock() where recipient_id = %s", ingrid)
    assert said(run("digests", "run")) == "1 digest was created\n"
    assert json.loads(said(run("digests", "run", "--json"))) == {"created": 0}
    shown = json.loads(said(run("digests", "show", found["id"], "--json")))
    assert [(one["outcome"], one["mail_status"]) for one in shown["runs"]] == [("created", "pending")]
    assert "created" in said(run("digests", "show", found["id"]))
    assert "its mail is still pending" in said(run("digests", "why", ingrid))
