"""Starting a program as another user, tied to this process: when this process dies, it is told to stop."""

from __future__ import annotations

import os
import pwd
import signal
import stat
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from procjobs.errors import ServerError

__all__ = ["Account", "command", "environment", "passable", "send_signal", "server_account", "spawn", "terminate"]

#: Becomes the server's user, asks to be told of the parent's death, and turns into the program.
_LAUNCHER = """
import os, sys
parent, uid, gid, program = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
prctl = None
if sys.platform == "linux":
    import ctypes  # now: the next user may not be able to read Python's own files
    prctl = ctypes.CDLL(None).prctl
if uid >= 0:
    os.setgroups([]); os.setgid(gid); os.setuid(uid)
    os.environ["HOME"] = "/nonexistent"
if prctl is not None:
    prctl(1, 2)  # PR_SET_PDEATHSIG, SIGINT: a fast shutdown
if os.getppid() != parent:
    sys.exit("the parent is gone")
os.execv(program[0], program)
"""


@dataclass(frozen=True, slots=True)
class Account:
    """The system user the server runs as; uid -1 is the present one."""

    name: str
    uid: int
    gid: int


def server_account() -> Account:
    """Whom a server of ours runs as: the present user; under root postgres, else nobody."""
    if os.geteuid() != 0:
        return Account("", -1, -1)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise ServerError(
        "PostgreSQL does not run as root, and there is neither a user postgres nor nobody",
        hint="run as an ordinary user, or: useradd --system postgres",
    )


def command(account: Account, program: Path, *arguments: str) -> list[str]:
    """The command line that runs the program as the account, told of this process's death."""
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(account.uid), str(account.gid)]
    return [*launcher, str(program), *arguments]


def environment() -> dict[str, str]:
    """Ours without what would redirect the server (PGDATA, PGPORT ...) or change its words."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}


def spawn(command: list[str], *, cwd: Path, log: Path) -> subprocess.Popen[bytes]:
    """The process, started by a thread that lives as long as it: the death signal is tied to the thread that forked."""
    started: list[subprocess.Popen[bytes] | BaseException] = []
    ready = threading.Event()

    def keep() -> None:
        try:
            with log.open("ab") as sink:
                process = subprocess.Popen(
                    command,
                    cwd=cwd,
                    env=environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    start_new_session=True,
                )
        except BaseException as error:  # raised below, in the thread that waits
            started.append(error)
            ready.set()
            return
        started.append(process)
        ready.set()
        process.wait()

    threading.Thread(target=keep, name="embedded-postgres", daemon=True).start()
    ready.wait()
    (outcome,) = started
    if isinstance(outcome, BaseException):
        raise ServerError(f"PostgreSQL cannot be started: {outcome}") from outcome
    return outcome


def terminate(process: subprocess.Popen[bytes], timeout: float) -> None:
    """Fast shutdown, then immediate, then kill."""
    for number, patience in ((signal.SIGINT, timeout), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)):
        if process.poll() is None:
            send_signal(process.pid, number)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
        return


def send_signal(pid: int, number: int) -> None:
    """Send it unless the process is gone. Raises ServerError when it belongs to somebody else."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        raise ServerError(
            f"a PostgreSQL of another user (process {pid}) runs over this data folder", hint="stop it as that user"
        ) from error


def passable(folder: Path, account: Account) -> bool:
    """Whether the account may walk down to the folder."""
    try:
        return all(
            bool(info.st_mode & stat.S_IXOTH)
            or (info.st_uid == account.uid and bool(info.st_mode & stat.S_IXUSR))
            or (info.st_gid == account.gid and bool(info.st_mode & stat.S_IXGRP))
            for info in (part.stat() for part in (folder, *folder.parents))
        )
    except OSError:
        return False
