"""Workers and schedulers as processes that can be killed, frozen, told to stop; and how each of them ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from tests.processes import Forked, environment

__all__ = ["HEARTBEAT", "LEASE", "Fleet", "Worker", "runs_jobs"]

HEARTBEAT = 0.3
LEASE = 1.5


def _now() -> datetime:
    return datetime.now(UTC)


def _liveness(heartbeat: float, lease: float | None) -> dict[str, object]:
    return {"HEARTBEAT_INTERVAL": heartbeat, "LEASE": lease or heartbeat * LEASE / HEARTBEAT}


class Worker:
    """One process, a worker's or a scheduler's.

    `ends_with` are the exit codes that are right by now; None while it should be running.
    """

    def __init__(self, command: list[str], env: dict[str, str], log: Path, cwd: Path) -> None:
        self.log = log
        self.ends_with: set[int] | None = None
        #: When it was stopped and continued, as far as somebody did; and when it was killed.
        self.stops: list[tuple[datetime, datetime | None]] = []
        self.killed_at: datetime | None = None
        self.popen = Forked(command, env, cwd=cwd, out=log)

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def may_end(self, *codes: int) -> Worker:
        """From now on these exit codes are right ones."""
        self.ends_with = (self.ends_with or set()) | set(codes)
        return self

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.may_end(-signal.SIGKILL)
        self.popen.kill()
        self.popen.wait()
        self.killed_at = _now()

    def freeze(self) -> None:
        self.stops.append((_now(), None))
        self.popen.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.popen.send_signal(signal.SIGCONT)
        self.stops[-1] = (self.stops[-1][0], _now())

    def terminate(self, *codes: int) -> None:
        """SIGTERM; by default it should end with 0."""
        self.may_end(*(codes or (0,)))
        self.popen.send_signal(signal.SIGTERM)

    def exit_code(self, timeout: float = 30) -> int:
        code = self.popen.wait(timeout)
        self.killed_at = self.killed_at or _now()
        return code

    def said(self, words: str) -> int:
        """How often these words are in its log."""
        return self.log.read_text(errors="replace").count(words) if self.log.exists() else 0

    def children(self) -> list[int]:
        """The processes of its jobs, by their ids."""
        lists = Path(f"/proc/{self.pid}/task").glob("*/children")
        return [int(pid) for path in lists for pid in path.read_text().split() if runs_jobs(int(pid))]

    def memory(self) -> int:
        """Resident bytes; 0 when it is gone."""
        try:
            fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        except OSError:
            return 0
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0


def runs_jobs(pid: int) -> bool:
    """Whether this is a process for jobs, and still there."""
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


class Fleet:
    """Starts workers and ends all that are left. direct: where tasks write, past any proxy."""

    def __init__(self, dsn: str, folder: Path, *, direct: str | None = None) -> None:
        self.dsn = dsn
        self.workers: list[Worker] = []
        self._direct = direct or dsn
        self._folder = folder

    def start(
        self,
        *,
        concurrency: int = 10,
        heartbeat: float = HEARTBEAT,
        lease: float | None = None,
        shutdown_timeout: float = 5.0,
        kill_timeout: float = 0.5,
        poll: float = 1.0,
        queues: str | None = None,
        dsn: str | None = None,
        app: str = "tests.chaos.victim.app",
        mutant: str | None = None,
        **variables: str,
    ) -> Worker:
        """A worker of tests/chaos/victim.py, or a mutant of tests/chaos/mutants.py; `variables` are added to its
        environment."""
        if mutant is not None:
            app, variables = "tests.chaos.mutants.app", {**variables, "CHAOS_MUTANT": mutant}
        options = {
            **_liveness(heartbeat, lease),
            "CONCURRENCY": concurrency,
            "SHUTDOWN_TIMEOUT": shutdown_timeout,
            "KILL_TIMEOUT": kill_timeout,
            "POLL_INTERVAL": poll,
        }
        more = ["--queues", queues] if queues else []
        return self._launch(["worker", "--app", app, "--name", f"w{len(self.workers)}", *more], options, dsn, variables)

    def start_scheduler(self, *, app: str = "tests.chaos.victim.app", **variables: str) -> Worker:
        """A `procjobs scheduler` of the same application. Its name has its process id in it."""
        return self._launch(["scheduler", "--app", app], _liveness(HEARTBEAT, None), None, variables)

    def _launch(
        self, command: list[str], options: Mapping[str, object], dsn: str | None, variables: Mapping[str, str]
    ) -> Worker:
        env = environment(
            DATABASE_URL=dsn or self.dsn,
            CHAOS_DSN=self._direct,
            PROCJOBS_LOG_LEVEL="info",
            **{f"PROCJOBS_{name}": str(value) for name, value in options.items()},
            **variables,
        )
        log = self._folder / f"{command[0]}{len(self.workers)}.log"
        worker = Worker(command, env, log, self._folder)
        self.workers.append(worker)
        return worker

    def start_many(self, count: int, **options: object) -> list[Worker]:
        return [self.start(**options) for _ in range(count)]  # type: ignore[arg-type]

    @property
    def alive(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.alive]

    def wrong_exits(self) -> list[str]:
        """Workers that ended though nobody told them to, or with another code than they should."""
        wrong = []
        for worker in self.workers:
            code = worker.popen.poll()
            if code is not None and (worker.ends_with is None or code not in worker.ends_with):
                wrong.append(f"{worker.log.name} ended with {code}, right were {worker.ends_with or 'none'}")
        return wrong

    def stops(self) -> Iterable[tuple[int, datetime, datetime | None]]:
        """Of each process the times in which it did not run: (pid, from, to); to is None where it was the end."""
        for worker in self.workers:
            for began, ended in worker.stops:
                yield worker.pid, began, ended
            if worker.killed_at is not None:
                yield worker.pid, worker.killed_at, None

    def logs(self) -> Iterable[tuple[str, str]]:
        """Name and text of every worker's log."""
        for worker in self.workers:
            yield worker.log.name, worker.log.read_text(errors="replace") if worker.log.exists() else ""

    def stop(self) -> None:
        """Kill whatever still runs."""
        for worker in self.alive:
            worker.popen.send_signal(signal.SIGCONT)
            worker.kill()
