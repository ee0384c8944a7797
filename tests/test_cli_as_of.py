"""procjobs jobs list --as-of."""

from __future__ import annotations

from typing import Any

from tests.test_cli import Shell, bare, elsewhere, shell

__all__ = ["bare", "elsewhere", "shell"]


def test_jobs_are_listed_as_they_were_at_some_time(shell: Shell, sql: Any) -> None:
    sql("select procjobs.register_tasks('[{\"name\": \"noop\"}]', 'test')")
    first, second = (sql.one("select procjobs.defer('noop', queue => 'a')") for _ in range(2))
    born = sql.one("select max(created_at) from procjobs.jobs")
    sql("select procjobs.edit_job(%s, queue => 'b', priority => 7)", first)
    sql("select procjobs.cancel(%s)", second)
    then = born.isoformat()
    found = shell.json("jobs", "list", "--as-of", then)
    assert [(row["id"], row["state"], row["queue"], row["priority"]) for row in found] == [
        (second, "waiting", "a", 0), (first, "waiting", "a", 0),
    ]  # fmt: skip
    assert [row["priority"] for row in shell.json("jobs", "--as-of", "now", "--status", "waiting")] == [7]
    assert [row["id"] for row in shell.json("jobs", "list", "--as-of", then, "--queue", "a", "--before", second)] == [
        first
    ]
    assert shell.json("jobs", "list", "--as-of", then, "--queue", "b") == []
    assert "waiting" in shell("jobs", "list", "--as-of", then, "--limit", "1")
    assert f"--as-of {born.astimezone().isoformat()} --before {second}" in shell.error


def test_a_time_before_what_is_kept_is_refused_in_a_sentence(shell: Shell) -> None:
    assert "is not known any more" in shell.complains("jobs", "list", "--as-of", "2020-01-01T12:00Z")
    assert "jobs that ended before" in shell.error
    assert "is not known" in shell.complains("jobs", "list", "--as-of", "now", "--status", "parked")
