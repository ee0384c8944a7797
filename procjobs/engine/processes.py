"""Processes for CPU-bound tasks, which can be killed: cancelled jobs get TERM, then KILL after a grace period.

A process is kept for the next job and replaced when it dies. It imports the task's module afresh (spawn), so the task
must be importable by its module and name, and gets its arguments as the JSON they were enqueued with.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import multiprocessing
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from procrastinate.tasks import Task

__all__ = ["ProcessDied", "Processes", "RemoteError"]

_SPAWN = multiprocessing.get_context("spawn")


class ProcessDied(Exception):
    """The process ended in the middle of a job: killed, out of memory, or a crash below Python."""


class RemoteError(Exception):
    """An exception of a task that ran in another process, with its class and traceback as text."""

    def __init__(self, error_class: str, message: str, trace: str) -> None:
        super().__init__(message)
        self.error_class = error_class
        self.trace = trace


@dataclass
class _Child:
    process: BaseProcess
    pipe: Connection

    def kill(self, number: int) -> None:
        if self.process.is_alive() and self.process.pid:
            os.kill(self.process.pid, number)


class Processes:
    """A pool of at most `size` processes, started on demand."""

    def __init__(self, size: int, *, grace: float = 5.0) -> None:
        self._size = size
        self._grace = grace
        self._free: list[_Child] = []
        self._slots = asyncio.Semaphore(size)

    async def run(self, task: Task[Any, Any, Any], arguments: dict[str, Any]) -> Any:
        """Run the task's function in a process. Raises RemoteError, ProcessDied; cancelling kills the process."""
        module, name = task.func.__module__, task.func.__qualname__
        async with self._slots:
            child = self._free.pop() if self._free else await asyncio.to_thread(_start)
            try:
                return await self._ask(child, (module, name, json.dumps(arguments)))
            except asyncio.CancelledError:
                await asyncio.shield(self._end(child))
                raise
            finally:
                if child.process.is_alive() and not child.pipe.closed:
                    self._free.append(child)

    async def _ask(self, child: _Child, request: tuple[str, str, str]) -> Any:
        loop = asyncio.get_running_loop()
        answered = loop.create_future()

        def on_readable() -> None:
            if not answered.done():
                answered.set_result(None)

        # Removed before the pipe is closed: a later pipe with the same number would find it and never wake.
        descriptor = child.pipe.fileno()
        loop.add_reader(descriptor, on_readable)
        try:
            child.pipe.send(request)
            await answered
            kind, *values = child.pipe.recv()
        except (EOFError, OSError) as error:
            loop.remove_reader(descriptor)
            child.pipe.close()
            await asyncio.to_thread(child.process.join, self._grace)
            raise ProcessDied(f"the process of the job ended with exit code {child.process.exitcode}") from error
        finally:
            if not child.pipe.closed:
                loop.remove_reader(descriptor)
        if kind == "error":
            raise RemoteError(*values)
        return json.loads(values[0])

    async def _end(self, child: _Child) -> None:
        child.kill(signal.SIGTERM)
        await asyncio.to_thread(child.process.join, self._grace)
        if child.process.is_alive():
            child.kill(signal.SIGKILL)
            await asyncio.to_thread(child.process.join)
        child.pipe.close()

    async def close(self) -> None:
        """End all idle processes."""
        free, self._free = self._free, []
        for child in free:
            child.pipe.close()
        for child in free:
            await self._end(child)


def _start() -> _Child:
    here, there = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_serve, args=(there,), name="procjobs job", daemon=True)
    process.start()
    there.close()
    return _Child(process, here)


def _serve(pipe: Connection) -> None:
    """The child: one job after the other until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        try:
            module, name, arguments = pipe.recv()
        except EOFError:
            return
        try:
            result = json.dumps(_call(module, name, json.loads(arguments)))
        except BaseException as error:
            pipe.send(("error", type(error).__qualname__, str(error), traceback.format_exc()))
            if not isinstance(error, Exception):
                sys.exit(1)
        else:
            pipe.send(("result", result))


def _call(module: str, name: str, arguments: dict[str, Any]) -> Any:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    function = found.func if isinstance(found, Task) else found
    result = function(**arguments)
    return asyncio.run(result) if asyncio.iscoroutine(result) else result
