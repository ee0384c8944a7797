"""The views: hot table and history as one, quick at any size, and no more shown than the reader may see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.errors import Diagnostic

from .conftest import Sql, Worker

MakeWorker = Callable[..., Worker]
Explain = Callable[..., dict[str, Any]]


def defer(sql: Sql, options: str = "") -> int:
    return int(sql.one(f"select procjobs.defer('noop' {options})"))


@pytest.fixture
def life(sql: Sql, register: Callable[..., int], worker: MakeWorker) -> dict[str, int]:
    """A job in each state, by the state's name."""
    register("noop", max_attempts=3)
    running = worker("noop", name="bob")
    jobs = {"succeeded": defer(sql), "failed": defer(sql, ", max_attempts => 1"), "aborted": defer(sql)}
    running.claim()
    running.finish(jobs["succeeded"])
    running.fail(jobs["failed"], "secret text")
    sql("select procjobs.cancel(%s, 'enough')", jobs["aborted"])
    running.fail(jobs["aborted"], outcome="cancelled")
    jobs["cancelled"] = defer(sql, ", args => '{\"secret\": 1}'")
    sql("select procjobs.cancel(%s, 'not needed')", jobs["cancelled"])
    jobs["running"] = defer(sql, ", lock => 'l'")
    running.claim()
    jobs["blocked"] = defer(sql, ", lock => 'l'")
    jobs["scheduled"] = defer(sql, ", scheduled_at => now() + interval '1 hour'")
    jobs["parked"] = defer(sql, ", queue => 'park'")
    worker("other").claim(queues=["park"])
    jobs["limited"] = defer(sql)
    sql("update procrastinate_jobs set pj_waits_for = 'limit' where id = %s", jobs["limited"])
    jobs["waiting"] = defer(sql, ", queue => 'mail', tags => '{a,b}'")
    return jobs


STATUS = {
    "running": "doing", "succeeded": "succeeded", "failed": "failed", "aborted": "aborted", "cancelled": "cancelled",
}  # fmt: skip


def test_every_state_has_its_word(sql: Sql, life: dict[str, int]) -> None:
    found = dict(sql("select state, id from procjobs.jobs"))
    assert found == life
    assert dict(sql("select state, status::text from procjobs.jobs")) == {
        state: STATUS.get(state, "todo") for state in life
    }


def test_jobs_are_listed_by_each_state_and_status(sql: Sql, life: dict[str, int]) -> None:
    for state, job in life.items():
        assert sql("select id from procjobs.list_jobs(%s)", state) == [(job,)]
    todo = sorted(job for state, job in life.items() if state not in STATUS)
    assert sql("select id from procjobs.list_jobs('todo')") == [(job,) for job in reversed(todo)]
    assert sql("select id from procjobs.list_jobs('doing')") == [(life["running"],)]


def test_jobs_are_listed_by_queue_task_and_tag_page_by_page(sql: Sql, life: dict[str, int]) -> None:
    every = [(job,) for job in sorted(life.values(), reverse=True)]
    assert sql("select id from procjobs.list_jobs()") == every
    assert sql("select id from procjobs.list_jobs(p_max_rows => 3)") == every[:3]
    assert sql("select id from procjobs.list_jobs(p_max_rows => 3, p_before_id => %s)", every[2][0]) == every[3:6]
    assert sql("select id from procjobs.list_jobs(p_queue => 'mail')") == [(life["waiting"],)]
    assert sql("select id from procjobs.list_jobs(p_tag => 'b')") == [(life["waiting"],)]
    assert sql("select id from procjobs.list_jobs(p_task => 'noop', p_queue => 'park')") == [(life["parked"],)]
    assert sql("select id from procjobs.list_jobs(p_task => 'other')") == []
    assert sql("select id from procjobs.list_jobs(p_max_rows => -1)") == []


