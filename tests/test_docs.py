"""The documentation: it names everything there is, and what it shows is what happens."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest

from procjobs import demo
from procjobs.app import default_app
from procjobs.cli import cli
from procjobs.db import Database
from procjobs.errors import SQLSTATES
from procjobs.settings import Settings
from tests.conftest import Sql
from tests.processes import ROOT, environment, procjobs_command

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
README, SQL, SETTINGS, COMMANDS, BINDINGS = (
    (ROOT / path).read_text(encoding="utf-8")
    for path in ("README.md", "docs/sql.md", "docs/settings.md", "docs/command-line.md", "docs/host-bindings.md")
)
ROLES = ("procjobs_producer", "procjobs_worker", "procjobs_reader", "procjobs_admin")


def blocks(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page in order: language and content."""
    return re.findall(r"^ *```(\w+)\n(.*?)\n *```$", page, re.MULTILINE | re.DOTALL)


def row(page: str, first: str) -> list[str]:
    """The cells of the table row that begins with this word."""
    found = re.findall(rf"^\| `{re.escape(first)}` \|(.*)\|$", page, re.MULTILINE)
    assert len(found) == 1, f"{first} has {len(found)} rows"
    return [cell.strip() for cell in found[0].split(" | ")]


def words(text: str) -> set[str]:
    """The names in code spans; procjobs.defer(...) is defer."""
    spans = re.findall(r"`([^`\n]+)`", text)
    return {found[0] for span in spans if (found := re.findall(r"^(?:procjobs\.)?(\w+)", span))}


def commands(found: click.Command = cli, name: str = "procjobs") -> Iterator[tuple[str, click.Command]]:
    if isinstance(found, click.Group):
        for word, command in found.commands.items():
            yield from commands(command, f"{name} {word}")
    if found is not cli:
        yield name, found


# -- completeness --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", fields(Settings), ids=lambda setting: setting.name)
def test_a_setting_is_listed_with_its_variable_and_its_default(setting: Any) -> None:
    variable, default, meaning = row(SETTINGS, setting.name)
    assert f"`PROCJOBS_{setting.name.upper()}`" in variable
    assert meaning
    if setting.default is not None:
        assert default == f"`{setting.default:g}`" if isinstance(setting.default, float) else f"`{setting.default}`"


def test_settings_that_are_not_there_any_more_are_not_listed() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", SETTINGS, re.MULTILINE)
    assert sorted(listed) == sorted(setting.name for setting in fields(Settings))


@pytest.mark.parametrize(("name", "command"), [*commands()], ids=lambda value: value if isinstance(value, str) else "")
def test_a_command_is_listed_with_its_options(name: str, command: click.Command) -> None:
    assert f"`{name}" in COMMANDS
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            spellings = [*option.opts, *option.secondary_opts]
            assert any(re.search(rf"{spelling}\b", COMMANDS) for spelling in spellings), spellings


@pytest.mark.parametrize("code", SQLSTATES)
def test_an_error_is_listed_with_its_class_and_its_mend(code: str) -> None:
    name, meaning, mend = row(SQL, code)
    assert name == f"`{SQLSTATES[code].__name__}`" and meaning and mend


def granted(sql: Sql) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {role: set() for role in ROLES}
    for role, name in sql(
        "select a.grantee::regrole::text, p.proname::text from pg_proc p, aclexplode(p.proacl) a "
        "where p.pronamespace = 'procjobs'::regnamespace and a.grantee = any (%s::regrole[])"
        "union all select a.grantee::regrole::text, c.relname::text from pg_class c, aclexplode(c.relacl) a "
        "where c.relnamespace = 'procjobs'::regnamespace and a.grantee = any (%s::regrole[])",
        list(ROLES), list(ROLES),
    ):  # fmt: skip
        found[role].add(name)
    return found


def test_what_a_role_may_call_or_read_is_on_the_page_of_sql(sql: Sql) -> None:
    every = set().union(*granted(sql).values())
    assert every - words(SQL) == set()


def test_the_table_of_roles_promises_what_is_granted(sql: Sql) -> None:
    may = granted(sql)
    may["procjobs_admin"] |= may["procjobs_producer"] | may["procjobs_reader"]
    for role in ROLES:
        promised = words("|".join(row(SQL, role)))
        assert promised <= may[role], role
        assert promised or role == "procjobs_worker"


