"""What psql shows: every object is described, every body is sound."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from procjobs.errors import SQLSTATES
from procjobs.schema import resources

from .conftest import Sql


def test_every_function_is_described(sql: Sql) -> None:
    query = """
      select oid::regprocedure::text from pg_proc
      where pronamespace = 'procjobs'::regnamespace and obj_description(oid, 'pg_proc') is null"""
    assert sql(query) == []


def test_every_table_and_view_is_described(sql: Sql) -> None:
    query = """
      select oid::regclass::text from pg_class
      where relnamespace = 'procjobs'::regnamespace and relkind in ('r', 'p', 'v') and not relispartition
        and relname <> 'alembic_version' and obj_description(oid, 'pg_class') is null"""
    assert sql(query) == []


def test_every_column_of_a_view_is_described(sql: Sql) -> None:
    query = """
      select a.attrelid::regclass || '.' || a.attname from pg_attribute a
      join pg_class c on c.oid = a.attrelid
      where c.relnamespace = 'procjobs'::regnamespace and c.relkind = 'v' and a.attnum > 0
        and col_description(a.attrelid, a.attnum) is null"""
    assert sql(query) == []


def test_every_trigger_of_ours_on_the_job_table_is_described(sql: Sql) -> None:
    query = """
      select tgname from pg_trigger
      where tgrelid = 'procrastinate_jobs'::regclass and tgname like 'pj\\_%'
        and obj_description(oid, 'pg_trigger') is null"""
    assert sql(query) == []
    assert (
        sql.one(
            "select count(*) from pg_trigger where tgrelid = 'procrastinate_jobs'::regclass and tgname like 'pj\\_%'"
        )
        >= 6
    )


def test_nothing_is_overloaded(sql: Sql) -> None:
    query = "select proname from pg_proc where pronamespace = 'procjobs'::regnamespace group by 1 having count(*) > 1"
    assert sql(query) == []


def test_who_rules_out_a_scan_rules_out_jit(sql: Sql) -> None:
    """Where there is no other way a scan costs ten thousand millions then, and a server that can compiles for that."""
    names = (
        "select p.proname from pg_proc p where p.pronamespace = 'procjobs'::regnamespace "
        "and 'enable_seqscan=off' = any (p.proconfig) and %s = any (p.proconfig) order by 1"
    )
    assert sql(names, "jit=off") == sql(names, "enable_seqscan=off") != []


def test_what_reads_the_clock_is_not_immutable(sql: Sql) -> None:
    query = """
      select proname from pg_proc
      where pronamespace = 'procjobs'::regnamespace and provolatile = 'i' and prosrc ~ '(clock|now|timestamp)\\('"""
    assert sql(query) == []


def test_time_comes_from_the_clock_only(sql: Sql) -> None:
    query = """
      select proname::text from pg_proc
      where pronamespace = 'procjobs'::regnamespace
        and proname not in ('clock', 'wall_clock', 'stopwatch', 'time_set') and proname not like 'host\\_%'
        and prosrc ~* '\\m(now\\(\\)|current_timestamp|current_date|(statement|clock|transaction)_timestamp)'"""
    assert sql(query) == []


def test_every_sqlstate_that_sql_raises_is_known_to_python() -> None:
    raised = {code for path in resources().sql.rglob("*.sql") for code in re.findall(r"'(PJ\d{3})'", path.read_text())}
    assert raised and raised <= set(SQLSTATES)


def raises(source: str) -> list[tuple[str, str]]:
    """The raise statements that are errors: their head, and the options they give, values and comments left out."""
    bare = re.sub(r"--[^\n]*|'(?:[^']|'')*'", "''", source)
    found = re.findall(r"\braise\s+(?!debug|log|info|notice|warning)(.*?);", bare, flags=re.DOTALL)
    return [(head, options) for head, _, options in (statement.partition("using") for statement in found)]


def test_every_error_says_what_the_values_and_what_next() -> None:
    said = [
        (f"{path.name}: raise {head}", set(re.findall(r"\b(errcode|detail|hint)\s*=", options)))
        for path in resources().sql.rglob("*.sql")
        for head, options in raises(path.read_text())
    ]
    assert len(said) > 20
    assert [head for head, options in said if options != {"errcode", "detail", "hint"}] == []


def test_every_fault_has_a_message_detail_and_hint() -> None:
    """Faults are errors as values, for raise_fault: a function that makes some gives each all its parts."""
    making = [
        (path.name, body)
        for path in resources().sql.rglob("*.sql")
        for body in path.read_text().split("$$")[1::2]
        if re.search(r"'code', 'PJ\d", body)
    ]
    assert len(making) >= 5
    for name, body in making:
        counts = {key: len(re.findall(rf"'{key}',", body)) for key in ("message", "detail", "hint")}
        codes = len(re.findall(r"'code', 'PJ\d", body))
        assert len(set(counts.values())) == 1 and counts["message"] >= codes, (name, counts)


def test_files_open_with_what_they_own_and_their_lock_order() -> None:
    for path in (resources().sql / "functions").rglob("*.sql"):
        head = path.read_text().partition("\n\n")[0].lower()
        assert head.startswith("-- ") and "owns" in head and "lock" in head, path.name


def test_every_public_function_is_in_the_listing_of_psql(sql: Sql) -> None:
    """Those that people call have plain argument names; a name with p_ is for other functions and for Python."""
    people = {
        "defer", "defer_many", "cancel", "retry", "pause_queue", "resume_queue", "why_not_running", "job_timeline",
        "enqueue_on_change", "drop_enqueue_on_change", "enqueue_notification_job",
    }  # fmt: skip
    query = """
      select proname::text, coalesce(proargnames::text[], '{}') from pg_proc
      where pronamespace = 'procjobs'::regnamespace and proname = any (%s)"""
    found = dict(sql(query, sorted(people)))
    assert set(found) == people
    assert not [name for names in found.values() for name in names if name.startswith("p_")]


def test_bodies_are_sound(sql: Sql, recheck: Callable[[], list[str]]) -> None:
    assert recheck() == []


def test_the_check_of_bodies_finds_what_is_wrong(sql: Sql, recheck: Callable[[], list[str]]) -> None:
    sql("create table public.watched (id int)")
    sql("create trigger seen after insert on watched for each row execute function procjobs.enqueue_changed_row()")
    assert recheck() == []
    sql(
        "create function procjobs.wrong() returns int language plpgsql as "
        "'begin return (select gone from procjobs.jobs); end'"
    )
    assert [line.partition(":")[0] for line in recheck()] == ["wrong"]


@pytest.fixture
def recheck(sql: Sql) -> Callable[[], list[str]]:
    """What plpgsql_check says of every function; where it is not installed, the tests of CI do it."""
    try:
        sql("create extension plpgsql_check")
    except psycopg.Error:
        assert not (os.environ.get("CI") and Path("/usr/lib/postgresql/15").exists() and _is_debian(sql)), (
            "postgresql-15-plpgsql-check is missing"
        )
        pytest.skip("plpgsql_check is not installed on this server")

    # What call_sql_procedure makes for itself before it calls it.
    sql("create procedure pg_temp.procjobs_body() language plpgsql as 'begin end'")

    def run() -> list[str]:
        checkable = sql(
            """
            select
              p.oid, p.proname::text, coalesce(t.tgrelid, 0), coalesce(t.tgoldtable, ''), coalesce(t.tgnewtable, '')
            from pg_proc p
            join pg_language l on l.oid = p.prolang
            left join pg_trigger t on t.tgfoid = p.oid and not t.tgisinternal
            where p.pronamespace = 'procjobs'::regnamespace
              and l.lanname = 'plpgsql'
              and (p.prorettype <> 'trigger'::regtype or t.oid is not null)
            """
        )
        check = """
            select * from plpgsql_check_function(
              %s::oid::regprocedure, %s::oid::regclass, fatal_errors => false, other_warnings => false,
              performance_warnings => false, oldtable => nullif(%s, '')::name, newtable => nullif(%s, '')::name)
        """
        return [
            f"{name}: {line}"
            for oid, name, *table in checkable
            for (line,) in sql(check, oid, *table)
            if re.match("error|.*(unused variable|never read)", line)
        ]

    return run


def _is_debian(sql: Sql) -> bool:
    return int(sql.one("show server_version_num")) // 10000 == 15