def test_the_columns_of_list_jobs_are_those_of_the_view(sql: Sql, life: dict[str, int]) -> None:
    listed = sql("select to_jsonb(l) from procjobs.list_jobs() l order by l.id")
    assert listed == sql("select to_jsonb(j) from procjobs.jobs j order by j.id")
    for view, function in (("queues", "list_queues"), ("workers", "list_workers")):
        rows = sorted(map(str, sql(f"select to_jsonb(v) - 'oldest_wait' from procjobs.{view} v")))
        assert rows == sorted(map(str, sql(f"select to_jsonb(f) - 'oldest_wait' from procjobs.{function}() f")))


def test_a_word_that_is_no_status_is_refused(refused: Callable[..., Diagnostic]) -> None:
    diag = refused("PJ009", "select * from procjobs.list_jobs('lost'' or true --')")
    assert "succeeded" in str(diag.message_hint)


def test_what_is_to_say_about_each(sql: Sql, life: dict[str, int]) -> None:
    row = "select worker, note, error from procjobs.jobs where id = %s"
    assert sql(row, life["failed"]) == [("bob", None, "ValueError: secret text")]
    assert sql(row, life["cancelled"]) == [(None, "not needed", None)]
    assert sql(row, life["running"]) == [("bob", None, None)]
    sql("select procjobs.cancel(%s, 'enough')", life["running"])
    who = sql.one("select session_user::text")
    assert sql(row, life["running"]) == [("bob", f"asked to stop by {who}: enough", None)]


def test_max_attempts_is_the_jobs_else_the_tasks(sql: Sql, life: dict[str, int]) -> None:
    query = "select max_attempts from procjobs.jobs where id = %s"
    assert (sql.one(query, life["failed"]), sql.one(query, life["waiting"])) == (1, 3)


def test_dead_letters(sql: Sql, life: dict[str, int]) -> None:
    assert sql("select id, attempts, error from procjobs.dead_letters") == [
        (life["failed"], 1, "ValueError: secret text")
    ]


def test_attempts(sql: Sql, life: dict[str, int]) -> None:
    row = (
        "select job_id, attempt, outcome, error_class, error_message, traceback, worker from procjobs.attempts limit 1"
    )
    assert sql(row) == [(life["failed"], 1, "failed", "ValueError", "secret text", "line 1", "bob")]


def test_queues(sql: Sql, life: dict[str, int]) -> None:
    row = "select waiting, scheduled, blocked, parked, running, failed, workers from procjobs.queues where name = %s"
    assert sql(row, "default") == [(0, 1, 2, 0, 1, 1, 2)]
    assert sql(row, "mail") == [(1, 0, 0, 0, 0, 0, 2)]
    assert sql(row, "park") == [(0, 0, 0, 1, 0, 0, 2)]
    assert sql.one("select oldest_wait > interval '0' from procjobs.queues where name = 'mail'")


def test_a_queue_that_only_a_task_or_a_pause_names_is_listed(sql: Sql, register: Callable[..., int]) -> None:
    register("later", queue="of a task")
    sql("select procjobs.pause_queue('of a pause')")
    names = {name for (name,) in sql("select name from procjobs.list_queues()")}
    assert {"of a task", "of a pause"} <= names


def test_workers(sql: Sql, worker: MakeWorker, now: Callable[[str], None]) -> None:
    now("2030-01-01 12:00Z")
    silent = worker("noop", name="silent")
    now("2030-01-01 12:10Z")
    worker("noop", name="alive")
    for name, call in (("draining", "drain_worker"), ("stopped", "stop_worker")):
        sql(f"select procjobs.{call}(%s)", worker("noop", name=name).id)
    assert sql("select name from procjobs.workers where name <> state") == []
    sql("update procjobs.worker_state set dead_at = procjobs.clock() where id = %s", silent.id)
    assert sql.one("select state from procjobs.workers where name = 'silent'") == "dead"
    assert [name for (name,) in sql("select name from procjobs.list_workers()")] == [
        "draining",
        "alive",
        "stopped",
        "silent",
    ]


# who sees what


