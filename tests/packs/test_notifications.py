"""A notification is requested in SQL, in the caller's transaction, and refused there when it could not be delivered."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from procjobs import demo
from procjobs.db import Database
from procjobs.errors import SQLSTATES, UnknownGroup, UnknownRecipient, UnknownUpdate, translate

ENQUEUE = "select procjobs.enqueue_notification_job(%s, %s, %s, %s, %s, %s, %s::jsonb, %s)"
CONTENT = '{"subject": "Test", "body": "Hello!"}'


@pytest.fixture
async def facts(db: Database, sql: Any) -> demo.DemoFacts:
    """The demo without its own notifications."""
    found = await demo.seed(db)
    sql("delete from public.procrastinate_jobs")
    sql("delete from procjobs.notification_jobs")
    return found


@pytest.fixture
def enqueue(sql: Any, facts: demo.DemoFacts) -> Any:
    """Enqueues the issue's own example, with changes by name."""

    def call(**changes: Any) -> UUID:
        values: dict[str, Any] = {
            "recipient": facts.recipient_id,
            "group": facts.group_id,
            "update": None,
            "notification_type": "immediate",
            "urgency": "normal",
            "delivery_method": "email",
            "content": CONTENT,
            "delay_minutes": 0,
        }
        assert changes.keys() <= values.keys()
        found = sql.one(ENQUEUE, *{**values, **changes}.values())
        assert isinstance(found, UUID)
        return found

    return call


def demo_id(sql: Any, name: str) -> UUID:
    found: UUID = sql.one("select procjobs.demo_id(%s)", name)
    return found


def test_the_call_of_the_original_works_word_for_word(sql: Any, facts: demo.DemoFacts) -> None:
    found = sql.one(
        f"""
        SELECT procjobs.enqueue_notification_job('{facts.recipient_id}'::uuid, '{facts.group_id}'::uuid, NULL,
                                                 'immediate', 'normal', 'email',
                                                 '{{"subject": "Test", "body": "Hello!"}}'::jsonb, 0)
        """
    )
    assert sql(
        """
        select n.status, n.retry_count, n.processed_at, n.scheduled_for = n.created_at,
          j.queue_name, j.task_name, j.args
        from procjobs.notification_jobs n
        join public.procrastinate_jobs j on j.id = n.job_id
        where n.id = %s
        """,
        found,
    ) == [("pending", 0, None, True, "notifications", "procjobs.send_notification", {"notification_id": str(found)})]


def test_only_the_recipient_is_required_where_the_update_speaks_for_itself(sql: Any, facts: demo.DemoFacts) -> None:
    found = sql.one(
        "select procjobs.enqueue_notification_job(%s, update => %s)", facts.recipient_id, demo_id(sql, "lake")
    )
    assert sql(
        "select group_id, notification_type, urgency, delivery_method, content "
        "from procjobs.notification_jobs where id = %s",
        found,
    ) == [(None, "immediate", "normal", "email", {})]


def test_notification_and_job_commit_or_vanish_together(dsn: str, facts: demo.DemoFacts, sql: Any) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(ENQUEUE, (facts.recipient_id, None, None, "immediate", "normal", "email", CONTENT, 0))
        connection.rollback()
    assert sql("select id from procjobs.notification_jobs") == []
    assert sql("select id from public.procrastinate_jobs") == []


def test_urgent_before_normal_before_low(enqueue: Any, sql: Any) -> None:
    for urgency in ("low", "urgent", "normal"):
        enqueue(urgency=urgency)
    assert sql(
        """
        select n.urgency
        from public.procrastinate_jobs j
        join procjobs.notification_jobs n on n.job_id = j.id
        order by j.priority desc, j.id
        """
    ) == [("urgent",), ("normal",), ("low",)]


def test_a_delay_holds_both_the_notification_and_its_job(enqueue: Any, sql: Any) -> None:
    found = enqueue(delay_minutes=90)
    assert sql(
        """
        select n.scheduled_for - n.created_at, j.scheduled_at = n.scheduled_for, j.pj_waits_for
        from procjobs.notification_jobs n
        join public.procrastinate_jobs j on j.id = n.job_id
        where n.id = %s
        """,
        found,
    ) == [(timedelta(minutes=90), True, "time")]


