"""`procjobs up`: everything in one command, a mail from SQL to a mailbox, and nothing left behind."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from procjobs.mailcatcher import Mailbox
from tests.processes import (
    ROOT,
    Up,
    alive,
    descendants,
    environment,
    procjobs_command,
    query,
    sentence,
    wait_for,
)

pytestmark = pytest.mark.slow

ISSUED = """
SELECT procjobs.enqueue_notification_job('{recipient_id}'::uuid, '{group_id}'::uuid, NULL, 'immediate', 'normal',
                                         'email', '{{"subject": "{subject}", "body": "Hello!"}}'::jsonb, 0)
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A place with a short path that an ordinary user may pass."""
    path = Path(tempfile.mkdtemp(prefix="pju-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def running(home: Path) -> Iterator[Up]:
    """One `up` that the tests below only use, and leave as they found it."""
    place = home / "running"
    place.mkdir()
    up = Up(place)
    try:
        up.ready()
        yield up
    finally:
        up.stop()


@pytest.fixture
def place(home: Path, request: pytest.FixtureRequest) -> Path:
    path = Path(tempfile.mkdtemp(dir=home))
    path.chmod(0o755)
    return path


@pytest.fixture
def start(place: Path) -> Iterator[Any]:
    """`start(...)` starts an `up` in this test's place; whatever still runs at the end is stopped."""
    started: list[Up] = []

    def begin(*arguments: str, **options: Any) -> Up:
        started.append(Up(place, *arguments, **options))
        return started[-1]

    yield begin
    for up in started:
        up.stop(signal.SIGKILL)


def mailed(facts: dict[str, Any], subject: str) -> Any:
    """The mail with that subject, once it is in the mailbox."""
    box = Mailbox(Path(facts["mailbox"]))
    return wait_for(lambda: next((found for found in box.list() if found.subject == subject), None))


def test_the_facts_are_exactly_those_promised_and_for_their_user_only(running: Up) -> None:
    facts = running.ready()

    assert list(facts) == ["dsn", "url", "mailbox", "demo", "tokens"]
    assert list(facts["demo"]) == ["recipient_id", "group_id", "organization_id", "user_id", "admin_id"]
    assert list(facts["tokens"]) == ["user", "admin"]
    assert len(facts["tokens"]["user"]) >= 43 and facts["tokens"]["user"] != facts["tokens"]["admin"]
    assert Path(facts["mailbox"]).is_absolute()
    for name in ("up.json", "tokens.json"):
        assert stat.S_IMODE((running.data / name).stat().st_mode) == 0o600, name


def test_a_statement_in_psql_becomes_a_mail_with_its_delivery_on_record(running: Up) -> None:
    facts = running.ready()
    statement = ISSUED.format(**facts["demo"], subject="From psql")
    said = procjobs_command("psql", "-v", "ON_ERROR_STOP=1", "-Atc", statement, cwd=running.folder)
    assert said.returncode == 0, said.stderr
    notification = said.stdout.strip()

    mail = Mailbox(Path(facts["mailbox"])).read(mailed(facts, "From psql").id)
    assert mail is not None and "Hello!" in (mail.text or "") and "Hello!" in (mail.html or "")
    ((state,),) = wait_for(
        lambda: query(
            facts["dsn"],
            "select status from procjobs.notification_jobs where id = %s::uuid and status <> 'processing'",
            notification,
        )
    )
    assert state == "sent"
    ((code, reply, worker, took),) = query(
        facts["dsn"],
        "select smtp_code, smtp_reply, worker, took_ms"
        " from procjobs.notification_delivery_logs where job_id = %s::uuid",
        notification,
    )
    assert code == 250 and mail.summary.id in reply and worker and took >= 0


def test_the_statement_on_the_first_screen_works_as_it_stands(running: Up) -> None:
    facts = running.ready()
    printed = re.search(r"select procjobs\.enqueue_notification_job\(.*?;", running.output, re.DOTALL)
    assert printed is not None, running.output
    (_,) = query(facts["dsn"], printed.group())
    mailed(facts, "Test")


