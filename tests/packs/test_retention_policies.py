"""Policies of tables: what is refused when one is set, what is warned of, and with whose rights it is worked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests.conftest import Sql, with_user
from tests.packs.test_retention import Notices, clock, left, notes, policy, refused, said

__all__ = ["clock", "notes", "said"]


def test_a_policy_is_told_in_words_and_listed(sql: Sql, notes: str) -> None:
    words = sql.one(
        "select procjobs.set_table_policy(%s, 'notes', 'at', '1 year', action => 'set', condition => 'id > 3', "
        "assignments => '{\"kind\": \"old\"}', enabled => false, description => 'why')",
        notes,
    )
    assert words == 'set kind = "old" in rows of public.notes 1 year after at where id > 3 (switched off)'
    ((row,),) = sql("select to_jsonb(t) - 'set_at' from procjobs.table_retention t where name = %s", notes)
    assert row | {"table_name": "public.notes", "run_as": "postgres", "set_by": "postgres", "fault": None} == row
    assert sql.one("select procjobs.drop_table_policy(%s)", notes) is True
    assert sql.one("select procjobs.drop_table_policy(%s)", notes) is False
    said = refused(sql, "PJ031", "select procjobs.run_retention(%s)", notes)
    assert "set_table_policy('old_notes'" in (said.message_hint or "")


@pytest.mark.parametrize(
    ("given", "detail"),
    [
        ({"table_name": "app.nowhere"}, "there is no table"),
        ({"table_name": "procjobs.jobs"}, "is not a table"),
        ({"table_name": "procjobs.worker_state"}, "is not the application's"),
        ({"table_name": "procrastinate_jobs", "column_name": "scheduled_at"}, "is not the application's"),
        ({"column_name": "kind"}, "no column of time"),
        ({"column_name": "nothing"}, "no column of time"),
        ({"keep": "-1 day"}, "keep is -1 days"),
        ({"keep": None}, "keep is null"),
        ({"action": "archive"}, "the action is"),
        ({"action": "set"}, "it sets nothing"),
        ({"action": "set", "assignments": "{}"}, "it sets nothing"),
        ({"action": "set", "assignments": "[1]"}, "it sets nothing"),
        ({"assignments": '{"kind": "old"}'}, "it deletes, and sets something"),
        ({"action": "set", "assignments": '{"sort": 1}'}, "no column sort"),
        ({"action": "set", "assignments": '{"id": "many"}'}, "invalid input syntax"),
        ({"batch": 0}, "batch is 0"),
        ({"condition": "no_such_column = 1"}, "does not exist"),
        ({"condition": "id > 1) or (true"}, "syntax error"),
        ({"condition": "true group by id"}, "syntax error"),
        ({"condition": "true; delete from notes"}, "syntax error"),
        ({"condition": "true) returning (id"}, "syntax error"),
        ({"run_as": "nobody_at_all"}, "there is no role"),
    ],
)
def test_what_does_not_fit_is_refused(sql: Sql, notes: str, given: dict[str, Any], detail: str) -> None:
    values = {"table_name": "notes", "column_name": "at", "keep": "1 day", **given}
    listed = ", ".join(f"{key} => %s" for key in values)
    said = refused(sql, "PJ030", f"select procjobs.set_table_policy('other', {listed})", *values.values())
    assert detail in (said.message_detail or "")
    assert sql("select name from procjobs.table_policies where name = 'other'") == []
    assert len(left(sql)) == 101


def test_a_bad_name_is_refused(sql: Sql, notes: str) -> None:
    for name in ("", "a'b", "x" * 64, None):
        refused(sql, "PJ030", "select procjobs.set_table_policy(%s, 'notes', 'at', '1 day')", name)


def test_a_table_that_is_gone_or_changed_is_said_when_it_is_worked(sql: Sql, notes: str) -> None:
    sql("alter table notes rename column at to moment")
    said = refused(sql, "PJ030", "call procjobs.work_retention(%s)", notes)
    assert "no column of time 'at'" in (said.message_detail or "")
    assert "no column of time" in sql.one("select fault from procjobs.table_retention where name = %s", notes)
    sql("drop table notes")
    refused(sql, "PJ030", "select procjobs.count_retention(%s)", notes)


def test_missing_indexes_are_warned_of(sql: Sql, notes: str, said: Notices) -> None:
    sql("create table public.replies (note int references notes)")
    sql("drop index notes_at_idx")
    policy(sql)
    assert [line.partition(": each")[0] for line in said] == [
        "policy old_notes: no index of public.notes begins with at",
        "policy old_notes: no index of public.replies begins with what refers to public.notes (replies_note_fkey)",
    ]
    said.clear()
    sql("create index on notes (at) where at is not null")
    sql("create index on replies (note)")
    policy(sql)
    assert said == []


# -- rights --------------------------------------------------------------------------------------------------------


@pytest.fixture
def login(sql: Sql, dsn: str, notes: str) -> Iterator[Callable[..., Sql]]:
    """`login("ann", "procjobs_admin", "owner_of_notes")` is a connection of a new login that is a member of these.

    Such a login cannot set the clock: the notes are of the last hundred days, each an hour short of whole days.
    """
    made: list[tuple[str, Sql]] = []

    def connect(name: str, *groups: str) -> Sql:
        sql(f"create role {name} login")
        for group in groups:
            sql(f"grant {group} to {name}")
        made.append((name, Sql(with_user(dsn, name))))
        return made[-1][1]

    sql("select set_config('procjobs.now', '', false)")
    sql("update notes set at = now() - make_interval(days => id) + interval '1 hour' where id > 0")
    sql("create role pj_keeper")
    yield connect
    for name, connection in made:
        connection.connection.close()
        sql(f"drop owned by {name}")
        sql(f"drop role {name}")
    sql("drop owned by pj_keeper")
    sql("drop role pj_keeper")


def test_what_the_role_lacks_is_said_with_the_grant(sql: Sql, notes: str, login: Callable[..., Sql]) -> None:
    admin = login("pj_ann", "procjobs_admin")
    sql("create table public.replies (note int references notes)")
    said = refused(admin, "PJ030", "select procjobs.set_table_policy('p', 'notes', 'at', '30 days')")
    grants = (said.message_hint or "").rstrip(".")
    assert "grant select, update, delete on public.notes to pj_ann" in grants
    assert "grant select on public.replies to pj_ann" in grants
    sql(grants)
    admin("select procjobs.set_table_policy('p', 'notes', 'at', '30 days')")
    assert admin.one("select procjobs.count_retention('p')") == 70
    assert admin("call procjobs.work_retention('p')") == [(70,)]


def test_nobody_names_a_role_that_he_could_not_become(sql: Sql, notes: str, login: Callable[..., Sql]) -> None:
    admin = login("pj_ann", "procjobs_admin")
    sql("grant select, update, delete on notes to pj_keeper")
    for role in ("postgres", "pj_keeper"):
        said = refused(admin, "PJ030", "select procjobs.set_table_policy('p', 'notes', 'at', '0', run_as => %s)", role)
        assert f"may not act as role {role}" in (said.message_detail or "")
    refused(
        admin, "PJ030",
        "select procjobs.store_table_policy(jsonb_populate_record(null::procjobs.table_policies, "
        """'{"name": "p", "table_name": "notes", "column_name": "at", "keep": "0", "action": "delete", "batch": 1, """
        """"oldest_first": true, "enabled": true, "run_as": "postgres"}'))""",
    )  # fmt: skip
    sql("grant pj_keeper to pj_ann")
    admin("select procjobs.set_table_policy('p', 'notes', 'at', '30 days', run_as => 'pj_keeper')")
    assert admin.one("select procjobs.run_retention('p')") == 70


def test_it_is_worked_with_the_rights_of_its_role_and_not_of_the_login(
    sql: Sql, notes: str, login: Callable[..., Sql]
) -> None:
    """A worker's login that owns much more: the policy can do only what its role may."""
    sql("grant select, update, delete on notes to pj_keeper")
    policy(sql, run_as="pj_keeper")
    sql("create function public.whose() returns trigger language plpgsql as $$ begin "
        "insert into seen values (current_user::text); return old; end $$")  # fmt: skip
    sql("create table public.seen (who text)")
    sql("grant insert on seen to public")
    sql("create trigger whose before delete on notes for each row execute function whose()")
    worker = login("pj_worker", "procjobs_worker", "pj_keeper")
    assert worker("call procjobs.work_retention(%s)", notes) == [(70,)]
    assert worker.one("select current_user::text") == "pj_worker"
    assert sql("select distinct who from seen") == [("pj_keeper",)]

    sql("revoke delete on notes from pj_keeper")
    sql("insert into notes values (500, now() - interval '1 year')")
    said = refused(worker, "42501", "call procjobs.work_retention(%s)", notes)
    assert "permission denied" in (said.message_primary or "")
    assert worker.one("select current_user::text") == "pj_worker"


def test_a_login_that_may_not_act_as_the_role_is_told_so(sql: Sql, notes: str, login: Callable[..., Sql]) -> None:
    sql("grant select, update, delete on notes to pj_keeper")
    policy(sql, run_as="pj_keeper")
    worker = login("pj_worker", "procjobs_worker")
    said = refused(worker, "PJ030", "select procjobs.run_retention(%s)", notes)
    assert "grant pj_keeper to pj_worker" in (said.message_hint or "")
    assert len(left(sql)) == 101


def test_a_login_works_no_policy_of_somebody_who_could_not_act_as_it(
    sql: Sql, notes: str, login: Callable[..., Sql]
) -> None:
    """A condition can undo SET ROLE: it must not lend its author the rights of whoever works it."""
    admin = login("pj_ann", "procjobs_admin", "pj_keeper")
    sql("grant select, update, delete on notes to pj_keeper")
    sql("grant create on schema public to pj_ann")
    admin("create function public.climb() returns boolean language plpgsql as $$ begin "
          "set role none; create table public.climbed (); return false; end $$")  # fmt: skip
    admin(
        "select procjobs.set_table_policy("
        "'p', 'notes', 'at', '0', run_as => 'pj_keeper', condition => 'public.climb()')"
    )
    for function in ("select procjobs.run_retention('p')", "select procjobs.count_retention('p')"):
        said = refused(sql, "PJ030", function)
        assert "it was set by pj_ann, who may not act as postgres" in (said.message_detail or "")
    refused(sql, "PJ030", "call procjobs.work_retention('p')")
    assert sql.one("select to_regclass('public.climbed')") is None


def test_a_policy_that_is_set_again_belongs_to_who_set_it_last(sql: Sql, notes: str, login: Callable[..., Sql]) -> None:
    """The mend that PJ030 names: nothing of the policy changes but who answers for it."""
    admin = login("pj_ann", "procjobs_admin", "pj_keeper")
    sql("grant select, update, delete on notes to pj_keeper")
    query = "select procjobs.set_table_policy('p', 'notes', 'at', '30 days', run_as => 'pj_keeper')"
    admin(query)
    said = refused(sql, "PJ030", "select procjobs.count_retention('p')")
    assert "set the policy again as a superuser" in (said.message_hint or "")
    sql(query)
    assert sql("select procjobs.count_retention('p'), set_by from procjobs.table_retention where name = 'p'") == [
        (70, "postgres")
    ]


def test_a_function_with_its_owners_rights_cannot_take_on_a_role_and_it_says_so(sql: Sql, notes: str) -> None:
    sql("create role pj_keeper")
    try:
        sql("grant select, update, delete on notes to pj_keeper")
        policy(sql, run_as="pj_keeper")
        sql("create function public.nightly() returns bigint language sql security definer "
            "as $$ select procjobs.run_retention('old_notes') $$")  # fmt: skip
        said = refused(sql, "PJ030", "select nightly()")
        assert "security-definer function" in (said.message_detail or "")
        assert len(left(sql)) == 101
    finally:
        sql("drop owned by pj_keeper")
        sql("drop role pj_keeper")


def test_readers_see_policies_and_runs_and_change_none(sql: Sql, notes: str, login: Callable[..., Sql]) -> None:
    sql("select procjobs.run_retention(%s)", notes)
    reader = login("pj_reader", "procjobs_reader")
    assert reader("select last_rows, last_run from procjobs.table_retention where name = %s", notes) == [(70, "done")]
    assert reader("select rows from procjobs.list_table_runs(%s)", notes) == [(70,)]
    assert notes in [name for name, *_ in reader("select * from procjobs.list_table_policies()")]
    for query in (
        "select procjobs.run_retention('old_notes')",
        "select procjobs.drop_table_policy('old_notes')",
        "select procjobs.set_table_policy('p', 'notes', 'at', '0')",
        "select * from procjobs.table_policies",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader(query)