def test_every_view_is_listed(sql: Sql) -> None:
    views = {name for (name,) in sql("select viewname::text from pg_views where schemaname = 'procjobs'")}
    assert {name for name in views if not name.startswith("host_")} - words(SQL) == set()
    assert {name for name in views if name.startswith("host_")} - words(BINDINGS) == set()


def test_every_table_and_added_column_is_in_the_architecture(sql: Sql) -> None:
    page = words((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    tables = sql(
        "select relname::text from pg_class where relnamespace = 'procjobs'::regnamespace and relkind in ('r', 'p') "
        "and relname !~ '^job_history_[0-9]'"
    )
    columns = sql(
        "select attname::text from pg_attribute where attrelid = 'procrastinate_jobs'::regclass and attname ~ '^pj_'"
    )
    assert {name for (name,) in tables + columns} - page == set()


def test_every_template_of_mails_is_listed_with_what_it_needs(sql: Sql) -> None:
    page = (ROOT / "docs" / "mail.md").read_text(encoding="utf-8").split("## Templates")[1].split("\n## ")[0]
    listed: dict[str, set[str]] = {}
    for first, _, needs in re.findall(r"^\| (`.+?) \| (.+) \| (.+) \|$", page, re.MULTILINE):
        listed |= dict.fromkeys(words(first), words(needs))
    assert sorted(listed) == sorted(sql.one("select procjobs.letter_templates()"))
    fields = sql("select template, field from procjobs.letter_fields()")
    assert [(template, field) for template, field in fields if field not in listed[template]] == []


def test_every_safeguard_that_is_taken_out_is_in_the_table_of_faults() -> None:
    table = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8").split("## With a safeguard taken out")[1]
    checks = "".join(path.read_text() for path in sorted((ROOT / "tests" / "chaos").glob("test_mutations_*.py")))
    tests = set(re.findall(r"^(?:async )?def (test_\w+)", checks, re.MULTILINE))
    assert set(re.findall(r"`(test_\w+)`", table)) == {name for name in tests if "without_a_safeguard" not in name}
    mutations = re.findall(r'^    Mutation\(\n +"(.+?)",', checks, re.MULTILINE)
    assert mutations and [name for name in mutations if name not in table] == []


def test_each_of_the_sixteen_reasons_has_its_test() -> None:
    faults = (ROOT / "tests" / "engine" / "test_upstream_faults.py").read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \| .+ \| .+ \|$", README, re.MULTILINE)]
    assert numbers == list(range(1, 17))
    assert {int(number) for number in re.findall(r"def test_(\d\d)_", faults)} == set(numbers)


# -- truth ---------------------------------------------------------------------------------------------------------


def refusal(error: psycopg.Error) -> str:
    """What psql prints."""
    diag = error.diag
    parts = {"ERROR": diag.message_primary, "DETAIL": diag.message_detail, "HINT": diag.message_hint}
    return "\n".join(f"{name}:  {text}" for name, text in parts.items() if text)


async def prepare(dsn: str) -> None:
    """What `up` does before its first screen."""
    app = default_app(Settings(dsn=dsn))
    await app.register_tasks()
    async with Database(dsn) as database, database.transaction() as calls:
        await demo.seed(calls)


async def test_the_first_screen_does_what_it_says(dsn: str, sql: Sql, tmp_path: Path) -> None:
    await prepare(dsn)
    (task,) = (content for language, content in blocks(README) if language == "python")
    notify, transaction, wrong, look = (content for language, content in blocks(README) if language == "sql")
    shown = [content for language, content in blocks(README) if language == "text"]
    (tmp_path / "hello.py").write_text(task)

    def worker() -> str:
        said = procjobs_command("worker", "--app", "hello.app", "--one-shot", cwd=tmp_path, env={"DATABASE_URL": dsn})
        assert said.returncode == 0, said.stderr
        return said.stdout.strip()

    sql(notify)
    assert sql("select content ->> 'subject' from procjobs.notification_jobs where job_id = 5") == [("Test",)]
    assert worker() == ""
    assert python(tmp_path / "hello.py", dsn) == "job 6"
    assert "job 6\n" in README
    assert worker() == "Welcome, Ann!"

    sql(transaction)
    assert sql("select name from customers") == [("Ann",)]
    assert worker() == "Welcome, Ann!"

    with pytest.raises(psycopg.Error) as refused:
        sql(wrong)
    assert refusal(refused.value) in shown

    timeline, why, jobs = (sql(query) for query in look.split(";") if query.strip())
    assert [event for _, event, _ in timeline] == ["enqueued", "started", "succeeded"]
    assert why[0][0].startswith("it is over: succeeded at ")
    assert [state for _, name, state, _ in jobs if name == "welcome"] == ["succeeded", "succeeded"]


def python(script: Path, dsn: str) -> str:
    """Run a program of an application to its end; what it printed."""
    said = subprocess.run(
        [sys.executable, script], env=environment(DATABASE_URL=dsn), capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    return said.stdout.strip()


#: Depend on what else runs: workers, their names, and the mail catcher of `up`.
ELSEWHERE = ("from procjobs.workers", "from procjobs.queues", "notification_delivery_logs")
#: Another time each time, or a worker's name.
VOLATILE = {"at", "detail", "took", "why_not_running", "actor"}


def tables(text: str) -> list[list[dict[str, str]]]:
    """The results that psql printed, as rows by column."""
    found = []
    for table in re.split(r"\n*\(\d+ rows?\)\n*", text)[:-1]:
        head, _, *lines = table.splitlines()
        names = [name.strip() for name in head.split("|")]
        found.append([dict(zip(names, (cell.strip() for cell in line.split("|")), strict=True)) for line in lines])
    return found


def results(cursor: psycopg.Cursor[Any]) -> list[list[dict[str, str]]]:
    """The results of a script, as psql would print them."""
    found = []
    more: bool | None = True
    while more:
        result = cursor.pgresult
        if cursor.description and result is not None:
            names = [column.name for column in cursor.description]
            found.append([
                {name: (result.get_value(line, number) or b"").decode() for number, name in enumerate(names)}
                for line in range(result.ntuples)
            ])  # fmt: skip
        more = cursor.nextset()
    return found


def steady(found: list[list[dict[str, str]]]) -> list[list[dict[str, str]]]:
    return [
        [{name: value for name, value in line.items() if name not in VOLATILE} for line in table] for table in found
    ]


async def test_the_examples_in_sql_give_what_is_shown(
    dsn: str, sql: Sql, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROCJOBS_DSN", dsn)
    monkeypatch.chdir(tmp_path)
    await prepare(dsn)
    (language, content), *examples = blocks(SQL)
    assert language == "python"
    shop = types.ModuleType("shop")
    exec(compile(content, "shop.py", "exec"), shop.__dict__)
    await shop.app.register_tasks()

    compared = 0
    for (kind, query), (_, shown) in zip(examples, [*examples[1:], ("", "")], strict=True):
        if kind != "sql":
            continue
        if shown.startswith("ERROR:"):
            with pytest.raises(psycopg.Error) as refused:
                sql.connection.execute(query.encode())
            assert refusal(refused.value) == shown
        else:
            cursor = sql.connection.execute(query.encode())
            if not any(word in query for word in ELSEWHERE):
                assert steady(results(cursor)) == steady(tables(shown)), query
                compared += 1
            async with shop.app.open_async():
                await shop.app.run_worker_async(wait=False, install_signal_handlers=False)
    assert compared > 15


def test_the_examples_of_sql_jobs_give_what_is_shown(sql: Sql) -> None:
    examples = blocks((ROOT / "docs" / "sql-jobs.md").read_text(encoding="utf-8"))
    compared = 0
    for (kind, query), (_, shown) in zip(examples, [*examples[1:], ("", "")], strict=True):
        if kind != "sql":
            continue
        if shown.startswith("ERROR:"):
            with pytest.raises(psycopg.Error) as refused:
                sql.connection.execute(query.encode())
            assert refusal(refused.value) == shown
        else:
            found = results(sql.connection.execute(query.encode()))
            assert not tables(shown) or found == tables(shown), query
        compared += bool(shown.startswith("ERROR:") or tables(shown))
    assert compared >= 5


def test_programs_in_the_documentation_compile() -> None:
    for page in PAGES:
        for language, content in blocks(page.read_text(encoding="utf-8")):
            if language == "python":
                compile(content, page.name, "exec")


# -- form ----------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.is_relative_to(ROOT) and found.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(found), f"{page.name}: {target}"


def test_every_page_can_be_reached_from_the_first() -> None:
    linked = set(re.findall(r"\]\(((?:docs/)?[\w-]+\.md)", README))
    assert {str(page.relative_to(ROOT)) for page in PAGES} - {"README.md"} <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_names_a_machine_or_a_package_registry(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"/(?:work|root|opt|mnt|srv)/\S*|/tmp/v\b|\S*pythonhosted\S*|\S*pypi\S*|index-url", text) == []
