-- Grants: what each role may call and see. What is not here, nobody but the owner may.
-- Owns:        the privileges of PUBLIC and of the five roles on everything of procjobs, and PUBLIC's on Procrastinate's objects.
-- Lock order:  none that anybody waits for; catalog rows only.
-- A role that could not be created (roles.sql says so) is passed over. Entry points run with their owner's rights; the few
-- helpers beside them are what the functions and views with the caller's rights need.

do $$
declare
  v_upstream text := (
    select n.nspname
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where c.oid = 'public.procrastinate_jobs'::regclass
  );
  v_role text;
  v_from text := 'public';
  v_object text;
begin
  foreach v_role in array '{procjobs_producer,procjobs_worker,procjobs_reader,procjobs_admin}'::text[] loop
    v_from := v_from || coalesce(', ' || to_regrole(v_role)::text, '');
  end loop;
  execute format('revoke all on schema procjobs from %s', v_from);
  execute format('revoke all on all tables in schema procjobs from %s', v_from);
  execute format('revoke all on all sequences in schema procjobs from %s', v_from);
  execute format('revoke all on all routines in schema procjobs from %s', v_from);

  for v_object in
    select format('%s %s', case c.relkind when 'S' then 'sequence' else 'table' end, c.oid::regclass)
    from pg_class c
    where c.relnamespace = to_regnamespace(quote_ident(v_upstream))
      and c.relname like 'procrastinate\_%'
      and c.relkind in ('r', 'S')
    union all
    select format('function %s', p.oid::regprocedure)
    from pg_proc p
    where p.pronamespace = to_regnamespace(quote_ident(v_upstream))
      and p.proname like 'procrastinate\_%'
    order by 1
  loop
    execute format('revoke all on %s from public', v_object);
    if to_regrole('procjobs_owner') is not null then
      execute format('grant all on %s to procjobs_owner', v_object);
    end if;
  end loop;
  -- Whoever migrates need not own the schema, and PUBLIC may use it as a rule.
  if to_regrole('procjobs_owner') is not null
    and (
      has_schema_privilege(v_upstream, 'usage with grant option')
      or not has_schema_privilege('procjobs_owner', v_upstream, 'usage')
    )
  then
    execute format('grant usage on schema %I to procjobs_owner', v_upstream);
  end if;
end
$$;

do $$
declare
  v_role text;
  v_names text[];
  v_object text;
  v_tables constant text[] := '{
    run_retention, count_retention, work_retention, cleanup_removed_team_members, cleanup_expired_sessions,
    cleanup_expired_email_verification_tokens, cleanup_expired_password_reset_tokens, expire_deliverables, cleanup_expired_invitations,
    cleanup_audit_logs, cleanup_logs, cleanup_old_jobs, process_job_queue, retry_failed_jobs,
    forget_ended_jobs, clean_table, table_policy, begin_cleaning, begin_as, find_due_rows, work_due_rows, clean_step, clean_pace,
    note_cleaning, progress, stopwatch, count_due_rows, expect_rows, say_referenced, end_cleaning, finish_cleaning, raise_cleaning, clock, wall_clock,
    find_table, table_leaves, time_column, assigned_values, due_rows, references_to, cleaning_statements, raise_policy
  }';
  v_cron constant text[] := '{
    cron_next, cron_preview, cron_slots, check_cron,
    cron_zone, cron_fields, cron_field, cron_item, cron_value, cron_bits, cron_first, cron_after, cron_again, cron_wall,
    cron_time, cron_days, cron_change, cron_mark, raise_invalid_cron, raise_invalid_zone, raise_cron_field, raise_cron_never
  }';