def test_the_dsn_is_for_psql_of_the_same_user(running: Up) -> None:
    facts = running.ready()
    psql = shutil.which("psql")
    assert psql is not None
    said = subprocess.run([psql, facts["dsn"], "-Atc", "select 40 + 2"], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "42"


def test_the_demo_has_mail_in_the_box_at_once(running: Up) -> None:
    facts = running.ready()
    wait_for(lambda: Mailbox(Path(facts["mailbox"])).count() >= 3)
    assert procjobs_command("mail", cwd=running.folder).stdout.count("@") >= 3


def test_the_pages_answer_and_mail_is_listed_there(running: Up) -> None:
    facts = running.ready()
    box = Mailbox(Path(facts["mailbox"]))
    mail = wait_for(lambda: next(iter(box.list()), None))
    for path, words in (
        ("/", "Everything is running"),
        ("/mail", mail.id),
        ("/health", '"ok"'),
        ("/ready", "true"),
    ):
        with urllib.request.urlopen(facts["url"] + path) as answer:
            assert answer.status == 200 and words in answer.read().decode(), path


def test_client_commands_find_the_running_up_by_themselves(running: Up) -> None:
    running.ready()
    (worker,) = (
        row
        for row in json.loads(procjobs_command("workers", "--json", cwd=running.folder).stdout)
        if row["state"] == "alive"
    )
    assert worker["pid"] in descendants(running.process.pid)
    assert json.loads(procjobs_command("jobs", "--json", cwd=running.folder).stdout)
    assert "notifications" in procjobs_command("queues", cwd=running.folder).stdout


def test_doctor_and_check_find_nothing_wrong(running: Up) -> None:
    running.ready()
    for command in ("doctor", "check"):
        said = procjobs_command(command, cwd=running.folder)
        assert said.returncode == 0, said.stdout + said.stderr
    assert f"all mail goes to {running.ready()['mailbox']}" in procjobs_command("doctor", cwd=running.folder).stdout


def test_a_second_up_over_the_same_folder_is_refused_in_a_sentence(running: Up) -> None:
    running.ready()
    said = sentence(procjobs_command("up", "--port", "0", cwd=running.folder))
    assert f"another `procjobs up` (process {running.process.pid})" in said and "--data" in said
    assert (running.data / "up.json").exists()


def test_a_taken_port_is_told_before_anything_is_started(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        said = sentence(procjobs_command("up", "--port", str(port), cwd=place))
    assert f"port {port} on 127.0.0.1 is taken" in said and "--port" in said
    assert not (place / ".procjobs" / "postgres").exists()
    assert not (place / ".procjobs" / "up.json").exists()


def test_a_folder_that_cannot_be_written_is_told_in_a_sentence(place: Path) -> None:
    (place / "file").write_text("in the way")
    said = sentence(procjobs_command("up", "--port", "0", "--data", str(place / "file" / "data"), cwd=place))
    assert f"{place}/file/data cannot be written" in said and "--data" in said


def test_a_server_that_is_too_old_is_told_in_a_sentence(place: Path) -> None:
    with old_server("13.22") as dsn:
        said = sentence(procjobs_command("up", "--port", "0", "--dsn", dsn, cwd=place))
    assert "PostgreSQL 13" in said and "14" in said


def test_a_server_that_is_not_there_is_told_in_a_sentence(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    dsn = f"postgresql://nobody:s3cret@127.0.0.1:{port}/x"
    said = sentence(procjobs_command("up", "--port", "0", cwd=place, env={"DATABASE_URL": dsn}))
    assert str(port) in said and "s3cret" not in said


def test_every_wrong_setting_is_told_at_once(place: Path) -> None:
    said = sentence(procjobs_command("up", cwd=place, env={"PROCJOBS_CONCURRENCY": "many", "PROCJOBS_LEASE": "x"}))
    assert "concurrency = 'many'" in said and "lease = 'x'" in said


def test_ctrl_c_leaves_nothing_running_and_the_next_start_finds_everything(start: Any) -> None:
    first = start()
    facts = first.ready()
    query(facts["dsn"], ISSUED.format(**facts["demo"], subject="Before"))
    mailed(facts, "Before")
    below = descendants(first.process.pid)
    assert len(below) >= 3

    assert first.stop(signal.SIGINT) == 0
    assert "Traceback" not in first.output
    assert not alive(below)
    assert not (first.data / "up.json").exists()
    assert not (first.data / "postgres" / "postmaster.pid").exists()

    again = start()
    second = again.ready()
    assert second["tokens"] == facts["tokens"] and second["demo"] == facts["demo"]
    assert [found.subject for found in Mailbox(Path(second["mailbox"])).list()].count("Before") == 1
    ((jobs,),) = query(second["dsn"], "select count(*) from procjobs.jobs where task = 'procjobs.send_notification'")
    assert jobs >= 4
    seconds = re.search(r"procjobs is up\s+\(([\d.]+) s\)", again.output)
    assert seconds is not None and float(seconds.group(1)) < 5
    assert again.stop(signal.SIGTERM) == 0


def test_kill_9_takes_the_children_along_and_the_next_start_works(start: Any) -> None:
    first = start()
    facts = first.ready()
    below = descendants(first.process.pid)
    port = facts["url"].rpartition(":")[2]
    query(facts["dsn"], ISSUED.format(**facts["demo"], subject="Kept"))
    mailed(facts, "Kept")

    first.stop(signal.SIGKILL)
    again = start("--port", port)
    second = again.ready()
    assert not alive(below)
    assert second == facts
    query(second["dsn"], ISSUED.format(**second["demo"], subject="Afterwards"))
    mailed(second, "Afterwards")
    assert again.stop() == 0


def test_children_that_die_are_started_again(start: Any) -> None:
    up = start()
    facts = up.ready()
    # What a killed worker was sending keeps its places under the limit until the lease is over, which is half a minute.
    wait_for(lambda: not query(facts["dsn"], "select from procjobs.notification_jobs where status <> 'sent'"))
    for part in (" -m procjobs worker ", " -m procjobs scheduler ", " -m procjobs web ", "postgres -D"):
        (victim,) = [pid for pid, command in descendants(up.process.pid).items() if part in command]
        os.kill(victim, signal.SIGKILL)
        wait_for(
            lambda part=part, victim=victim: [
                pid for pid, command in descendants(up.process.pid).items() if part in command and pid != victim
            ],
            words=lambda: up.output,
        )
    wait_for(lambda: _answers(facts["dsn"]))
    query(facts["dsn"], ISSUED.format(**facts["demo"], subject="Still here"))
    mailed(facts, "Still here")
    wait_for(lambda: urllib.request.urlopen(facts["url"] + "/ready").status == 200)
    assert up.stop() == 0


def test_without_the_demo_there_is_nobody_to_write_to(start: Any) -> None:
    up = start("--no-demo")
    facts = up.ready()
    assert facts["demo"] is None
    assert query(facts["dsn"], "select from procjobs.host_people") == []
    assert Mailbox(Path(facts["mailbox"])).count() == 0
    assert {path.name for path in Path(facts["mailbox"]).iterdir()} == {
        "cur",
        "new",
        "tmp",
    }  # a maildir, for any reader
    assert up.stop() == 0


def test_an_application_that_brings_its_bindings_afterwards_is_started_without_the_demo(
    start: Any, place: Path
) -> None:
    first = start()
    first.ready()
    assert first.stop() == 0
    assert procjobs_command("init", cwd=place).returncode == 0
    again = start()
    facts = again.ready()
    assert facts["demo"] is None
    assert query(facts["dsn"], "select from procjobs.host_people") == []
    assert again.stop() == 0


def test_a_server_of_ones_own_is_used_and_no_embedded_one_started(start: Any, empty_dsn: str) -> None:
    up = start(env={"DATABASE_URL": empty_dsn})
    facts = up.ready()
    assert facts["dsn"] == empty_dsn
    assert not (up.data / "postgres").exists()
    assert empty_dsn not in up.output
    query(empty_dsn, ISSUED.format(**facts["demo"], subject="On my own server"))
    mailed(facts, "On my own server")
    assert up.stop() == 0


def test_a_mail_server_in_the_configuration_is_not_used(start: Any) -> None:
    """What `up` sends stays here, whatever procjobs.toml says: a demonstration must not reach strangers."""
    up = start(env={"PROCJOBS_SMTP_HOST": "192.0.2.1", "PROCJOBS_SMTP_USER": "me", "PROCJOBS_SMTP_PASSWORD": "x"})
    facts = up.ready()
    query(facts["dsn"], ISSUED.format(**facts["demo"], subject="Stays here"))
    mailed(facts, "Stays here")
    assert up.stop() == 0


def test_a_configured_app_gets_a_worker_of_its_own_beside_procjobs_own_tasks(start: Any, place: Path) -> None:
    (place / "shop.py").write_text(
        "import procjobs\n"
        "app = procjobs.App()\n\n"
        "@app.task(name='shop.greet')\n"
        "async def greet(path: str) -> None:\n"
        "    open(path, 'w').write('hello')\n"
    )
    up = start(env={"PROCJOBS_APP": "shop.app"})
    facts = up.ready()
    greeting = place / "greeting"
    said = procjobs_command("defer", "shop.greet", json.dumps({"path": str(greeting)}), cwd=place)
    assert said.returncode == 0, said.stderr
    wait_for(lambda: greeting.exists() and greeting.read_text() == "hello", words=lambda: up.output)
    query(facts["dsn"], ISSUED.format(**facts["demo"], subject="Both"))
    mailed(facts, "Both")
    assert up.stop() == 0


def test_the_script_installs_what_is_missing_and_starts_the_same(start: Any) -> None:
    up = start(command=[str(ROOT / "scripts" / "up")], env={"PYTHONPATH": ""})
    facts = up.ready()
    query(facts["dsn"], ISSUED.format(**facts["demo"], subject="By the script"))
    mailed(facts, "By the script")
    assert up.stop() == 0


def test_a_child_that_cannot_start_ends_the_start_in_a_sentence(place: Path) -> None:
    said = procjobs_command("up", "--port", "0", cwd=place, env={"PROCJOBS_APP": "no.such.app"})
    assert said.returncode == 1 and "Traceback" not in said.stderr
    *_, last = said.stderr.splitlines()
    assert re.match("procjobs: the app (worker|scheduler) ends as soon as it is started", last)
    assert "procjobs: the app no.such.app cannot be loaded: No module named 'no'" in said.stderr
    assert not (place / ".procjobs" / "postgres" / "postmaster.pid").exists()


def test_a_signal_during_the_start_stops_it_cleanly(start: Any) -> None:
    up = start()
    wait_for(lambda: "making a PostgreSQL" in up.output)
    below = descendants(up.process.pid)
    assert up.stop(signal.SIGTERM) == 0
    wait_for(lambda: not alive(below))
    assert "Traceback" not in up.output


@pytest.mark.skipif(os.geteuid() != 0, reason="run by an ordinary user, every other test here shows this")
def test_it_works_as_an_ordinary_user_too(home: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    user: dict[str, Any] = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    place = Path(tempfile.mkdtemp(dir=home))
    os.chown(place, nobody.pw_uid, nobody.pw_gid)
    python = _python_for(user)
    options = {**user, "env": {"HOME": str(place), "PYTHONPATH": _readable_path()}}
    up = Up(place, command=[python, "-m", "procjobs", "up"], **options)
    options["python"] = python
    try:
        facts = up.ready()
        statement = ISSUED.format(**facts["demo"], subject="As nobody")
        said = procjobs_command("psql", "-c", statement, cwd=place, **options)
        assert said.returncode == 0, said.stderr
        mailed(facts, "As nobody")
        locked = place / "locked"
        locked.mkdir(mode=0o555)
        refused = procjobs_command("up", "--port", "0", "--data", locked / "data", cwd=place, **options)
        assert "cannot be written: Permission denied" in sentence(refused)
    finally:
        assert up.stop() == 0


def _readable_path() -> str:
    return os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry.endswith("site-packages"))])


def _python_for(user: dict[str, Any]) -> str:
    """A Python of this version that the user may run, and that finds the package and what it needs."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        env = environment(PYTHONPATH=_readable_path())
        command = [python, "-c", "import procjobs.up, uvicorn"]
        try:
            subprocess.run(command, env=env, cwd="/", capture_output=True, check=True, **user)
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    pytest.skip("Python or its packages lie where no other user may read")


def _answers(dsn: str) -> bool:
    try:
        return bool(query(dsn, "select 1"))
    except Exception:
        return False


class old_server:  # noqa: N801  (used like a function)
    """Something that greets like a PostgreSQL of an old version, and says no more."""

    def __init__(self, version: str) -> None:
        self._version = version.encode()
        self._socket = socket.create_server(("127.0.0.1", 0))

    def __enter__(self) -> str:
        threading.Thread(target=self._greet, daemon=True).start()
        return f"postgresql://u@127.0.0.1:{self._socket.getsockname()[1]}/d?sslmode=disable&gssencmode=disable"

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _greet(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.recv(8192)
                for kind, body in (
                    (b"R", b"\0\0\0\0"),
                    (b"S", b"server_version\0" + self._version + b"\0"),
                    (b"S", b"client_encoding\0UTF8\0"),
                    (b"K", b"\0\0\0\1\0\0\0\1"),
                    (b"Z", b"I"),
                ):
                    connection.sendall(kind + (len(body) + 4).to_bytes(4, "big") + body)
                connection.recv(8192)
