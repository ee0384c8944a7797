"""Procrastinate's own command line drives our App."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Sql
from tests.processes import environment

SHOP = """
import asyncio, os, procjobs
app = procjobs.App(os.environ["SHOP_DSN"], import_paths=["more_tasks"])

@app.task(name="sell", queue="shop")
async def sell(item: str):
    print("sold", item, flush=True)

@app.task(name="wait", queue="shop")
async def wait():
    print("waiting", flush=True)
    await asyncio.sleep(600)
"""
MORE = """
from shop import app

@app.task(name="more", queue="shop")
def more():
    print("more", flush=True)
"""


@pytest.fixture
def shop(tmp_path: Path, dsn: str) -> Iterator[Callable[..., Any]]:
    """`shop("worker", ...)` runs `python -m procrastinate worker ...` on shop.app; wait=False gives the process."""
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "more_tasks.py").write_text(MORE)
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, wait: bool = True, dsn: str = dsn, stdin: str | None = None, **more: str) -> Any:
        variables = environment(**{"SHOP_DSN": dsn, "PROCRASTINATE_APP": "shop.app", **more})
        variables["PYTHONPATH"] = os.pathsep.join([str(tmp_path), variables["PYTHONPATH"]])
        process = subprocess.Popen(
            [sys.executable, "-m", "procrastinate", *arguments],
            cwd=tmp_path, env=variables, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        if not wait:
            return process
        out, err = process.communicate(stdin, timeout=60)
        return process.returncode, out, err

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_the_command_line_defers_works_and_checks(shop: Callable[..., Any], sql: Sql) -> None:
    code, out, err = shop("--app=shop.app", "defer", "sell", '{"item": "hat"}', PROCRASTINATE_APP="")
    assert code == 0, err
    code, _, err = shop(
        "defer", "--lock=l", "--priority=5", "--in=3600", "--queue=later", "--unknown", "nobody.knows", "{}"
    )
    assert code == 0, err
    assert sql("select task_name, queue_name, lock, priority, pj_waits_for from procrastinate_jobs order by id") == [
        ("sell", "shop", None, 0, None),
        ("nobody.knows", "later", "l", 5, "time"),
    ]
    code, _, err = shop("defer", "sell", '{"wrong": 1}')
    assert code != 0 and "wrong" in err
    code, _, err = shop("defer", "more", "{}")
    assert code == 0, err
    code, out, err = shop("worker", "--queues=shop", "--one-shot", "--concurrency=2")
    assert code == 0, err
    assert "sold hat" in out and "more" in out
    code, out, err = shop("healthchecks")
    assert code == 0 and "OK" in out, err
    code, out, err = shop("shell", "list_queues")
    assert code == 0 and "later: 1 jobs" in out, err


def test_the_command_line_tells_what_is_wrong_by_its_exit_code(shop: Callable[..., Any], empty_dsn: str) -> None:
    code, _, err = shop("worker", "--one-shot", dsn=empty_dsn)
    assert code != 0 and "procjobs" in err
    code, _, _ = shop("healthchecks", dsn=empty_dsn)
    assert code != 0
    code, _, err = shop("schema", "--apply", dsn=empty_dsn)
    assert code == 0, err
    code, _, err = shop("defer", "sell", '{"item": "hat"}', dsn=empty_dsn)
    assert code == 0, err
    code, out, err = shop("worker", "--one-shot", dsn=empty_dsn)
    assert code == 0 and "sold hat" in out, err


def test_a_worker_of_the_command_line_gives_its_jobs_back_and_ends_with_0(shop: Callable[..., Any], sql: Sql) -> None:
    assert shop("defer", "wait", "{}")[0] == 0
    process = shop("worker", "--shutdown-graceful-timeout=0.2", wait=False)
    # The task itself says that it runs: a job that is claimed and not yet begun would be given back at once.
    assert process.stdout.readline() == "waiting\n"
    assert sql("select status::text from procrastinate_jobs") == [("doing",)]
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert sql("select status::text, attempts from procrastinate_jobs") == [("todo", 0)]


def test_a_queueing_lock_of_the_command_line_admits_one_job(shop: Callable[..., Any], sql: Sql) -> None:
    defer = ("defer", "sell", '{"item": "hat"}', "--queueing-lock=ql")
    assert shop(*defer)[0] == 0
    code, _, err = shop(*defer)
    assert code != 0 and "ql" in err
    code, _, err = shop(*defer, "--ignore-already-enqueued")
    assert code == 0 and "ql" in err
    code, _, err = shop(
        "worker", "--one-shot",
        PROCRASTINATE_WORKER_QUEUES="shop", PROCRASTINATE_WORKER_CONCURRENCY="3",
        PROCRASTINATE_WORKER_DELETE_JOBS="always",
    )  # fmt: skip
    assert code == 0, err
    assert sql("select 1 from procjobs.jobs") == []


def test_the_shell_reads_commands_from_its_input_and_knows_the_history(shop: Callable[..., Any], sql: Sql) -> None:
    for task, arguments in (("sell", '{"item": "hat"}'), ("wait", "{}"), ("more", "{}")):
        assert shop("defer", task, arguments, "--lock=l")[0] == 0
    sell, wait, more = (job for (job,) in sql("select id from procrastinate_jobs order by id"))
    assert "[cancelled]" in shop("shell", "cancel", str(wait))[1]
    assert shop("worker", "--one-shot")[0] == 0
    commands = ["list_jobs", "list_jobs task=sell details", "list_queues", "list_tasks", "list_locks", "exit", ""]
    code, out, err = shop("shell", stdin="\n".join(commands))
    assert code == 0, err
    shown = [line.removeprefix("procrastinate> ") for line in out.splitlines()]
    counts = "(todo: 0, doing: 0, succeeded: {}, failed: 0, cancelled: {}, aborted: 0)"
    details = "(attempts=1, priority=0, scheduled_at=None, args={'item': 'hat'}, lock=l)"
    assert [line for line in shown if line.startswith(("#", "shop:", "sell:", "wait:", "more:", "l:"))] == [
        f"#{sell} sell on shop - [succeeded]",
        f"#{wait} wait on shop - [cancelled]",
        f"#{more} more on shop - [succeeded]",
        f"#{sell} sell on shop - [succeeded] {details}",
        f"shop: 3 jobs {counts.format(2, 1)}",
        f"more: 1 jobs {counts.format(1, 0)}",
        f"sell: 1 jobs {counts.format(1, 0)}",
        f"wait: 1 jobs {counts.format(0, 1)}",
        f"l: 3 jobs {counts.format(2, 1)}",
    ]