def test_what_the_application_keeps_with_the_content_is_kept(enqueue: Any, sql: Any) -> None:
    found = enqueue(content='{"subject": "Test", "body": "Hello!", "order": {"id": 7}}')
    assert sql.one("select content -> 'order' ->> 'id' from procjobs.notification_jobs where id = %s", found) == "7"


def test_three_runs_one_and_two_minutes_apart(sql: Any) -> None:
    assert sql(
        """
        select t.queue, t.max_attempts, procjobs.retry_delay(r, t.backoff_base, t.backoff_cap, t.backoff_jitter)
        from procjobs.tasks t, generate_series(1, 2) r
        where t.name = 'procjobs.send_notification'
        order by r
        """
    ) == [
        ("notifications", 3, timedelta(minutes=1)),
        ("notifications", 3, timedelta(minutes=2)),
    ]


# Refusals


def refused(enqueue: Any, **changes: Any) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as error:
        enqueue(**changes)
    return error.value


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"notification_type": None}, "notification_type null is not"),
        ({"notification_type": ""}, "notification_type '' is not"),
        ({"notification_type": "Robert'); --"}, "is not a lowercase word"),
        ({"urgency": "high"}, "urgency 'high' is none of urgent, normal, low"),
        ({"urgency": None}, "urgency null is none of"),
        ({"delivery_method": None}, "delivery_method null has no sender"),
        ({"delivery_method": "SMS"}, "delivery_method 'SMS' has no sender"),
        ({"delivery_method": "pigeon"}, "delivery_method 'pigeon' has no sender"),
        ({"delay_minutes": -1}, "delay_minutes -1 is not 0 or more"),
        ({"delay_minutes": None}, "delay_minutes null is not 0 or more"),
        ({"content": None}, "content is null, not an object"),
        ({"content": "[]"}, "content is array, not an object"),
        ({"content": "{}"}, "content.subject is missing or empty"),
        ({"content": '{"subject": "x", "body": " \\n "}'}, "content.body is missing or empty"),
        ({"content": '{"subject": 7, "body": "x"}'}, "content.subject is number, not a string"),
        ({"content": '{"subject": "x", "body": ["x"]}'}, "content.body is array, not a string"),
        ({"content": f'{{"subject": "{"x" * 256}", "body": "x"}}'}, "content.subject has 256 characters"),
        ({"content": f'{{"subject": "x", "body": "{"x" * 300_000}"}}'}, "at most 262144 are allowed"),
        ({"content": f'{{"subject": "x", "body": "y", "z": {"[" * 65}{"]" * 65}}}'}, "more than 64 levels deep"),
        ({"content": f'{{"subject": "x", "body": "y", "z": {"9" * 1001}}}'}, "a number has more than 1000 digits"),
        ({"content": f'{{"subject": "x", "body": "y", "z": [{"1e131071," * 30_000}1]}}'}, "more than 1000 digits"),
        ({"content": '{"subject": "x\\r\\nBcc: all@evil.example", "body": "x"}'}, "content.subject has a line break"),
        ({"content": '{"subject": "x\\u2028y", "body": "x"}'}, "content.subject has a line break"),
        (
            {"content": '{"subject": "x", "body": "x", "action_url": "javascript:alert(1)"}'},
            "not an http or https address",
        ),
        (
            {"content": '{"subject": "x", "body": "x", "action_url": "https://a.example/\\"onclick=\\""}'},
            "not an http or",
        ),
        ({"content": '{"subject": "x", "body": "x", "action_label": "Go"}'}, "has no action_url to lead to"),
    ],
)
def test_what_cannot_be_delivered_is_refused_where_it_is_asked_for(
    enqueue: Any, sql: Any, changes: dict[str, Any], problem: str
) -> None:
    error = refused(enqueue, **changes)
    assert error.sqlstate == "PJ023"
    assert problem in (error.diag.message_detail or "")
    assert "Delivery methods with a sender: email, sms, whatsapp, slack, webhook, apprise." in (
        error.diag.message_hint or ""
    )
    assert sql("select id from procjobs.notification_jobs") == []


def test_every_problem_is_named_at_once(enqueue: Any) -> None:
    error = refused(enqueue, urgency="high", delivery_method="fax", delay_minutes=-5, content='{"subject": 1}')
    assert len((error.diag.message_detail or "").splitlines()) == 5


