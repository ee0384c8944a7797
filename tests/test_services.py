"""`procjobs worker`, `scheduler` and `web` as processes: what they run, how they stop, and with which exit code."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from procjobs.app import default_app
from procjobs.settings import Settings
from tests.processes import environment, procjobs_command, sentence, wait_for

APP = """
import asyncio, time
import procjobs

app = procjobs.App()

@app.task(name="write")
async def write(path: str, words: str) -> None:
    open(path, "a").write(words)

@app.task(name="hold")
async def hold(path: str) -> None:
    open(path, "a").write("holding")
    await asyncio.sleep(3600)

@app.task(name="stubborn")
def stubborn(path: str) -> None:
    open(path, "a").write("holding")
    time.sleep(30)
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with an application in it."""
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


@pytest.fixture
def begin() -> Iterator[Any]:
    """`begin("worker", ..., cwd=here, DATABASE_URL=dsn)` starts a command, killed at the end if it still runs."""
    begun: list[subprocess.Popen[str]] = []

    def start(*arguments: str, cwd: Path, **env: str) -> subprocess.Popen[str]:
        begun.append(
            subprocess.Popen(
                [sys.executable, "-m", "procjobs", *arguments],
                cwd=cwd,
                env=environment(**env),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def end(process: subprocess.Popen[str], number: int, times: int = 1) -> tuple[int, str]:
    for _ in range(times):
        process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    return process.returncode, said


def register(here: Path, dsn: str) -> None:
    """A worker with nothing to do registers the application's tasks and ends."""
    said = procjobs_command("worker", "--app", "shop.app", "--one-shot", cwd=here, env={"DATABASE_URL": dsn})
    assert said.returncode == 0, said.stderr


def test_one_shot_runs_what_waits_and_ends(here: Path, dsn: str, sql: Any) -> None:
    register(here, dsn)
    for words in ("a", "b"):
        sql(
            "select procjobs.defer('write', jsonb_build_object('path', %s::text, 'words', %s::text))",
            f"{here}/w",
            words,
        )
    register(here, dsn)
    assert sorted((here / "w").read_text()) == ["a", "b"]
    assert sql("select distinct state from procjobs.jobs") == [("succeeded",)]


def test_queues_and_name_are_taken(here: Path, dsn: str, sql: Any) -> None:
    register(here, dsn)
    for queue in ("mine", "other"):
        sql(
            "select procjobs.defer('write', jsonb_build_object('path', %s::text, 'words', %s::text), queue => %s)",
            f"{here}/w", queue, queue,
        )  # fmt: skip
    arguments = ("worker", "--app", "shop.app", "--one-shot", "--queues", "mine,more", "--name", "w7", "--dsn", dsn)
    said = procjobs_command(*arguments, cwd=here, env={"DATABASE_URL": dsn})
    assert said.returncode == 0, said.stderr
    assert (here / "w").read_text() == "mine"
    assert sql("select queues from procjobs.workers where name = 'w7'") == [(["mine", "more"],)]


def test_an_app_that_names_no_database_works_on_the_one_the_command_was_given(here: Path, dsn: str, sql: Any) -> None:
    said = procjobs_command("worker", "--app", "shop.app", "--one-shot", "--dsn", dsn, cwd=here)
    assert said.returncode == 0, said.stderr
    assert sql("select concurrency, 'write' = any (tasks) from procjobs.workers") == [(10, True)]


def test_an_app_that_names_its_own_database_and_options_needs_no_setting(here: Path, dsn: str, sql: Any) -> None:
    (here / "own.py").write_text(
        f"import procjobs\napp = procjobs.App({dsn!r}, worker_defaults={{'concurrency': 3}})\n"
    )
    said = procjobs_command("worker", "--app", "own.app", "--one-shot", cwd=here)
    assert said.returncode == 0, said.stderr
    assert sql("select concurrency from procjobs.workers") == [(3,)]


def test_a_direct_connection_for_listen_is_taken_from_the_settings() -> None:
    settings = Settings(dsn="postgresql://pooler/shop", listen_dsn="postgresql://direct/shop")
    assert default_app(settings)._worker()._listen_target.conninfo == "postgresql://direct/shop"  # type: ignore[attr-defined]


def test_without_an_app_it_runs_procjobs_own_tasks(here: Path, dsn: str, sql: Any) -> None:
    said = procjobs_command("worker", "--one-shot", cwd=here, env={"DATABASE_URL": dsn})
    assert said.returncode == 0, said.stderr
    assert sql.one("select array['procjobs.send_notification'] <@ tasks from procjobs.workers order by id desc limit 1")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_ends_with_0(begin: Any, here: Path, dsn: str, sql: Any, number: int) -> None:
    worker = begin("worker", "--app", "shop.app", cwd=here, DATABASE_URL=dsn)
    wait_for(lambda: sql("select 1 from procjobs.workers where state = 'alive'"))
    code, said = end(worker, number)
    assert code == 0 and "Traceback" not in said
    assert sql("select state from procjobs.workers") == [("stopped",)]