SECRETS = ("secret", "line 1")
#: Whatever shows something about jobs.
SHOWN = [
    "select to_jsonb(v) from procjobs.jobs v",
    "select to_jsonb(v) from procjobs.dead_letters v",
    "select to_jsonb(v) from procjobs.attempts v",
    "select to_jsonb(v) from procjobs.actions v",
    "select to_jsonb(v) from procjobs.list_jobs() v",
    "select procjobs.job_report(id) from procjobs.jobs",
    "select to_jsonb(t) from procjobs.jobs j, procjobs.job_timeline(j.id) t",
    "select procjobs.why_not_running(id) from procjobs.jobs",
]


@pytest.fixture
def become(sql: Sql) -> Iterator[Callable[[str], None]]:
    """`become("procjobs_reader")` goes on with the rights of this role."""

    def run(role: str) -> None:
        sql(f"set role {role}")

    yield run
    sql("reset role")


@pytest.mark.parametrize("query", SHOWN)
def test_a_reader_sees_jobs_but_no_arguments_and_error_texts(
    sql: Sql, life: dict[str, int], become: Callable[[str], None], query: str
) -> None:
    become("procjobs_reader")
    rows = sql(query)
    assert rows
    assert not any(secret in str(rows) for secret in SECRETS)


def test_a_reader_sees_the_class_of_an_error(sql: Sql, life: dict[str, int], become: Callable[[str], None]) -> None:
    become("procjobs_reader")
    assert sql.one("select error from procjobs.dead_letters") == "ValueError"


def test_a_reader_does_not_see_which_value_of_an_argument_a_limit_is_about(
    sql: Sql, register: Callable[..., int], worker: MakeWorker, become: Callable[[str], None]
) -> None:
    register("noop")
    sql("select procjobs.set_limit('one', task => 'noop', key => 'args.code', max_running => 1)")
    for _ in range(2):
        defer(sql, """, args => '{"code": "secret"}'""")
    worker("noop").claim()
    sql("select procjobs.set_limit('two', task => 'noop', queue => 'b', key => 'tenant', max_running => 1)")
    for _ in range(2):
        defer(sql, ", queue => 'b', tenant => 'acme'")
    worker("noop").claim(queues=["b"])
    query = "select held_by from procjobs.jobs where state = 'limited' order by id"
    assert sql(query) == [("one:secret",), ("two:acme",)]
    become("procjobs_reader")
    assert sql(query) == [("one",), ("two:acme",)]
    for shown in SHOWN:
        assert "secret" not in str(sql(shown)), shown


@pytest.mark.parametrize("query", [SHOWN[0], SHOWN[2], SHOWN[4], SHOWN[5], SHOWN[6]])
def test_an_admin_sees_them(sql: Sql, life: dict[str, int], become: Callable[[str], None], query: str) -> None:
    become("procjobs_admin")
    assert any(secret in str(sql(query)) for secret in SECRETS)


def test_a_condition_on_arguments_does_not_tell_a_reader_what_they_are(
    sql: Sql, life: dict[str, int], become: Callable[[str], None]
) -> None:
    become("procjobs_reader")
    assert sql("select id from procjobs.jobs where args ? 'secret'") == []
    sql(
        "create function pg_temp.spy(jsonb) returns boolean language plpgsql cost 0.0000001 as "
        "$$ begin if $1 is not null then raise 'seen'; end if; return true; end $$"
    )
    assert len(sql("select id from procjobs.jobs where pg_temp.spy(args)")) == len(life)


def test_a_member_of_admin_without_its_rights_in_use_sees_nothing(sql: Sql, life: dict[str, int]) -> None:
    sql("create role pj_aside noinherit")
    try:
        sql("grant procjobs_admin to pj_aside")
        sql("grant procjobs_reader to pj_aside")
        sql("set role pj_aside")
        sql("set role procjobs_reader")
        assert sql.one("select procjobs.may_see_arguments()") is False
    finally:
        sql("reset role")
        sql("drop role pj_aside")


# plans


