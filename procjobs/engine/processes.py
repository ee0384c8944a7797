"""Processes for CPU-bound tasks, which can be killed: cancelled jobs get TERM, then KILL after a grace period.

A process is kept for the next job and replaced when it dies. It imports the task's module afresh (spawn), so the task
must be importable by its module and name, and gets its arguments as the JSON they were enqueued with.

It does not outlive the worker: the job runs again elsewhere then, and under a lock there must not be two.

Over a socket pair go the request, `started` as soon as the process has it, `progress` whenever the task reports some,
and the answer: each JSON after its length.
Who dies before `started` has done nothing, so that the job may go to another process.
"""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
import multiprocessing
import os
import pickle
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, BinaryIO

from procrastinate.tasks import Task

from procjobs.engine.endings import describe
from procjobs.engine.progress import REPORT
from procjobs.engine.results import Unkept, strict_dumps
from procjobs.engine.retry import Settled, Verdict

__all__ = ["ProcessDied", "Processes", "RemoteError"]

_SPAWN = multiprocessing.get_context("spawn")
_LENGTH_BYTES = 8
_LARGEST_ERROR = 1024 * 1024

Report = Callable[[float | None, str | None], None]


class ProcessDied(Exception):
    """The process ended in the middle of a job: killed, out of memory, or a crash below Python."""


class _NotStarted(ProcessDied):
    """The process had ended before it took the job."""


class RemoteError(Exception):
    """An exception of a task that ran in another process, with its class and traceback as text."""

    def __init__(self, error_class: str, message: str, trace: str, pickled: str = "") -> None:
        super().__init__(message)
        self.error_class = error_class
        self.trace = trace
        self._pickled = pickled

    def original(self) -> BaseException:
        """The exception itself, for retry strategies that go by its class; this one where it cannot be carried over."""
        try:
            found = pickle.loads(base64.b64decode(self._pickled))  # noqa: S301  from our own child
        except Exception:
            return self
        return found if isinstance(found, BaseException) else self


@dataclass
class _Child:
    process: BaseProcess
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def read(self) -> list[Any]:
        length = int.from_bytes(await self.reader.readexactly(_LENGTH_BYTES), "big")
        message: list[Any] = json.loads(await self.reader.readexactly(length))
        return message

    async def write(self, message: Sequence[str]) -> None:
        self.writer.write(_frame(message))
        await self.writer.drain()

    def kill(self, number: int) -> None:
        if self.process.is_alive() and self.process.pid:
            os.kill(self.process.pid, number)

    async def end(self, grace: float) -> None:
        """Wait until it has ended, killing it after the grace period, and let go of it."""
        await asyncio.to_thread(self.process.join, grace)
        if self.process.is_alive():
            self.kill(signal.SIGKILL)
            await asyncio.to_thread(self.process.join)
        self.writer.close()


