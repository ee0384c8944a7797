"""Retention of the application's tables: which rows go, in what steps, whose rights, and what stays and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.conftest import Sql
from tests.engine.fleet import Thread, opened

NOON = "2031-05-10 12:00+00"


class Notices(list[str]):
    """What the server said besides, in words."""

    def hear(self, said: psycopg.errors.Diagnostic) -> None:
        self.append("; ".join(part for part in (said.message_primary, said.message_hint) if part))


@pytest.fixture
def said(sql: Sql) -> Notices:
    found = Notices()
    sql.connection.add_notice_handler(found.hear)
    return found


@pytest.fixture(autouse=True)
def clock(sql: Sql) -> None:
    sql("select set_config('procjobs.now', %s, false)", NOON)


@pytest.fixture
def notes(sql: Sql) -> str:
    """A table of 100 rows, one for each of the last hundred days; the name of its policy, of 30 days."""
    sql("create table public.notes (id int primary key, at timestamptz, kind text not null default 'plain')")
    sql("create index on notes (at)")
    sql("insert into notes select n, %s::timestamptz - make_interval(days => n) from generate_series(1, 100) n", NOON)
    sql("insert into notes values (0, null)")
    return str(policy(sql))


def policy(sql: Sql, name: str = "old_notes", **given: Any) -> str:
    """Set a policy for `notes`; its name."""
    values = {"table_name": "notes", "column_name": "at", "keep": "30 days", **given}
    listed = ", ".join(f"{key} => %s" for key in values)
    sql(f"select procjobs.set_table_policy(%s, {listed})", name, *values.values())
    return name


def left(sql: Sql) -> list[int]:
    return [row for (row,) in sql("select id from notes order by id")]


def refused(sql: Sql, code: str, query: str, *params: Any) -> psycopg.errors.Diagnostic:
    with pytest.raises(psycopg.Error) as found:
        sql(query, *params)
    diag = found.value.diag
    assert diag.sqlstate == code, str(found.value)
    assert diag.message_primary and diag.message_detail and diag.message_hint
    return diag


# -- which rows ----------------------------------------------------------------------------------------------------


def test_rows_that_are_older_go_and_a_row_without_a_time_stays(sql: Sql, notes: str) -> None:
    assert sql.one("select procjobs.count_retention(%s)", notes) == 70
    assert sql.one("select procjobs.run_retention(%s)", notes) == 70
    assert left(sql) == [*range(31)]
    assert sql.one("select procjobs.run_retention(%s)", notes) == 0


def test_a_condition_narrows_it(sql: Sql, notes: str) -> None:
    sql("update notes set kind = 'kept' where id % 2 = 0")
    policy(sql, condition="kind <> 'kept' or t.id = 90 -- a comment")
    assert sql.one("select procjobs.count_retention(%s)", notes) == 36
    assert sql.one("select procjobs.run_retention(%s)", notes) == 36
    assert left(sql)[31:] == [n for n in range(31, 101) if n % 2 == 0 and n != 90]


def test_set_gives_values_once(sql: Sql, notes: str) -> None:
    sql("alter table notes add seen int, add extra jsonb, add written timestamptz default now()")
    policy(sql, action="set", assignments='{"kind": "old", "seen": 3, "extra": {"a": 1}, "written": null}')
    assert sql.one("select procjobs.run_retention(%s)", notes) == 70
    assert sql.one("select procjobs.run_retention(%s)", notes) == 0
    assert sql("select distinct kind, seen, extra, written is null from notes where id > 30") == [
        ("old", 3, {"a": 1}, True)
    ]
    assert sql.one("select count(*) from notes where kind = 'plain' and written is not null") == 31


@pytest.mark.parametrize("kind", ["timestamp", "date", "timestamptz"])
def test_times_without_a_zone_are_utc_whatever_the_session_says(sql: Sql, kind: str) -> None:
    sql("set timezone = 'Pacific/Auckland'")
    sql(f"create table notes (id int, at {kind})")
    sql(f"insert into notes values (1, '2031-05-10 11:59:59Z'::{kind}), (2, '2031-05-10 12:00Z'::{kind})")
    if kind == "date":
        sql("update notes set at = '2031-05-09' where id = 1")
    policy(sql, keep="0")
    assert sql.one("select procjobs.run_retention('old_notes')") == 1
    assert left(sql) == [2]


def test_partitions_are_worked_one_by_one(sql: Sql) -> None:
    sql("create table notes (id int, at timestamptz not null) partition by range (at)")
    for month in (3, 4, 5):
        sql(
            f"create table notes{month} partition of notes for values from ('2031-{month}-1') to ('2031-{month + 1}-1')"
        )
        sql(f"create index on notes{month} (at)")
    sql(
        "insert into notes select n, timestamptz '2031-05-10 12:00Z' - make_interval(days => n) "
        "from generate_series(1, 60) n"
    )
    policy(sql)
    assert sql.one("select procjobs.count_retention('old_notes')") == 30
    assert sql.one("select procjobs.run_retention('old_notes')") == 30
    assert left(sql) == [*range(1, 31)]


def test_newest_first(sql: Sql, notes: str) -> None:
    policy(sql, oldest_first=False)
    assert sql.one("select procjobs.run_retention(%s, 10)", notes) == 10
    assert left(sql) == [*range(31), *range(41, 101)]


def test_a_call_is_bounded_and_says_that_there_is_more(sql: Sql, notes: str, said: Notices) -> None:
    assert sql.one("select procjobs.run_retention(%s, max_rows => 25)", notes) == 25
    assert left(sql)[-1] == 75
    assert "call procjobs.work_retention('old_notes')" in said[-1]
    assert sql.one("select procjobs.run_retention(%s, max_rows => 100)", notes) == 45


def test_a_policy_that_is_switched_off_does_nothing(sql: Sql, notes: str, said: Notices) -> None:
    policy(sql, enabled=False)
    assert sql.one("select procjobs.run_retention(%s)", notes) == 0
    sql("call procjobs.work_retention(%s)", notes)
    assert said == ["policy old_notes is switched off"] * 2
    assert len(left(sql)) == 101
    assert sql("select * from procjobs.table_retention_runs") == []


# -- the procedure -------------------------------------------------------------------------------------------------


def test_the_procedure_works_it_off_in_transactions_of_a_batch(sql: Sql, notes: str) -> None:
    sql("insert into notes select n, timestamptz '2030-01-01' from generate_series(1000, 3999) n")  # all of one moment
    policy(sql, batch=50)
    before = sql.one("select pg_current_xact_id()::text::bigint")
    assert sql("call procjobs.work_retention(%s)", notes) == [(3070,)]
    assert left(sql) == [*range(31)]
    ((rows, batches, expected, state, slowest),) = sql(
        "select r.rows, r.batches, l.expected, r.state, r.slowest is not null "
        "from procjobs.table_retention_runs r join procjobs.table_retention_log l using (id)"
    )
    assert (rows, expected, state, slowest) == (3070, 3070, "done", True)
    assert batches >= 3070 / 50
    assert sql.one("select pg_current_xact_id()::text::bigint") - before >= batches


def test_rows_that_somebody_holds_are_passed_over_and_go_next_time(sql: Sql, notes: str, dsn: str) -> None:
    policy(sql, batch=1)
    with psycopg.connect(dsn) as other:
        other.execute("select from notes where id in (100, 99, 98, 50) for key share")
        assert sql("call procjobs.work_retention(%s)", notes) == [(66,)]
        assert left(sql)[31:] == [50, 98, 99, 100]
        assert sql.one("select passed_over from procjobs.table_retention_runs") >= 4
    assert sql("call procjobs.work_retention(%s)", notes) == [(4,)]


def test_a_crowd_of_held_rows_of_one_moment_is_stepped_over(sql: Sql, notes: str, dsn: str) -> None:
    sql("insert into notes select n, timestamptz '2030-01-01' from generate_series(1000, 1019) n")
    policy(sql, batch=1)  # so that a chunk has ten rows
    with psycopg.connect(dsn) as other:
        other.execute("select from notes where id >= 1000 for share")
        assert sql("call procjobs.work_retention(%s)", notes) == [(70,)]
    assert left(sql)[31:] == [*range(1000, 1020)]


def test_a_row_that_is_changed_meanwhile_is_judged_anew(sql: Sql, notes: str, dsn: str) -> None:
    """Found, then given more time by somebody else before its turn comes."""
    run = "select procjobs.find_due_rows(procjobs.begin_cleaning('old_notes'))"
    found = sql.one(f"select ({run})::text")
    sql("update notes set at = at + interval '1 year' where id = 100")
    sql("update notes set kind = 'changed' where id = 99")
    done = sql.one("select (procjobs.work_due_rows(%s::procjobs.cleaning, 1000)).rows", found)
    assert done == 68
    assert left(sql)[31:] == [99, 100]
    assert sql.one("select procjobs.run_retention(%s)", notes) == 1


def test_it_is_stopped_and_the_next_call_goes_on(
    sql: Sql, notes: str, dsn: str, eventually: Callable[..., Any]
) -> None:
    sql("insert into notes select n, timestamptz '2030-01-01' from generate_series(1000, 60999) n")
    policy(sql, batch=10)
    with opened(dsn) as other:
        pid = other.sql.one("select pg_backend_pid()")
        other.sql("select set_config('procjobs.now', %s, false)", NOON)
        running = Thread(lambda: other.sql("call procjobs.work_retention(%s)", notes))
        eventually(lambda: sql.one("select count(*) from notes") < 60000)
        assert sql("select state, percent < 100 from procjobs.table_retention_runs") == [("running", True)]
        sql("select pg_terminate_backend(%s)", pid)
        with pytest.raises(psycopg.OperationalError):
            running.result()
    eventually(lambda: sql("select state from procjobs.table_retention_runs") == [("stopped",)])
    before = sql.one("select count(*) from notes")
    assert before > 31
    assert sql("call procjobs.work_retention(%s)", notes) == [(before - 31,)]
    assert sql("select state from procjobs.table_retention_runs order by id") == [("failed",), ("done",)]
    assert "next run went on" in sql.one("select error from procjobs.table_retention_runs order by id limit 1")


def test_not_within_a_transaction(sql: Sql, notes: str) -> None:
    with pytest.raises(psycopg.errors.InvalidTransactionTermination), sql.connection.transaction():
        sql("call procjobs.work_retention(%s)", notes)
    assert len(left(sql)) == 101


def test_a_trigger_that_refuses_ends_the_run_and_what_was_done_stays_done(sql: Sql, notes: str) -> None:
    sql(
        "create function public.refuse() returns trigger language plpgsql as $$ begin if old.id = 60 "
        "then raise exception 'not this one' using errcode = '45001'; end if; return old; end $$"
    )
    sql("create trigger refuse before delete on notes for each row execute function refuse()")
    policy(sql, batch=5)
    diag = refused(sql, "45001", "call procjobs.work_retention(%s)", notes)
    assert "not this one" in (diag.message_primary or "")
    assert left(sql)[-1] == 60
    assert sql("select state, error, rows from procjobs.table_retention_runs") == [("failed", "not this one", 40)]
    assert "not this one" in sql.one("select fault from procjobs.table_retention where name = %s", notes)


def test_triggers_of_the_application_find_what_they_name(sql: Sql, notes: str) -> None:
    """They run with the search path that the application's own statements have."""
    sql("create table public.gone (id int)")
    sql("create function public.note_gone() returns trigger language plpgsql as $$ begin "
        "insert into gone values (old.id); return old; end $$")  # fmt: skip
    sql("create trigger note_gone before delete on notes for each row execute function note_gone()")
    assert sql.one("select procjobs.run_retention(%s)", notes) == 70
    assert sql.one("select count(*) from gone") == 70