@pytest.fixture
def large(sql: Sql, register: Callable[..., int]) -> None:
    """1e5 jobs in each half."""
    register("noop")
    sql("set procjobs.args_checked = 'on'")
    sql(
        "insert into procrastinate_jobs (queue_name, task_name, args, scheduled_at, status) "
        "select 'q', 'noop', '{}', case when n % 2 = 0 then now() + interval '1 day' end, "
        "case when n % 1000 = 0 then 'failed' else 'todo' end::procrastinate_job_status "
        "from generate_series(1, 100000) n"
    )
    sql(
        "insert into procjobs.job_history "
        "(id, queue_name, task_name, priority, args, status, attempts, crashes, lease, finished_at) "
        "select n, 'q', 'noop', 0, '{}', "
        "case when n % 1000 = 0 then 'cancelled' else 'succeeded' end::procrastinate_job_status, "
        "1, 0, 1, now() - n * interval '1 second' from generate_series(100001, 200000) n"
    )
    sql("analyze procrastinate_jobs, procjobs.job_history")


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


def read(plan: dict[str, Any]) -> dict[str, float]:
    """Rows read of each half, whether they were kept or not."""
    halves: dict[str, float] = {}
    for node in nodes(plan):
        table = node.get("Relation Name", "")
        if table.startswith(("procrastinate_jobs", "job_history")):
            rows = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
            halves[table] = halves.get(table, 0) + rows
    return halves


#: query, rows read at most of the hot table and of the history (None: it does not look there)
QUICK = [
    ("select * from procjobs.jobs where id = 77", 1, 0),
    ("select * from procjobs.jobs where id = 150077", 0, 1),
    ("select * from procjobs.jobs order by id desc limit 50", 1, 50),
    ("select * from procjobs.jobs where id < 120000 order by id desc limit 50", 1, 50),
    ("select * from procjobs.jobs where status = 'failed' order by id desc limit 50", 51, 100),
    ("select * from procjobs.dead_letters order by id desc limit 50", 51, None),
    ("select * from procjobs.jobs where status = 'cancelled' order by id desc limit 50", 100000, 100),
    ("select * from procjobs.jobs where state = 'waiting' order by id desc limit 50", 110, None),
    ("select * from procjobs.jobs where state in ('waiting', 'scheduled') order by id desc limit 50", 60, None),
    ("select * from procjobs.jobs where state = 'running' order by id desc limit 50", 100000, None),
    ("select * from procjobs.jobs where state = 'cancelled' order by id desc limit 50", 100000, 100),
]


@pytest.mark.slow
def test_common_questions_read_few_rows_of_both_halves(sql: Sql, large: None, explain: Explain) -> None:
    for query, hot, history in QUICK:
        found = read(explain(query, analyze=True))
        assert set(found) == {"procrastinate_jobs", "job_history_default"} - (
            {"job_history_default"} if history is None else set()
        )
        assert found["procrastinate_jobs"] <= hot, (query, found)
        assert found.get("job_history_default", 0) <= (history or 0), (query, found)


@pytest.mark.slow
def test_the_right_to_see_is_asked_once_a_query(sql: Sql, large: None, explain: Explain) -> None:
    plan = explain("select args from procjobs.jobs", analyze=True)
    asked = [node for node in nodes(plan) if node.get("Parent Relationship") == "InitPlan"]
    assert asked and all(node["Actual Loops"] <= 1 for node in asked)


@pytest.mark.slow
def test_listing_failed_jobs_uses_the_index_of_dead_letters(sql: Sql, large: None) -> None:
    sql("load 'auto_explain'")
    for setting in ("log_min_duration = 0", "log_nested_statements = on", "log_level = notice"):
        sql(f"set auto_explain.{setting}")
    plans: list[str] = []

    def keep(diag: Diagnostic) -> None:
        plans.append(str(diag.message_primary))

    sql.connection.add_notice_handler(keep)
    assert sql.one("select count(*) from procjobs.list_jobs('failed')") == 50
    assert any("pj_jobs_dead" in plan for plan in plans), plans


def test_the_view_of_jobs_is_not_the_callers_way_to_the_tables(sql: Sql, become: Callable[[str], None]) -> None:
    become("procjobs_reader")
    for table in ("procrastinate_jobs", "procjobs.job_history", "procjobs.job_attempts", "procjobs.job_events"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            sql(f"select * from {table}")
