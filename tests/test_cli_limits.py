"""procjobs limits, batches and queues set."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

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


def test_a_limit_is_set_seen_changed_and_dropped(run: Any) -> None:
    (given,) = json.loads(said(run("limits", "list", "--json")))
    assert (given["name"], given["max_running"], given["rate"]) == ("notifications", 5, 50)
    assert "is gone" in said(run("limits", "drop", "notifications"))
    assert "No limit" in said(run("limits"))
    said(run("limits", "set", "smtp", "--queue", "mail", "--rate", "50", "--per", "1s"))
    said(run("limits", "set", "smtp", "--queue", "mail", "--rate", "40", "--per", "2s"))
    (found,) = json.loads(said(run("limits", "list", "--json")))
    assert (found["name"], found["queue"], found["rate"]) == ("smtp", "mail", 40)
    assert "smtp" in said(run("limits"))
    assert "is gone" in said(run("limits", "drop", "smtp"))
    assert "there is no limit" in said(run("limits", "drop", "smtp"))


def test_what_is_no_limit_is_refused_in_a_sentence(run: Any) -> None:
    assert "limit 'x' cannot be set" in sentence(run("limits", "set", "x", "--max-running", "1"))


def test_queues_are_made_fair_or_ageing(run: Any, sql: Any) -> None:
    said(run("queues", "set", "mail", "--fair"))
    assert sql("select fair, ageing from procjobs.queue_settings") == [(True, None)]
    assert "0:10:00" in said(run("queues", "set", "mail", "--ageing", "10m"))
    assert sql.one("select fair or ageing <> '10 minutes' from procjobs.queue_settings") is False
    said(run("queues", "set", "mail"))
    assert sql("select fair, ageing from procjobs.queue_settings") == [(False, None)]


def test_batches_are_listed_and_sealed(run: Any, sql: Any) -> None:
    assert "no batch" in said(run("batches"))
    batch = sql.one("select procjobs.create_batch('import')")
    assert "open" in said(run("batches", "list"))
    said(run("batches", "seal", str(batch)))
    (found,) = json.loads(said(run("batches", "--json")))
    assert (found["name"], found["state"]) == ("import", "finished")


def test_the_log_tells_who_set_what_and_why(run: Any, sql: Any) -> None:
    said(run("limits", "set", "smtp", "--queue", "mail", "--max-running", "5", "--reason", "new provider"))
    said(run("limits", "drop", "smtp", "--reason", "gone"))
    said(run("queues", "pause", "mail", "--reason", "down"))
    said(run("queues", "resume", "mail", "--reason", "up"))
    said(run("queues", "set", "mail", "--fair", "--reason", "turns"))
    sql("select procjobs.register_tasks('[{\"name\": \"noop\"}]', 'test')")
    said(run("tasks", "set", "noop", "--priority", "4", "--reason", "hurry"))
    said(run("tasks", "reset", "noop", "--reason", "done"))
    said(run("tasks", "pause", "noop", "--reason", "fire"))
    said(run("tasks", "resume", "noop", "--reason", "out"))
    for word, name, changes in (
        ("limits", "smtp", [("dropped", "gone"), ("set", "new provider")]),
        ("queues", "mail", [("set", "turns"), ("resumed", "up"), ("paused", "down")]),
        ("tasks", "noop", [("resumed", "out"), ("paused", "fire"), ("set", "done"), ("set", "hurry")]),
    ):
        found = json.loads(said(run(word, "log", name, "--json")))
        assert [(row["change"], row["reason"]) for row in found] == changes
        assert {row["actor"] for row in found} == {sql.one("select session_user")}
        assert json.loads(said(run(word, "log", name, "--limit", "1", "--json"))) == found[:1]
    assert json.loads(said(run("limits", "log", "smtp", "--json")))[1]["after"]["max_running"] == 5


def test_the_log_of_breakers_schedules_and_retention(run: Any, sql: Any) -> None:
    said(run("breakers", "set", "crm", "--task", "noop", "--reason", "new"))
    said(run("breakers", "drop", "crm", "--reason", "gone"))
    sql("select procjobs.register_tasks('[{\"name\": \"noop\"}]', 'test')")
    said(run("schedules", "set", "nightly", "--task", "noop", "--cron", "0 2 * * *", "--reason", "asked for"))
    said(run("schedules", "for", "nightly", "ann", "--cron", "0 3 * * *", "--reason", "ann asked"))
    said(run("schedules", "pause", "nightly", "--reason", "down"))
    said(run("schedules", "resume", "nightly", "--reason", "up"))
    said(run("schedules", "remove", "nightly", "--reason", "enough"))
    said(run("retention", "set", "--queue", "mail", "--max-age", "1 day", "--reason", "law"))
    said(run("retention", "drop", "--queue", "mail", "--reason", "repealed"))
    for command, name, changes in (
        (("breakers", "log"), "crm", [("dropped", "gone"), ("set", "new")]),
        (
            ("schedules", "log"), "nightly",
            [("dropped", "enough"), ("resumed", "up"), ("paused", "down"), ("set", "asked for")],
        ),
        (("schedules", "log"), "nightly/ann", [("dropped", "enough"), ("set", "ann asked")]),
        (("retention", "changes"), "queue mail, all", [("dropped", "repealed"), ("set", "law")]),
    ):  # fmt: skip
        found = json.loads(said(run(*command, name, "--json")))
        assert [(row["change"], row["reason"]) for row in found] == changes
    assert 'cron="0 2 * * *"' in said(run("schedules", "log", "nightly"))


def test_the_log_is_listed_for_people(run: Any) -> None:
    said(run("limits", "set", "smtp", "--queue", "mail", "--max-running", "5"))
    listed = said(run("limits", "log"))
    assert "max_running=5" in listed
    assert re.search(r"^20\d\d-\d\d-\d\d \d\d:\d\d:\d\d  smtp ", listed, re.MULTILINE), "and when"
    assert "Nothing was changed" in said(run("queues", "log", "nobody"))


def test_a_breaker_that_is_open_until_somebody_closes_it_is_listed(run: Any) -> None:
    said(run("breakers", "set", "crm", "--queue", "crm"))
    assert "is open" in said(run("breakers", "open", "crm"))
    assert re.search(r"^crm +open +20\S+ \S+ +it is closed ", said(run("breakers")), re.MULTILINE)
    found = {one["name"]: one["retry_at"] for one in json.loads(said(run("breakers", "--json")))}
    assert (found["crm"], found["smtp"]) == ("infinity", None)
