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
    """`shop("worker", ...)` runs `python -m procrastinate --app=shop.app worker ...`; wait=False gives the process."""
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "more_tasks.py").write_text(MORE)
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, wait: bool = True, dsn: str = dsn) -> Any:
        variables = environment(SHOP_DSN=dsn)
        variables["PYTHONPATH"] = os.pathsep.join([str(tmp_path), variables["PYTHONPATH"]])
        process = subprocess.Popen(
            [sys.executable, "-m", "procrastinate", "--app=shop.app", *arguments],
            cwd=tmp_path, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        if not wait:
            return process
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_the_command_line_defers_works_and_checks(shop: Callable[..., Any], sql: Sql) -> None:
    code, out, err = shop("defer", "sell", '{"item": "hat"}')
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


def test_a_worker_of_the_command_line_gives_its_jobs_back_and_ends_with_0(
    shop: Callable[..., Any], sql: Sql, eventually: Callable[..., Any]
) -> None:
    assert shop("defer", "wait", "{}")[0] == 0
    process = shop("worker", "--shutdown-graceful-timeout=0.2", wait=False)
    eventually(lambda: sql.one("select count(*) from procrastinate_jobs where status = 'doing'"), timeout=30)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "waiting" in out
    assert sql("select status::text, attempts from procrastinate_jobs") == [("todo", 0)]
