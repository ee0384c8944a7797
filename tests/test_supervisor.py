"""Children are kept running, stopped in order, and die with their supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from procjobs.supervisor import Child, Restarts, describe_exit
from tests.processes import alive, descendants, environment, wait_for

SOON = Restarts(first=0.01, longest=0.05)

#: Writes its process number to a file, then waits; with `stubborn` it does not listen to SIGTERM.
WAITS = """
import os, signal, sys, time
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()}\\n")
while True:
    time.sleep(60)
"""


@pytest.fixture
async def child(tmp_path: Path) -> AsyncIterator[Callable[..., Child]]:
    made: list[Child] = []

    def make(*arguments: str, program: str = WAITS, **options: Any) -> Child:
        command = [sys.executable, "-c", program, str(tmp_path / "pids"), *arguments]
        made.append(Child("it", command, env=environment(), **{"restarts": SOON, "grace": 20.0, **options}))
        return made[-1]

    yield make
    for found in made:
        await found.stop()


def starts(tmp_path: Path) -> list[int]:
    path = tmp_path / "pids"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


async def test_a_child_that_is_killed_is_started_again(
    child: Callable[..., Child], tmp_path: Path, eventually: Any
) -> None:
    it = child()
    await it.start()
    await eventually(lambda: len(starts(tmp_path)) == 1)
    os.kill(starts(tmp_path)[0], signal.SIGKILL)

    await eventually(lambda: len(starts(tmp_path)) == 2)
    assert it.pid == starts(tmp_path)[1] and it.failures == 1


async def test_stop_ends_it_and_it_is_not_started_again(
    child: Callable[..., Child], tmp_path: Path, eventually: Any
) -> None:
    it = child()
    await it.start()
    await eventually(lambda: starts(tmp_path))
    await it.stop()
    await it.stop()
    assert it.pid is None and len(starts(tmp_path)) == 1


async def test_a_child_that_does_not_listen_is_killed_after_its_grace(
    child: Callable[..., Child], tmp_path: Path, eventually: Any
) -> None:
    it = child("stubborn", grace=0.2)
    await it.start()
    await eventually(lambda: starts(tmp_path))
    await it.stop()
    assert it.pid is None


async def test_it_can_be_stopped_while_it_waits_for_its_next_start(
    child: Callable[..., Child], eventually: Any
) -> None:
    it = child(program="raise SystemExit(3)", restarts=Restarts(first=3600))
    await it.start()
    await eventually(lambda: it.failures == 1)
    await it.stop()


async def test_a_program_that_is_not_there_is_told_at_once() -> None:
    with pytest.raises(FileNotFoundError):
        await Child("it", ["/no/such/program"], env={}).start()


async def test_it_may_be_started_again_after_a_stop(
    child: Callable[..., Child], tmp_path: Path, eventually: Any
) -> None:
    it = child()
    await it.start()
    await eventually(lambda: len(starts(tmp_path)) == 1)
    await it.stop()
    await it.start()
    await eventually(lambda: len(starts(tmp_path)) == 2)


def test_it_dies_with_its_supervisor(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys; from procjobs.supervisor import Child\n"
        "async def main():\n"
        f"    await Child('it', [sys.executable, '-c', {WAITS!r}, sys.argv[1], 'stubborn'], env={{}}).start()\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "pids")], env=environment())
    wait_for(lambda: starts(tmp_path))
    below = descendants(supervisor.pid)
    assert list(below) == starts(tmp_path)
    supervisor.kill()
    supervisor.wait(10)
    wait_for(lambda: not alive(below))


def test_waits_double_up_to_the_longest() -> None:
    waits = [Restarts(first=0.5, longest=30).wait(failures) for failures in (1, 2, 3, 7, 10_000)]
    assert waits == [0.5, 1, 2, 30, 30]


@pytest.mark.parametrize(("code", "words"), [(0, "exit code 0"), (3, "exit code 3"), (-9, "killed by SIGKILL")])
def test_how_a_process_ended_in_words(code: int, words: str) -> None:
    assert describe_exit(code) == words