def test_the_batch_adapts_to_the_time_it_takes(sql: Sql) -> None:
    run = '{"batch": 1000, "batches": 1, "rows": 0, "slowest": "0", "size": %s}'

    def next_size(size: int, seconds: float) -> Any:
        pace = "procjobs.clean_pace(jsonb_populate_record(null::procjobs.cleaning, %s), 0, %s)"
        return sql.one(f"select ({pace}).size", run % size, seconds)

    assert next_size(400, 0.01) == 800
    assert next_size(800, 0.01) == 1000
    assert next_size(1000, 0.25) == 100
    assert next_size(1, 10.0) == 1


# -- what others refer to ------------------------------------------------------------------------------------------


@pytest.fixture
def replies(sql: Sql, notes: str) -> str:
    """Rows that refer to notes 40, 41 and 20."""
    sql("create table public.replies (id int, note int, constraint replies_note foreign key (note) references notes)")
    sql("create index on replies (note)")
    sql("insert into replies values (1, 40), (2, 40), (3, 41), (4, 20)")
    return notes


@pytest.mark.parametrize("deferred", [False, True])
def test_rows_that_others_refer_to_stay_and_it_says_why(sql: Sql, replies: str, said: Notices, deferred: bool) -> None:
    if deferred:
        sql("alter table replies alter constraint replies_note deferrable initially deferred")
    words = "policy old_notes: 2 rows stay, since public.replies refers to them (replies_note)"
    assert sql.one("select procjobs.count_retention(%s)", replies) == 68
    assert said[-1].startswith(words) and "on delete cascade" in said[-1]
    assert sql("call procjobs.work_retention(%s)", replies) == [(68,)]
    assert said[-1].startswith(words)
    assert left(sql)[31:] == [40, 41]
    assert sql("select referenced from procjobs.table_retention_runs") == [
        ({"replies_note": {"table": "public.replies", "rows": 2}},)
    ]
    sql("delete from replies")
    assert sql.one("select procjobs.run_retention(%s)", replies) == 2