def test_accents_symbols_and_several_lines_are_nothing_to_refuse(enqueue: Any) -> None:
    assert enqueue(content='{"subject": "Förstå – 日本語 👩‍👩‍👧 100 %", "body": "one\\ntwo\\n\\n\\tthree"}')


def test_a_stranger_is_refused(enqueue: Any) -> None:
    error = translate(refused(enqueue, recipient=uuid4()))
    assert isinstance(error, UnknownRecipient)
    assert "host_recipients" in (error.hint or "")
    assert isinstance(translate(refused(enqueue, recipient=None)), UnknownRecipient)


def test_a_recipient_without_an_address_is_refused(enqueue: Any, sql: Any, facts: demo.DemoFacts) -> None:
    sql("update procjobs_demo.recipients set email = ' ' where id = %s", facts.recipient_id)
    error = refused(enqueue)
    assert (error.sqlstate, "no e-mail address" in str(error)) == ("PJ023", True)


def test_an_unknown_group_and_one_the_recipient_is_not_in_are_refused(enqueue: Any, sql: Any) -> None:
    assert isinstance(translate(refused(enqueue, group=uuid4())), UnknownGroup)
    error = translate(refused(enqueue, group=demo_id(sql, "launch")))
    assert isinstance(error, UnknownGroup)
    assert "does not receive" in error.message


def test_an_unknown_update_and_one_of_another_group_are_refused(enqueue: Any, sql: Any) -> None:
    assert isinstance(translate(refused(enqueue, update=uuid4())), UnknownUpdate)
    assert isinstance(translate(refused(enqueue, update=demo_id(sql, "trailer"))), UnknownUpdate)
    error = translate(refused(enqueue, group=None, update=uuid4()))
    assert isinstance(error, UnknownUpdate)
    assert error.detail == "no such row in procjobs.host_updates"
    assert enqueue(update=demo_id(sql, "lake"))


def test_every_error_has_its_class(sql: Any) -> None:
    assert {"PJ012", "PJ020", "PJ021", "PJ022", "PJ023"} <= SQLSTATES.keys()


# Roles


def test_a_producer_may_request_and_no_more(enqueue: Any, sql: Any, facts: demo.DemoFacts) -> None:
    sql("set role procjobs_producer")
    assert enqueue()
    for query in (
        "select * from procjobs.notification_jobs",
        "select * from procjobs.host_people",
        "select procjobs.seed_demo()",
        "select procjobs.host_find_person('maya@harbourlane.example')",
        "select procjobs.begin_delivery(gen_random_uuid(), 'w', 'd')",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            sql(query)


def test_who_asked_is_on_record(enqueue: Any, sql: Any) -> None:
    found = enqueue()
    assert sql.one("select created_by = session_user from procjobs.notification_jobs where id = %s", found)


def test_lists_and_queue_job_lookups_use_their_indexes(explain: Any, sql: Any) -> None:
    sql(
        """
        insert into procjobs.notification_jobs (
          recipient_id, notification_type, urgency, delivery_method, content, status,
          scheduled_for, created_at, created_by, processed_at, job_id
        )
        select md5((n % 5000)::text)::uuid, 'immediate', 'normal', 'email', '{}',
          case when n % 100 = 0 then 'pending' else 'sent' end, at, at, 'test', case when n % 100 > 0 then now() end, n
        from generate_series(1, 100000) n
        cross join lateral (select now() - make_interval(secs => n) as at) t
        """
    )
    sql("analyze procjobs.notification_jobs")
    wanted = {
        "job_id = 77": "notification_jobs_job",
        "recipient_id = md5('7')::uuid order by created_at desc limit 20": "notification_jobs_recipient",
        "true order by created_at desc limit 20": "notification_jobs_created",
        "status in ('pending', 'processing') and scheduled_for < now() - interval '1 day'": "notification_jobs_open",
    }
    found = {where: _indexes(explain(f"select * from procjobs.notification_jobs where {where}")) for where in wanted}
    assert found == {where: {index} for where, index in wanted.items()}


def _indexes(plan: dict[str, Any]) -> set[str]:
    below = [_indexes(child) for child in plan.get("Plans", [])]
    return {plan["Index Name"]} if "Index Name" in plan else set().union(*below)
