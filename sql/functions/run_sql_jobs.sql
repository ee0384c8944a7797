-- Running SQL jobs and keeping time from SQL: what pg_cron calls, or anybody.
-- Owns:        nothing of its own; calls sessions.sql, upkeep.sql and tick.
-- Lock order:  as those say; each step is a transaction.
-- Procedures that commit cannot have a SET clause: everything is qualified, and all that decides is in functions that have one.

create or replace procedure procjobs.call_sql_procedure(p_body text)
language plpgsql
as $$
begin
  -- EXECUTE of a CALL may not commit, a CALL of a procedure whose name is fixed may.
  execute pg_catalog.format('create or replace procedure pg_temp.procjobs_body() language plpgsql as %L', p_body);
  perform pg_catalog.set_config('procjobs.result', '', false);
  commit;
  call pg_temp.procjobs_body();
end
$$;
comment on procedure procjobs.call_sql_procedure(text) is
  'Runs the body that open_sql_job made for a procedure, which may commit. Its result is left in the setting procjobs.result.';

create or replace procedure procjobs.run_sql_jobs(max_seconds double precision default null, max_jobs integer default null)
language plpgsql
as $$
declare
  v_until double precision := procjobs.stopwatch() + max_seconds;
  v_left integer := max_jobs;
  v_name text := pg_catalog.current_setting('application_name');
  v_role text := pg_catalog.current_setting('role');
  v_session bigint;
  v_job record;
  v_result jsonb;
  v_problem jsonb;
  v_ended text;
  v_state text;
  v_message text;
  v_detail text;
  v_hint text;
  v_context text;
begin
  -- pg_cron's background workers have no application_name.
  v_session := procjobs.open_session(coalesce(nullif(v_name, ''), (
    select a.backend_type
    from pg_catalog.pg_stat_activity a
    where a.pid = pg_catalog.pg_backend_pid()
      and a.backend_type <> 'client backend'
  )));
  commit;

  while v_left is null or v_left > 0 loop
    select j.* into v_job from procjobs.next_sql_job(v_session) j;
    if not found then
      commit;
      exit when v_until is null or procjobs.stopwatch() >= v_until;
      perform pg_catalog.pg_sleep(greatest(least(0.5::double precision, v_until - procjobs.stopwatch()), 0::double precision));
      commit;
      continue;
    end if;
    perform pg_catalog.set_config('procjobs.job', pg_catalog.format('%s/%s', v_job.id, v_job.lease), false),
            pg_catalog.set_config('application_name', pg_catalog.left(pg_catalog.format('procjobs job %s %s', v_job.id, v_job.task), 63), false);
    commit;
    v_left := v_left - 1;
    v_result := null;
    v_problem := v_job.problem;

    if v_job.kind = 'procedure' then
      call procjobs.call_sql_procedure(v_job.statement);
      v_result := nullif(pg_catalog.current_setting('procjobs.result', true), '')::jsonb;
      perform pg_catalog.set_config('role', v_role, false);
    elsif v_job.kind = 'function' then
      begin
        perform pg_catalog.set_config('role', coalesce(v_job.run_as, v_role), false);
        execute v_job.statement into v_result;
        set constraints all immediate;
        perform pg_catalog.set_config('role', v_role, false);
      exception
        when others or query_canceled or assert_failure then
          get stacked diagnostics
            v_state = returned_sqlstate, v_message = message_text, v_detail = pg_exception_detail,
            v_hint = pg_exception_hint, v_context = pg_exception_context;
          v_problem := procjobs.sql_problem(v_state, v_message, v_detail, v_hint, v_context);
      end;
    end if;

    begin
      v_ended := procjobs.end_sql_job(v_session, v_job.id, v_job.lease, v_result, v_problem);
    exception
      when query_canceled then
        if v_problem ->> 'outcome' is distinct from 'stopped' then
          raise;
        end if;
        -- PostgreSQL signals a session that is cancelled twice, and the second may come only now.
        v_ended := procjobs.end_sql_job(v_session, v_job.id, v_job.lease, v_result, v_problem);
    end;
    if v_ended = 'stale' then
      rollback;  -- it was given to somebody else: what a function did here is not done
    end if;
    perform pg_catalog.set_config('procjobs.job', '', false), pg_catalog.set_config('application_name', v_name, false);
    commit;
    if v_ended = 'released' then
      raise exception 'job % was interrupted and waits again', v_job.id
        using errcode = 'query_canceled',
              detail = v_message,
              hint = 'Call procjobs.run_sql_jobs again to go on.';
    end if;
    exit when procjobs.stopwatch() >= v_until;
  end loop;

  perform procjobs.close_session(v_session);
  commit;
  perform procjobs.leave_session(v_session);
end
$$;
comment on procedure procjobs.run_sql_jobs(double precision, integer) is
  'Runs jobs of SQL tasks in this session, with no worker process: call procjobs.run_sql_jobs(). Ends when none is left; with max_seconds it goes on looking for so long; at most max_jobs. '
  'A function and the end of its job are one transaction. The error of a function ends its job, that of a procedure this call too. Not inside a transaction: it commits.';

create or replace function procjobs.sql_problem(p_state text, p_message text, p_detail text, p_hint text, p_context text)
returns jsonb
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object(
    'outcome', case when p_state = '57014' then 'stopped' else 'failed' end,
    'error_class', 'SQLSTATE ' || p_state,
    'error_message', concat_ws(E'\n', p_message, 'DETAIL: ' || nullif(p_detail, ''), 'HINT: ' || nullif(p_hint, '')),
    'traceback', p_context)
$$;
comment on function procjobs.sql_problem(text, text, text, text, text) is 'How a run ended that raised this error, for end_sql_job.';

create or replace procedure procjobs.keep_time(max_seconds double precision default null, by text default null)
language plpgsql
as $$
declare
  v_until double precision := procjobs.stopwatch() + max_seconds;
  v_by text := coalesce(by, nullif(pg_catalog.current_setting('application_name'), ''), session_user::text);
  v_slot double precision;
  v_due double precision;
begin
  loop
    begin
      select t.due_in into v_slot from procjobs.tick_schedules(v_by) t;
    exception
      when others then
        raise warning 'the tick failed: %', sqlerrm;  -- due jobs and dead workers are looked after in any case
    end;
    commit;
    perform procjobs.stop_sessions();
    commit;
    perform procjobs.hear_pg_cron();
    v_due := procjobs.upkeep();
    commit;
    exit when v_until is null or procjobs.stopwatch() >= v_until;
    perform pg_catalog.pg_sleep(greatest(
      least(1::double precision, v_slot, v_due, v_until - procjobs.stopwatch()), 0.05::double precision));
    commit;
  end loop;
end
$$;
comment on procedure procjobs.keep_time(double precision, text) is
  'Fires what is due of the schedules and does the upkeep: call procjobs.keep_time(). One round; with max_seconds rounds for so long, each when something is due, at least every second. '
  'by: who ticks, for the ledger. Any number may do it beside the workers, which all do the same. Not inside a transaction: it commits.';