def test_a_reference_that_comes_at_the_last_moment_keeps_its_row_only(sql: Sql, replies: str) -> None:
    """Found, then referred to before its turn comes: the foreign key's own check meets it."""
    sql("alter table replies drop constraint replies_note")
    found = sql.one("select (procjobs.find_due_rows(procjobs.begin_cleaning('old_notes')))::text")
    sql("alter table replies add constraint replies_note foreign key (note) references notes")
    for _ in range(60):
        found = sql.one("select (procjobs.clean_step(%s::procjobs.cleaning, 1000))::text", found)
    assert left(sql)[31:] == [40, 41]


def test_cascades_are_the_applications_own_business(sql: Sql, replies: str) -> None:
    sql("alter table replies drop constraint replies_note")
    sql("alter table replies add foreign key (note) references notes on delete cascade")
    assert sql.one("select procjobs.run_retention(%s)", replies) == 70
    assert sql("select id from replies") == [(4,)]


def test_a_table_that_refers_to_itself_is_worked_from_its_leaves(sql: Sql, notes: str, said: Notices) -> None:
    sql("alter table notes add parent int references notes")
    sql("create index on notes (parent)")
    sql("update notes set parent = 90 where id = 50")
    sql("update notes set parent = 95 where id = 90")
    sql("update notes set parent = 80 where id = 10")  # stays: its child is young
    assert sql.one("select procjobs.run_retention(%s)", notes) == 69
    assert left(sql)[31:] == [80]
    assert "1 rows stay, since public.notes refers" in said[-1]


def test_references_of_two_columns_and_from_partitions(sql: Sql, notes: str) -> None:
    sql("alter table notes add unique (id, kind)")
    sql(
        "create table public.replies (note int, kind text, foreign key (note, kind) references notes (id, kind)) "
        "partition by list (kind)"
    )
    sql("create table public.replies_plain partition of replies for values in ('plain')")
    sql("insert into replies values (60, 'plain'), (null, 'plain')")
    assert sql.one("select procjobs.run_retention(%s)", notes) == 69
    assert left(sql)[31:] == [60]
    ((found,),) = sql("select referenced from procjobs.table_retention_runs")
    assert [one["rows"] for one in found.values()] == [1]
