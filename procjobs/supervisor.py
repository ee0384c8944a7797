"""Child processes that are kept running: restarted when they end by themselves, ended when this process ends.

A child runs in its own session, so that Ctrl-C reaches only the supervisor, which then stops the children in order.
On Linux the kernel kills them when the supervisor is killed.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Child", "Restarts"]

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # before any fork: a child must not load libraries


@dataclass(frozen=True, slots=True)
class Restarts:
    """How long to wait before a child is started again: doubling from `first` to `longest` seconds.

    A child that lived for `steady` seconds starts over at `first`.
    """

    first: float = 0.5
    longest: float = 30.0
    steady: float = 60.0

    def wait(self, failures: int) -> float:
        """Seconds before the start that follows `failures` ends in a row (1, 2, ...)."""
        return min(self.longest, self.first * 2.0 ** min(failures - 1, 30))


def _die_with(parent: int) -> Callable[[], None]:
    def before_exec() -> None:
        if _libc is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died between the fork and here
            os._exit(1)

    return before_exec


class Child:
    """One process under supervision.

    name:     for the logs.
    command:  program and arguments.
    env:      its whole environment.
    pass_fds: open file descriptors that it inherits, e.g. a listening socket.
    grace:    seconds it gets to end after SIGTERM.

    failures: how often in a row it ended by itself soon after its start.

    start() and stop() may be called repeatedly. Start it from the main thread: its life is tied to the starting one.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        pass_fds: Sequence[int] = (),
        grace: float = 10.0,
        restarts: Restarts | None = None,
    ) -> None:
        self.name = name
        self._command = list(command)
        self._env = dict(env)
        self._pass_fds = tuple(pass_fds)
        self._grace = grace
        self._restarts = restarts or Restarts()
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = False
        self.failures = 0

    @property
    def pid(self) -> int | None:
        """Process id while it runs, else None."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Start the process and keep it running. Raises OSError when it cannot be started at all."""
        if self._keeper is None:
            self._stopping = False
            await self._spawn()
            self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    async def stop(self) -> None:
        """SIGTERM, wait for the grace time, then SIGKILL; returns when it is gone."""
        self._stopping = True
        self.signal(signal.SIGTERM)
        process = self._process
        if process is not None:
            try:
                await asyncio.wait_for(process.wait(), self._grace)
            except TimeoutError:
                logger.warning("%s did not stop within %g s and is killed", self.name, self._grace)
                self.signal(signal.SIGKILL)
                await process.wait()
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    def signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.pid is not None and self._process is not None:
            self._process.send_signal(number)

    async def _spawn(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._env,
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=self._pass_fds,
            start_new_session=True,
            preexec_fn=_die_with(os.getpid()),
        )

    async def _keep(self) -> None:
        clock = asyncio.get_running_loop().time
        while self._process is not None:
            since = clock()
            code = await self._process.wait()
            if self._stopping:
                return
            self.failures = 1 if clock() - since > self._restarts.steady else self.failures + 1
            wait = self._restarts.wait(self.failures)
            logger.error(
                "%s ended by itself (%s) and is started again in %g s",
                self.name,
                describe_exit(code),
                wait,
                extra={"child": self.name, "exit_code": code},
            )
            await asyncio.sleep(wait)
            await self._respawn()

    async def _respawn(self) -> None:
        try:
            await self._spawn()
        except OSError as error:  # out of processes or memory: the next round tries again
            logger.error("%s cannot be started: %s", self.name, error)


def describe_exit(code: int) -> str:
    """`exit code 3`, `killed by SIGKILL`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
