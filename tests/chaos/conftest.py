"""Workers as processes that can be stopped, continued and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent


class Process:
    """One worker process; its output is kept for the report of a failing test."""

    def __init__(self, dsn: str, log: Path, *options: str, heartbeat: float = 0.5) -> None:
        environment = {
            **os.environ,
            "VICTIM_DSN": dsn,
            "VICTIM_HEARTBEAT": str(heartbeat),
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent.parent)]),
        }
        self.log = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "procrastinate", "--app=victim.app", "worker", *options],
                env=environment,
                stdout=output,
                stderr=output,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def exit_code(self, timeout: float = 20) -> int:
        return self.popen.wait(timeout)

    def said(self, words: str) -> bool:
        return words in self.log.read_text()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """`start(dsn, "--concurrency=50")` starts a worker process; all are killed after the test."""
    processes: list[Process] = []

    def run(dsn: str, *options: str, heartbeat: float = 0.5) -> Process:
        processes.append(Process(dsn, tmp_path / f"worker{len(processes)}.log", *options, heartbeat=heartbeat))
        return processes[-1]

    yield run
    for process in processes:
        if process.popen.poll() is None:
            process.signal(signal.SIGCONT)
            process.signal(signal.SIGKILL)
            process.popen.wait()
        print(f"--- {process.log.name}\n{process.log.read_text()[-4000:]}")


@pytest.fixture
def ground(sql) -> None:
    """What the victim writes to and looks at."""
    sql("create table executions (job bigint, pid int, at timestamptz default clock_timestamp())")
    sql("create table gate (open boolean)")