class Processes:
    """A pool of at most `size` processes, started on demand."""

    def __init__(self, size: int, *, grace: float = 5.0) -> None:
        self._grace = grace
        self._free: list[_Child] = []
        self._slots = asyncio.Semaphore(size)
        self._closed = False

    async def run(self, task: Task[Any, Any, Any], arguments: dict[str, Any], report: Report | None = None) -> Any:
        """Run the task's function in a process. Raises RemoteError, ProcessDied; cancelling kills the process.

        report: called with percent and message whenever the task reports its progress.
        """
        request = (task.func.__module__, task.func.__qualname__, json.dumps(arguments))
        async with self._slots:
            while self._free:
                try:
                    return await self._give(self._free.pop(), request, report)
                except _NotStarted:
                    continue  # it had died while it was idle
            return await self._give(await _start(), request, report)

    async def _give(self, child: _Child, request: Sequence[str], report: Report | None) -> Any:
        try:
            kind, *values = await self._ask(child, request, report)
        except ProcessDied:
            raise
        except BaseException:  # cancelled: whatever it does now, it must not answer the next job
            child.kill(signal.SIGTERM)
            await asyncio.shield(child.end(self._grace))
            raise
        self._free.append(child)
        if self._closed:
            await self.close()
        if kind == "error":
            raise RemoteError(*values)
        if kind == "verdict":
            return Settled(json.loads(values[0]))
        return Unkept(values[0]) if kind == "unkept" else json.loads(values[0])

    async def _ask(self, child: _Child, request: Sequence[str], report: Report | None) -> list[str]:
        died: type[ProcessDied] = _NotStarted
        try:
            await child.write(request)
            await child.read()
            died = ProcessDied
            while (message := await child.read())[0] == "progress":
                if report is not None:
                    report(*message[1:])
            return message
        except (EOFError, OSError) as error:
            await child.end(self._grace)
            raise died(f"the process of the job ended with exit code {child.process.exitcode}") from error

    async def close(self) -> None:
        """End all idle processes. Those that are busy end after their job."""
        self._closed = True
        free, self._free = self._free, []
        for child in free:
            child.kill(signal.SIGTERM)
        for child in free:
            await child.end(self._grace)


async def _start() -> _Child:
    starting = asyncio.create_task(_start_child())
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        child = await starting
        child.kill(signal.SIGKILL)
        await child.end(0)
        raise


async def _start_child() -> _Child:
    here, there = socket.socketpair()
    process = _SPAWN.Process(target=_serve, args=(there,), name="procjobs job", daemon=True)
    try:
        await asyncio.to_thread(process.start)
    except BaseException:
        here.close()
        raise
    finally:
        there.close()
    return _Child(process, *await asyncio.open_unix_connection(sock=here))


def _frame(message: Sequence[Any]) -> bytes:
    body = json.dumps(message).encode()
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def _serve(end: socket.socket) -> None:
    """The child: one job after the other until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with, args=(os.getppid(), end), name="procjobs parent", daemon=True).start()
    sending = threading.Lock()

    def send(*message: Any) -> None:
        with sending:
            end.sendall(_frame(message))

    REPORT.set(lambda percent, message: send("progress", percent, message))
    with end, end.makefile("rb") as requests:
        while (request := _read(requests)) is not None:
            send("started")
            module, name, arguments = request
            try:
                answer = _answer(_call(module, name, json.loads(arguments)))
            except BaseException as error:
                send("error", *_carry(error))
                if not isinstance(error, Exception):
                    sys.exit(1)
            else:
                send(*answer)


def _carry(error: BaseException) -> tuple[str, str, str, str]:
    """What a RemoteError is made of."""
    told = describe(error)
    try:
        pickled = base64.b64encode(pickle.dumps(error)).decode()
    except Exception:
        pickled = ""
    return *told, pickled if len(pickled) <= _LARGEST_ERROR else ""


def _die_with(parent: int, end: socket.socket) -> None:
    """Watch the other end from a thread: when it is gone, or the parent is, end at once, whatever the job does."""
    poll = select.poll()
    poll.register(end, select.POLLRDHUP)
    while not poll.poll(1000) and os.getppid() == parent:
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def _answer(result: Any) -> tuple[str, str]:
    if isinstance(result, Verdict):
        return "verdict", json.dumps(result.settlement())
    try:
        return "result", strict_dumps(result)
    except (TypeError, ValueError, RecursionError):
        return "unkept", type(result).__name__


def _read(requests: BinaryIO) -> list[str] | None:
    length = requests.read(_LENGTH_BYTES)
    if len(length) < _LENGTH_BYTES:
        return None
    body = requests.read(int.from_bytes(length, "big"))
    message: list[str] = json.loads(body)
    return message


def _call(module: str, name: str, arguments: dict[str, Any]) -> Any:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    function = found.func if isinstance(found, Task) else found
    result = function(**arguments)
    return asyncio.run(result) if asyncio.iscoroutine(result) else result