begin
  for v_role, v_names in values
    ('procjobs_producer', '{
      defer, defer_many, debounce, throttle, enqueue, enqueue_jobs, create_batch, seal_batch, enqueue_notification_job, enqueue_letter, check_arguments, job_status, clock, may_set_clock, time_set,
      enqueue_letters, queue_notification_email,
      enqueue_on_change, drop_enqueue_on_change, note_changed_row, enqueue_changed_row,
      change_setting, first_trigger_name, change_trigger_name, change_table_fault, change_trigger_fault, option_fault, raise_fault,
      job_result, job_outcome, await_job, progress
    }'),
    ('procjobs_worker', '{
      register_worker, register_tasks, heartbeat, drain_worker, stop_worker,
      claim_jobs, finish_jobs, settle_jobs, release_unknown, abort_requests,
      rescue_jobs, upkeep, promote_ready, ensure_history_partitions, delete_old_jobs,
      defer, defer_many, debounce, throttle, enqueue, enqueue_jobs, create_batch, seal_batch,
      enqueue_notification_job, enqueue_letter, check_arguments, job_status, clock, may_set_clock, time_set,
      defer_periodic, last_periodic, due_periodic, tick, tick_schedules, declare_schedules, apply_environment, register_scheduler,
      begin_delivery, begin_delivery_v2, leave_delivery, finish_delivery,
      enqueue_letters, queue_notification_email, create_digest_jobs, process_email_queue,
      report_progress, job_result, job_outcome, await_job, progress,
      report_outcome, begin_effect, end_effect, void_effect, notification_metrics,
      open_sql_job, close_sql_job, stop_sessions, sessions_to_stop, note_stop,
      run_sql_jobs, call_sql_procedure, open_session, close_session, leave_session, next_sql_job, end_sql_job, sql_problem, stopwatch,
      keep_time, hear_pg_cron, lost_sessions, note_last_words
    }'),
    ('procjobs_reader', '{
      doctor, doctor_server, doctor_pg_cron, doctor_horizon, doctor_logins, doctor_tables, doctor_fleet, explain_claim, claim_plans, say_span,
      list_breakers, breaker_limit,
      list_limits, list_batches, list_tasks, why_not_running, job_timeline, list_jobs, count_jobs, job_report, list_queues, list_workers, job_status,
      may_see_arguments, late_note, say_time, raise_job_not_found, clock, may_set_clock, time_set,
      list_table_policies, list_table_runs, policy_fault, find_table, time_column, assigned_values,
      list_retention, list_retention_passes, list_dead_groups, list_dead_letters, jobs_as_of, job_transitions,
      list_digest_schedules, list_digest_runs, why_no_digest, next_digest_at, digest_crons,
      preview_schedule, list_schedules, list_schedule_history, list_alerts, cron_timezone, schedule_hold,
      pg_cron_status, pg_cron_place, pg_cron_wanted, pg_cron_vacuum, pg_cron_prefix, pg_cron_facts_query, pg_cron_facts, pg_cron_findings, pg_cron_absence, wall_clock
    }'),
    ('procjobs_admin', '{
      register_sql_task, put_sql_task, find_routine, drop_sql_task, pg_cron_install, pg_cron_script, pg_cron_remove, pg_cron_removal,
      set_breaker, drop_breaker, open_breaker, close_breaker, resolve_delivery, set_delivery_policy, resolve_effect, set_failed_alert, list_unresolved, after_unknown,
      set_limit, drop_limit, set_queue, set_task, reset_task, pause_task, resume_task, edit_job, cancel_jobs, retry_jobs, discard_jobs,
      set_table_policy, drop_table_policy, store_table_policy, policy_rights, policy_warnings, check_policy_parses, check_may_become, may_become, policy_in_words,
      set_retry_rule, drop_retry_rule,
      create_digest_schedule, update_digest_schedule, delete_digest_schedule, create_digest_jobs, process_email_queue,
      set_retention, drop_retention, redrive, purge_dead_letters, cancel, retry, pause_queue, resume_queue,
      schedule, schedule_for, unschedule, pause_schedule, resume_schedule, run_now, backfill, set_schedule_group, set_cron_timezone,
      declare_schedules, tick, close_alert, set_backlog_alert
    }'),
    ('procjobs_producer', '{find_subscription, unsubscribe, resubscribe}'),
    ('procjobs_reader', '{list_suppressed_addresses}'),
    ('procjobs_reader', '{list_setting_changes, list_jobs_as_of, values_before_edits, kept_since}'),
    ('procjobs_admin', '{suppress_address, unsuppress_address}'),
    ('procjobs_worker', '{create_payment_reminders, create_event_reminders}'),
    ('procjobs_reader', '{list_reminders, list_reminder_steps}'),
    ('procjobs_admin', '{set_reminder_step, drop_reminder_step, create_payment_reminders, create_event_reminders}'),
    ('procjobs_worker', '{tell_alerts}'),
    ('procjobs_worker', '{create_daily_reports, generate_report}'),
    ('procjobs_admin', '{subscribe_report, unsubscribe_report, preview_report, create_daily_reports, generate_report}'),
    ('procjobs_admin', '{set_alert_recipient, drop_alert_recipient, tell_alerts, alert_kinds}'),
    ('procjobs_worker', '{tables_to_vacuum, note_vacuum, unreferenced_files}'),
    ('procjobs_producer', '{submit_notification, submit_invite, create_invite, create_invites, resend_invite, revoke_invite, peek_invite, accept_invite, invite_register_url}'),
    ('procjobs_worker', '{keep_letter_secret, process_pending_invites, expire_invites, send_invite}'),
    ('procjobs_reader', '{list_invites}'),
    ('procjobs_admin', '{process_pending_invites, expire_invites, send_invite}'),
    -- These act on the application's tables with their caller's rights: what they are made of is granted too.
    ('procjobs_worker', v_tables),
    ('procjobs_admin', v_tables),
    -- They read no table and run with their caller's rights: what they are made of is granted too.
    ('procjobs_producer', v_cron),
    ('procjobs_worker', v_cron),
    ('procjobs_reader', v_cron)
  loop
    continue when to_regrole(v_role) is null;
    execute format('grant usage on schema procjobs to %I', v_role);
    for v_object in
      select p.oid::regprocedure
      from pg_proc p
      where p.pronamespace = 'procjobs'::regnamespace
        and p.proname = any (v_names)
    loop
      execute format('grant execute on routine %s to %I', v_object, v_role);
    end loop;
  end loop;

  for v_role, v_names in values
    ('procjobs_producer', '{tasks}'),
    ('procjobs_reader', '{breaker_list, limit_use, task_policies, bulk_log, jobs, job_queue, all_jobs, batches, dead_letters, dead_letter_groups, retention, retention_passes, table_retention, table_retention_runs, retry_rules, attempts, actions, queues, workers, tasks, schedule_list, schedule_history, schedule_stats, schedule_group_list, schedulers, alerts}'),
    ('procjobs_reader', '{suppressions}'),
    ('procjobs_reader', '{setting_log}'),
    ('procjobs_admin', '{unsubscriptions}'),
    ('procjobs_admin', '{notification_jobs, notification_delivery_logs, unresolved_deliveries, delivery_policies, effects}'),
    ('procjobs_admin', '{digest_schedules, digest_runs, notification_email_queue}'),
    ('procjobs_reader', '{invites}'),
    ('procjobs_reader', '{reminders, reminder_steps}'),
    ('procjobs_admin', '{payment_reminders, event_reminders}'),
    ('procjobs_admin', '{alert_recipient_list, alert_letters}'),
    ('procjobs_admin', '{report_subscription_list, daily_reports}')
  loop
    continue when to_regrole(v_role) is null;
    for v_object in
      select c.oid::regclass
      from pg_class c
      where c.relnamespace = 'procjobs'::regnamespace
        and c.relkind in ('r', 'p', 'v')
        and c.relname = any (v_names)
    loop
      execute format('grant select on %s to %I', v_object, v_role);
    end loop;
  end loop;
end
$$;
