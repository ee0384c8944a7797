"""The embedded PostgreSQL: starts anywhere, survives anything, dies with its parent, says what is wrong."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from procjobs.embedded import EmbeddedPostgres, binaries
from procjobs.errors import ServerError
from tests.conftest import FAST

Eventually = Callable[..., Any]


def ask(dsn: str, query: str) -> Any:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    return row[0] if row else None


def fill(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create table kept as select 42 as answer")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


@pytest.fixture
def place(folder: Path, request: pytest.FixtureRequest) -> Path:
    return folder / f"e{abs(hash(request.node.nodeid)) % 10**8}"


def test_what_an_application_creates_is_not_in_our_schema(sql: Any) -> None:
    sql("create table customers (id integer)")
    assert sql.one("select relnamespace::regnamespace::text from pg_class where relname = 'customers'") == "public"


def test_it_starts_again_with_its_data(place: Path) -> None:
    postgres = EmbeddedPostgres(place, server_settings=FAST)
    with postgres:
        fill(postgres.create_database("app"))
        assert postgres.create_database("app") == postgres.dsn("app")
    assert postgres.pid is None
    with postgres:
        assert ask(postgres.dsn("app"), "select answer from kept") == 42


def test_start_and_stop_may_be_called_twice(place: Path) -> None:
    postgres = EmbeddedPostgres(place, server_settings=FAST)
    pid = postgres.start().pid
    assert postgres.start().pid == pid
    postgres.stop()
    postgres.stop()
    with pytest.raises(ServerError, match="not running"):
        postgres.dsn()


def test_only_its_user_and_root_can_connect(server: EmbeddedPostgres) -> None:
    assert server.socket_dir is not None
    info = (server.socket_dir / ".s.PGSQL.5432").stat()
    assert stat.S_IMODE(info.st_mode) == 0o700
    assert ask(server.dsn(), "select current_setting('listen_addresses')") == ""
    assert stat.S_IMODE(server.data.stat().st_mode) == 0o700


def test_settings_reach_the_server(place: Path) -> None:
    with EmbeddedPostgres(place, server_settings={**FAST, "work_mem": "7MB"}) as postgres:
        assert ask(postgres.dsn(), "show work_mem") == "7MB"


def test_psql_takes_the_dsn(server: EmbeddedPostgres) -> None:
    psql = binaries() / "psql"
    told = subprocess.run([psql, server.dsn(), "-Atc", "select 6*7"], capture_output=True, text=True, check=False)
    assert (told.stdout.strip(), told.stderr) == ("42", "")


def test_a_killed_server_starts_again_at_once(server: EmbeddedPostgres, eventually: Eventually) -> None:
    fill(server.dsn())
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: server.pid is None)
    assert (server.data / "postmaster.pid").exists()
    server.stop()
    server.start()
    assert ask(server.dsn(), "select answer from kept") == 42


PARENT = """
import sys, time
from pathlib import Path
from procjobs import embedded, launch
if "untold" in sys.argv:
    launch._LAUNCHER = launch._LAUNCHER.replace("prctl(1, 2)", "pass")
