"""Who may do what: the whole matrix of roles and objects, read from the catalogs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest

from .conftest import SEND, Sql, Worker

ENQUEUE = {
    "defer", "defer_many", "debounce", "throttle", "enqueue", "enqueue_jobs", "create_batch", "seal_batch",
    "enqueue_notification_job", "enqueue_letter", "check_arguments", "job_status", "clock", "may_set_clock", "time_set",
}  # fmt: skip

CRON = {
    "cron_next", "cron_preview", "cron_slots", "check_cron",
    "cron_zone", "cron_fields", "cron_field", "cron_item", "cron_value", "cron_bits", "cron_first", "cron_after",
    "cron_again", "cron_wall", "cron_time", "cron_days", "cron_change", "cron_mark",
    "raise_invalid_cron", "raise_invalid_zone", "raise_cron_field", "raise_cron_never",
}  # fmt: skip

#: Retention of the application's tables acts with its caller's rights: what it is made of is granted with it.
TABLES = {
    "run_retention", "count_retention", "work_retention", "cleanup_removed_team_members", "cleanup_expired_sessions",
    "cleanup_expired_email_verification_tokens", "cleanup_expired_password_reset_tokens", "expire_deliverables",
    "cleanup_expired_invitations", "cleanup_audit_logs", "cleanup_logs", "cleanup_old_jobs", "process_job_queue",
    "retry_failed_jobs", "forget_ended_jobs", "clean_table", "table_policy", "begin_cleaning", "begin_as",
    "find_due_rows", "work_due_rows", "clean_step", "clean_pace", "note_cleaning", "progress", "stopwatch",
    "count_due_rows", "expect_rows", "say_referenced", "end_cleaning", "finish_cleaning", "raise_cleaning", "clock",
    "wall_clock", "table_leaves", "time_column", "assigned_values", "due_rows", "references_to", "cleaning_statements",
    "raise_policy", "find_table",
}  # fmt: skip

#: role -> functions it may execute. What is not here, only the owner may.
MAY_EXECUTE = {
    "procjobs_producer": ENQUEUE | CRON | {
        "enqueue_on_change", "drop_enqueue_on_change", "note_changed_row", "enqueue_changed_row",
        "change_setting", "first_trigger_name", "change_trigger_name",
        "change_table_fault", "change_trigger_fault", "option_fault", "raise_fault",
        "job_result", "job_outcome", "await_job",
    },
    "procjobs_worker": ENQUEUE | CRON | TABLES | {
        "tables_to_vacuum", "note_vacuum", "unreferenced_files",
        "register_worker", "register_tasks", "heartbeat", "drain_worker", "stop_worker", "claim_jobs", "finish_jobs",
        "settle_jobs", "release_unknown", "abort_requests", "rescue_jobs", "upkeep", "promote_ready",
        "ensure_history_partitions", "delete_old_jobs", "defer_periodic", "last_periodic", "due_periodic",
        "begin_delivery", "begin_delivery_v2", "leave_delivery", "finish_delivery", "report_outcome", "begin_effect",
        "end_effect", "void_effect",
        "notification_metrics", "tick", "tick_schedules", "declare_schedules", "apply_environment",
        "register_scheduler", "report_progress", "job_result", "job_outcome", "await_job",
    },
    "procjobs_reader": CRON | {
        "doctor", "doctor_server", "doctor_pg_cron", "doctor_horizon", "doctor_logins", "doctor_tables", "doctor_fleet",
        "explain_claim", "claim_plans", "say_span",
        "list_breakers", "breaker_limit", "list_tasks", "list_limits", "list_batches",
        "why_not_running", "job_timeline", "list_jobs", "count_jobs", "job_report",
        "list_queues", "list_workers", "job_status",
        "may_see_arguments", "late_note", "say_time", "raise_job_not_found", "clock", "may_set_clock", "time_set",
        "list_retention", "list_retention_passes",
        "list_table_policies", "list_table_runs", "policy_fault", "find_table", "time_column", "assigned_values",
        "list_dead_groups", "list_dead_letters", "jobs_as_of", "job_transitions",
        "preview_schedule", "list_schedules", "list_schedule_history", "list_alerts", "cron_timezone", "schedule_hold",
    },
    "procjobs_admin": TABLES | {
        "set_table_policy", "drop_table_policy", "store_table_policy", "policy_rights", "policy_warnings",
        "check_policy_parses", "check_may_become", "may_become", "policy_in_words", "set_retry_rule", "drop_retry_rule",
        "set_breaker", "drop_breaker", "open_breaker", "close_breaker", "resolve_delivery", "set_delivery_policy",
        "resolve_effect", "set_failed_alert", "list_unresolved", "after_unknown",
        "set_limit", "drop_limit", "set_queue",
        "set_task", "reset_task", "pause_task", "resume_task", "edit_job", "cancel_jobs", "retry_jobs", "discard_jobs",
        "set_retention", "drop_retention", "redrive", "purge_dead_letters",
        "cancel", "retry", "pause_queue", "resume_queue",
        "schedule", "schedule_for", "unschedule", "pause_schedule", "resume_schedule", "run_now", "backfill",
        "set_schedule_group", "set_cron_timezone", "declare_schedules", "tick", "close_alert", "set_backlog_alert"},
}  # fmt: skip

SQL_JOBS = {
    "procjobs_producer": {"progress"},
    "procjobs_worker": {
        "progress", "open_sql_job", "close_sql_job", "stop_sessions", "sessions_to_stop", "note_stop", "run_sql_jobs",
        "call_sql_procedure", "open_session", "close_session", "leave_session", "next_sql_job", "end_sql_job",
        "sql_problem", "stopwatch", "keep_time", "hear_pg_cron", "lost_sessions", "note_last_words",
    },
    "procjobs_reader": {
        "pg_cron_status", "pg_cron_place", "pg_cron_wanted", "pg_cron_vacuum", "pg_cron_prefix", "pg_cron_facts_query",
        "pg_cron_facts",
        "pg_cron_findings", "pg_cron_absence", "wall_clock",
    },
    "procjobs_admin": {
        "register_sql_task", "put_sql_task", "find_routine", "drop_sql_task",
        "pg_cron_install", "pg_cron_script", "pg_cron_remove", "pg_cron_removal",
    },
}  # fmt: skip
MAIL = {
    "procjobs_producer": {"submit_notification", "find_subscription", "unsubscribe", "resubscribe"},
    "procjobs_worker": set(),
    "procjobs_reader": {
        "list_suppressed_addresses",
        "list_setting_changes",
        "list_jobs_as_of",
        "values_before_edits",
        "kept_since",
    },
    "procjobs_admin": {"suppress_address", "unsuppress_address"},
}
MAY_EXECUTE = {role: functions | SQL_JOBS[role] | MAIL[role] for role, functions in MAY_EXECUTE.items()}

DIGESTS = {
    "procjobs_producer": {"enqueue_letters", "queue_notification_email"},
    "procjobs_worker": {"enqueue_letters", "queue_notification_email", "create_digest_jobs", "process_email_queue"},
    "procjobs_reader": {
        "list_digest_schedules", "list_digest_runs", "why_no_digest", "next_digest_at", "digest_crons",
    },
    "procjobs_admin": {
        "create_digest_schedule", "update_digest_schedule", "delete_digest_schedule", "create_digest_jobs",
        "process_email_queue",
    },
}  # fmt: skip
INVITATIONS = {
    "procjobs_producer": {
        "submit_invite", "create_invite", "create_invites", "resend_invite", "revoke_invite", "peek_invite",
        "accept_invite", "invite_register_url",
    },
    "procjobs_worker": {"keep_letter_secret", "process_pending_invites", "expire_invites", "send_invite"},
    "procjobs_reader": {"list_invites"},
    "procjobs_admin": {"process_pending_invites", "expire_invites", "send_invite"},
}  # fmt: skip
REMINDERS = {
    "procjobs_producer": set(),
    "procjobs_worker": {"create_payment_reminders", "create_event_reminders"},
    "procjobs_reader": {"list_reminders", "list_reminder_steps"},
    "procjobs_admin": {
        "set_reminder_step", "drop_reminder_step", "create_payment_reminders", "create_event_reminders",
    },
}  # fmt: skip
ALERTS = {
    "procjobs_producer": set(),
    "procjobs_worker": {"tell_alerts"},
    "procjobs_reader": set(),
    "procjobs_admin": {"set_alert_recipient", "drop_alert_recipient", "tell_alerts", "alert_kinds"},
}
REPORTS = {
    "procjobs_producer": set(),
    "procjobs_worker": {"create_daily_reports", "generate_report"},
    "procjobs_reader": set(),
    "procjobs_admin": {
        "subscribe_report", "unsubscribe_report", "preview_report", "create_daily_reports", "generate_report",
    },
}  # fmt: skip
PACKS = (DIGESTS, INVITATIONS, REMINDERS, ALERTS, REPORTS)
MAY_EXECUTE = {role: functions.union(*(pack[role] for pack in PACKS)) for role, functions in MAY_EXECUTE.items()}

#: (role, relation) -> privileges
MAY_USE = {
    ("procjobs_producer", "tasks"): {"SELECT"},
    **{
        ("procjobs_reader", view): {"SELECT"}
        for view in (
            "breaker_list",
            "limit_use",
            "task_policies",
            "bulk_log",
            "jobs",
            "all_jobs",
            "job_queue",
            "batches",
            "dead_letters",
            "attempts",
            "actions",
            "queues",
            "workers",
            "tasks",
        )
    },
    **{
        ("procjobs_reader", view): {"SELECT"}
        for view in (
            "schedule_list",
            "schedule_history",
            "schedule_stats",
            "schedule_group_list",
            "schedulers",
            "alerts",
        )
    },
    **{
        ("procjobs_reader", view): {"SELECT"}
        for view in ("dead_letter_groups", "retention", "retention_passes", "table_retention", "table_retention_runs")
    },
    ("procjobs_reader", "retry_rules"): {"SELECT"},
    ("procjobs_reader", "suppressions"): {"SELECT"},
    ("procjobs_reader", "setting_log"): {"SELECT"},
    ("procjobs_admin", "unsubscriptions"): {"SELECT"},
    ("procjobs_reader", "invites"): {"SELECT"},
    **{("procjobs_reader", relation): {"SELECT"} for relation in ("reminders", "reminder_steps")},
    **{("procjobs_admin", table): {"SELECT"} for table in ("payment_reminders", "event_reminders")},
    **{("procjobs_admin", relation): {"SELECT"} for relation in ("alert_recipient_list", "alert_letters")},
    **{("procjobs_admin", relation): {"SELECT"} for relation in ("report_subscription_list", "daily_reports")},
    **{("procjobs_admin", table): {"SELECT"} for table in ("notification_jobs", "notification_delivery_logs")},
    **{("procjobs_admin", table): {"SELECT"} for table in ("unresolved_deliveries", "delivery_policies", "effects")},
    **{
        ("procjobs_admin", table): {"SELECT"}
        for table in ("digest_schedules", "digest_runs", "notification_email_queue")
    },
}


def grants(sql: Sql, query: str) -> set[tuple[str, ...]]:
    return {tuple(row) for row in sql(query)}


def test_functions_may_be_executed_by_those_in_the_list_and_nobody_else(sql: Sql) -> None:
    found = grants(
        sql,
        """select coalesce(a.grantee::regrole::text, '?'), p.proname::text
           from pg_proc p
           join pg_namespace n on n.oid = p.pronamespace
           cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
           where (n.nspname = 'procjobs' or p.proname like 'procrastinate\\_%%')
             and a.grantee not in (p.proowner, to_regrole('procjobs_owner'))""".replace("%%", "%"),
    )
    assert found == {(role, function) for role, functions in MAY_EXECUTE.items() for function in functions}


def test_tables_views_and_sequences_may_be_used_by_those_in_the_list_and_nobody_else(sql: Sql) -> None:
    found = grants(
        sql,
        """select a.grantee::regrole::text, c.relname::text, a.privilege_type
           from pg_class c
           join pg_namespace n on n.oid = c.relnamespace
           cross join lateral aclexplode(
             coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner))) a
           where (n.nspname = 'procjobs' or c.relname like 'procrastinate\\_%')
             and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
             and a.grantee not in (c.relowner, to_regrole('procjobs_owner'))""",
    )
    wanted = {
        (role, relation, privilege) for (role, relation), privileges in MAY_USE.items() for privilege in privileges
    }
    assert found == wanted


def test_columns_have_no_grants_of_their_own(sql: Sql) -> None:
    assert (
        sql("select attrelid::regclass, attname from pg_attribute where attacl is not null and attrelid >= 16384") == []
    )


def test_the_schema_may_be_used_and_not_created_in(sql: Sql) -> None:
    found = grants(
        sql,
        """select a.grantee::regrole::text, a.privilege_type
           from pg_namespace n cross join lateral aclexplode(n.nspacl) a
           where n.nspname = 'procjobs' and a.grantee <> n.nspowner""",
    )
    assert found == {(role, "USAGE") for role in MAY_EXECUTE}


def test_roles_log_nobody_in_and_only_admin_inherits(sql: Sql) -> None:
    roles = grants(sql, "select rolname::text, rolcanlogin::text from pg_roles where rolname like 'procjobs\\_%'")
    assert roles == {(f"procjobs_{role}", "false") for role in ("owner", "producer", "worker", "reader", "admin")}
    members = grants(
        sql,
        "select roleid::regrole::text, member::regrole::text from pg_auth_members "
        "where member::regrole::text like 'procjobs\\_%' and roleid::regrole::text like 'procjobs\\_%'",
    )
    assert members == {("procjobs_reader", "procjobs_admin"), ("procjobs_producer", "procjobs_admin")}


def test_everything_belongs_to_the_owner(sql: Sql) -> None:
    query = """
      select oid::regclass::text from pg_class
      where relnamespace = 'procjobs'::regnamespace and relkind in ('r', 'p', 'v', 'S')
        and relowner <> 'procjobs_owner'::regrole
      union all
      select oid::regprocedure::text from pg_proc
      where pronamespace = 'procjobs'::regnamespace and proowner <> 'procjobs_owner'::regrole"""
    assert sql(query) == []


def test_functions_with_the_owners_rights_pin_their_path_and_say_why(sql: Sql) -> None:
    loose = sql(
        """select p.oid::regprocedure::text
           from pg_proc p
           where p.pronamespace = 'procjobs'::regnamespace
             and p.prosecdef
             and (
               not coalesce(p.proconfig @> array['search_path=pg_catalog, pg_temp'], false)
               or coalesce(obj_description(p.oid, 'pg_proc'), '') not like '%Definer: %'
             )"""
    )
    assert loose == []


def test_other_functions_pin_their_path_too_unless_they_are_to_be_inlined(sql: Sql) -> None:
    loose = sql(
        """select p.proname::text
           from pg_proc p
           where p.pronamespace = 'procjobs'::regnamespace
             and p.proname not like 'host\\_%'
             and not coalesce(p.proconfig @> array['search_path=pg_catalog, pg_temp'], false)
           order by 1"""
    )
    inlined = [
        "clock",
        "cron_next",
        "is_plain",
        "is_reachable",
        "is_small",
        "known_zone",
        "limit_applies",
        "limit_key",
        "limit_name_of",
        "limit_room",
        "shift_local",
        "method_breaker",
        "notification_tags",
        "urgency_priority",
    ]
    committing = [
        "call_sql_procedure",
        "keep_time",
        "run_sql_jobs",
        "work_retention",
    ]  # procedures with a SET clause may not commit
    assert loose == [(name,) for name in sorted(inlined + committing)]


def test_what_runs_with_the_owners_rights_is_an_entry_point_of_some_role(sql: Sql) -> None:
    entries = {function for functions in MAY_EXECUTE.values() for function in functions}
    definers = sql(
        "select proname::text from pg_proc "
        "where pronamespace = 'procjobs'::regnamespace and prosecdef and prorettype <> 'trigger'::regtype"
    )
    assert {name for (name,) in definers} <= entries


def test_our_triggers_on_the_job_table_run_with_the_owners_rights(sql: Sql) -> None:
    loose = sql(
        """select t.tgname::text
           from pg_trigger t
           join pg_proc p on p.oid = t.tgfoid
           where t.tgrelid = 'procrastinate_jobs'::regclass and t.tgname like 'pj\\_%' and not p.prosecdef"""
    )
    assert loose == []


# what the roles really can do


@pytest.fixture
def acting(sql: Sql) -> Iterator[Callable[[str], None]]:
    """`acting("procjobs_producer")` goes on as a member of this role, with nothing else."""
    sql("create role pj_app")

    def run(role: str) -> None:
        sql(f"grant {role} to pj_app")
        sql("set role pj_app")

    yield run
    sql("reset role")
    sql("drop owned by pj_app")
    sql("drop role pj_app")


def denied(sql: Sql, query: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        sql(query)


def test_a_producer_enqueues_and_does_nothing_else(
    sql: Sql, register: Callable[..., int], acting: Callable[[str], None]
) -> None:
    register("send", SEND)
    acting("procjobs_producer")
    job = sql.one(
        """select procjobs.defer('send', '{"to": "ann"}', lock => 'l', scheduled_at => now() + interval '1 h')"""
    )
    sql("""select * from procjobs.defer_many('[{"task": "send", "args": {"to": "a"}, "unique_key": "k"}]')""")
    for query in (
        "select * from procrastinate_jobs",
        "insert into procrastinate_jobs (queue_name, task_name) values ('q', 'send')",
        f"delete from procrastinate_jobs where id = {job}",
        "select * from procjobs.jobs",
        f"select procjobs.cancel({job})",
        f"select procjobs.why_not_running({job})",
        "select procjobs.pause_queue('q')",
        "select * from procjobs.claim_jobs(1, null, 1)",
        f"select procrastinate_cancel_job_v1({job}, true, true)",
        f"select procrastinate_finish_job_v1({job}, 'succeeded', true)",
        "select procjobs.register_tasks('[{\"name\": \"send\"}]', 'x')",
        f"select procjobs.archive_job({job}, 'succeeded', null)",
        "create table procjobs.mine ()",
    ):
        denied(sql, query)


def test_a_worker_runs_a_job_from_claim_to_end(
    sql: Sql, register: Callable[..., int], worker: Callable[..., Worker], acting: Callable[[str], None]
) -> None:
    register("send", SEND)
    acting("procjobs_worker")
    register("other")
    jobs = [sql.one("""select procjobs.defer('send', '{"to": "ann"}', lock => 'l')""") for _ in range(3)]
    running = worker("send", "other")
    for end in (running.finish, running.fail):
        (job,) = running.claim()
        assert end(job)
    sql("select * from procjobs.heartbeat(%s)", running.id)
    sql("select procjobs.upkeep()")
    sql("select procjobs.rescue_jobs()")
    sql("select procjobs.drain_worker(%s), procjobs.stop_worker(%s)", running.id, running.id)
    for query in (
        "select * from procrastinate_jobs",
        "select * from procjobs.jobs",
        f"select procjobs.cancel({jobs[2]})",
        "select procjobs.pause_queue('q')",
    ):
        denied(sql, query)


def test_a_reader_looks_and_changes_nothing(
    sql: Sql, register: Callable[..., int], acting: Callable[[str], None]
) -> None:
    register("send", None)
    job = sql.one("select procjobs.defer('send')")
    acting("procjobs_reader")
    for view in ("jobs", "batches", "dead_letters", "attempts", "actions", "queues", "workers", "tasks"):
        sql(f"select * from procjobs.{view}")
    for updatable in ("attempts", "actions", "tasks"):
        denied(sql, f"delete from procjobs.{updatable}")
    for call in (
        f"why_not_running({job})",
        f"job_timeline({job})",
        f"job_report({job})",
        "list_jobs()",
        "list_queues()",
        "list_workers()",
    ):
        assert sql(f"select * from procjobs.{call}") is not None
    for query in (
        "select procjobs.defer('send')",
        f"select procjobs.retry({job})",
        "select * from procjobs.notification_jobs",
    ):
        denied(sql, query)


def test_an_admin_acts_and_looks_and_enqueues(
    sql: Sql, register: Callable[..., int], acting: Callable[[str], None]
) -> None:
    register("send", None)
    acting("procjobs_admin")
    job = sql.one("select procjobs.defer('send', '{\"a\": 1}')")
    assert sql.one("select args from procjobs.jobs") == {"a": 1}
    assert sql.one("select procjobs.cancel(%s)", job) == "cancelled"
    assert sql.one("select procjobs.retry(%s)", job) is True
    assert sql.one("select procjobs.pause_queue('q')") is True
    assert sql.one("select procjobs.resume_queue('q')") is True
    sql("select * from procjobs.notification_jobs, procjobs.notification_delivery_logs")
    for query in (
        "select * from procrastinate_jobs",
        "delete from procjobs.job_history",
        "update procjobs.job_events set actor = 'x'",
    ):
        denied(sql, query)


def test_actions_name_the_user_who_logged_in_not_the_owner(sql: Sql, register: Callable[..., int], dsn: str) -> None:
    register("send", None)
    job = sql.one("select procjobs.defer('send')")
    sql("select procjobs.cancel(%s)", job)
    assert sql.one("select actor from procjobs.actions") == sql.one("select session_user::text") != "procjobs_owner"


# objects of the same name elsewhere


def test_objects_that_shadow_ours_or_the_catalogs_are_not_used(
    sql: Sql, register: Callable[..., int], worker: Callable[..., Worker]
) -> None:
    register("send", SEND)
    trap = "language plpgsql as $$ begin raise exception 'trapped in %', '{}'; end $$"
    for signature, result in (
        ("jsonb_typeof(jsonb)", "text"),
        ("jsonb_typeof(anyelement)", "text"),
        ("pg_notify(text, text)", "void"),
        ("statement_timestamp()", "timestamptz"),
        ("current_setting(text, boolean)", "text"),
        ("octet_length(text)", "integer"),
        ("array_remove(text[], text)", "text[]"),
        ("format(text, text)", "text"),
        ("length(text)", "integer"),
    ):
        for schema in ("public", "pg_temp"):
            sql(f"create function {schema}.{signature} returns {result} {trap.format(signature)}")
    for operator, function in (("=", "eq"), ("->>", "arrow")):
        sql(f"create function public.{function}(jsonb, text) returns text {trap.format(operator)}")
        sql(f"create operator public.{operator} (leftarg = jsonb, rightarg = text, function = public.{function})")
    for table in ("procrastinate_jobs", "tasks", "job_history", "pg_roles", "pg_class"):
        sql(f"create temporary table {table} (id text)")

    sql("set search_path = pg_temp, public, pg_catalog")
    job = sql.one("""select procjobs.defer('send', '{"to": "ann"}', unique_key => 'k', lock => 'l')""")
    sql("""select * from procjobs.defer_many('[{"task": "send", "args": {"to": "a"}, "tags": ["t"]}]')""")
    running = worker("send")
    assert job in running.claim()
    running.finish(job)
    assert sql.one("select procjobs.retry(%s)", job) is True
    sql("select procjobs.why_not_running(%s)", job)
    assert sql("select * from procjobs.list_jobs()")
    assert sql("select * from procjobs.job_timeline(%s)", job)
    assert sql.one("select procjobs.cancel(%s)", job) == "cancelled"
    sql("select procjobs.pause_queue('q'), procjobs.resume_queue('q')")
    sql("select procjobs.upkeep()")
    with pytest.raises(psycopg.Error, match="signature"):
        sql("insert into public.procrastinate_jobs (queue_name, task_name) values ('q', 'send')")