def test_a_second_signal_gives_running_jobs_back_at_once(begin: Any, here: Path, dsn: str, sql: Any) -> None:
    register(here, dsn)
    sql("select procjobs.defer('hold', jsonb_build_object('path', %s::text))", f"{here}/w")
    worker = begin("worker", "--app", "shop.app", cwd=here, DATABASE_URL=dsn)
    wait_for(lambda: (here / "w").exists())
    worker.send_signal(signal.SIGTERM)
    wait_for(lambda: sql("select 1 from procjobs.workers where state = 'draining'"))
    code, said = end(worker, signal.SIGTERM)
    assert code == 0, said
    assert sql("select state, attempts from procjobs.jobs") == [("waiting", 0)]


def test_a_job_that_cannot_be_stopped_is_told_by_the_exit_code(begin: Any, here: Path, dsn: str, sql: Any) -> None:
    register(here, dsn)
    sql("select procjobs.defer('stubborn', jsonb_build_object('path', %s::text))", f"{here}/w")
    worker = begin(
        "worker", "--app", "shop.app", cwd=here,
        DATABASE_URL=dsn, PROCJOBS_SHUTDOWN_TIMEOUT="0.1", PROCJOBS_KILL_TIMEOUT="0.1",
    )  # fmt: skip
    wait_for(lambda: (here / "w").exists())
    code, said = end(worker, signal.SIGTERM)
    assert code != 0 and "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_scheduler_keeps_time_without_a_worker_and_ends_with_0(
    begin: Any, here: Path, dsn: str, sql: Any, number: int
) -> None:
    (here / "shop.py").write_text(
        f"{APP}\n@app.periodic(cron='* * * * * *')\n@app.task(name='tick')\ndef tick(timestamp: int) -> None: ...\n"
    )
    scheduler = begin("scheduler", "--app", "shop.app", cwd=here, DATABASE_URL=dsn)
    wait_for(lambda: sql("select 1 from procjobs.jobs where task = 'tick'"))
    code, said = end(scheduler, number)
    assert code == 0 and "Traceback" not in said
    assert "scheduler started, its code declares 1 schedules" in said and "scheduler stopped" in said


@pytest.mark.parametrize(
    ("app", "words"),
    [
        ("no.such.app", "No module named 'no'"),
        ("shop.nothing", "nothing"),
        ("shop.write", "not of type App"),
        ("stock.app", "import App from procjobs"),
    ],
)
def test_an_app_that_cannot_be_used_is_told_in_a_sentence(here: Path, dsn: str, app: str, words: str) -> None:
    (here / "stock.py").write_text("import procrastinate as p\napp = p.App(connector=p.PsycopgConnector())\n")
    said = procjobs_command("worker", "--app", app, cwd=here, env={"DATABASE_URL": dsn})
    assert words in sentence(said) and app in sentence(said)


@pytest.mark.parametrize("service", ["worker", "scheduler"])
def test_one_without_a_database_is_told_in_a_sentence(here: Path, service: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    said = procjobs_command(service, cwd=here, env={"DATABASE_URL": f"postgresql://u:s3cret@127.0.0.1:{port}/x"})
    assert "s3cret" not in said.stderr + said.stdout
    assert "DATABASE_URL" in sentence(said)


@pytest.mark.parametrize("service", ["worker", "scheduler"])
def test_one_on_a_database_that_was_not_migrated(here: Path, empty_dsn: str, service: str) -> None:
    said = procjobs_command(service, cwd=here, env={"DATABASE_URL": empty_dsn})
    assert "procjobs migrate" in sentence(said)


def test_logs_as_json_name_jobs_and_never_their_arguments(here: Path, dsn: str, sql: Any) -> None:
    register(here, dsn)
    path = f"{here}/w"
    sql("select procjobs.defer('write', jsonb_build_object('path', %s::text, 'words', 'canary-7'))", path)
    arguments = ("worker", "--app", "shop.app", "--one-shot", "--log-format", "json", "--log-level", "debug")
    said = procjobs_command(*arguments, cwd=here, env={"DATABASE_URL": dsn})
    assert (here / "w").read_text() == "canary-7"
    entries = [json.loads(line) for line in said.stderr.splitlines()]
    assert any(entry.get("task") == "write" and entry.get("job_id") for entry in entries)
    assert "canary-7" not in said.stderr


def test_web_serves_and_stops_cleanly(begin: Any, here: Path, dsn: str) -> None:
    web = begin("web", "--port", "0", cwd=here, DATABASE_URL=dsn)
    assert web.stdout is not None
    url = web.stdout.readline().split()[-1]
    with urllib.request.urlopen(f"{url}/health") as answer:
        assert json.load(answer)["status"] == "degraded"
    code, said = end(web, signal.SIGTERM)
    assert code == 0 and "Traceback" not in said


def test_web_on_a_taken_port_is_told_in_a_sentence(here: Path, dsn: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = str(holder.getsockname()[1])
        said = procjobs_command("web", "--port", port, cwd=here, env={"DATABASE_URL": dsn})
    assert f"port {port} on 127.0.0.1 is taken" in sentence(said)


def test_web_on_a_host_that_is_not_ours_is_told_in_a_sentence(here: Path, dsn: str) -> None:
    said = procjobs_command("web", "--host", "192.0.2.1", "--port", "0", cwd=here, env={"DATABASE_URL": dsn})
    assert "192.0.2.1" in sentence(said) and "--host" in said.stderr
