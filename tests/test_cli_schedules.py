"""procjobs schedules, run and alerts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.processes import environment, procjobs_command, sentence

SHOP = """
import procjobs
app = procjobs.App()

@app.task(name="greet")
async def greet(name: str = "Ada") -> int:
    procjobs.progress(50, "half")
    return len(name)

@app.task(name="fail", retry=procjobs.Retry(max_attempts=1))
async def fail() -> None:
    raise ValueError("no luck")
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


@pytest.fixture
def run(dsn: str, here: Path, sql: Any) -> Any:
    sql('select procjobs.register_tasks(\'[{"name": "greet"}, {"name": "fail"}]\', \'test\')')

    def call(*arguments: str) -> Any:
        return procjobs_command(*arguments, cwd=here, env={"DATABASE_URL": dsn})

    return call


@pytest.fixture
def worker(dsn: str, here: Path) -> Any:
    """`with worker():` runs one of the application."""

    @contextmanager
    def working() -> Iterator[None]:
        command = [sys.executable, "-m", "procjobs", "worker", "--app", "shop.app"]
        with subprocess.Popen(command, cwd=here, env=environment(DATABASE_URL=dsn), stderr=subprocess.DEVNULL) as begun:
            try:
                yield
            finally:
                begun.terminate()

    return working


def said(answer: Any) -> str:
    assert answer.returncode == 0, answer.stderr
    text: str = answer.stdout
    return text


def test_one_is_made_seen_changed_held_off_and_removed(run: Any) -> None:
    assert "There is no schedule" in said(run("schedules"))
    said(run("schedules", "set", "s", "--task", "greet", "--cron", "0 9 * * *", "--timezone", "Europe/Paris"))
    said(
        run("schedules", "set", "s", "--jitter", "30s", "--group", "cleanup", "--tag", "x", "--args", '{"name": "Bo"}')
    )
    (found,) = json.loads(said(run("schedules", "list", "--json")))
    assert (found["times"], found["timezone"], found["group"], found["state"]) == (
        "0 9 * * *", "Europe/Paris", "cleanup", "active",
    )  # fmt: skip
    assert "is paused" in said(run("schedules", "pause", "s", "--reason", "loud"))
    assert "was paused" in said(run("schedules", "pause", "s"))
    assert "loud" in said(run("schedules", "show", "s"))
    assert "goes on" in said(run("schedules", "resume", "s"))
    assert "cleanup is off" in said(run("schedules", "group", "cleanup", "off"))
    assert "off" in said(run("schedules"))
    assert "s/ann" in said(run("schedules", "for", "s", "ann", "--cron", "@daily"))
    assert len(json.loads(said(run("schedules", "preview", "s", "-n", "3", "--json")))) == 3
    assert "is gone" in said(run("schedules", "remove", "s"))
    assert "there is no schedule" in said(run("schedules", "remove", "s"))


def test_what_cannot_be_is_told_in_a_sentence(run: Any) -> None:
    assert "cron '61 * * * *'" in sentence(
        run("schedules", "set", "s", "--task", "greet", "--cron", "61 * * * *")
    ).replace('"', "'")
    for command in (("schedules", "show", "x"), ("schedules", "preview", "x"), ("run", "x")):
        assert "there is no schedule 'x'" in sentence(run(*command))


def test_backfill_and_history(run: Any) -> None:
    said(run("schedules", "set", "s", "--task", "greet", "--every", "1h", "--overlap", "allow"))
    told = said(run("schedules", "backfill", "s", "--from", "2026-06-01T00:00Z", "--until", "2026-06-01T09:30Z"))
    assert told == "10 jobs\n"
    (first, *_) = json.loads(said(run("schedules", "history", "s", "--limit", "2", "--json")))
    assert (first["kind"], first["outcome"], first["status"]) == ("backfill", "fired", "todo")
    assert "Nothing has fired" in said(run("schedules", "history", "other"))


def test_a_run_is_followed_to_its_end(run: Any, worker: Any, sql: Any) -> None:
    said(run("schedules", "set", "good", "--task", "greet", "--cron", "@yearly"))
    said(run("schedules", "set", "bad", "--task", "fail", "--cron", "@yearly"))
    with worker():
        followed = said(run("run", "good", "--args", '{"name": "Bob"}'))
        failed = run("run", "bad")
    assert followed.splitlines()[-1].endswith("succeeded: 3")
    assert failed.returncode == 1 and "failed: ValueError: no luck" in failed.stdout
    first = said(run("run", "good", "--no-wait", "--key", "click"))
    assert said(run("run", "good", "--no-wait", "--key", "click")) == first
    assert sql.one("select count(*) from procjobs.schedule_runs") == 3


def test_the_file_is_applied_and_taken_back(run: Any, here: Path) -> None:
    assert "has no schedules" in said(run("schedules", "apply"))
    (here / "procjobs.toml").write_text(
        '[schedules.a]\ntask = "greet"\ncron = "@daily"\n[schedules.b]\ntask = "greet"\nevery = "5min"\n'
        "[environments.staging.schedules.b]\nenabled = false\n"
    )
    assert "changed" in said(run("schedules", "apply"))
    assert "as it was" in said(run("schedules", "apply"))
    said(run("schedules", "apply", "--environment", "staging"))
    states = {row["name"]: row["state"] for row in json.loads(said(run("schedules", "--json")))}
    assert states == {"a": "active", "b": "paused"}
    (here / "procjobs.toml").write_text('[schedules.a]\ntask = "greet"\ncron = "61 * * * *"\n')
    answer = run("schedules", "apply")
    assert answer.returncode == 1 and "61" in answer.stdout
    assert [row["name"] for row in json.loads(said(run("schedules", "--json")))] == ["a"]


def test_alerts_are_listed_and_closed(run: Any, sql: Any) -> None:
    assert "All is well" in said(run("alerts"))
    sql("select procjobs.raise_alert('backlog', 'mail', 'many jobs wait')")
    assert "many jobs wait" in said(run("alerts"))
    (found,) = json.loads(said(run("alerts", "--json")))
    assert "is closed" in said(run("alerts", "close", str(found["id"])))
    assert "is not open" in said(run("alerts", "close", str(found["id"])))
    assert "All is well" in said(run("alerts")) and "many jobs wait" in said(run("alerts", "--all"))


def test_the_environment_is_applied_by_migrate(dsn: str, here: Path, sql: Any) -> None:
    env = {"DATABASE_URL": dsn, "CRON_TIMEZONE": "Europe/Paris", "ENABLE_CLEANUP_JOBS": "false"}
    said(procjobs_command("migrate", cwd=here, env=env))
    assert sql("select name from procjobs.schedule_groups where not enabled") == [("cleanup",)]
    assert sql.one("select procjobs.cron_timezone()") == "Europe/Paris"
