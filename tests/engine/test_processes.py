"""The pool of processes for CPU-bound tasks, alone: who dies when, and what that does to the next job."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import procrastinate
import pytest

from procjobs.engine.processes import ProcessDied, Processes, RemoteError

Run = Callable[..., Any]


def pid() -> int:
    return os.getpid()


def echo(value: Any) -> Any:
    return value


def wait_for(started: str, go: str, ignore_term: bool = False) -> int:
    """Say that it runs, by a file with its process id, and go on when the other file is there."""
    if ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(started + ".new").write_text(str(os.getpid()))
    Path(started + ".new").rename(started)
    while not os.path.exists(go):
        time.sleep(0.005)
    return os.getpid()


def leave() -> None:
    sys.exit("that is all")


@pytest.fixture
async def pool() -> AsyncIterator[Processes]:
    processes = Processes(1)
    yield processes
    await processes.close()
    assert multiprocessing.active_children() == []


async def run(processes: Processes, function: Callable[..., Any], /, **arguments: Any) -> Any:
    task = procrastinate.Blueprint().task(name="t")(function)
    async with asyncio.timeout(30):
        return await processes.run(task, arguments)


def begin(processes: Processes, function: Callable[..., Any], /, **arguments: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(run(processes, function, **arguments))


async def running(eventually: Run, started: Path) -> int:
    """The process of a `wait_for` that says it runs."""
    return int(await eventually(lambda: started.exists() and started.read_text(), timeout=30))


def lowest_free() -> int:
    number = os.open(os.devnull, os.O_RDONLY)
    os.close(number)
    return number


def is_socket(number: int) -> bool:
    return stat.S_ISSOCK(os.fstat(number).st_mode)


async def test_a_pipe_with_the_number_of_a_dead_one_is_heard(pool: Processes, tmp_path: Path, eventually: Run) -> None:
    number = lowest_free()
    job = begin(pool, wait_for, started=str(tmp_path / "started"), go="never")
    os.kill(await running(eventually, tmp_path / "started"), signal.SIGKILL)
    assert is_socket(number)
    with pytest.raises(ProcessDied, match="exit code -9"):
        await job

    fillers = [os.open(os.devnull, os.O_RDONLY)]
    while fillers[-1] < number:
        fillers.append(os.open(os.devnull, os.O_RDONLY))
    os.close(fillers.pop())
    try:
        assert await run(pool, echo, value="heard") == "heard"
        assert is_socket(number), "the second pipe has another number: this shows nothing"
    finally:
        for filler in fillers:
            os.close(filler)


async def test_a_cancelled_job_gets_term(pool: Processes, tmp_path: Path, eventually: Run) -> None:
    job = begin(pool, wait_for, started=str(tmp_path / "started"), go="never")
    await running(eventually, tmp_path / "started")
    (process,) = multiprocessing.active_children()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert process.exitcode == -signal.SIGTERM


async def test_who_ignores_term_is_killed_after_the_grace_period(tmp_path: Path, eventually: Run) -> None:
    pool = Processes(1, grace=0.5)
    job = begin(pool, wait_for, started=str(tmp_path / "started"), go="never", ignore_term=True)
    await running(eventually, tmp_path / "started")
    (process,) = multiprocessing.active_children()
    began = time.monotonic()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert process.exitcode == -signal.SIGKILL
    assert time.monotonic() - began >= 0.5
    assert await run(pool, echo, value=1) == 1
    await pool.close()


async def test_a_job_cancelled_twice_does_not_answer_the_next(tmp_path: Path, eventually: Run) -> None:
    pool = Processes(1, grace=1)
    job = begin(pool, wait_for, started=str(tmp_path / "started"), go=str(tmp_path / "go"), ignore_term=True)
    await running(eventually, tmp_path / "started")
    job.cancel()
    await asyncio.sleep(0)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    (tmp_path / "go").touch()
    assert await run(pool, echo, value="mine") == "mine"
    await eventually(lambda: len(multiprocessing.active_children()) == 1)
    await pool.close()


async def test_a_job_cancelled_while_its_process_starts_leaves_none(pool: Processes, eventually: Run) -> None:
    for turns in range(6):
        job = begin(pool, pid)
        for _ in range(turns):
            await asyncio.sleep(0)
        job.cancel()
        with suppress(asyncio.CancelledError):
            await job
    await eventually(lambda: multiprocessing.active_children() == [])


async def test_a_process_that_died_idle_costs_the_next_job_nothing(pool: Processes) -> None:
    first = await run(pool, pid)
    assert await run(pool, pid) == first, "a process is kept for the next job"
    (process,) = multiprocessing.active_children()
    os.kill(first, signal.SIGKILL)
    assert await run(pool, pid) != first  # while it dies
    process.join(10)
    (process,) = multiprocessing.active_children()
    process.kill()
    process.join(10)
    assert await run(pool, echo, value=[1]) == [1]  # long dead


async def test_a_task_that_exits_fails_and_the_next_job_has_a_process(pool: Processes) -> None:
    for _ in range(3):
        with pytest.raises(RemoteError, match="that is all") as caught:
            await run(pool, leave)
        assert caught.value.error_class == "SystemExit"
        assert await run(pool, echo, value=1) == 1


async def test_large_arguments_and_results_leave_the_loop_free(pool: Processes) -> None:
    large = "x" * 1_000_000
    child = await run(pool, pid)
    os.kill(child, signal.SIGSTOP)  # it reads nothing for now
    blocked = threading.Event()

    def give_up() -> None:
        blocked.set()
        os.kill(child, signal.SIGCONT)

    guard = threading.Timer(10, give_up)
    guard.start()
    job = begin(pool, echo, value=large)
    for _ in range(100):
        await asyncio.sleep(0)
    assert not blocked.is_set(), "the loop waited for a process that does not read"
    assert not job.done()
    os.kill(child, signal.SIGCONT)
    guard.cancel()
    assert await job == large
    assert await run(pool, pid) == child


async def test_closing_lets_a_running_job_end_and_its_process_too(tmp_path: Path, eventually: Run) -> None:
    pool = Processes(2)
    job = begin(pool, wait_for, started=str(tmp_path / "started"), go=str(tmp_path / "go"))
    busy = await running(eventually, tmp_path / "started")
    idle = await run(pool, pid)
    assert {process.pid for process in multiprocessing.active_children()} == {busy, idle}
    await pool.close()
    assert {process.pid for process in multiprocessing.active_children()} == {busy}
    (tmp_path / "go").touch()
    assert await job == busy
    assert multiprocessing.active_children() == []


async def test_there_are_never_more_processes_than_the_size(tmp_path: Path, eventually: Run) -> None:
    pool = Processes(2)
    files = [tmp_path / f"started {n}" for n in range(5)]
    jobs = [begin(pool, wait_for, started=str(file), go=str(tmp_path / "go")) for file in files]
    await eventually(lambda: sum(file.exists() for file in files) == 2, timeout=30)
    assert len(multiprocessing.active_children()) == 2
    (tmp_path / "go").touch()
    assert len(set(await asyncio.gather(*jobs))) == 2
    await pool.close()
    assert multiprocessing.active_children() == []