postgres = embedded.EmbeddedPostgres(Path(sys.argv[1]), server_settings={"fsync": "off"}).start()
print(postgres.pid, flush=True)
time.sleep(600)
"""


def orphan_of(place: Path, *options: str, stopped: bool = False) -> int:
    """The process id of a server whose parent was killed just now."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(place), *options],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.stdout.close()
    assert alive(pid)
    if stopped:
        os.kill(pid, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    return pid


def test_it_dies_with_its_parent(place: Path, eventually: Eventually) -> None:
    pid = orphan_of(place)
    eventually(lambda: not alive(pid))


def test_it_starts_again_at_once_after_its_parent_was_killed(place: Path) -> None:
    pid = orphan_of(place)
    with EmbeddedPostgres(place, server_settings=FAST) as postgres:
        assert ask(postgres.dsn(), "select 1") == 1
        assert not alive(pid)


def test_an_orphan_that_was_not_told_is_stopped(place: Path) -> None:
    """As on systems without a parent death signal: the server lives on without its parent."""
    pid = orphan_of(place, "untold")
    assert alive(pid)
    with EmbeddedPostgres(place, server_settings=FAST) as postgres:
        assert ask(postgres.dsn(), "select 1") == 1
        assert not alive(pid)


def test_an_orphan_that_does_not_stop_is_named(place: Path, eventually: Eventually) -> None:
    pid = orphan_of(place, stopped=True)
    with pytest.raises(ServerError, match=rf"process {pid}\) does not stop"):
        EmbeddedPostgres(place, server_settings=FAST, timeout=0.2).start()
    os.kill(pid, signal.SIGCONT)
    eventually(lambda: not alive(pid))


def test_a_pid_file_that_names_another_process_is_no_obstacle(server: EmbeddedPostgres) -> None:
    """After a reboot the number may belong to anything of the same user; that is left alone."""
    server.stop()
    owner = server.data.stat()
    other = subprocess.Popen(["sleep", "600"], user=owner.st_uid, group=owner.st_gid, cwd="/")
    try:
        pidfile = server.data / "postmaster.pid"
        pidfile.write_text(f"{other.pid}\n{server.data}\n1\n5432\n\n\n0 0\nready\n")
        os.chown(pidfile, owner.st_uid, owner.st_gid)
        assert ask(server.start().dsn(), "select 1") == 1
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_two_processes_never_share_a_data_folder(server: EmbeddedPostgres) -> None:
    second = EmbeddedPostgres(server.data, server_settings=FAST)
    with pytest.raises(ServerError, match=r"another process runs a PostgreSQL over the data folder"):
        second.start()
    assert ask(server.dsn(), "select 1") == 1


def test_half_a_cluster_is_never_left(place: Path, tmp_path: Path) -> None:
    """A kill in the midst of initdb leaves a folder beside the place, which the next start clears."""
    (place.parent / f".{place.name}.new-abandoned").mkdir()
    with EmbeddedPostgres(place, server_settings=FAST) as postgres:
        assert ask(postgres.dsn(), "select 1") == 1
    assert not list(place.parent.glob(f".{place.name}.new-*"))


def test_another_major_version_is_named(server: EmbeddedPostgres) -> None:
    server.stop()
    (server.data / "PG_VERSION").write_text("12\n")
    with pytest.raises(ServerError, match="was made by PostgreSQL 12, and this is PostgreSQL 1") as refused:
        server.start()
    assert "--data" in (refused.value.hint or "")


def test_a_folder_with_other_things_in_it_is_left_alone(place: Path) -> None:
    place.mkdir()
    (place / "thesis.txt").write_text("years of work")
    with pytest.raises(ServerError, match="is not empty and holds no PostgreSQL data"):
        EmbeddedPostgres(place).start()
    assert (place / "thesis.txt").read_text() == "years of work"


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerError, match="cannot be written"):
        EmbeddedPostgres(tmp_path / "file" / "pg").start()


def test_a_setting_that_the_server_refuses_is_told_in_its_words(place: Path) -> None:
    with pytest.raises(ServerError, match="nonsense") as refused:
        EmbeddedPostgres(place, server_settings={"nonsense": "1"}).start()
    assert "server.log" in (refused.value.hint or "")


def test_a_path_too_long_for_a_socket_gets_a_short_one(place: Path) -> None:
    with EmbeddedPostgres(place / ("x" * 120) / "pg", server_settings=FAST) as postgres:
        assert ask(postgres.dsn(), "select 1") == 1
        short = postgres.socket_dir
        assert short is not None
        assert len(str(short)) < 50
    assert not short.exists()


def test_missing_binaries_are_named(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="there is no PostgreSQL in") as refused:
        EmbeddedPostgres(place, bindir=tmp_path).start()
    assert "pip install" in (refused.value.hint or "")


def test_the_server_outlives_the_thread_that_started_it(place: Path) -> None:
    """The death signal is tied to the thread that forked, not to the process."""
    postgres = EmbeddedPostgres(place, server_settings=FAST)
    thread = threading.Thread(target=postgres.start)
    thread.start()
    thread.join()
    try:
        # A server that was told to stop would end this statement.
        assert ask(postgres.dsn(), "select 1 from pg_sleep(0.3)") == 1
    finally:
        postgres.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts the server as another user")
class TestAsRoot:
    def test_the_server_is_not_root(self, server: EmbeddedPostgres) -> None:
        assert server.pid is not None
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0

    def test_a_data_folder_nobody_else_may_reach(self, tmp_path: Path) -> None:
        """As in a clone under /root: pytest's own folder is closed to all but root."""
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)
        with EmbeddedPostgres(closed / "pg", server_settings=FAST) as postgres:
            fill(postgres.dsn())
        with EmbeddedPostgres(closed / "pg", server_settings=FAST) as postgres:
            assert ask(postgres.dsn(), "select answer from kept") == 42
            assert ask(postgres.dsn(), "select pg_reload_conf()") is True

    def test_binaries_nobody_else_may_reach(self, place: Path, tmp_path: Path) -> None:
        """As in a venv under /root: they are copied once to where the server's user reaches them."""
        package = binaries().parent.parent
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)
        for part in (package, package.with_name(f"{package.name}.libs")):
            shutil.copytree(part, closed / part.name, symlinks=True)
        bindir = closed / package.name / "pginstall" / "bin"
        with EmbeddedPostgres(place, bindir=bindir, server_settings=FAST) as postgres:
            assert ask(postgres.dsn(), "select 1") == 1
            copy = Path(os.readlink(f"/proc/{postgres.pid}/exe")).parents[3]
            assert copy.parent == Path("/var/tmp")
            assert copy.stat().st_uid == 0
        shutil.rmtree(copy)
