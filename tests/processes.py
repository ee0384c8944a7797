"""The command line as its users meet it: processes of their own, found, signalled and awaited."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg

import procjobs

#: Where `python -m procjobs` finds the package, wherever it is started.
ROOT = Path(procjobs.__file__).resolve().parent.parent


def environment(**more: str) -> dict[str, str]:
    """This process's environment without what would configure procjobs, with `more`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PROCJOBS_", "PG")) and name not in ("DATABASE_URL", "PYTHONDONTWRITEBYTECODE")
    }
    return {**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **more}


#: Forks what would otherwise spend half a second of processor time on imports. It imports no module of procjobs that
#: reads the environment when it is imported.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["procjobs.cli", "procrastinate", "psycopg_pool", "psycopg.types.json", "croniter"])


def _become(arguments: Sequence[str], env: Mapping[str, str], cwd: Path, out: Path, err: Path) -> None:
    """In a new process: `procjobs ...` in that folder and environment, with its output at the end of the files."""
    for number, path in ((1, out), (2, err)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [str(cwd)]
    sys.argv[1:] = arguments
    runpy.run_module("procjobs", run_name="__main__", alter_sys=True)


class Forked:
    """`procjobs ...` in a process of its own, forked from one that has the libraries; like a subprocess.Popen."""

    def __init__(
        self, arguments: Sequence[str], env: Mapping[str, str], *, cwd: Path, out: Path, err: Path | None = None
    ) -> None:
        self.args = ["procjobs", *arguments]
        self._process = _FORKS.Process(target=_become, args=(list(arguments), dict(env), cwd, out, err or out))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """The exit code, -N after signal N; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def procjobs_command(
    *arguments: str | Path,
    cwd: Path,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    python: str | None = None,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run `procjobs ...` to its end: in a forked process, or in a new one if anything is special about it."""
    texts, variables = [str(argument) for argument in arguments], environment(**(env or {}))
    if stdin is not None or python is not None or options:
        return subprocess.run(
            [python or sys.executable, "-m", "procjobs", *texts],
            cwd=cwd, env=variables, input=stdin, capture_output=True, text=True, timeout=90, check=False, **options,
        )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        code = Forked(texts, variables, cwd=cwd, out=out, err=err).wait(90)
        return subprocess.CompletedProcess(texts, code, out.read_text(), err.read_text())


def sentence(ended: subprocess.CompletedProcess[str]) -> str:
    """The one sentence on standard error, after which the command ended with exit code 1 and nothing else."""
    lines = [line for line in ended.stderr.splitlines() if line.startswith("procjobs: ")]
    assert ended.returncode == 1, ended
    assert len(lines) == 1 and "Traceback" not in ended.stderr, ended.stderr
    return lines[0]


class Up:
    """One `procjobs up`, started in a folder; `facts` once it is ready."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] = (sys.executable, "-m", "procjobs", "up"),
        **options: Any,
    ) -> None:
        self.folder = folder
        self.data = folder / ".procjobs"
        self.process = subprocess.Popen(
            [*command, "--port", "0", *arguments],
            cwd=folder,
            env=environment(**(env or {})),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **options,
        )
        self._output: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._output.append(line)

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return "".join(self._output)

    def ready(self) -> dict[str, Any]:
        """Wait for up.json and the first screen; returns the facts."""
        wait_for(lambda: "Ctrl-C" in self.output or self.process.poll() is not None, 90, lambda: self.output)
        assert self.process.poll() is None, self.output
        return dict(json.loads((self.data / "up.json").read_text()))

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send it the signal and wait for its end; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def wait_for(condition: Any, timeout: float = 30.0, words: Any = lambda: "") -> Any:
    """Wait until the condition holds and return what it gave."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {words()}"
        time.sleep(0.02)
    return value


def descendants(pid: int) -> dict[int, str]:
    """Every process below one, with its command line."""
    found: dict[int, str] = {}
    for child, parent, command in _processes():
        if parent == pid or parent in found:
            found[child] = command
    return found


def alive(pids: Mapping[int, str]) -> dict[int, str]:
    """Those of the processes that still run as what they were; a process number may be taken by another."""
    now = {pid: command for pid, _, command in _processes()}
    return {pid: command for pid, command in pids.items() if now.get(pid) == command}


def _processes() -> Iterator[tuple[int, int, str]]:
    """Process number, parent and command line of every process that is no zombie, parents first."""
    for entry in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            yield int(entry.name), int(parent), command


def query(dsn: str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Rows of one statement in a connection of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []
