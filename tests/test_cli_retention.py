"""procjobs dead and procjobs retention."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Sql
from tests.engine.fleet import Fleet
from tests.test_cli import Shell, bare, elsewhere, shell

__all__ = ["bare", "elsewhere", "shell"]


@pytest.fixture
def mark(sql: Sql) -> str:
    """Three jobs failed with one error, one with another; the fingerprint of the first."""
    fleet = Fleet(sql)
    worker = fleet.worker()
    for message in ("no row 1", "no row 2", "no row 3", "refused"):
        fleet.defer(queue="mail")
        (claim,) = fleet.claim(worker)
        fleet.settle(claim, "failed", error_class="ValueError", error_message=message)
    found: str = sql.one("select procjobs.error_fingerprint('ValueError', 'no row 9')")
    return found


def test_dead_letters_are_listed_by_error_and_one_by_one(shell: Shell, mark: str) -> None:
    said = shell("dead")
    assert said == shell("dead", "groups")
    assert mark in said and "no row 3" in said
    assert [group["jobs"] for group in shell.json("dead", "groups")] == [3, 1]
    letters = shell.json("dead", "list", mark)
    assert len(letters) == 3 and letters[0]["fingerprint"] == mark
    assert [row["id"] for row in shell.json("dead", "list", "--before", letters[0]["id"])] == [
        row["id"] for row in letters[1:]
    ]
    assert "refused" in shell("dead", "list", "--queue", "mail", "--limit", "1")
    assert "--before" in shell.error
    assert "No job failed" in shell("dead", "list", "--task", "other")


def test_redrive_shows_the_number_and_runs_them_again_only_with_yes(shell: Shell, sql: Any, mark: str) -> None:
    assert shell("dead", "redrive", mark, "--max", "2") == "2 of 3 would run again; --yes does it\n"
    assert sql.one("select count(*) from procjobs.dead_letters") == 4
    assert shell("dead", "redrive", mark, "--max", "2", "--yes") == "2 of 3 wait again\n"
    assert sql.one("select count(*) from procjobs.dead_letters") == 2
    done = shell.json("dead", "redrive", "--queue", "mail", "--error", "ValueError", "--per-second", "1", "--yes")
    assert done == {"matching": 2, "redriven": 2, "refused": 0, "done": True}


def test_those_that_cannot_run_again_are_told(shell: Shell, sql: Any, mark: str) -> None:
    sql("update procrastinate_jobs set queueing_lock = 'x' where status = 'failed'")
    assert "3 cannot: another job has their lock or key" in shell("dead", "redrive", "--yes")


def test_purge_shows_the_number_and_deletes_only_with_yes(shell: Shell, sql: Any, mark: str) -> None:
    assert shell("dead", "purge", mark) == "3 of 3 would be deleted; --yes does it\n"
    assert shell.json("dead", "purge", mark) == {"matching": 3, "purged": 0, "done": False}
    assert shell("dead", "purge", mark, "--max", "2", "--yes") == "2 of 3 are deleted\n"
    assert sql.one("select count(*) from procjobs.dead_letters") == 2
    assert shell("dead", "purge", "--before", "2020-01-01", "--task", "work", "--yes") == "0 of 0 are deleted\n"


def test_policies_are_set_listed_and_dropped(shell: Shell) -> None:
    said = shell("retention", "set", "--queue", "mail", "--state", "succeeded", "--keep-last", "100")
    assert said == "queue mail, succeeded: the last 100\n"
    assert shell("retention", "set", "--max-age", "30 days") == "all others, all: 30 days\n"
    rules = {
        (row["queue"], row["state"]): (row["max_age"], row["keep_last"]) for row in shell.json("retention", "list")
    }
    assert rules["mail", "succeeded"] == (None, 100) and rules[None, "aborted"] == (30 * 86400, None)
    assert "mail" in shell("retention")
    drop = ("retention", "drop", "--queue", "mail", "--state", "succeeded")
    assert [shell(*drop) for _ in range(2)] == ["done\n", "there was no such policy\n"]
    assert "max_age" in shell.complains("retention", "set", "--max-age", "-1 day")
    assert "30 days" in shell.complains("retention", "set", "--max-age", "nonsense")
    assert "both" in shell.complains("retention", "set", "--queue", "a", "--task", "b")


def test_a_pass_is_run_and_logged(shell: Shell, sql: Any, mark: str) -> None:
    shell("retention", "set", "--max-age", "0", "--state", "failed")
    sql("update procrastinate_jobs set pj_finished_at = pj_finished_at - interval '1 hour' where status = 'failed'")
    assert shell("retention", "run", "--max", "3") == "3 jobs were forgotten\n"
    assert shell("retention", "run") == "1 jobs were forgotten\n"
    log = shell.json("retention", "log")
    assert [(row["what"], row["jobs"]) for row in log] == [("pass", 1), ("pass", 3), ("set", 0)]
    assert "all others, failed" in shell("retention", "log", "--limit", "1")


def test_policies_of_tables_are_set_counted_worked_and_listed(shell: Shell, sql: Any) -> None:
    sql("create table public.notes (id int primary key, at timestamptz, kind text)")
    sql("create index on notes (at)")
    sql("insert into notes select n, now() - make_interval(days => n), 'plain' from generate_series(1, 50) n")
    sql("create table public.replies (note int references notes)")
    sql("create index on replies (note)")
    sql("insert into replies values (45)")
    set_it = ("retention", "set-table", "old_notes", "notes", "at", "--keep", "30 days")
    assert "delete rows of public.notes 30 days after at" in shell(*set_it)
    assert shell("retention", "run", "old_notes", "--dry-run").endswith("20 rows are due\n")
    assert shell("retention", "run", "old_notes").endswith("20 rows were done\n")
    assert "public.replies refers to them (replies_note_fkey)" in shell.error
    said = shell("retention", "runs", "old_notes")
    assert "1 by public.replies (replies_note_fkey)" in said and "done" in said
    (policy,) = (row for row in shell.json("retention", "tables") if row["name"] == "old_notes")
    assert (policy["last_rows"], policy["last_run"], policy["table_name"]) == (20, "done", "public.notes")
    words = shell(*set_it, "--set", '{"kind": "old"}', "--where", "id > 3", "--batch", "5", "--newest-first", "--off")
    assert words == 'set kind = "old" in rows of public.notes 30 days after at where id > 3 (switched off)\n'
    assert "old_notes" in shell("retention", "tables")
    assert shell("retention", "drop-table", "old_notes") == "done\n"
    assert shell("retention", "drop-table", "old_notes") == "there was no such policy\n"
